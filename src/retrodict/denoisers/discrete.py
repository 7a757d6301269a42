"""Networks as beliefs about discrete states: class posteriors, mean counts, tokens by their embeddings.

A posterior over clean values may not contradict the state: a shown token is known (carry-over), a count never falls
below what is alive.  `Discrete.possible` says which values are left, and the softmax runs over those alone, in
float64: float32 would silently lower the temperature of what is drawn.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from retrodict.core.errors import InputError, InputTypeError, require
from retrodict.core.noise import Noise
from retrodict.denoisers.denoiser import Denoiser, Step, batch_time
from retrodict.denoisers.wrapped import Wrapped
from retrodict.kernels import Belief, Categorical
from retrodict.processes import Blackout, Discrete, GaussianPath


class _OfNetwork(Denoiser):
    """A denoiser around a network that may declare that it has no time input."""

    def __init__(
        self,
        network: nn.Module,
        process: Any,
        *,
        shape: tuple[int, ...] | None = None,
        conditions: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(process, shape, conditions)
        self.network = network

    _filled = Wrapped._filled

    @property
    def timeless(self) -> bool:
        """Whether equal states have equal beliefs, whatever the time."""
        return not getattr(self.network, "has_time", True)

    def _clock(self, t: Tensor) -> Tensor | None:
        return None if self.timeless else self.process.network_time(t).to(torch.float32)

    def forward(self, x: Tensor, t: float | Tensor, **condition: Any) -> Tensor:
        return self.belief(x, t, **condition).mean


class TokenDenoiser(_OfNetwork):
    """A token network as a class posterior.

    Args:
        network: called as ``network(tokens, time, **condition)``; returns logits ``(batch, L, vocabulary)``.
            If it has an attribute ``has_time`` that is False it is told no time (None).
        process: any `Discrete` process.
    """

    def logits(self, x: Tensor, t: Tensor, **condition: Any) -> Tensor:
        """Raw logits over the vocabulary."""
        return self.network(x, self._clock(t), **self._filled(x, condition))

    def belief(self, x: Tensor, t: float | Tensor, **condition: Any) -> Belief:
        process: Discrete = self.process  # type: ignore[assignment]
        x1 = condition.pop("x1", None)
        law, p = process.posterior(self.logits(x, batch_time(t, x), **condition), x, x1)
        return Belief(p, law=law, x1=x1)


class CountDenoiser(_OfNetwork):
    """A real network as the mean of clean counts: what is alive, and a positive number of units that are not.

        D(x, t) = x + scale softplus(F((x - centre_t) / scale, t)),    scale = (levels - 1)/4

    Args:
        network: called as ``network(state, time, **condition)``; returns the shape of the state, real.
        process: `Blackout`.

    Source: Santos et al. (2023), section 4, with states centred at half of the largest surviving count.
    """

    @property
    def unit(self) -> float:
        """A quarter of the largest count."""
        return (self.process.levels - 1) / 4  # type: ignore[attr-defined]

    def missing(self, x: Tensor, t: Tensor, **condition: Any) -> Tensor:
        """Mean number of units that are not alive at t, positive."""
        process: Blackout = self.process  # type: ignore[assignment]
        keep = process.keep(t).reshape(-1, *(1,) * (x.ndim - 1))
        seen = ((x - 2 * self.unit * keep) / self.unit).to(self.dtype)
        F = self.network(seen, self._clock(t), **self._filled(x, condition))
        if F.shape != x.shape:
            raise InputError(f"the network returned shape {tuple(F.shape)} for counts of shape {tuple(x.shape)}")
        return self.unit * nn.functional.softplus(F)

    def belief(self, x: Tensor, t: float | Tensor, **condition: Any) -> Belief:
        x1 = condition.pop("x1", None)
        missing = self.missing(x, batch_time(t, x), **condition).double()
        top = self.process.levels - 1  # type: ignore[attr-defined]
        return Belief((x + missing).clamp(max=top), x1=x1)


class EmbeddedDenoiser(_OfNetwork):
    """Tokens whose embeddings move on a Gaussian path, and a network that names the token.

    The state is real, ``(batch, L, d)``; the belief is a law over tokens, its mean the mean embedding and its draw the
    embedding of a drawn token, so that ``solver="step"`` with ``belief_as="sample"`` keeps the marginals at any step
    size where the mean does not (one reading of DiffS2UT, Zhu et al. 2023).  Samples are tokens: the nearest.

    Args:
        network: called as ``network(state, time, **condition)``; returns logits ``(batch, L, vocabulary)``.
        process: a scalar Gaussian path with one end.
        embeddings: ``(vocabulary, d)``, at unit scale.
    """

    def __init__(
        self,
        network: nn.Module,
        process: GaussianPath,
        embeddings: Any,
        *,
        length: int | None = None,
        conditions: dict[str, Any] | None = None,
    ) -> None:
        if not isinstance(process, GaussianPath) or not process.scalar or len(process.ends) == 2:
            raise InputTypeError(f"embeddings move on a scalar Gaussian path with one end, got {process!r}")
        table = torch.as_tensor(embeddings, dtype=torch.float32)
        good = table.ndim == 2 and len(table) >= 2 and bool(torch.isfinite(table).all())
        require(good, f"embeddings are finite, (vocabulary, d) with at least 2 tokens; got {tuple(table.shape)}")
        shape = None if length is None else (length, table.shape[1])
        super().__init__(network, process, shape=shape, conditions=conditions)
        self.scale = Embedding(table)

    def logits(self, x: Tensor, t: Tensor, **condition: Any) -> Tensor:
        """Raw logits over the vocabulary ``(batch, L, vocabulary)``."""
        return self.network(x, self._clock(t), **self._filled(x, condition))

    def belief(self, x: Tensor, t: float | Tensor, **condition: Any) -> Belief:
        table = self.scale.embeddings
        log_p = torch.log_softmax(self.logits(x, batch_time(t, x), **condition).double(), -1)
        mean = (log_p.exp() @ table.double()).to(x.dtype)

        def draw(noise: Noise) -> Tensor:
            return table[noise.categorical(log_p)].to(x.dtype)

        return Belief(mean, draw=draw)


class Embedding(nn.Module):
    """A map between tokens and their embeddings, as a denoiser's scale: ``inverse`` is the nearest token."""

    embeddings: Tensor

    def __init__(self, embeddings: Tensor) -> None:
        super().__init__()
        self.register_buffer("embeddings", embeddings)

    def forward(self, tokens: Tensor) -> Tensor:
        """Embeddings ``(..., d)`` of tokens."""
        return self.embeddings[tokens]

    def inverse(self, y: Tensor) -> Tensor:
        """The token nearest to each of ``(..., d)``."""
        table = self.embeddings.to(y)
        return ((table**2).sum(-1) - 2 * y @ table.T).argmin(-1)


class Sharpened(Denoiser):
    """A denoiser whose class posteriors are cooled, or cut to their nucleus; see `sharpened`."""

    def __init__(self, denoiser: Denoiser, temperature: float = 1.0, top_p: float = 1.0) -> None:
        check_sharpening(temperature, top_p)
        super().__init__(denoiser.process, denoiser.shape, denoiser.conditions)
        self.denoiser, self.cooling, self.top_p = denoiser, float(temperature), float(top_p)
        self.weighted, self.scale = denoiser.weighted, denoiser.scale

    @property
    def timeless(self) -> bool:
        return self.denoiser.timeless

    def belief(self, x: Tensor, t: float | Tensor, **condition: Any) -> Belief:
        return sharpened(self.denoiser.belief(x, t, **condition), self.cooling, self.top_p)

    def forward(self, x: Tensor, t: float | Tensor, **condition: Any) -> Tensor:
        return self.belief(x, t, **condition).mean

    def increment(self, step: Step) -> Tensor:
        return self.denoiser.increment(step)

    def final(self, step: Step) -> Tensor:
        return self.denoiser.final(step)


def sharpened(belief: Belief, temperature: float = 1.0, top_p: float = 1.0) -> Belief:
    """The belief with its class posteriors to the power 1/temperature, then cut to their nucleus, in float64.

    The nucleus is the smallest set of classes that holds at least ``top_p`` of the probability (Holtzman et al. 2020),
    renormalised; a known token stays known.  A joint draw that the belief may have had is lost.
    """
    if temperature == 1 and top_p == 1:
        return belief
    check_sharpening(temperature, top_p)
    if belief.law is None:
        raise InputError("temperature and top_p need a law over values; this denoiser gives a mean alone")
    log_p = torch.log_softmax(belief.law.log_p.double() / temperature, -1)
    if top_p < 1:
        ordered, order = log_p.sort(dim=-1, descending=True)
        before = ordered.exp().cumsum(-1) - ordered.exp()
        cut = torch.zeros_like(log_p, dtype=torch.bool).scatter(-1, order, before >= top_p)
        log_p = torch.log_softmax(log_p.masked_fill(cut, -torch.inf), -1)
    return Belief(log_p.exp(), law=Categorical(log_p), x1=belief.x1, log_h=belief.log_h, parts=belief.parts)


def check_sharpening(temperature: float, top_p: float) -> None:
    """Raise unless the temperature is positive and top_p a probability above 0."""
    require(temperature > 0, f"temperature is positive, got {temperature}; for the most likely value take 0.01")
    require(0 < top_p <= 1, f"top_p is a probability in (0, 1], got {top_p}")
