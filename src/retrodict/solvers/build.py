"""Building plans: a builder that emits rows, a registry of row generators, and `plan`, the public entry.

A solver is a generator: a short function that walks a grid and emits rows through a `Builder`.  It declares its
order, the stochasticity it allows and the invariants it claims; the registry's tests hold it to them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from retrodict.core.errors import InputError, near
from retrodict.core.registry import Registry
from retrodict.processes import GaussianPath, Process
from retrodict.solvers.grids import Times, as_grid, levels_at, make_levels
from retrodict.solvers.plan import Call, Eval, Instruction, Plan, Row
from retrodict.solvers.weights import Levels, noise_std, step_weights

CLAIMS = ("constant", "variance", "order", "bridge")


@dataclass(frozen=True)
class Solver:
    """A registered row generator.

    Attributes:
        generate: ``(builder, **options) -> register of the result``.
        order: declared order of convergence, a number or a function of the options; None if it has none.
        eta: "none" (deterministic), "share" (any eta in [0, 1]) or "always" (stochastic by nature).
        grid: the grid used by default.
        claims: invariants that hold: "constant" (a constant denoiser is integrated exactly), "variance" (and the
            noise keeps the marginal variance), "order", "bridge" (opaque rows map kappa_t to kappa_s).
        without: claims that are absent, each with its reason.
        ends: how many ends of a path it can handle without knowing the second.
    """

    name: str
    generate: Callable[..., int]
    order: float | Callable[[Mapping[str, Any]], float] | None
    eta: str = "none"
    grid: str = "logsnr"
    claims: tuple[str, ...] = ("constant", "order")
    without: Mapping[str, str] = field(default_factory=dict)
    ends: int = 1
    doc: str = ""

    @property
    def options(self) -> dict[str, Any]:
        """Option names and defaults."""
        parameters = list(inspect.signature(self.generate).parameters.values())[1:]
        return {p.name: p.default for p in parameters}

    def declared_order(self, options: Mapping[str, Any]) -> float | None:
        return self.order(self.options | dict(options)) if callable(self.order) else self.order


solvers: Registry[Solver] = Registry("solver")


def solver(
    *names: str, order: Any = None, eta: str = "none", grid: str = "logsnr", claims: tuple[str, ...] = ("constant", "order"),
    without: Mapping[str, str] | None = None, ends: int = 1,
) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Register a row generator under one or several names."""

    def add(generate: Callable[..., int]) -> Callable[..., int]:
        entry = Solver(names[0], generate, order, eta, grid, claims, without or {}, ends, inspect.getdoc(generate) or "")
        solvers.add(*names, value=entry)
        return generate

    return add


class Builder:
    """Collects the rows of one plan.

    Attributes:
        levels: noise levels of the grid (and of the inner nodes that a generator adds).
        n: number of steps of the grid.
        eta: share of stochasticity that was asked for.
    """

    def __init__(self, process: Process, levels: Levels, eta: float = 0.0) -> None:
        self.process, self.levels, self.eta = process, levels, eta
        self.n = len(levels) - 1
        self.code: list[Instruction] = []
        self._level_of: dict[int, int] = {0: 0}  # level of each state register
        self._node: dict[int, tuple[int, int]] = {}  # evaluation -> (state register, level)
        self._registers, self._noises, self._weights = 1, 0, {}

    # -- emitting -------------------------------------------------------------------------------------------

    def eval(self, x: int, level: int) -> int:
        """Evaluate the denoiser on register x at a level; returns the evaluation's index k."""
        k = len(self._node)
        L = self.levels
        self.code.append(Eval(k, x, float(L.t[level]), float(L.alpha[level]), float(L.sigma[level])))
        self._node[k] = (x, level)
        return k

    def row(
        self, level: int, x: Mapping[int, float] | None = None, d: Mapping[int, float] | None = None,
        z: float = 0.0, predictions: Mapping[int, float] | None = None, kind: str = "data",
    ) -> int:
        """Emit a state at ``level``: coefficients of states, of denoiser outputs, of one fresh normal, and of
        predictions ``kind`` (converted to states and outputs); returns its register."""
        xs, ds = dict(x or {}), dict(d or {})
        for k, w in (predictions or {}).items():
            self._convert(kind, k, float(w), xs, ds)
        noise = {}
        if z > 0:
            noise, self._noises = {self._noises: float(z)}, self._noises + 1
        register, self._registers = self._registers, self._registers + 1
        clean = lambda terms: {k: float(v) for k, v in terms.items() if v != 0}  # noqa: E731
        self.code.append(Row(register, clean(xs), clean(ds), self._second_end(level, xs, ds), noise, float(self.levels.t[level])))
        self._level_of[register] = level
        return register

    def call(self, name: str, x: int, k: int, source: int, target: int, **options: Any) -> int:
        """Emit a data-dependent row from level ``source`` to ``target``."""
        register, self._registers = self._registers, self._registers + 1
        t, s = float(self.levels.t[source]), float(self.levels.t[target])
        self.code.append(Call(register, name, x, k, t, s, options))
        self._level_of[register] = target
        return register

    def _convert(self, kind: str, k: int, w: float, xs: dict[int, float], ds: dict[int, float]) -> None:
        """Add w times prediction ``kind`` of evaluation k, written in the state it was evaluated at and D_k."""
        if kind not in self._weights or len(self._weights[kind][0]) != len(self.levels):
            self._weights[kind] = self.levels.prediction(kind)
        x, level = self._node[k]
        p_x, p_d = (float(p[level]) for p in self._weights[kind])
        if p_x != 0:
            xs[x] = xs.get(x, 0.0) + w * p_x
        ds[k] = ds.get(k, 0.0) + w * p_d

    def _second_end(self, level: int, xs: Mapping[int, float], ds: Mapping[int, float]) -> dict[int, float]:
        """Coefficient of the second end: rows are linear in x - B x1, so x1 enters with B_t - sum a_r B_r."""
        if len(self.process.ends) == 1 or not self._node:
            return {}
        beta = self._betas()
        shift = beta[level] - sum(a * beta[self._level_of[r]] for r, a in xs.items())
        return {max(ds, default=len(self._node) - 1): float(shift)} if shift != 0 else {}

    def _betas(self) -> np.ndarray:
        if "beta" not in self._weights or len(self._weights["beta"]) != len(self.levels):
            path: GaussianPath = self.process  # type: ignore[assignment]
            self._weights["beta"] = path.beta(torch.from_numpy(self.levels.t)).numpy()
        return self._weights["beta"]

    # -- weights --------------------------------------------------------------------------------------------

    def weights(
        self, s: Any, t: Any, nodes: Any, kind: str = "data", tau: str | None = None, kappa: float = 1.0
    ) -> tuple[np.ndarray, np.ndarray]:
        """Vectorised `step_weights` over many steps: levels s, t ``(rows,)`` and nodes ``(rows, m)``."""
        s, t, nodes = (np.asarray(v, dtype=int) for v in (s, t, nodes))
        natural = {"data": "lambda", "noise": "lambda", "flow": "flow", "velocity": "angle"}
        return step_weights(self.levels, s, t, nodes, kind, tau or natural[kind], kappa, self.time_at)

    def noise_std(self, s: Any, t: Any, kind: str, kappa: float) -> np.ndarray:
        """Fresh noise of SDE steps of stochasticity kappa."""
        return noise_std(self.levels, np.asarray(s), np.asarray(t), kind, kappa)

    def time_at(self, lam: np.ndarray) -> np.ndarray:
        """Times at given lambda."""
        path: GaussianPath = self.process  # type: ignore[assignment]
        return path.time_at(torch.from_numpy(np.ascontiguousarray(lam))).numpy()

    def add_levels(self, lam: np.ndarray) -> np.ndarray:
        """Add inner nodes at given lambda; returns their level indices."""
        t = self.time_at(np.asarray(lam, dtype=np.float64))
        alpha, sigma, _ = self.process.schedule(t)  # type: ignore[attr-defined]
        old, first = self.levels, len(self.levels)
        join = lambda a, b: np.concatenate([a, b])  # noqa: E731
        self.levels = Levels(join(old.t, t), join(old.alpha, alpha), join(old.sigma, sigma), join(old.lam, lam))
        return np.arange(first, first + len(t))

    def finite(self, level: int) -> bool:
        """Whether lambda is finite at a level."""
        return bool(np.isfinite(self.levels.lam[level]))


def plan(
    solver: str,
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
        solver: a registered name (`retrodict.solvers.solvers` lists them).
        process: the process to run backward.
        steps: intervals of the grid; or ``nfe``: evaluations per sample, from which the steps are found.
        grid: a grid name or object, or decreasing times (then steps and nfe may be left out); None is the
            solver's own.
        eta: share of stochasticity in [0, 1]; None is the solver's own (0 where it is a choice).
        start, end: times; ``end=None`` goes to the clean end, sigma = 0.
        options: the solver's options.

    Raises:
        InputError: unknown names, steps < 1, an nfe that no number of steps has (the neighbours are named).

    >>> import retrodict as rd
    >>> rd.plan("ddim", rd.VP(), nfe=5).nfe
    5
    """
    entry = solvers[solver]
    _check_options(entry, options)
    eta = _check_eta(entry, eta)
    if isinstance(as_grid(grid if grid is not None else entry.grid), Times):
        steps = _steps_of_times(grid, steps, nfe)
    elif (steps is None) == (nfe is None):
        raise InputError("give steps (intervals of the grid) or nfe (evaluations per sample), one of the two")
    if not 0 < start <= 1 or (end is not None and not 0 <= end < start):
        raise InputError(f"0 <= end < start <= 1 is needed, got start={start}, end={end}")
    if steps is None:
        steps = _steps_for(entry, process, nfe, grid, eta, start, end, options)
    if not isinstance(steps, (int, np.integer)) or steps < 1:
        raise InputError(f"steps is an integer of at least 1, got {steps!r}")
    return _build(entry, process, int(steps), grid, eta, start, end, options)


def _build(
    entry: Solver, process: Process, steps: int, grid: Any, eta: float, start: float, end: float | None, options: Mapping[str, Any]
) -> Plan:
    chosen = as_grid(entry.grid if grid is None else grid)
    levels = make_levels(chosen, process, steps, start, end)
    builder = Builder(process, levels, eta)
    out = entry.generate(builder, **options)
    meta = {
        "solver": entry.name, "options": dict(options), "eta": eta, "grid": chosen.config(),
        "end": end, "order": entry.declared_order(options) if eta == 0 or entry.eta == "none" else min(entry.declared_order(options) or 1, 2),
        "generated": True,
    }
    return Plan(tuple(builder.code), out, tuple(float(t) for t in levels.t), process, meta)


def rebuild(old: Plan, start: float, end: float | None) -> Plan:
    """`Plan.between`."""
    if not old.meta.get("generated"):
        raise InputError("a plan of free coefficients cannot be cut: only plans made by `plan` regenerate")
    end_time = 0.0 if end is None else end
    inner = [t for t in old.times if end_time < t < start]
    if not end_time < start <= old.times[0]:
        raise InputError(f"the plan runs from {old.times[0]:g} to {old.times[-1]:g}; it cannot run from {start:g} to {end_time:g}")
    clean = end is None and old.meta["end"] is None
    times = np.array([start, *inner, end_time])
    if clean and 0.0 in old.times[:-1]:  # paths whose sigma(0) > 0 visit t = 0 before the clean end
        times = np.array([start, *inner, 0.0, 0.0])
    entry = solvers[old.meta["solver"]]
    builder = Builder(old.process, levels_at(old.process, times, clean), old.meta["eta"])
    out = entry.generate(builder, **old.meta["options"])
    meta = old.meta | {"end": None if clean else end_time, "grid": {"name": "times", "values": times.tolist()}}
    return Plan(tuple(builder.code), out, tuple(float(t) for t in builder.levels.t[: len(times)]), old.process, meta)


def regrid(old: Plan, grid: Any, steps: int | None = None) -> Plan:
    """The same solver on another grid or number of steps."""
    if not old.meta.get("generated"):
        raise InputError("a plan of free coefficients has one length: only plans made by `plan` regenerate")
    return plan(old.meta["solver"], old.process, steps=steps, grid=grid, eta=old.meta["eta"], end=old.meta["end"], **old.meta["options"])


def _check_options(entry: Solver, options: Mapping[str, Any]) -> None:
    for name in options:
        if name not in entry.options:
            known = ", ".join(entry.options) or "none"
            raise InputError(f"unknown option {name!r} of solver {entry.name!r}; known: {known}.{near(name, entry.options)}")


def _check_eta(entry: Solver, eta: float | None) -> float:
    if eta is None:
        return 1.0 if entry.eta == "always" else 0.0
    if not 0 <= eta <= 1:
        raise InputError(f"eta is the share of admissible noise, between 0 and 1; got {eta}")
    if eta > 0 and entry.eta == "none":
        raise InputError(f"solver {entry.name!r} is deterministic: eta must be 0, got {eta}; 'ddim' and 'sde-2m' take any eta")
    return float(eta)


def _steps_of_times(grid: Any, steps: int | None, nfe: int | None) -> int:
    n = len(as_grid(grid).values) - 1  # type: ignore[attr-defined]
    if steps not in (None, n) or nfe is not None:
        raise InputError(f"the grid gives {n + 1} times, so {n} steps; leave out steps and nfe")
    return n


def _steps_for(
    entry: Solver, process: Process, nfe: int | None, grid: Any, eta: float, start: float, end: float | None, options: Mapping[str, Any]
) -> int:
    """The number of steps whose plan makes ``nfe`` evaluations, by bisection (evaluations grow with steps)."""
    if not isinstance(nfe, (int, np.integer)) or nfe < 1:
        raise InputError(f"nfe is an integer of at least 1, got {nfe!r}")

    @lru_cache(maxsize=None)
    def count(steps: int) -> int:
        return _build(entry, process, steps, grid, eta, start, end, options).nfe

    low, high = 1, int(nfe)
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if count(middle) < nfe else (low, middle)
    if count(low) == nfe:
        return low
    below = count(low - 1) if low > 1 else None
    neighbours = " or ".join(str(v) for v in (below, count(low)) if v is not None)
    raise InputError(f"no number of steps of {entry.name!r} makes {nfe} evaluations; the nearest are {neighbours}")
