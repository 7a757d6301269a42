"""What processes on discrete states share: tokens, categories and counts, one coordinate independent of the next
given the ends.

Everything about one coordinate follows from its *forgotten share* ``hide(t)`` (the clock), its one-time likelihood
``q_t(x_t | x0 = v)`` as a function of the clean value v, and its forward rates.  With p the law believed of x0 given
x_t, the backward process

* jumps from x to y at rate ``Q_t[y, x] sum_v p(v) q_t(y|v) / q_t(x|v)``  (`Discrete.jumps`), and
* stays at x from t down to s with probability ``exp(-int exit) sum_v p(v) q_s(x|v) / q_t(x|v)`` (`Discrete.log_stay`),

both of them conditional expectations, so both are exact when p is (Bayes' rule for Markov chains).  The relative
entropy of two such jump processes is the evidence bound of every discrete process (`divergence`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from retrodict.core.errors import InputError, InputTypeError, near
from retrodict.kernels import Categorical, Kernel
from retrodict.processes.gaussian import as_time, derivative
from retrodict.processes.process import Process

_TINY = 1e-300

# the forgotten share 1 - keep, in a form that is accurate where it is small, and its inverse
_HIDE: dict[str, tuple[Callable[[Tensor, float], Tensor], Callable[[Tensor, float], Tensor]]] = {
    "linear": (lambda t, rate: t, lambda h, rate: h),
    "cosine": (lambda t, rate: torch.sin(t * math.pi / 2) ** 2, lambda h, rate: torch.asin(h.sqrt()) * 2 / math.pi),
    "exponential": (lambda t, rate: -torch.expm1(-rate * t), lambda h, rate: -torch.log1p(-h) / rate),
}


@dataclass(frozen=True)
class Jumps:
    """Rates of a jump process out of a state: ``rate (batch, *shape, m)`` to the states ``to`` of the same shape."""

    rate: Tensor
    to: Tensor


class Discrete(Process):
    """A process on finitely many values a coordinate.

    Args of every subclass:
        schedule: how the share ``keep(t) = 1 - hide(t)`` that survives falls: "linear" (1 - t), "cosine"
            (cos^2(pi t/2)), "exponential" (e^(-rate t)), or its values at even times from 0 to 1.
        rate: of the exponential schedule.

    Attributes:
        vocabulary: number of clean values; tokens are integers 0..vocabulary-1.
        classes: number of values of a noisy state, a mask included.
        timeless: whether the posterior of x0 given x_t is the same for every t, so that a network needs no time.
        grid: where in time plans evaluate by default.
    """

    state = "tokens"
    vocabulary: int
    timeless: bool = False
    grid: Any = "uniform"

    def __init__(self, vocabulary: int, schedule: str | Sequence[float], rate: float = 15.0) -> None:
        if isinstance(vocabulary, bool) or not isinstance(vocabulary, int) or vocabulary < 2:
            raise InputError(f"vocabulary is an integer of at least 2, got {vocabulary!r}")
        if not (math.isfinite(rate) and rate > 0):
            raise InputError(f"the rate of a schedule is positive, got {rate}")
        self.vocabulary, self.rate = vocabulary, float(rate)
        self.schedule = schedule if isinstance(schedule, str) else [float(v) for v in schedule]
        self._hide, self._unhide = _clock(self.schedule)

    @property
    def classes(self) -> int:
        """Number of values of a noisy state."""
        return self.vocabulary

    # -- the clock ------------------------------------------------------------------------------------------

    def hide(self, t: float | Tensor) -> Tensor:
        """Share that is forgotten at t, float64."""
        return self._hide(as_time(t), self.rate)

    def keep(self, t: float | Tensor) -> Tensor:
        """Share that survives at t, float64."""
        if self.schedule == "exponential":
            return torch.exp(-self.rate * as_time(t))
        return 1 - self.hide(t)

    def time_at(self, hide: float | Tensor) -> Tensor:
        """The time at which a share ``hide`` is forgotten, float64."""
        return self._unhide(as_time(hide), self.rate)

    def hazard(self, t: float | Tensor) -> Tensor:
        """``-d log keep / dt``, float64: the forward clock's speed."""
        t = as_time(t)
        return derivative(self.hide, t) / self.keep(t)

    def revival(self, t: float | Tensor) -> Tensor:
        """``hide'/hide``, float64: the rate at which what is forgotten comes back."""
        t = as_time(t)
        return derivative(self.hide, t) / self.hide(t)

    def passed(self, s: float | Tensor, t: float | Tensor) -> Tensor:
        """Forward clock from s to t, ``log keep(s) - log keep(t)``, float64; infinite where nothing survives."""
        return self.keep(s).log() - self.keep(t).log()

    def exchange(self, t: float | Tensor, s: float | Tensor, eta: float | Tensor) -> tuple[Tensor, Tensor]:
        """``(forget, revive)`` of a step from t to s: the probability that what survives at t is forgotten, and that
        what is forgotten at t comes back.

        ``forget`` is ``eta`` times the most that is admissible, ``min(1, hide_s / keep_t)``; ``revive`` is what then
        keeps the share of survivors equal to ``keep_s`` (Wang et al. 2025, eq. (6)).
        """
        check_eta(eta)
        hide_t, hide_s = self.hide(t), self.hide(s)
        keep_t = self.keep(t)
        # min(1, hide_s / keep_t) without dividing by keep_t = 0 at t = 1
        forget = eta * torch.where(keep_t > hide_s, hide_s / keep_t.clamp_min(_TINY), 1.0)
        revive = ((hide_t - hide_s + forget * keep_t) / hide_t.clamp_min(_TINY)).clamp(0, 1)  # rounding leaves [0, 1]
        return forget, revive

    # -- one coordinate -------------------------------------------------------------------------------------

    def log_likelihood(self, x_t: Tensor, t: float | Tensor, x1: Tensor | None = None) -> Tensor:
        """``log q_t(x_t | x0 = v)`` for every clean value v, ``(batch, *shape, vocabulary)`` float64."""
        raise NotImplementedError

    def possible(self, x_t: Tensor, x1: Tensor | None = None) -> Tensor | None:
        """Which clean values may have led to x_t at 0 < t < 1, ``(batch, *shape, vocabulary)``; None for all."""
        return None

    def posterior(self, logits: Tensor, x_t: Tensor, x1: Tensor | None = None) -> tuple[Categorical, Tensor]:
        """A network's logits ``(batch, *shape, vocabulary)`` as a law over the values that are left, and its
        probabilities; in float64, since float32 would silently lower the temperature of what is drawn."""
        possible, logits = self.possible(x_t, x1), logits.double()
        log_p = torch.log_softmax(logits if possible is None else logits.masked_fill(~possible, -torch.inf), -1)
        return Categorical(log_p), log_p.exp()

    def jumps(self, law: Categorical | Tensor, x_t: Tensor, t: float | Tensor, x1: Tensor | None = None) -> Jumps:
        """Backward rates out of x_t, per unit of t, when x0 follows ``law`` (for counts its mean will do)."""
        raise NotImplementedError

    def exit(self, x_t: Tensor, t: float | Tensor, s: float | Tensor, x1: Tensor | None = None) -> Tensor:
        """Forward exit rate of the value x_t, integrated from s to t, ``(batch, *shape)``."""
        raise NotImplementedError

    def prior_log_p(self) -> Tensor:
        """Law of a coordinate at t = 1 as ``(classes,)`` log-probabilities, where there is no known other end."""
        raise NotImplementedError

    # -- what follows ---------------------------------------------------------------------------------------

    def at_time(
        self, law: Categorical, x_t: Tensor, t: float | Tensor, s: float | Tensor, x1: Tensor | None = None
    ) -> tuple[Categorical, Tensor]:
        """The law of x0 if x_t is the state at s too, and ``log q_s(x)/q_t(x)`` of its coordinates ``(batch, *shape)``.

        Bayes' rule for one coordinate: ``p_s(v) ~ p_t(v) q_s(x|v) / q_t(x|v)``.
        """
        shift = self.log_likelihood(x_t, s, x1) - self.log_likelihood(x_t, t, x1).clamp_min(math.log(_TINY))
        joint = torch.where(law.log_p.isneginf(), -torch.inf, law.log_p + shift)
        mass = torch.logsumexp(joint, -1)
        return Categorical(joint - torch.where(mass.isneginf(), 0.0, mass).unsqueeze(-1)), mass

    def log_stay(
        self, law: Categorical, x_t: Tensor, t: float | Tensor, s: float | Tensor, x1: Tensor | None = None
    ) -> Tensor:
        """log probability that a coordinate does not jump from t back to s, ``(batch, *shape)``; at most 0."""
        stay = self.at_time(law, x_t, t, s, x1)[1] - self.exit(x_t, t, s, x1)
        return stay.clamp(max=0.0)

    def target(self, kind: str, x0: Tensor, x_t: Tensor, t: float | Tensor, **known: Tensor) -> Tensor:
        if kind != "data":
            raise InputError(f"discrete states have one target, 'data' (a class posterior); got {kind!r}")
        return x0

    def heads(self) -> list[tuple[str, str, int]]:
        return [("data", "cross-entropy", self.vocabulary)]

    def check(self, x: Tensor, what: str = "x0", noisy: bool = False) -> None:
        """Raise unless x holds this process' values; the first wrong one is named with its place.

        Args:
            noisy: whether the values of a noisy state, such as a mask, are allowed too.
        """
        top = self.classes if noisy else self.vocabulary
        name = "count" if self.state == "count" else "token"
        if not isinstance(x, Tensor):
            raise InputTypeError(f"{what} is a tensor of {name}s, got {type(x).__name__}")
        if x.is_floating_point():
            wrong = (x != x.round()).nonzero()
            if len(wrong):
                where = tuple(wrong[0].tolist())
                raise InputError(f"{name}s are integers; {what} has {float(x[where]):g} at {where}")
            raise InputError(f"{name}s are integers; {what} has dtype {x.dtype}: use .long()")
        wrong = ((x < 0) | (x >= top)).nonzero()
        if len(wrong):
            where = tuple(wrong[0].tolist())
            kind = "levels" if self.state == "count" else "vocabulary"
            raise InputError(f"{name} {int(x[where])} at {where} of {what} is outside the {kind} 0..{top - 1}")


def divergence(true: Tensor, model: Tensor) -> Tensor:
    """Relative entropy rate of two jump processes out of the same state: ``sum_y m - r log m + r log r - r``.

    Args:
        true, model: rates ``(..., m)`` to the same states.

    >>> float(divergence(torch.tensor([2.0, 0.0]), torch.tensor([2.0, 0.0])))
    0.0
    """
    return (model - true + torch.xlogy(true, true) - torch.xlogy(true, model.clamp_min(_TINY))).sum(-1)


def one_hot_law(x0: Tensor, classes: int) -> Categorical:
    """The point mass at x0 as a law, ``(..., classes)`` float64."""
    log_p = torch.full((*x0.shape, classes), -torch.inf, dtype=torch.float64, device=x0.device)
    return Categorical(log_p.scatter_(-1, x0.unsqueeze(-1), 0.0))


def leading(value: Tensor, ndim: int) -> Tensor:
    """A per-sample number against the leading axis of something with ``ndim`` axes."""
    return value.reshape(value.shape + (1,) * (ndim - value.ndim)) if value.ndim else value


def invert(p: Tensor, u: Tensor) -> Tensor:
    """Draw from probabilities ``(..., classes)`` by one uniform each ``(...)``."""
    return (u.unsqueeze(-1) >= p.cumsum(-1)[..., :-1]).sum(-1)


def check_eta(eta: float | Tensor) -> None:
    """Raise unless eta is a share."""
    inside = bool(((eta >= 0) & (eta <= 1)).all()) if isinstance(eta, Tensor) else 0 <= eta <= 1
    if not inside:
        raise InputError(f"eta is the share of admissible remasking, between 0 and 1; got {eta}")


def require_categorical(law: Any, kernel: Kernel) -> Categorical:
    """The law, if it is one over values."""
    if not isinstance(law, Categorical):
        raise InputTypeError(
            f"{type(kernel).__name__} pushes a law over values, got {type(law).__name__}; use belief_as='marginal'"
        )
    return law


def _clock(schedule: str | list[float]) -> tuple[Callable[[Tensor, float], Tensor], Callable[[Tensor, float], Tensor]]:
    """``(hide, its inverse)`` of a named schedule or of a table of surviving shares."""
    if isinstance(schedule, str):
        if schedule not in _HIDE:
            raise InputError(f"unknown schedule {schedule!r}; known: {', '.join(_HIDE)}.{near(schedule, _HIDE)}")
        return _HIDE[schedule]
    falls = all(a > b for a, b in zip(schedule, schedule[1:]))  # noqa: RUF007
    if len(schedule) < 2 or schedule[0] != 1 or schedule[-1] < 0 or not falls:
        raise InputError(
            "a schedule by values is the surviving share at even times from 0 to 1: it starts at 1 and falls "
            f"to 0 or more; got {schedule[:3]} ... {schedule[-1:]}"
        )
    table = 1 - torch.tensor(schedule, dtype=torch.float64)
    even = torch.linspace(0, 1, len(schedule), dtype=torch.float64)
    return (lambda t, rate: _interpolated(t, even, table)), (lambda h, rate: _interpolated(h, table, even))


def _interpolated(at: Tensor, nodes: Tensor, values: Tensor) -> Tensor:
    """Linear interpolation; differentiable in ``at``."""
    nodes, values = nodes.to(at.device), values.to(at.device)
    k = (torch.searchsorted(nodes, at.detach().contiguous(), right=True) - 1).clamp(0, len(nodes) - 2)
    share = (at - nodes[k]) / (nodes[k + 1] - nodes[k])
    return values[k] + share * (values[k + 1] - values[k])
