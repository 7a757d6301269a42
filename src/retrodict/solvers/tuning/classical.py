"""The best plan that there is without tuning: a race of solvers, prediction types, orders, grids and shifts.

All candidates run on a few trajectories, the better ones on more, and the finalists on all that are held out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from retrodict.core.errors import InputError
from retrodict.denoisers import Denoiser
from retrodict.processes import GaussianPath, Process
from retrodict.solvers import auto
from retrodict.solvers.build import plan as make_plan
from retrodict.solvers.plan import Plan
from retrodict.solvers.tuning.trajectories import Trajectories

#: Grids of the race, and shifts of those of the flow family, which differ in where they are dense.
GRIDS, SHIFTS = ("logsnr", "karras", "uniform", "quadratic", "angle"), (0.3, 0.5, 0.7, 1.0, 2.0)
#: log(alpha/sigma) of a late start.  The law there is noise but for 2e-9 of signal, and a first step of finite length
#: lets solvers in log-SNR correct it and remember its output, which is better or worse by the problem.
LATE = -20.0
#: ``(trajectories, survivors)`` of the heats before the final.
HEATS = ((16, 32), (64, 8))


@dataclass(frozen=True)
class Entry:
    """A plan in a race."""

    name: str
    plan: Plan
    error: float = float("inf")


def candidates(process: Process, nfe: int, guidance: float = 1.0, shape: Sequence[int] | None = None) -> list[Entry]:
    """Deterministic multistep plans of exactly ``nfe`` evaluations, and what ``solver="auto"`` would do.

    Args:
        shape: of one state, where it is known: pictures of many pixels want larger shifts (`auto.resolution`).
    """
    choice = auto.choose(process, nfe, guidance=guidance, shape=shape)
    flows = [{"name": "flow", "shift": shift * auto.resolution(shape)} for shift in SHIFTS]
    grids = [*GRIDS, *flows]
    asked: list[tuple[str, str, dict[str, Any], Any]] = [("auto", choice.solver, choice.options, choice.grid)]
    for grid, (kind, order, corrector) in product(grids, product(_KINDS, (1, 2, 3, 4), (False, True))):
        # first orders without a corrector are all DDIM, but for the velocity's
        if order <= nfe and (order > 1 or corrector or kind in ("data", "velocity")):
            words = {"order": order, "kind": kind, "corrector": corrector}
            asked.append((f"{kind} {order}{' corrected' if corrector else ''}", "adams", words, grid))
    asked += [(f"dpm++2m{' final' if f else ''}", "dpm++2m", {"final": f}, g) for g, f in product(grids, (True, False))]
    asked += [(f"unipc {order}", "unipc", {"order": order}, grid) for grid, order in product(grids, (2, 3))]
    asked += [("deis tab", "deis", {"degree": degree}, grid) for grid, degree in product(grids, (2, 3))]
    for start in starts_of(process)[1:]:
        for grid, order in product(flows, (2, 3)):
            words = {"order": order, "kind": "data", "corrector": True, "start": start}
            asked.append((f"late data {order} corrected", "adams", words, grid))
            asked.append((f"late unipc {order}", "unipc", {"order": order, "start": start}, grid))
    made = []
    for name, solver, options, grid in asked:
        try:
            plan = make_plan(solver, process, nfe=nfe, grid=grid, eta=0.0, **options)
        except InputError:  # this solver has no such plan on this path
            continue
        made.append(Entry(name if name == "auto" else f"{name} on {_title(grid)}", plan))
    return made


def starts_of(process: Process) -> tuple[float, ...]:
    """Times at which a run may start: 1, and that of log-SNR `LATE` where t = 1 is noise alone."""
    if not isinstance(process, GaussianPath) or not process.scalar or len(process.ends) == 2:
        return (1.0,)
    return (1.0, float(process.time_at(LATE))) if float(process.log_snr(1.0)) < LATE else (1.0,)


_KINDS = ("data", "noise", "flow", "velocity")


def _title(grid: Any) -> str:
    return grid if isinstance(grid, str) else f"{grid['name']} {grid['shift']:g}"


def race(
    entries: Iterable[Entry],
    denoiser: Denoiser,
    valid: Trajectories,
    heats: Sequence[tuple[int, int]] = HEATS,
    on_heat: Callable[[], None] | None = None,
) -> list[Entry]:
    """The finalists, best first, with their errors on all of ``valid``."""
    left = list(entries)
    for starts, survivors in (*heats, (len(valid), len(left))):
        some = valid.take(slice(0, starts))
        left = [Entry(e.name, e.plan, some.error(denoiser, e.plan)) for e in left]
        left = sorted(left, key=lambda e: e.error)[:survivors]
        if on_heat is not None:
            on_heat()
    return left
