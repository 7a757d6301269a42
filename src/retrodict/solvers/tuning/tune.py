"""Tuning for one budget: race, search, compensation and free coefficients in turn, and the winner kept.

    race         the best of the plans that there are: what is to be beaten
    search       decisions step by step, from the finalists of the race
    compensate   ratios of stored outputs, on the searched plan and on the race's own
    free         every coefficient and time, from the best so far or from a start whose valley is deeper

All are judged on the same held-out trajectories, so the winner is never worse there than the start; what is reported
comes from trajectories that had no say.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from retrodict.core.errors import InputError
from retrodict.denoisers import Denoiser
from retrodict.solvers.plan import Plan
from retrodict.solvers.tuning.classical import Entry, candidates, race
from retrodict.solvers.tuning.compensation import compensate, compensated
from retrodict.solvers.tuning.descent import Effort, Found, refine, scaled
from retrodict.solvers.tuning.evolution import decision, search
from retrodict.solvers.tuning.free import Free
from retrodict.solvers.tuning.trajectories import Trajectories, rms

METHODS = ("search", "compensate", "free")
#: A training error that falls so much further than the held-out one asks for more trajectories.
GAP = 1.1
#: How a start is tried before one is chosen, on how many held-out trajectories it is judged, and up to how many
#: evaluations: with more of them starts end alike, and the metric of each costs the cube of their number.
PILOT, PILOT_JUDGED, PILOT_EVALUATIONS = Effort(steps=24, batch=32, check=24), 128, 8


@dataclass(frozen=True)
class Sets:
    """Trajectories to learn from, to choose by, and to report on."""

    train: Trajectories
    valid: Trajectories
    test: Trajectories


@dataclass
class Budget:
    """What was found for one number of evaluations.

    Attributes:
        nfe: evaluations; plan: the winner; method: what made it, "race" where nothing beat the start.
        start, start_name: the best plan of the race.
        before, after: errors of start and winner on trajectories that had no say: root mean square distances to the
            teacher's ends, in the model's units.
        ratio: 95% interval of after/before, over resampled trajectories.
        tried: error of the best of each method on the trajectories that chose.
        ratios: compensation ratios, where they were fitted.
        gap: how much further the error fell on the trajectories learned from than on those held out, 1 is not at all.
        seconds: time it took.
    """

    nfe: int
    plan: Plan
    method: str
    start: Plan
    start_name: str
    before: float
    after: float
    ratio: tuple[float, float]
    tried: dict[str, float]
    ratios: list[float] = field(default_factory=list)
    gap: float = 1.0
    seconds: float = 0.0

    @property
    def wants_more(self) -> bool:
        """Whether more trajectories would help."""
        return self.gap > GAP

    def row(self) -> dict[str, Any]:
        """The line of a table."""
        return {
            "evaluations": self.nfe,
            "start": self.start_name,
            "before": self.before,
            "after": self.after,
            "ratio": self.after / self.before if self.before > 0 else 1.0,
            "ratio_low": self.ratio[0],
            "ratio_high": self.ratio[1],
            "method": self.method,
            "gap": self.gap,
            "more_trajectories": self.wants_more,
            "seconds": round(self.seconds, 1),
        }


def tune_budget(
    denoiser: Denoiser,
    nfe: int,
    sets: Sets,
    *,
    guidance: float = 1.0,
    methods: Sequence[str] = METHODS,
    effort: Effort | None = None,
    finalists: list[Entry] | None = None,
    seed: int = 0,
    save_memory: bool = False,
    on_progress: Callable[[str], None] | None = None,
) -> Budget:
    """Tune plans of ``nfe`` evaluations.

    Args:
        denoiser: guided already where guidance is wanted; ``guidance`` is what its scale is called in the record.
        methods: any of `METHODS`.
        finalists: what `race` found on ``sets.valid``, if it was run before.
        on_progress: called with the name of the stage as it goes on.

    Raises:
        InputError: no plan has so many evaluations here.
    """
    begun = time.perf_counter()
    tell = on_progress or (lambda stage: None)
    if finalists is None:
        entries = candidates(denoiser.process, nfe, guidance, denoiser.shape)
        finalists = race(entries, denoiser, sets.valid, on_heat=lambda: tell("race"))
    if not finalists:
        raise InputError(f"no classical plan of {nfe} evaluations runs on {denoiser.process!r}")
    work = _Work(denoiser, sets, scaled(effort or Effort(), denoiser), seed, save_memory, tell, finalists)
    for method in METHODS:
        if method in methods:
            getattr(work, method)()
    best, start = work.best(), finalists[0]
    errors = [sets.test.errors(sets.test.run(denoiser, p)) for p in (start.plan, best.plan)]
    before, after = (float(rms(e)) for e in errors)
    plan = _told(best, nfe, guidance, after)
    tried = {name: entry.error for name, entry in work.found.items()}
    return Budget(
        nfe,
        plan,
        best.name if best is not start else "race",
        start.plan,
        start.name,
        before,
        after,
        _interval(errors[0], errors[1]),
        tried,
        work.ratios,
        work.gap,
        time.perf_counter() - begun,
    )


class _Work:
    """The best entry of each method so far."""

    def __init__(
        self,
        denoiser: Denoiser,
        sets: Sets,
        effort: Effort,
        seed: int,
        save_memory: bool,
        tell: Callable[[str], None],
        finalists: list[Entry],
    ) -> None:
        self.denoiser, self.sets, self.effort, self.seed = denoiser, sets, effort, seed
        self.save_memory, self.tell, self.finalists = save_memory, tell, finalists
        self.found: dict[str, Entry] = {"race": finalists[0]}
        self.ratios: list[float] = []
        self.gap = 1.0

    def best(self) -> Entry:
        """The winner so far; the start unless something beat it."""
        return min(self.found.values(), key=lambda e: e.error)

    def search(self) -> None:
        found = search(
            self.finalists,
            self.denoiser,
            self.sets.train,
            self.sets.valid,
            candidates=self.effort.candidates,
            seed=self.seed,
            on_stage=lambda: self.tell("search"),
        )
        if found is not None:
            self.found["search"] = found

    def compensate(self) -> None:
        base = self.found.get("search") or self._decided()
        if base is None or base.plan.nfe < 3:
            return
        ratios, found = compensate(
            base.plan, self.denoiser, self.sets.train, self.sets.valid, on_step=lambda: self.tell("compensate")
        )
        self.ratios = ratios
        self.found["compensate"] = Entry("compensate", compensated(base.plan, ratios), found.valid)

    def _decided(self) -> Entry | None:
        """The best finalist whose decisions can be written down."""
        for entry in self.finalists:
            known = decision(entry.plan)
            if known is not None:
                return Entry(entry.name, known.plan(entry.plan.process), entry.error)
        return None

    def free(self) -> None:
        """Descend where it is cheap from two starts, else from the one whose valley is deepest."""
        starts = self._starts()
        origins = self._pilots(starts) if self.effort.steps else dict.fromkeys(starts[:2])
        outcomes = [(*self._descend(one, self.effort, origin), one) for one, origin in origins.items()]
        if outcomes:
            start, best, free = min(outcomes, key=lambda o: o[1].valid)
            plan = free.to_plan(best.p, {"solver": "tuned", "options": {}})
            self.found["free"] = Entry("free", plan, best.valid)
            if best.train > 0 and start.valid > 0:
                self.gap = (best.valid / start.valid) / (best.train / start.train)

    def _descend(
        self, free: Free, effort: Effort, origin: Tensor | None = None, some: slice = slice(None)
    ) -> tuple[Found, Found]:
        words: dict[str, Any] = {"seed": self.seed, "save_memory": self.save_memory}
        words |= {"origin": origin, "on_step": lambda: self.tell("free")}
        return refine(free, self.denoiser, self.sets.train, self.sets.valid.take(some), effort, **words)

    def _starts(self) -> list[Free]:
        """The best so far, the best untuned, and the best untuned of each prediction type and first time."""
        kinds: dict[Any, Entry] = {}
        for entry in self.finalists:
            facts = entry.plan.meta
            kinds.setdefault((facts["options"].get("kind", facts["solver"]), entry.plan.start_time), entry)
        starts = [self.best(), self.finalists[0], *(kinds.values() if self.effort.steps else ())]
        free = []
        for plan in {id(entry.plan): entry.plan for entry in starts}.values():
            with suppress(InputError):  # evaluations that do not fall in time
                free.append(Free(plan))
        return free

    def _pilots(self, starts: list[Free]) -> dict[Free, Tensor | None]:
        """The start that a few small steps bring lowest, and where they brought it: a better start is often in a
        worse valley."""
        starts = starts[: max(1, self.effort.pilots)]
        if len(starts) < 2 or starts[0].nfe > PILOT_EVALUATIONS:
            return dict.fromkeys(starts[:1])
        found = [self._descend(one, PILOT, some=slice(0, PILOT_JUDGED)) for one in starts]
        lowest = min(range(len(starts)), key=lambda i: found[i][1].valid)
        start, best = found[lowest]
        return {starts[lowest]: None if best is start else best.p}


def _told(entry: Entry, nfe: int, guidance: float, error: float) -> Plan:
    """The winner's plan with a note of what it was tuned for."""
    note = {"evaluations": nfe, "guidance": guidance, "method": entry.name, "error": error}
    plan = entry.plan
    return Plan(plan.code, plan.out, plan.times, plan.process, {**plan.meta, "tuned": note}, plan.starts, plan.also)


def _interval(before: Tensor, after: Tensor, resamples: int = 2000, seed: int = 0) -> tuple[float, float]:
    """95% interval of the ratio of root mean squares, resampling trajectories."""
    n = len(before)
    pick = torch.randint(n, (resamples, n), generator=torch.Generator().manual_seed(seed))
    means = [e.cpu().square()[pick].mean(1).clamp_min(1e-300) for e in (after, before)]
    low, high = torch.quantile((means[0] / means[1]).sqrt(), torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high
