"""Our own plans, listed for the comparison: what ``auto`` chooses, and every named ODE solver on our grids."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from torch import Tensor

import retrodict as rd
from peers.problem import Problem
from retrodict.core.errors import InputError
from retrodict.denoisers import Denoiser
from retrodict.solvers import solvers

_FLOWS: tuple[Any, ...] = tuple({"name": "flow", "shift": shift} for shift in (0.3, 0.5, 0.7, 1.0))
GRIDS: tuple[Any, ...] = (
    "own",
    "logsnr",
    "karras",
    {"name": "karras", "rho": 3.0},
    "uniform",
    "quadratic",
    "angle",
    *_FLOWS,
)
#: Where a pass costs more: a solver's own grid, and those that do well at few evaluations.
GRIDS_FOR_NETWORKS: tuple[Any, ...] = ("own", *_FLOWS)

# Orders and forms that a user may ask for, beside a solver's defaults.
_VARIANTS: dict[str, list[dict[str, Any]]] = {
    "dpm-solver++": [{"order": order} for order in (2, 3, 4)],
    "dpm-solver": [{"order": order} for order in (2, 3)],
    "deis": [{"degree": degree, "variant": v} for degree in (1, 2, 3) for v in ("tab", "rhoab")],
    "lms": [{"order": order} for order in (2, 3, 4)],
    "unipc": [{"order": order, "kind": kind} for order in (2, 3) for kind in ("data", "noise")],
    "velocity-ab": [{"order": order} for order in (2, 3, 4)],
    "flow-ab": [{"order": order} for order in (2, 3, 4)],
    "plms": [{"order": order} for order in (2, 4)],
    "rho-rk": [{"tableau": t, "kind": k} for t in ("midpoint", "kutta3", "rk4") for k in ("noise", "flow", "velocity")],
    "edm": [],  # churn is noise
    "adams": [
        {"kind": kind, "tau": tau, "order": order, "corrector": True}
        for kind, tau in (("data", "lambda"), ("noise", "lambda"), ("flow", "flow"), ("velocity", "angle"))
        for order in (1, 2, 3, 4)
    ],
}


@dataclass(frozen=True)
class Ours:
    """One of our plans by name; ``run`` is that of `problem.Peer`."""

    name: str
    make: Callable[[Problem, int], rd.Plan | None]

    def run(self, problem: Problem, passes: int) -> Tensor | None:
        plan = self.make(problem, passes)
        return None if plan is None else problem.run_plan(plan)


def auto(denoiser: Denoiser, guidance: float = 1.0) -> Ours:
    """What ``rd.sample`` runs when it is told no solver: the plan of one sample."""

    def make(problem: Problem, passes: int) -> rd.Plan:
        words = {"guidance": guidance, "label": 0} if "label" in denoiser.conditions else {}
        return rd.sample(denoiser, 1, nfe=passes, progress=False, **words).plan

    return Ours("auto", make)


def named(grids: Sequence[Any] = GRIDS) -> list[Ours]:
    """Every deterministic solver of the registry, with its variants, on each grid ("own" is the solver's default)."""
    return [Ours(_title(*choice), _maker(*choice)) for choice in _choices(grids)]


def _choices(grids: Sequence[Any]) -> Iterator[tuple[str, dict[str, Any], Any]]:
    seen = set()
    for _, entry in solvers.items():
        if entry.name in seen or entry.eta == "always" or entry.order is None or entry.name.startswith("sde-"):
            continue
        seen.add(entry.name)
        yield from product([entry.name], _VARIANTS.get(entry.name, [{}]), grids)


def _maker(solver: str, options: dict[str, Any], grid: Any) -> Callable[[Problem, int], rd.Plan | None]:
    def make(problem: Problem, passes: int) -> rd.Plan | None:
        eta = 0.0 if solvers[solver].eta == "share" else None
        try:
            return rd.plan(solver, problem.path, nfe=passes, grid=None if grid == "own" else grid, eta=eta, **options)
        except InputError:  # this solver has no plan of so many passes here
            return None

    return make


def _title(solver: str, options: dict[str, Any], grid: Any) -> str:
    words = ", ".join(f"{k}={v}" for k, v in options.items())
    place = (
        grid
        if isinstance(grid, str)
        else f"{grid['name']} " + " ".join(f"{v:g}" for k, v in grid.items() if k != "name")
    )
    return f"{solver}({words}) on {place}" if words else f"{solver} on {place}"
