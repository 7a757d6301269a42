"""The learning rate as a function of the step: a linear warm-up, then a decay to zero.

rate(k) = base * min(1, (k + 1) / warmup) * decay((k - warmup) / (steps - warmup))
"""

from __future__ import annotations

import math
from collections.abc import Callable

from retrodict.core.errors import InputError
from retrodict.core.registry import Registry

DECAYS: Registry[Callable[[float], float]] = Registry("learning-rate decay")
DECAYS.add("constant", value=lambda u: 1.0)
DECAYS.add("linear", value=lambda u: 1.0 - u)
DECAYS.add("cosine", value=lambda u: 0.5 * (1.0 + math.cos(math.pi * u)))


class RateCurve:
    """``curve(step)`` is the factor on the base learning rate, for step = 0 .. steps - 1.

    Args:
        steps: length of the run.
        warmup: steps of linear warm-up; None takes a twentieth of the run, at most 500.
        decay: "cosine", "linear" or "constant" after the warm-up.
    """

    def __init__(self, steps: int, warmup: int | None = None, decay: str = "cosine") -> None:
        self.decay = DECAYS[decay]
        self.steps = steps
        self.warmup = min(500, steps // 20) if warmup is None else warmup
        if not 0 <= self.warmup <= steps:
            raise InputError(f"warmup={warmup}; accepted: 0 to steps={steps}, or None for a twentieth of the run")

    def __call__(self, step: int) -> float:
        if step < self.warmup:
            return (step + 1) / self.warmup
        return self.decay((step - self.warmup) / max(1, self.steps - self.warmup))
