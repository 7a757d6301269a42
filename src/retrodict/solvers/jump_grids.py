"""Times for discrete processes: even steps in the log odds of having been forgotten."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from retrodict.core.errors import InputError
from retrodict.processes.discrete import Discrete
from retrodict.solvers.grids import Grid, grids


@dataclass(frozen=True)
class LogOdds(Grid):
    """Uniform in ``log(hide/keep)``, cut at +-span; the last time is the end itself.

    The grid of Santos et al. (2023, section 5.1) for Blackout, where span = 15.
    """

    name = "log-odds"
    span: float = 15.0

    def times(self, path: Any, n: int, start: float, end: float) -> np.ndarray:
        if not isinstance(path, Discrete):
            raise InputError(f"grid 'log-odds' is for discrete processes, got {type(path).__name__}; use 'logsnr'")
        first = min(float(torch.logit(path.hide(start))), self.span)
        last = max(float(torch.logit(path.hide(end))), -self.span) if end > 0 else -self.span
        times = path.time_at(torch.sigmoid(torch.linspace(first, last, n + 1, dtype=torch.float64))).numpy().copy()
        times[0], times[-1] = start, end
        return times


grids.add("log-odds", value=LogOdds)
