"""The exact posterior of a finite data set, under any process.

Given x_t the datum i has probability proportional to ``w_i kappa_t(x_t | x_i)``, with kappa the forward kernel from
the clean end; every posterior mean, marginal and draw follows.  The kernel is the process' own, so this works for
real states, tokens and counts alike, and tests every sampler and objective without training.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from retrodict.core.errors import InputError, require
from retrodict.core.lin import Lin
from retrodict.core.noise import KeyedNoise, Noise
from retrodict.denoisers.denoiser import Denoiser, batch_time
from retrodict.kernels import Belief, Categorical
from retrodict.processes import Discrete, Process

# the log probability of a token that no atom allows: far below any real one, yet comparable, so that a state off
# the support (parallel decoding leaves it) is explained by the atoms nearest in Hamming distance
_OFF_SUPPORT = -60.0


class Atoms:
    """A finite data set as a law.

    Args:
        data: ``(n, *shape)``, real or integer.
        weights: probabilities ``(n,)``; uniform if None.
        labels: a class for each datum; the denoiser then takes ``label=``.
        x1: the paired other ends ``(n, *shape)``, for paths with two ends.
    """

    def __init__(self, data: Any, weights: Any = None, labels: Any = None, x1: Any = None) -> None:
        self.data = torch.as_tensor(data)
        require(self.data.ndim >= 2, f"data have shape (n, *shape), got {tuple(self.data.shape)}")
        n = len(self.data)
        uniform = torch.full((n,), 1.0 / n, dtype=torch.float64)
        self.weights = uniform if weights is None else torch.as_tensor(weights, dtype=torch.float64)
        require(self.weights.shape == (n,), f"{n} atoms need as many weights, got {tuple(self.weights.shape)}")
        self.weights = self.weights / self.weights.sum()
        self.labels = None if labels is None else torch.as_tensor(labels, dtype=torch.long)
        self.x1 = None if x1 is None else torch.as_tensor(x1)

    def denoiser(self, process: Process) -> AtomsDenoiser:
        """The exact denoiser of ``process``."""
        return AtomsDenoiser(self, process)

    def entropy(self) -> float:
        """Entropy of the law in nats: the irreducible likelihood-weighted loss."""
        return float(-(self.weights * self.weights.log()).sum())

    def sample(self, n: int, seed: int = 0) -> Tensor:
        """n draws."""
        return self.data[KeyedNoise(seed, n).categorical(self.weights.log().expand(n, -1))]


class AtomsDenoiser(Denoiser):
    """The exact denoiser of a finite data set; made by `Atoms.denoiser`."""

    def __init__(self, law: Atoms, process: Process) -> None:
        classes = 0 if law.labels is None else int(law.labels.max()) + 1
        conditions: dict[str, Any] = {"label": classes} if classes else {}
        if len(process.ends) == 2:
            conditions["x1"] = None
        super().__init__(process, tuple(law.data.shape[1:]), conditions)
        if isinstance(process, Discrete):
            process.check(law.data, "the data")
            if law.x1 is not None:
                process.check(law.x1, "x1")
        self.law = law
        self.register_buffer("_anchor", torch.zeros((), dtype=torch.float64), persistent=False)

    def log_posterior(
        self, x: Tensor, t: float | Tensor, label: Tensor | int | None = None, x1: Tensor | None = None
    ) -> Tensor:
        """log p(atom | x_t), unnormalised, ``(batch, n)``."""
        law, t = self.law, batch_time(t, x)
        log_w = law.weights.to(x.device).log().expand(len(x), -1)
        if label is not None and law.labels is not None:
            log_w = log_w.masked_fill(~self._of_class(label, x), -torch.inf)
        return log_w + self._likelihood(x, t, x1)

    def _of_class(self, label: Tensor | int, x: Tensor) -> Tensor:
        null = self.conditions["label"]
        label = torch.as_tensor(label, device=x.device).expand(len(x))
        if bool(((label < 0) | (label > null)).any()):
            raise InputError(
                f"labels are 0..{null - 1}, or {null} for none; got {int(label.min())}..{int(label.max())}"
            )
        return (self.law.labels.to(x.device)[None] == label[:, None]) | (label[:, None] == null)  # type: ignore[union-attr]

    def _likelihood(self, x: Tensor, t: Tensor, x1: Tensor | None) -> Tensor:
        """log kappa_t(x | atom), ``(batch, n)``."""
        if isinstance(self.process, Discrete):
            return self._discrete_likelihood(self.process, x, t, x1)
        atoms = self.law.data.to(x.device)
        atoms = atoms.to(torch.float64)
        if self.law.x1 is not None:
            second = self.law.x1.to(x.device, torch.float64).unsqueeze(0)
        else:
            second = None if x1 is None else x1.double().unsqueeze(1)
        kernel = self.process.kernel(0.0, t.unsqueeze(1), x1=second)
        return kernel.log_prob(atoms.unsqueeze(0), x.double().unsqueeze(1), event=x.ndim - 1)

    def _discrete_likelihood(self, process: Discrete, x: Tensor, t: Tensor, x1: Tensor | None) -> Tensor:
        """Sum over coordinates; a coordinate that rules out an atom counts as far below any real probability."""
        sources = None if self.law.x1 is None else self.law.x1.to(x.device)
        if sources is None:
            return self._picked(process.log_likelihood(x, t, x1).clamp_min(_OFF_SUPPORT))
        n, (m, *shape) = len(x), sources.shape
        pairs = (x.unsqueeze(1).expand(n, m, *shape).flatten(0, 1), sources.expand(n, m, *shape).flatten(0, 1))
        table = process.log_likelihood(pairs[0], t.repeat_interleave(m), pairs[1]).clamp_min(_OFF_SUPPORT)
        own = self.law.data.to(x.device).expand(n, m, *shape).flatten(0, 1)
        likelihood = table.gather(-1, own.unsqueeze(-1)).squeeze(-1).reshape(n, m, -1).sum(-1)
        if x1 is None:
            return likelihood
        # a known source leaves the atoms that were paired with it, or those nearest to it
        return likelihood + _OFF_SUPPORT * (x1.unsqueeze(1) != sources).reshape(n, m, -1).sum(-1)

    def _picked(self, table: Tensor) -> Tensor:
        """Values of a table ``(batch, *shape, vocabulary)`` at every atom, summed over coordinates: ``(batch, n)``."""
        one_hot = torch.nn.functional.one_hot(self.law.data.to(table.device), table.shape[-1]).to(table)
        return table.flatten(1) @ one_hot.flatten(1).T

    def belief(self, x: Tensor, t: float | Tensor, **condition: Any) -> Belief:
        log_p = self.log_posterior(x, t, **condition)
        p = torch.softmax(log_p, -1)
        draw = lambda noise: self._draw(log_p, noise).to(x.dtype)  # noqa: E731
        x1 = condition.get("x1")
        if x1 is None and self.law.x1 is not None and not isinstance(self.process, Discrete):
            x1 = _average(p, self.law.x1.to(x.device)).to(x.dtype)
        if isinstance(self.process, Discrete):
            one_hot = torch.nn.functional.one_hot(self.law.data, self.process.vocabulary).to(p)
            marginal = _average(p, one_hot.to(x.device))
            return Belief(marginal, law=Categorical(marginal.log()), x1=x1, draw=draw)
        mean = _average(p, self.law.data.to(x.device, torch.float64))
        cov = (lambda: self._covariance(p, mean)) if x.ndim == 2 else None
        return Belief(mean.to(x.dtype), cov=cov, draw=draw, x1=x1)

    def _draw(self, log_p: Tensor, noise: Noise) -> Tensor:
        return self.law.data.to(log_p.device)[noise.categorical(log_p)]

    def _covariance(self, p: Tensor, mean: Tensor) -> Lin:
        centred = self.law.data.to(mean) - mean.unsqueeze(1)
        return Lin.dense(torch.einsum("bn,bni,bnj->bij", p, centred, centred))


def _average(p: Tensor, values: Tensor) -> Tensor:
    return torch.tensordot(p, values.to(p), dims=1)
