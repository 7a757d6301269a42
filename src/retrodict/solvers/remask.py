"""Remasking schedules: how much of what is already written a step takes back (Wang et al. 2025, section 4.1).

A step from t to s forgets a shown position with probability sigma and reveals hidden ones so that the share of shown
positions is keep(s) for every ``0 <= sigma <= sigma_max = min(1, hide_s/keep_t)``.  A schedule chooses sigma:

=================  ===================================================================================================
cap                min(amount, sigma_max)
rescale            amount sigma_max
switch             ``inner`` ("cap" or "rescale") below t = ``on``, none above
loop               down to keep = ``level`` without remasking, there sigma = amount while ``off < t <= on``, then on
forward-backward   (keep_s - keep_t)/keep_t, as much as one step reveals; at most sigma_max
conf               sigma_max softmax(-psi) over shown positions, psi the probability with which each was last revealed
=================  ===================================================================================================

All but the last keep the marginals of the process exactly, at any number of steps.  "conf" does not: how much is
forgotten depends on the state, while hidden positions are revealed as if nothing was.  The exact share of shown
positions falls short of keep(s); with two tokens by up to .46 at 16 steps (the tests measure it).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from retrodict.core.errors import InputError, InputTypeError, near, require
from retrodict.processes import Blackout, Process, TokenBridge
from retrodict.processes.discrete import Discrete

#: The published amounts.
AMOUNTS = {"cap": 0.008, "rescale": 0.015, "switch": 0.008, "loop": 0.02, "forward-backward": 1.0, "conf": 1.0}


@dataclass(frozen=True)
class Remask:
    """A remasking schedule (module docstring), for ``options={"remask": Remask("cap", 0.02)}`` of the solver "step".

    Args:
        schedule: "cap", "rescale", "switch", "loop", "forward-backward" or "conf".
        amount: how much, in [0, 1]; None is the published amount.
        on, off: times between which "loop" remasks; "switch" remasks below ``on``.
        level: share of shown positions at which "loop" stays.
        inner: the schedule that "switch" turns on.
    """

    schedule: str
    amount: float | None = None
    on: float = 0.55
    off: float = 0.05
    level: float = 0.9
    inner: str = "cap"

    def __post_init__(self) -> None:
        if self.schedule not in AMOUNTS:
            known = ", ".join(AMOUNTS)
            raise InputError(f"unknown remasking {self.schedule!r}; known: {known}.{near(self.schedule, AMOUNTS)}")
        require(self.amount is None or 0 <= self.amount <= 1, f"amount of remasking is in [0, 1], got {self.amount}")
        require(0 < self.off < self.on < 1, f"times need 0 < off < on < 1, got off={self.off} and on={self.on}")
        require(0 < self.level < 1, f"level is a share in (0, 1), got {self.level}")
        require(self.inner in ("cap", "rescale"), f"inner is 'cap' or 'rescale', got {self.inner!r}")

    @property
    def share(self) -> float:
        """The amount, the published one by default."""
        return AMOUNTS[self.schedule] if self.amount is None else float(self.amount)

    def times(self, process: Discrete, clock: np.ndarray) -> np.ndarray:
        """Times of the process at the plan's nominal times; "loop" has its own."""
        if self.schedule != "loop":
            return clock
        above = (1 - clock) * self.level / (1 - self.on)
        below = 1 - clock * (1 - self.level) / self.off
        keep = np.where(clock > self.on, above, np.where(clock >= self.off, self.level, below))
        return np.array([float(process.time_at(1 - k).clamp(max=1.0)) for k in keep])

    def eta(self, process: Discrete, t: float, s: float, clock: float) -> float:
        """The share of sigma_max that the step from t to s forgets; ``clock`` is the nominal time of t."""
        most = float(process.exchange(t, s, 1.0)[0])
        keep_t, keep_s = float(process.keep(t)), float(process.keep(s))
        if most == 0 or keep_t == 0:
            return 0.0
        schedule = self.schedule
        if schedule == "switch":
            if clock > self.on:
                return 0.0
            schedule = self.inner
        if schedule == "loop":
            return min(1.0, self.share / most) if t == s else 0.0
        if schedule == "cap":
            return min(1.0, self.share / most)
        if schedule == "forward-backward":
            return min(1.0, self.share * (keep_s - keep_t) / keep_t / most)
        return self.share

    def config(self) -> dict[str, Any]:
        """Plain values, from which `as_remask` rebuilds it."""
        return asdict(self)


def as_remask(what: Any, process: Process) -> Remask | None:
    """A schedule from itself, its name or its configuration; checked against the process."""
    if what is None:
        return None
    made = Remask(**what) if isinstance(what, dict) else Remask(what) if isinstance(what, str) else what
    if not isinstance(made, Remask):
        raise InputTypeError(f"remask is a Remask, a name or None, got {type(what).__name__}")
    able = TokenBridge if made.schedule == "conf" else (TokenBridge, Blackout)
    if not isinstance(process, able):
        raise InputError(
            f"remasking {made.schedule!r} needs masks or a token bridge (all but 'conf' also take Blackout), got "
            f"{type(process).__name__}; elsewhere eta= is the share of fresh noise"
        )
    return made
