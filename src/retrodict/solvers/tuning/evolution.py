"""Search over a solver's decisions: an evolution whose children are screened by a predictor (S^3, Liu et al. 2024).

A decision is a plan of the solver 'usf': times, and for every step prediction type, order, weights and corrector.
Each stage

1. fits a predictor, a forest of regression trees, of log error from decisions to all that was evaluated so far,
2. breeds many children of the best decisions by crossing over and mutation,
3. evaluates those that the predictor likes best, and a few at random, on a small set of trajectories.

The best of all stages meet on the trajectories that are held out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from retrodict.core.errors import InputError
from retrodict.denoisers import Denoiser
from retrodict.processes import GaussianPath, Process
from retrodict.solvers.build import plan as make_plan
from retrodict.solvers.plan import Plan
from retrodict.solvers.tuning.classical import Entry, starts_of
from retrodict.solvers.tuning.trajectories import Trajectories
from retrodict.solvers.weights import INTERPOLATION

#: Prediction types, each with the coordinate that it is interpolated in.
KINDS = ("data lambda", "noise lambda", "flow flow", "flow angle", "velocity angle")
ORDERS = (1, 2, 3, 4)
STAGES, PARENTS, FEW, FINALISTS = 4, 15, 64, 6
#: Chances of crossing over and of a mutation of a field, and the spread of a mutated log gap.
CROSS, MUTATE, SPREAD = 0.4, 0.15, 0.15


@dataclass(frozen=True)
class Decision:
    """What a plan does at each of its steps.

    Attributes:
        gaps: falls of the angle atan(sigma/alpha) from each time to the next, positive; they sum to the whole way.
        kinds: among `KINDS`; orders, correctors: as the solver 'usf' takes them.
        start: the first time; see `starts_of`.
    """

    gaps: tuple[float, ...]
    kinds: tuple[str, ...]
    orders: tuple[int, ...]
    correctors: tuple[bool, ...]
    start: float = 1.0

    def vector(self) -> list[float]:
        """The decision as numbers, for the predictor."""
        kinds = [float(kind == name) for kind in self.kinds for name in KINDS]
        return [*np.log(self.gaps), *kinds, *map(float, (*self.orders, *self.correctors, self.start < 1))]

    def plan(self, process: Process) -> Plan:
        """The plan of these decisions, to the clean end."""
        path: GaussianPath = process  # type: ignore[assignment]
        whole = float(angle(path, self.start))
        falls = np.cumsum(self.gaps) * whole / sum(self.gaps)
        lam = -np.log(np.tan(whole - falls[:-1]))
        times = [self.start, *path.time_at(torch.from_numpy(lam)).tolist(), 0.0]
        kinds, taus = zip(*(kind.split() for kind in self.kinds))
        words: dict[str, Any] = {"orders": self.orders, "kinds": kinds, "taus": taus, "correctors": self.correctors}
        return make_plan("usf", process, grid=times, final=False, **words)


def angle(path: GaussianPath, t: Any) -> torch.Tensor:
    """atan(sigma/alpha) at times."""
    return torch.atan2(path.sigma(t), path.alpha(t))


def decision(plan: Plan) -> Decision | None:
    """The decision that a plan of the solver 'adams' amounts to; None for other solvers and other ends."""
    options = plan.meta.get("options", {})
    kind = options.get("kind", "data")
    pair = f"{kind} {options.get('tau') or INTERPOLATION.get(kind)}"
    if plan.meta.get("solver") != "adams" or pair not in KINDS or plan.meta.get("end") is not None:
        return None
    K = plan.nfe
    if len(plan.times) != K + 1:
        return None
    angles = angle(plan.process, torch.tensor(plan.times[:-1], dtype=torch.float64)).tolist()  # type: ignore[arg-type]
    gaps = -np.diff([*angles, 0.0])
    if not (gaps > 0).all():
        return None
    order, corrector = int(options.get("order", 2)), bool(options.get("corrector", False))
    return Decision(tuple(gaps.tolist()), (pair,) * K, (order,) * K, (corrector,) * K, float(plan.times[0]))


def search(
    starts: Sequence[Entry],
    denoiser: Denoiser,
    train: Trajectories,
    valid: Trajectories,
    *,
    candidates: int = 160,
    seed: int = 0,
    on_stage: Callable[[], None] | None = None,
) -> Entry | None:
    """The best plan found, judged on ``valid``; None where no start is a decision.

    Args:
        starts: plans to begin with; those of the solver 'adams' count.
        candidates: how many decisions may be evaluated in all.
    """
    rng, few, process = np.random.default_rng(seed), train.take(slice(0, FEW)), denoiser.process
    times = starts_of(process)
    seen: dict[Decision, float] = {}

    def judge(made: Sequence[Decision]) -> None:
        for one in made:
            if one not in seen:
                seen[one] = _error(one, process, denoiser, few)

    judge([found for entry in starts if (found := decision(entry.plan)) is not None])
    if not seen:
        return None
    each = max(4, (candidates - len(seen)) // STAGES)
    for _ in range(STAGES):
        best = sorted(seen, key=seen.__getitem__)[:PARENTS]
        children = [c for c in (_child(best, rng, times) for _ in range(8 * each)) if c not in seen]
        children = list(dict.fromkeys(children))
        liked = _screened(children, seen, rng)
        judge([*liked[: each - each // 4], *liked[len(liked) - each // 4 :]])
        if on_stage is not None:
            on_stage()
    final = sorted(seen, key=seen.__getitem__)[:FINALISTS]
    entries = [Entry("search", one.plan(process)) for one in final if math.isfinite(seen[one])]
    judged = [replace(e, error=valid.error(denoiser, e.plan)) for e in entries]
    return min(judged, key=lambda e: e.error, default=None)


def _error(one: Decision, process: Process, denoiser: Denoiser, few: Trajectories) -> float:
    try:
        return few.error(denoiser, one.plan(process))
    except InputError:  # times that meet in float64
        return math.inf


def _screened(children: list[Decision], seen: dict[Decision, float], rng: np.random.Generator) -> list[Decision]:
    """Children, those that should be best first and the last ones in no order."""
    from sklearn.ensemble import ExtraTreesRegressor

    known = [(d.vector(), math.log(e)) for d, e in seen.items() if math.isfinite(e) and e > 0]
    if len(known) < 8 or not children:
        return children
    forest = ExtraTreesRegressor(100, min_samples_leaf=2, random_state=int(rng.integers(2**31)))
    forest.fit(*map(np.array, zip(*known)))
    order = np.argsort(forest.predict(np.array([c.vector() for c in children])), kind="stable")
    half = len(order) // 2
    rest = rng.permutation(order[half:])
    return [children[i] for i in [*order[:half], *rest]]


def _child(best: Sequence[Decision], rng: np.random.Generator, times: Sequence[float]) -> Decision:
    """A decision crossed over from two of the best, ranked ones preferred, and mutated."""
    pick = lambda: best[min(int(rng.exponential(len(best) / 4)), len(best) - 1)]  # noqa: E731
    a = pick()
    if rng.random() < CROSS:
        b = pick()
        cut = int(rng.integers(len(a.gaps) + 1))
        mixed = a.gaps if rng.random() < 0.5 else b.gaps
        join = lambda x, y: x[:cut] + y[cut:]  # noqa: E731
        parts = (join(a.kinds, b.kinds), join(a.orders, b.orders), join(a.correctors, b.correctors))
        a = Decision(mixed, *parts, a.start)
    gaps = np.array(a.gaps) * np.exp(SPREAD * rng.normal(size=len(a.gaps)) * (rng.random() < 0.8))
    change = lambda values, among: tuple(  # noqa: E731
        among[int(rng.integers(len(among)))] if rng.random() < MUTATE else v for v in values
    )
    return Decision(
        tuple((gaps / gaps.sum()).tolist()),
        change(a.kinds, KINDS),
        change(a.orders, ORDERS),
        change(a.correctors, (False, True)),
        change((a.start,), times)[0] if len(times) > 1 else a.start,
    )
