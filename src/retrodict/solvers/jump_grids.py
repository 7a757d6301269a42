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
    """Uniform in ``log(hide/keep)``, cut at +-span; a plan to the clean end steps there from the smallest time.

    The grid of Santos et al. (2023, section 5.1) for Blackout, where span = 15.
    """

    name = "log-odds"
    span: float = 15.0

    def times(self, path: Any, n: int, start: float, end: float) -> np.ndarray:
        if not isinstance(path, Discrete):
            raise InputError(f"grid 'log-odds' is for discrete processes, got {type(path).__name__}; use 'logsnr'")
        inner = n + 1 if end > 0 else n
        first = min(float(torch.logit(path.hide(start))), self.span)
        last = max(float(torch.logit(path.hide(end))), -self.span) if end > 0 else -self.span
        odds = torch.linspace(first, last, max(inner, 1), dtype=torch.float64)
        times = path.time_at(torch.sigmoid(odds)).numpy().copy()
        times[0] = start
        return np.append(times, 0.0) if end <= 0 else np.append(times[:-1], end)


grids.add("log-odds", value=LogOdds)
