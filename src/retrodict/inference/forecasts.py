"""Forecasting as filtering: the law at the last observation is the prior of a model that sees nothing more."""

from __future__ import annotations

import copy
from typing import Any

import torch

from retrodict.core.errors import InputError, require
from retrodict.inference.models import StateSpace
from retrodict.inference.observed import Observed
from retrodict.inference.transitions import Listed


def forecast_data(model: StateSpace, data: Observed, law: Any, times: Any) -> tuple[StateSpace, Observed]:
    """The model started at ``law``, and data with the last time of each series and then blanks at ``times``.

    Args:
        law: of the state at the last observation of each series, batched ``(S, ...)``.
        times: ``(h,)`` numbers or dates, or an integer: so many unit steps.
    """
    if isinstance(model.transition, Listed):
        raise InputError("the transition is a list of kernels, one for each step of the data; it has none beyond them")
    last = data.times[torch.arange(len(data)), data.lengths - 1]
    if isinstance(times, int):
        require(times > 0, f"forecast of {times} steps; give 1 or more, or times")
        ahead = last[:, None] + torch.arange(1, times + 1, dtype=torch.float64)
    else:
        numbers = torch.as_tensor(data.axis.numbers(times), dtype=torch.float64)
        require(numbers.ndim == 1 and len(numbers) > 0, "times of a forecast are (h,), one or more")
        ahead = numbers.expand(len(data), -1)
        late = last[:, None] > ahead
        if bool(late.any()):
            s, k = (int(i) for i in late.nonzero()[0])
            raise InputError(
                f"forecast time {float(ahead[s, k]):g} lies before the last observation of series {s}, at "
                f"{float(last[s]):g}; earlier laws are in smooth()"
            )
    grid = torch.cat([last[:, None], ahead], 1)
    shape = (*grid.shape, *data.y.shape[2:])
    blank = torch.full(shape, -1) if data.categories else torch.full(shape, float("nan"), dtype=torch.float64)
    later = copy.copy(data)
    later.y, later.times, later.layouts = blank, grid, {}
    later.lengths = torch.full((len(data),), grid.shape[1])
    start = copy.copy(model)
    start.given = (law, *model.given[1:])
    start.prior, start.t0 = law, None
    return start, later
