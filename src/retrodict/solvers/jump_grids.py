"""Times for discrete processes: even steps of the share that has been forgotten, in its angle or its log odds.

Equal steps of the angle, ``hide = sin^2(a)``, are equally far apart as laws of "survived or not" (the metric of Fisher
and Rao), wherever they lie.  Log odds spend most of their steps where nothing, or everything, has been forgotten.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from retrodict.core.errors import InputError
from retrodict.processes.discrete import Discrete
from retrodict.solvers.grids import Grid, grids


@dataclass(frozen=True)
class Survival(Grid):
    """Uniform in the angle a of ``hide = sin^2(a)``."""

    name = "survival"

    def times(self, path: Any, n: int, start: float, end: float) -> np.ndarray:
        process = _discrete(self, path)
        first, last = (float(torch.atan2(process.hide(t).sqrt(), process.keep(t).sqrt())) for t in (start, end))
        return _between(process, torch.sin(torch.linspace(first, last, n + 1, dtype=torch.float64)) ** 2, start, end)


@dataclass(frozen=True)
class LogOdds(Grid):
    """Uniform in ``log(hide/keep)``, cut at +-span; the last time is the end itself.

    The grid of Santos et al. (2023, section 5.1) for Blackout, where span = 15.
    """

    name = "log-odds"
    span: float = 15.0

    def times(self, path: Any, n: int, start: float, end: float) -> np.ndarray:
        path = _discrete(self, path)
        first = min(float(torch.logit(path.hide(start))), self.span)
        last = max(float(torch.logit(path.hide(end))), -self.span) if end > 0 else -self.span
        return _between(path, torch.sigmoid(torch.linspace(first, last, n + 1, dtype=torch.float64)), start, end)


def _discrete(grid: Grid, path: Any) -> Discrete:
    if not isinstance(path, Discrete):
        raise InputError(f"grid {grid.name!r} is for discrete processes, got {type(path).__name__}; use 'logsnr'")
    return path


def _between(process: Discrete, hide: torch.Tensor, start: float, end: float) -> np.ndarray:
    """Times at which the shares ``hide`` are forgotten, the ends as they were given."""
    times = process.time_at(hide.clamp(max=1.0)).numpy().copy()
    times[0], times[-1] = start, end
    return times


grids.add("survival", value=Survival)
grids.add("log-odds", value=LogOdds)
