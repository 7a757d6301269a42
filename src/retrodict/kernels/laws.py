"""Laws are pushed forward, messages are pulled back, and a belief is what a denoiser holds.

* `Gaussian`, `Point`, `Categorical`: probability laws over a batch of states; ``a | b`` is the law of two
  independent states side by side.
* `Quadratic`: a message ``log h(x) = c + F.x - x.Hx/2`` with H positive semi-definite, perhaps singular.
* `Table`: a message over finitely many states.
* `Belief`: the posterior law of the clean end given a noisy state, from one network call.

Every message carries its log constant: summed over a chain it is the evidence.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from retrodict.core.errors import InputError
from retrodict.core.lin import Lin
from retrodict.core.noise import Noise
from retrodict.kernels.checks import Space, as_covariance, check_stochastic, real_tensor
from retrodict.kernels.roots import covariance_root

_LOG_2PI = math.log(2 * math.pi)


def event_size(x: Tensor) -> int:
    """Elements of one batch element of ``x (batch, *event)``."""
    return math.prod(x.shape[1:])


def event_sum(x: Tensor, event: int | None = None) -> Tensor:
    """Sum over the last ``event`` axes; by default over all but the first."""
    event = x.ndim - 1 if event is None else event
    return x.flatten(x.ndim - event).sum(-1) if event else x


class Law:
    """A probability law over a batch of states."""

    def __or__(self, other: Law) -> Law:
        from retrodict.kernels.parallel import beside_laws

        return beside_laws(self, other)


@dataclass(frozen=True, init=False)
class Gaussian(Law):
    """N(mean, covariance).

    Args:
        mean: ``(batch, *event)``; with a covariance that is a number or a matrix also ``(d,)`` or a number, which
            become a batch of one.
        covariance: a matrix ``(d, d)`` or ``(batch, d, d)``, a number times the identity, or a `Lin`; zero is a
            point mass.  Numbers and matrices are checked to be positive semi-definite.
    """

    mean: Tensor
    cov: Lin

    def __init__(self, mean: Tensor | Sequence[float] | float, covariance: Lin | Tensor | float) -> None:
        mean = real_tensor(mean, "mean")
        if not isinstance(covariance, Lin):  # written by hand: a vector is one state
            mean = mean.reshape(1, -1) if mean.ndim < 2 else mean
        cov = as_covariance(covariance)
        if cov.kind == "dense" and cov.value.shape[-1] != mean.shape[-1]:
            raise InputError(
                f"a Gaussian's mean has {mean.shape[-1]} coordinates and its covariance {tuple(cov.value.shape)};"
                " they must agree"
            )
        object.__setattr__(self, "mean", mean)
        object.__setattr__(self, "cov", cov)

    @property
    def space(self) -> Space | None:
        """What the states are."""
        return Space("real", self.mean.shape[-1]) if self.mean.ndim == 2 else None

    @property
    def covariance(self) -> Tensor:
        """The covariance of a law of vectors as matrices ``(batch or 1, d, d)``."""
        if self.mean.ndim != 2:
            raise InputError(f"states of shape {tuple(self.mean.shape[1:])} have no covariance matrix; use .cov, a Lin")
        eye = Lin.dense(torch.eye(self.mean.shape[-1], dtype=self.cov.value.dtype, device=self.cov.value.device))
        value = (self.cov @ eye).value
        return value if value.ndim == 3 else value.unsqueeze(0)

    def sample(self, noise: Noise) -> Tensor:
        """One draw a batch element."""
        z = noise.normal(self.mean.shape[1:]).to(self.mean)
        return self.mean + covariance_root(self.cov).to(self.mean.dtype).mv(z)

    def log_prob(self, x: Tensor, event: int | None = None) -> Tensor:
        """log N(x; mean, cov) in float64, over the last ``event`` axes (default: all but the first)."""
        difference = (x - self.mean).double()
        event = difference.ndim - 1 if event is None else event
        size = math.prod(difference.shape[difference.ndim - event :])
        cov = self.cov.to(torch.float64)
        quadratic = event_sum(difference * cov.solve(difference), event)
        logdet = cov.logdet(size)
        logdet = logdet.reshape(logdet.shape + (1,) * max(0, quadratic.ndim - logdet.ndim))
        return -0.5 * (quadratic + logdet + size * _LOG_2PI)

    def fuse(self, h: Quadratic) -> tuple[Gaussian, Tensor]:
        """Bayes: the posterior under the message ``h``, and the log evidence ``(batch,)``."""
        gain = (self.cov @ h.H + _eye_like(self.cov, h.H)).inv()  # (I + V H)^-1
        post = Gaussian(gain.mv(self.mean + self.cov.mv(h.F)), (gain @ self.cov).symmetric())
        return post, h.integrate(self)


def Point(x: Tensor) -> Gaussian:
    """A point mass at ``x``."""
    return Gaussian(x, Lin.scalar(torch.zeros((), dtype=x.dtype, device=x.device)))


@dataclass(frozen=True)
class Categorical(Law):
    """A law over finitely many states a coordinate: ``log_p (batch, ..., states)``, normalised."""

    log_p: Tensor

    @staticmethod
    def of(p: Tensor) -> Categorical:
        """From probabilities ``(..., states)``; a vector becomes a batch of one."""
        p = real_tensor(p, "probabilities")
        check_stochastic(p if p.ndim > 1 else p.unsqueeze(0), "law over states")
        return Categorical((p if p.ndim > 1 else p.unsqueeze(0)).log())

    @property
    def space(self) -> Space:
        """What the states are."""
        return Space("states", self.log_p.shape[-1])

    def sample(self, noise: Noise) -> Tensor:
        return noise.categorical(self.log_p)

    def log_prob(self, x: Tensor, event: int | None = None) -> Tensor:
        return event_sum(entries(self.log_p, x), event)

    def fuse(self, h: Table) -> tuple[Categorical, Tensor]:
        joint = self.log_p + h.log_h
        evidence = torch.logsumexp(joint, -1)
        return Categorical(joint - evidence.unsqueeze(-1)), event_sum(evidence)


def entries(table: Tensor, x: Tensor) -> Tensor:
    """``table[..., x]`` for ``table (..., states)`` and integers ``x (...)``; leading axes broadcast."""
    shape = torch.broadcast_shapes(table.shape[:-1], x.shape)
    return table.expand(*shape, table.shape[-1]).gather(-1, x.expand(shape).unsqueeze(-1)).squeeze(-1)


@dataclass(frozen=True)
class Quadratic:
    """The message ``log h(x) = c + F.x - x.Hx/2``: H a `Lin`, F ``(batch, *event)``, c ``(batch,)``."""

    H: Lin
    F: Tensor
    c: Tensor

    @property
    def space(self) -> Space | None:
        """What the states are."""
        return Space("real", self.F.shape[-1]) if self.F.ndim == 2 else None

    def __call__(self, x: Tensor) -> Tensor:
        return self.c + event_sum(self.F * x) - 0.5 * event_sum(x * self.H.mv(x))

    def fuse(self, other: Quadratic) -> Quadratic:
        """The product of two messages: natural parameters add."""
        return Quadratic(self.H + other.H, self.F + other.F, self.c + other.c)

    def integrate(self, law: Gaussian) -> Tensor:
        """log of the integral of h against a Gaussian law, ``(batch,)``; neither H nor the covariance is inverted."""
        m, V = law.mean, law.cov
        inner = V @ self.H + _eye_like(V, self.H)  # I + V H has the determinant of I + H V
        u = self.F - self.H.mv(m)
        linear = event_sum(self.F * m) - 0.5 * event_sum(m * self.H.mv(m))
        gain = 0.5 * event_sum(u * inner.solve(V.mv(u)))  # V (I + H V)^-1 = (I + V H)^-1 V
        return self.c + linear + gain - 0.5 * inner.logdet(event_size(self.F))

    @staticmethod
    def observe(y: Tensor, operator: Lin, cov: Lin) -> Quadratic:
        """The likelihood of ``y = operator x + N(0, cov)`` as a message about x; NaN coordinates are missing.

        A missing coordinate contributes exactly nothing: its rows and columns leave cov before the inverse.
        """
        seen = ~torch.isnan(y)
        if bool(seen.all()):
            precision, missing = cov.inv(), 0
        else:
            keep = seen.to(y.dtype)
            if cov.kind == "dense":
                block = cov.value * keep.unsqueeze(-1) * keep.unsqueeze(-2) + torch.diag_embed(1 - keep)
                precision = Lin.dense(torch.linalg.inv(block) * keep.unsqueeze(-1) * keep.unsqueeze(-2))
                cov = Lin.dense(block)
            elif cov.kind == "spectral":
                raise InputError("coordinates are missing from y, and a spectral covariance mixes them; give a matrix")
            else:
                event = y.ndim - 1
                variance = torch.where(seen, cov.mv(torch.ones_like(y)), torch.ones_like(y))
                precision, cov = Lin.diagonal(keep / variance, event), Lin.diagonal(variance, event)
            y = torch.where(seen, y, torch.zeros_like(y))
            missing = event_sum((~seen).to(y.dtype))
        weighted = precision.mv(y)
        c = -0.5 * (event_sum(y * weighted) + cov.logdet(event_size(y)) + event_size(y) * _LOG_2PI)
        c = c + 0.5 * _LOG_2PI * missing
        return Quadratic((operator.T @ precision @ operator).symmetric(), operator.T.mv(weighted), c)

    @staticmethod
    def flat(like: Tensor) -> Quadratic:
        """The message 1 about a state shaped as ``like (batch, *event)``."""
        zero = torch.zeros((), dtype=like.dtype, device=like.device)
        return Quadratic(Lin.scalar(zero), torch.zeros_like(like), like.new_zeros(like.shape[0]))


@dataclass(frozen=True)
class Table:
    """A message over finitely many states: ``log_h (batch, ..., states)``."""

    log_h: Tensor

    @property
    def space(self) -> Space:
        """What the states are."""
        return Space("states", self.log_h.shape[-1])

    def __call__(self, x: Tensor) -> Tensor:
        return event_sum(entries(self.log_h, x))

    def fuse(self, other: Table) -> Table:
        return Table(self.log_h + other.log_h)


@dataclass
class Belief:
    """What is believed of the clean end, given a noisy state: more than a mean, from one network call.

    Attributes:
        mean: posterior mean ``(batch, *shape)``; for tokens the marginals ``(batch, *shape, classes)``.
        law: `Categorical` per coordinate, for discrete states.
        x1: the mean of the second end of a two-ended path, or its known value.
        cov: posterior covariance as a `Lin`, or a callable that makes it when asked.
        draw: ``noise -> x0``, a joint draw from the posterior, where one is to be had.
        base: the mean without steering; equals ``mean`` unless a potential bent it.
        log_h: the log potential at this state ``(batch,)``, if the denoiser carries one.
        parts: ``[(weight, belief)]`` of a product of denoisers.
    """

    mean: Tensor
    law: Categorical | None = None
    x1: Tensor | None = None
    cov: Lin | Callable[[], Lin] | None = None
    draw: Callable[[Noise], Tensor] | None = None
    base: Tensor | None = None
    log_h: Tensor | None = None
    parts: list[tuple[float, Belief]] = field(default_factory=list)

    @property
    def unsteered(self) -> Tensor:
        """The mean without any potential's shift."""
        return self.mean if self.base is None else self.base

    def covariance(self) -> Lin:
        """The posterior covariance; raises where the denoiser offers none."""
        if self.cov is None:
            raise InputError("this denoiser offers no posterior covariance; use an oracle, or belief_as='mean'")
        return self.cov if isinstance(self.cov, Lin) else self.cov()  # a Lin is itself callable

    def as_(self, how: str, noise: Noise) -> Gaussian | Categorical:
        """The belief as a law to push through a bridge: "mean", "gaussian", "marginal" or "sample"."""
        if how == "mean" and self.law is None:
            return Point(self.mean)
        if how in ("mean", "marginal") and self.law is not None:
            return self.law
        if how == "gaussian":
            return Gaussian(self.mean, self.covariance())
        if how == "sample":
            return self._sampled(noise)
        raise InputError(f"belief_as is 'mean', 'gaussian', 'marginal' or 'sample', got {how!r}")

    def _sampled(self, noise: Noise) -> Gaussian | Categorical:
        if self.draw is not None:
            x0 = self.draw(noise)
        elif self.law is not None:
            x0 = self.law.sample(noise)
        else:
            x0 = Gaussian(self.mean, self.covariance()).sample(noise)
        if self.law is None:
            return Point(x0)
        one_hot = torch.nn.functional.one_hot(x0.long(), self.law.log_p.shape[-1])
        return Categorical(one_hot.to(self.mean).log())

    def take(self, index: Tensor) -> Belief:
        """The beliefs of the slots ``index`` (after a resampling)."""
        pick = lambda v: v if v is None else v[index]  # noqa: E731
        return replace(
            self,
            mean=self.mean[index],
            law=None if self.law is None else Categorical(self.law.log_p[index]),
            x1=pick(self.x1),
            cov=self._take_cov(index),
            draw=None,
            base=pick(self.base),
            log_h=pick(self.log_h),
            parts=[(w, part.take(index)) for w, part in self.parts],
        )

    def _take_cov(self, index: Tensor) -> Lin | Callable[[], Lin] | None:
        if self.cov is None:
            return None
        cov = self.covariance
        return lambda: _take_lin(cov(), index)


def _take_lin(a: Lin, index: Tensor) -> Lin:
    batch = a.value.ndim - (2 if a.kind == "dense" else a.event)
    return a if batch == 0 else Lin(a.value[index], a.kind, a.event)


def _eye_like(a: Lin, b: Lin) -> Lin:
    """The identity, as a scalar map of the dtype of ``a``."""
    value = a.value if a.kind == "dense" else b.value
    return Lin.scalar(torch.ones((), dtype=value.dtype, device=value.device))
