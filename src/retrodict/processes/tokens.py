"""Bridges between tokens: keep the clean token with probability keep(t), otherwise hold the other end.

``x_t = x0`` with probability ``keep(t)``, else ``x1``, independently at each position.  `TokenBridge` has a
paired source sequence as its other end (Igashov et al. 2024); `Masked` is the case in which the other end is the
mask token (Sahoo et al. 2024).  The bridge's free stochasticity is remasking (Wang et al. 2025, eq. (6)): a
revealed token returns to the other end with probability ``eta * min(1, (1 - keep_s)/keep_t)``.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from retrodict.core.errors import InputError, near
from retrodict.core.noise import Noise
from retrodict.kernels import Flip
from retrodict.processes.gaussian import as_time
from retrodict.processes.process import Process, processes

# the share hidden, 1 - keep, in a form that is accurate where it is small
_HIDE = {
    "linear": lambda t: t,
    "cosine": lambda t: torch.sin(t * math.pi / 2) ** 2,
}


@processes.register("token-bridge")
class TokenBridge(Process):
    """A bridge from a source sequence x1 (t = 1) to a target sequence x0 (t = 0).

    Args:
        vocabulary: number of tokens; states are integers 0..vocabulary-1.
        schedule: keep(t), "linear" or "cosine".
    """

    state = "tokens"
    ends = ("x0", "x1")

    def __init__(self, vocabulary: int, schedule: str = "linear") -> None:
        if not isinstance(vocabulary, int) or vocabulary < 2:
            raise InputError(f"vocabulary is an integer of at least 2, got {vocabulary!r}")
        if schedule not in _HIDE:
            raise InputError(f"unknown schedule {schedule!r}; known: {', '.join(_HIDE)}.{near(schedule, _HIDE)}")
        self.vocabulary, self.schedule = vocabulary, schedule

    @property
    def classes(self) -> int:
        """Size of the state space, the mask included where there is one."""
        return self.vocabulary

    def keep(self, t: float | Tensor) -> Tensor:
        """Probability that a position still shows x0, float64."""
        return 1 - self.hide(t)

    def hide(self, t: float | Tensor) -> Tensor:
        """Probability that a position holds the other end, float64."""
        return _HIDE[self.schedule](as_time(t))

    def other(self, like: Tensor, x1: Tensor | None) -> Tensor:
        """The other end, shaped as ``like``."""
        if x1 is None:
            raise InputError("a token bridge needs its source sequence: pass x1")
        return x1

    def corrupt(self, x0: Tensor, t: float | Tensor, noise: Noise | Tensor, x1: Tensor | None = None) -> Tensor:
        u = noise if isinstance(noise, Tensor) else noise.uniform(x0.shape[1:])
        keep = _leading(self.keep(t).to(u.device), x0.ndim)
        return torch.where(u < keep, x0, self.other(x0, x1))

    def target(self, kind: str, x0: Tensor, x_t: Tensor, t: float | Tensor, **known: Tensor) -> Tensor:
        if kind != "data":
            raise InputError(f"tokens have one target, 'data' (a class posterior); got {kind!r}")
        return x0

    def heads(self) -> list[tuple[str, str, int]]:
        return [("data", "cross-entropy", self.vocabulary)]

    def hidden(self, x_t: Tensor, x1: Tensor | None = None) -> Tensor:
        """Where x_t holds the other end, so that x0 is unknown."""
        return x_t == self.other(x_t, x1)

    def kernel(self, s: float | Tensor, t: float | Tensor, x1: Tensor | None = None) -> Flip:
        keep = self.keep(t) / self.keep(s)
        other = self.other(torch.zeros((), dtype=torch.long), x1)
        return Flip(_leading(keep, max(other.ndim, 1)) if keep.ndim else keep, other, self.classes)

    def bridge(self, x_t: Tensor, t: float | Tensor, s: float | Tensor, eta: float, x1: Tensor | None = None) -> Flip:
        if not 0 <= eta <= 1:
            raise InputError(f"eta is the share of admissible remasking, between 0 and 1; got {eta}")
        hide_t, hide_s = self.hide(t).to(x_t.device), self.hide(s).to(x_t.device)
        keep_t = 1 - hide_t
        # min(1, hide_s / keep_t) without dividing by keep_t = 0 at t = 1
        remask = eta * torch.where(keep_t > hide_s, hide_s / keep_t.clamp_min(1e-300), 1.0)
        reveal = ((hide_t - hide_s + remask * keep_t) / hide_t).clamp(0, 1)  # rounding leaves [0, 1]
        u = torch.where(self.hidden(x_t, x1), _leading(reveal, x_t.ndim), _leading(1 - remask, x_t.ndim))
        return Flip(u, self.other(x_t, x1), self.classes)

    def prior(self, shape: tuple[int, ...], noise: Noise, x1: Tensor | None = None) -> Tensor:
        like = torch.zeros((noise.batch, *shape), dtype=torch.long, device=noise.device)
        return self.other(like, x1).expand_as(like).clone()

    def config(self) -> dict[str, Any]:
        return {"name": self._registered, "vocabulary": self.vocabulary, "schedule": self.schedule}

    _registered = "token-bridge"


@processes.register("masked")
class Masked(TokenBridge):
    """Absorbing masks: the other end is the mask token, whose index is ``vocabulary``."""

    ends = ("x0",)
    _registered = "masked"

    @property
    def mask(self) -> int:
        """Index of the mask token."""
        return self.vocabulary

    @property
    def classes(self) -> int:
        return self.vocabulary + 1

    def other(self, like: Tensor, x1: Tensor | None) -> Tensor:
        return torch.full_like(like, self.mask)


def _leading(value: Tensor, ndim: int) -> Tensor:
    """A per-sample number against the leading axis of something with ``ndim`` axes."""
    return value.reshape(value.shape + (1,) * (ndim - value.ndim)) if value.ndim else value
