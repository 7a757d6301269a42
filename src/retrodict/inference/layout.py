"""Where observations lie among the nodes of a model: distinct times, ``t0``, and the unit steps between.

Depends on the times alone, so it is worked out once for each `Observed` and kept there.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from retrodict.core.errors import InputError, require
from retrodict.inference.observed import Observed

_WHOLE = 1e-6  # times this close to whole steps count as whole
_MOST_NODES = 50_000_000


@dataclass(frozen=True)
class Layout:
    """Nodes 0..n of S series and the N observations at them.

    Attributes:
        times: ``(S, n+1)``; padding repeats the last time.
        real: ``(S, n+1)``, False at padding.
        at: ``(S, N)``, the node of each observation; -1 at padding.
        start, end: ``(S, n)``: the times of each step (of some real step, at padding).
        plain: whether observation j is node j in every series.
    """

    times: Tensor
    real: Tensor
    at: Tensor
    start: Tensor
    end: Tensor
    plain: bool

    @cached_property
    def slots(self) -> Tensor:
        """``(S, n+1, r)``: numbers of the observations at each node, -1 where there are fewer than r."""
        S, N = self.at.shape
        index = torch.arange(N).expand(S, N)
        if self.plain:
            return torch.where(self.at >= 0, index, -1).unsqueeze(-1)
        # observations at one node are neighbours: count within each run
        new = torch.cat([torch.ones(S, 1, dtype=torch.bool), self.at.diff(dim=1) != 0], 1)
        rank = index - torch.where(new, index, 0).cummax(1).values
        slots = torch.full((S, self.times.shape[1], int(rank[self.at >= 0].max()) + 1), -1)
        s, j = (self.at >= 0).nonzero(as_tuple=True)
        slots[s, self.at[s, j], rank[s, j]] = j
        return slots


def layout_of(data: Observed, t0: float | None, unit: bool) -> Layout:
    """The layout of data for a model with its prior at ``t0`` and, if ``unit``, steps of unit length."""
    key = (t0, unit)
    if key not in data.layouts:
        data.layouts[key] = _layout(data, t0, unit)
    return data.layouts[key]


def _layout(data: Observed, t0: float | None, unit: bool) -> Layout:
    gaps = data.times.diff(dim=1)
    increasing = bool((gaps > 0).all())  # false for NaN, which is padding
    if t0 is None and increasing and (not unit or bool((gaps == 1).all())):
        at = torch.arange(data.times.shape[1]).expand(len(data), -1)
        real = torch.ones_like(at, dtype=torch.bool)
        return Layout(data.times, real, at, data.times[:, :-1], data.times[:, 1:], True)
    times, real, at = _nodes(data, t0, unit)
    plain = times.shape[1] == at.shape[1] and bool((at == torch.where(at >= 0, torch.arange(at.shape[1]), -1)).all())
    return Layout(times, real, at, *_steps(times, real), plain)


def _nodes(data: Observed, t0: float | None, unit: bool) -> tuple[Tensor, Tensor, Tensor]:
    rows, places = [], []
    for s in range(len(data)):
        times = data.times[s, : int(data.lengths[s])]
        if t0 is not None and t0 > float(times[0]):
            raise InputError(f"t0 = {t0:g} lies after the first observation of series {s}, at {float(times[0]):g}")
        nodes = times if t0 is None else torch.cat([torch.tensor([t0], dtype=torch.float64), times])
        nodes, place = nodes.unique(return_inverse=True)
        place = place if t0 is None else place[1:]
        if unit:
            nodes, place = _whole_steps(nodes, place, s)
        rows.append(nodes)
        places.append(place)
    pad = torch.nn.utils.rnn.pad_sequence
    counts = torch.tensor([len(r) for r in rows])
    times = pad(rows, batch_first=True)
    real = torch.arange(times.shape[1]) < counts[:, None]
    last = torch.stack([r[-1] for r in rows])
    return torch.where(real, times, last[:, None]), real, pad(places, batch_first=True, padding_value=-1)


def _whole_steps(nodes: Tensor, place: Tensor, s: int) -> tuple[Tensor, Tensor]:
    """Nodes at every unit step; a kernel without times is one step of unit length."""
    gaps = nodes - nodes[0]
    steps = gaps.round()
    odd = (gaps - steps).abs() > _WHOLE * gaps.abs().clamp_min(1)
    if bool(odd.any()):
        k = int(odd.nonzero()[0])
        raise InputError(
            f"the transition is one kernel, a step of unit length, and the times {float(nodes[k - 1]):g} and "
            f"{float(nodes[k]):g} of series {s} are not a whole number of steps apart; leave times out for one step "
            "between observations, or give a transition with .kernel(s, t) or a callable (s, t) -> Kernel"
        )
    require(
        float(steps[-1]) < _MOST_NODES, f"series {s} spans {float(steps[-1]):g} unit steps; give a (s, t) -> Kernel"
    )
    return nodes[0] + torch.arange(int(steps[-1]) + 1, dtype=torch.float64), steps.long()[place]


def _steps(times: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """Times of each step; at padding those of some real step, so that every kernel asked for exists."""
    start, end = times[:, :-1].clone(), times[:, 1:].clone()
    padding = ~real[:, 1:]
    if bool(padding.any()):
        s, k = (int(i) for i in real[:, 1:].nonzero()[0])
        start[padding], end[padding] = times[s, k], times[s, k + 1]
    return start, end
