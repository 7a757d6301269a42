"""Forecasting as filtering: the law at the last observation is the prior of a model that sees nothing more.

Where that law is weighted particles, they are pushed forward by the bootstrap filter of such a model, which has
nothing to weigh them by.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from retrodict.core.errors import InputError, require
from retrodict.core.noise import Noise
from retrodict.inference.emissions import Emission, TableEmission
from retrodict.inference.models import StateSpace
from retrodict.inference.observed import Observed
from retrodict.inference.problem import Problem
from retrodict.inference.results import Marginals
from retrodict.inference.transitions import Listed
from retrodict.particles import FeynmanKac, moments


def forecast_data(model: StateSpace, data: Observed, law: Any, times: Any) -> tuple[StateSpace, Observed]:
    """The model started at ``law``, and data with the last time of each series and then blanks at ``times``.

    Args:
        law: of the state at the last observation of each series, batched ``(S, ...)``.
        times: ``(h,)`` numbers or dates, or an integer: so many unit steps.
    """
    if isinstance(model.transition, Listed):
        raise InputError("the transition is a list of kernels, one for each step of the data; it has none beyond them")
    start = copy.copy(model)
    start.given = (law, *model.given[1:])
    start.prior, start.t0 = law, None
    return start, blanks(data, times)


def blanks(data: Observed, times: Any) -> Observed:
    """The last time of each series and then ``times``, with nothing seen."""
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
    return later


def by_particles(
    model: StateSpace,
    data: Observed,
    make: Callable[[Problem], FeynmanKac],
    cloud: tuple[Tensor, Tensor],
    times: Any,
    of: str,
    noise: Noise,
) -> Marginals:
    """The forecast of weighted particles.

    Args:
        make: the model whose moves are the transition, `Bootstrap` of a `StateSpace`.
        cloud: states ``(S, N, ...)`` at the last observation of each series, and log-weights ``(S, N)``.
    """
    start, later = forecast_data(model, data, model.given[0], times)
    problem = Problem(start, later)
    fk, (x, log_w) = make(problem), cloud

    def states() -> Iterator[Tensor]:
        at, moves = x, iter(fk.draw(problem.n, x.shape[1], noise))
        yield at
        for k in range(1, problem.n + 1):
            at = fk.move(k, at, next(moves))[0]
            yield at

    K = problem.size if model.kind == "finite" else None
    return read_off(later, problem.emission, states(), log_w, of, K, problem.at_observations)


def read_off(
    later: Observed,
    emission: Emission,
    states: Iterable[Tensor],
    log_w: Tensor,
    of: str,
    K: int | None = None,
    at: Callable[[Tensor], Tensor] = lambda values: values,
) -> Marginals:
    """The laws of weighted particles after the first time of ``later``.

    Args:
        states: ``(S, N, ...)``, node by node; at: what reads values ``(S, nodes, ...)`` at the times of ``later``.
        K: number of states, if they are finite.
    """
    require(of in ("state", "observation"), f"of is 'state' or 'observation', got {of!r}")
    w = torch.softmax(log_w, -1)
    with torch.no_grad():
        laws = [_law(emission, x, w, K, of) for x in states]
    parts = [at(torch.stack(part, 1))[:, 1:] for part in zip(*laws)]
    keys = ("mean", "covariance") if len(parts) == 2 else ("probabilities",)
    found = dict(zip(keys, parts))
    return Marginals(later.times[:, 1:], **found, exact=False, axis=later.axis, single=later.single, what=of)


def _law(emission: Emission, x: Tensor, w: Tensor, K: int | None, of: str) -> tuple[Tensor, ...]:
    """Of the states ``(S, N, ...)`` with weights ``(S, N)``, or of what will be seen of them."""
    if of == "state" and K is None:
        return moments(x, w)
    if of == "state" or isinstance(emission, TableEmission):
        p = torch.nn.functional.one_hot(x, K or -1).double() if of == "state" else emission.log_p[x].exp()  # type: ignore[attr-defined]
        return ((w.unsqueeze(-1) * p).sum(1),)
    found = emission.predicted(x)
    if found is None:
        raise InputError("the law of observation has no known mean and variance; forecast of='state'")
    mean, cov = found
    centre, between = moments(mean, w)
    within = torch.einsum("sn,snij->sij", w, cov.expand(*w.shape, *cov.shape[-2:]))
    return centre, between + within
