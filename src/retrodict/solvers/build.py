"""`plan`, the public entry: names, budgets and grids in, a plan out; and the two ways of making one anew."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from retrodict.core.errors import InputError
from retrodict.processes import Discrete, GaussianPath, Process
from retrodict.solvers.builder import Builder
from retrodict.solvers.grids import Grid, Times, as_grid, is_interpolant, levels_at, make_levels
from retrodict.solvers.plan import Plan
from retrodict.solvers.registry import Solver, solvers
from retrodict.solvers.weights import Levels


def plan(
    solver: str | Solver,
    process: Process,
    steps: int | None = None,
    nfe: int | None = None,
    grid: Any = None,
    eta: float | None = None,
    start: float = 1.0,
    end: float | None = None,
    **options: Any,
) -> Plan:
    """Make a plan: a sampler as data.

    Args:
        solver: a registered name (`retrodict.solvers.solvers` lists them), or a `Solver`.
        process: the process to run backward.
        steps: intervals of the grid; or ``nfe``: evaluations per sample, from which the steps are found.
        grid: a grid name or object, or decreasing times (then steps and nfe may be left out); None is the
            solver's own.
        eta: share of stochasticity in [0, 1]; None is the solver's own (0 where it is a choice).
        start, end: times; ``end=None`` goes to the clean end, sigma = 0.
        options: the solver's options; a function of time is tabulated.

    Raises:
        InputError: unknown names, steps < 1, an nfe that no number of steps has (the neighbours are named).

    >>> import retrodict as rd
    >>> rd.plan("ddim", rd.VP(), nfe=5).nfe
    5
    """
    entry = solver if isinstance(solver, Solver) else solvers[solver]
    options = entry.check_options(options)
    eta = entry.check_eta(eta)
    chosen = default_grid(entry, process) if grid is None else as_grid(grid)
    if not 0 < start <= 1 or (end is not None and not 0 <= end < start):
        raise InputError(f"0 <= end < start <= 1 is needed, got start={start}, end={end}")
    if isinstance(chosen, Times):
        steps = _steps_of_times(chosen, steps, nfe)
    elif (steps is None) == (nfe is None):
        raise InputError("give steps (intervals of the grid) or nfe (evaluations per sample), one of the two")
    recipe = _Recipe(entry, process, chosen, eta, start, end, options)
    return recipe.within(nfe) if steps is None else recipe.make(steps)


def default_grid(entry: Solver, process: Process) -> Grid:
    """The solver's own grid, or one that suits a process without a log-SNR clock."""
    if not isinstance(process, GaussianPath) or not process.scalar:
        return as_grid(getattr(process, "grid", "uniform"))
    return as_grid("arcsine" if is_interpolant(process) else entry.grid)


class _Recipe:
    """Everything but the number of steps."""

    def __init__(
        self,
        entry: Solver,
        process: Process,
        grid: Grid,
        eta: float,
        start: float,
        end: float | None,
        options: Mapping[str, Any],
    ) -> None:
        self.entry, self.process, self.grid, self.eta, self.start, self.end = entry, process, grid, eta, start, end
        self.options = dict(options)

    def make(self, steps: int, derived: Mapping[str, Any] | None = None) -> Plan:
        """The plan of ``steps`` intervals."""
        if isinstance(steps, bool) or not isinstance(steps, (int, np.integer)) or steps < 1:
            raise InputError(f"steps is an integer of at least 1, got {steps!r}")
        levels = make_levels(self.grid, self.process, int(steps), self.start, self.end)
        end = None if self.end is None and levels.t[-1] == 0 else float(levels.t[-1])
        meta = {"grid": self.grid.config(), "end": end, "derived": sorted(derived or {})}
        return generate(self.entry, self.process, levels, self.eta, self.options | dict(derived or {}), meta)

    def within(self, nfe: int | None) -> Plan:
        """The plan that makes ``nfe`` evaluations: evaluations grow with steps, mostly in proportion."""
        if isinstance(nfe, bool) or not isinstance(nfe, (int, np.integer)) or nfe < 1:
            raise InputError(f"nfe is an integer of at least 1, got {nfe!r}")
        if self.entry.budget is not None:
            return self.make(*self.entry.budget(int(nfe), self.entry.options | self.options, self.end is None))
        low, high, guess = 1, int(nfe), int(nfe)
        counts: dict[int, int] = {}
        while low <= high:
            made = self.make(guess)
            counts[guess] = made.nfe
            if made.nfe == nfe:
                return made
            low, high = (guess + 1, high) if made.nfe < nfe else (low, guess - 1)
            guess = min(max(round(guess * nfe / made.nfe), low), high)
        for guess in set(range(1, int(nfe) + 1)) - set(counts):  # where evaluations do not grow with every step
            counts[guess] = self.make(guess).nfe
            if counts[guess] == nfe:
                return self.make(guess)
        below = max((c for c in counts.values() if c < nfe), default=None)
        above = min((c for c in counts.values() if c > nfe), default=None)
        neighbours = " or ".join(str(v) for v in (below, above) if v is not None)
        raise InputError(
            f"no number of steps of {self.entry.name!r} makes {nfe} evaluations; the nearest are {neighbours}"
        )


def generate(
    entry: Solver, process: Process, levels: Levels, eta: float, options: Mapping[str, Any], meta: Mapping[str, Any]
) -> Plan:
    """Run a generator over levels; ``meta`` are the facts of the grid."""
    if isinstance(process, GaussianPath) and entry.ends == 1 and is_interpolant(process):
        able = ", ".join(sorted({e.name for _, e in solvers.items() if e.ends == 2 and not e.discrete}))
        raise InputError(
            f"solver {entry.name!r} needs noise that grows with t; on a path without noise at t = 1 use {able}"
        )
    if entry.discrete and not isinstance(process, Discrete):
        raise InputError(f"solver {entry.name!r} is for discrete processes, got {type(process).__name__}")
    if (
        not entry.discrete
        and entry.claims != ("bridge",)
        and not (isinstance(process, GaussianPath) and process.scalar)
    ):
        raise InputError(f"solver {entry.name!r} needs a Gaussian path with scalar coefficients; use 'step'")
    builder = Builder(process, levels, eta)
    times = tuple(levels.t.tolist())
    out = entry.generate(builder, **options)
    facts = {"solver": entry.name, "options": dict(options), "eta": eta, "order": entry.declared_order(options, eta)}
    return Plan(tuple(builder.code), out, times, process, {**facts, **meta, "generated": True})


def rebuild(old: Plan, start: float, end: float | None) -> Plan:
    """`Plan.between`."""
    if not old.meta.get("generated"):
        raise InputError("a plan of free coefficients cannot be cut: only plans made by `plan` regenerate")
    end_time = 0.0 if end is None else end
    if not end_time < start <= old.times[0]:
        raise InputError(
            f"the plan runs from {old.times[0]:g} to {old.times[-1]:g}; it cannot run from {start:g} to {end_time:g}"
        )
    inner = [t for t in old.times if end_time < t < start]
    clean = end is None and old.meta["end"] is None
    times = np.array([start, *inner, end_time])
    if clean and 0.0 in old.times[:-1]:  # paths whose sigma(0) > 0 visit t = 0 before the clean end
        times = np.array([start, *inner, 0.0, 0.0])
    levels = levels_at(old.process, times, clean)
    grid = {"name": "times", "values": times.tolist()}
    meta = {"grid": grid, "end": None if clean else end_time, "derived": []}
    return generate(solvers[old.meta["solver"]], old.process, levels, old.meta["eta"], _asked(old), meta)


def regrid(old: Plan, grid: Any, steps: int | None = None) -> Plan:
    """The same solver on another grid or number of steps, from the same start."""
    if not old.meta.get("generated"):
        raise InputError("a plan of free coefficients has one length: only plans made by `plan` regenerate")
    start = 1.0 if isinstance(as_grid(grid), Times) else old.times[0]
    recipe = dict(grid=grid, eta=old.meta["eta"], start=start, end=old.meta["end"])
    return plan(old.meta["solver"], old.process, steps=steps, **recipe, **_asked(old))


def _asked(old: Plan) -> dict[str, Any]:
    """The options of a plan without those that its budget derived."""
    return {k: v for k, v in old.meta["options"].items() if k not in old.meta.get("derived", ())}


def _steps_of_times(grid: Times, steps: int | None, nfe: int | None) -> int:
    n = len(grid.values) - 1
    if n < 1:
        raise InputError(f"a grid has at least two times, got {n + 1}")
    if steps not in (None, n) or nfe is not None:
        raise InputError(f"the grid gives {n + 1} times, so {n} steps; leave out steps and nfe")
    return n
