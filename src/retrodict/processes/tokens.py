"""Bridges between tokens: keep the clean token with probability keep(t), otherwise hold the other end.

``x_t = x0`` with probability ``keep(t)``, else ``x1``, independently at each position.  `TokenBridge` has a
paired source sequence as its other end (Igashov et al. 2024); `Masked` is the case in which the other end is the
mask token (Sahoo et al. 2024).  The bridge's free stochasticity is remasking (Wang et al. 2025, eq. (6)): a
revealed token returns to the other end with probability ``eta * min(1, (1 - keep_s)/keep_t)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from retrodict.core.errors import InputError
from retrodict.core.noise import Noise
from retrodict.kernels import Categorical, Flip
from retrodict.processes.discrete import Discrete, Jumps, leading
from retrodict.processes.process import processes


@processes.register("token-bridge")
class TokenBridge(Discrete):
    """A bridge from a source sequence x1 (t = 1) to a target sequence x0 (t = 0).

    Args:
        vocabulary: number of tokens; states are integers 0..vocabulary-1.
        schedule: keep(t), "linear" or "cosine", or its values at even times; see `Discrete`.
    """

    ends = ("x0", "x1")

    def __init__(self, vocabulary: int, schedule: str | Sequence[float] = "linear") -> None:
        super().__init__(vocabulary, schedule)

    def other(self, like: Tensor, x1: Tensor | None) -> Tensor:
        """The other end, shaped as ``like``."""
        if x1 is None:
            raise InputError("a token bridge needs its source sequence: pass x1")
        return x1

    def corrupt(self, x0: Tensor, t: float | Tensor, noise: Noise | Tensor, x1: Tensor | None = None) -> Tensor:
        u = noise if isinstance(noise, Tensor) else noise.uniform(x0.shape[1:])
        keep = leading(self.keep(t).to(u.device), x0.ndim)
        return torch.where(u < keep, x0, self.other(x0, x1))

    def hidden(self, x_t: Tensor, x1: Tensor | None = None) -> Tensor:
        """Where x_t holds the other end, so that x0 is unknown."""
        return x_t == self.other(x_t, x1)

    def kernel(self, s: float | Tensor, t: float | Tensor, x1: Tensor | None = None) -> Flip:
        keep = self.keep(t) / self.keep(s)
        other = self.other(torch.zeros((), dtype=torch.long), x1)
        return Flip(leading(keep, max(other.ndim, 2)), other, self.classes)  # states (batch, L) where t is a batch

    def bridge(
        self, x_t: Tensor, t: float | Tensor, s: float | Tensor, eta: float | Tensor, x1: Tensor | None = None
    ) -> Flip:
        forget, revive = (leading(v.to(x_t.device), x_t.ndim) for v in self.exchange(t, s, eta))
        keep = torch.where(self.hidden(x_t, x1), revive, 1 - forget)
        return Flip(keep, self.other(x_t, x1), self.classes, x_t.clamp(max=self.vocabulary - 1))

    def prior(self, shape: tuple[int, ...], noise: Noise, x1: Tensor | None = None) -> Tensor:
        like = torch.zeros((noise.batch, *shape), dtype=torch.long, device=noise.device)
        return self.other(like, x1).expand_as(like).clone()

    # -- one coordinate -------------------------------------------------------------------------------------

    def log_likelihood(self, x_t: Tensor, t: float | Tensor, x1: Tensor | None = None) -> Tensor:
        keep, hide = (leading(v.to(x_t.device), x_t.ndim).unsqueeze(-1) for v in (self.keep(t), self.hide(t)))
        return (keep * self._shows(x_t) + hide * self.hidden(x_t, x1).unsqueeze(-1)).log()

    def possible(self, x_t: Tensor, x1: Tensor | None = None) -> Tensor:
        return self.hidden(x_t, x1).unsqueeze(-1) | self._shows(x_t)

    def posterior(self, logits: Tensor, x_t: Tensor, x1: Tensor | None = None) -> tuple[Categorical, Tensor]:
        """A softmax where the token is hidden; a shown token is known (carry-over)."""
        hidden = self.hidden(x_t, x1)
        shown = x_t.clamp(max=self.vocabulary - 1).unsqueeze(-1)
        log_p = logits.new_full(logits.shape, -torch.inf, dtype=torch.float64).scatter_(-1, shown, 0.0)
        p = torch.zeros_like(log_p).scatter_(-1, shown, 1.0)
        rows = torch.log_softmax(logits[hidden].double(), -1)
        log_p[hidden], p[hidden] = rows, rows.exp()
        return Categorical(log_p), p

    def _shows(self, x_t: Tensor) -> Tensor:
        """Which clean value x_t shows, ``(batch, *shape, vocabulary)`` booleans."""
        return x_t.unsqueeze(-1) == torch.arange(self.vocabulary, device=x_t.device)

    def jumps(self, law: Categorical | Tensor, x_t: Tensor, t: float | Tensor, x1: Tensor | None = None) -> Jumps:
        """A hidden position is revealed at rate hide'/hide; one that holds x1 and keeps it does not jump."""
        assert isinstance(law, Categorical)
        rate = leading(self.revival(t).to(x_t.device), x_t.ndim).unsqueeze(-1) * law.log_p.exp()
        rate = torch.where(self.hidden(x_t, x1).unsqueeze(-1) & ~self._shows(x_t), rate, 0.0)
        return Jumps(rate, torch.arange(self.vocabulary, device=x_t.device).expand_as(rate))

    def exit(self, x_t: Tensor, t: float | Tensor, s: float | Tensor, x1: Tensor | None = None) -> Tensor:
        return torch.where(self.hidden(x_t, x1), 0.0, leading(self.passed(s, t).to(x_t.device), x_t.ndim))

    def prior_log_p(self) -> Tensor:
        raise InputError("a token bridge has no prior law: it starts from its source sequence")

    def config(self) -> dict[str, Any]:
        return {"name": self._registered, "vocabulary": self.vocabulary, "schedule": self.schedule}

    _registered = "token-bridge"


@processes.register("masked")
class Masked(TokenBridge):
    """Absorbing masks: the other end is the mask token, whose index is ``vocabulary``."""

    ends = ("x0",)
    timeless = True
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

    def at_time(
        self, law: Categorical, x_t: Tensor, t: float | Tensor, s: float | Tensor, x1: Tensor | None = None
    ) -> tuple[Categorical, Tensor]:
        """A mask says nothing of the time at which it was seen: the law is the same at s."""
        shown, masked = (leading((f(s) / f(t)).log().to(x_t.device), x_t.ndim) for f in (self.keep, self.hide))
        return law, torch.where(self.hidden(x_t), masked, shown)

    def prior_log_p(self) -> Tensor:
        log_p = torch.full((self.classes,), -torch.inf, dtype=torch.float64)
        log_p[self.mask] = 0.0
        return log_p
