"""What tuning buys: errors of tuned plans beside the best untuned ones, ours and diffusers', at 3 to 20 evaluations.

Problems: the digits model of the demonstration, and shapes of 32 by 32 in colour by class, both at guidance 1, 3 and
7.5; the mixture of `bench_frontier`; the mixture of three components of the solver tests under VP with linear betas;
one of ten in 64 dimensions.  For each budget `tune_budget` learns from one set of trajectories, chooses on a second,
and everything here is told on a third.  At one budget each method is told on its own too.

Bars, on that third set:

- everywhere: the tuned plan of 5 evaluations is within the error of the best untuned diffusers sampler, on its best
  grid, at 7 (8 is told beside it);
- both plane mixtures: the tuned plan of 6 evaluations has at most a quarter of the error of the best classical plan of
  6, ours or theirs;
- digits without guidance: a budget takes under three minutes on two cores.

    python benchmarks/bench_tuning.py [--only NAME ...] [--evaluations 5 ...] [--resume] [--threads N]

Prints rows and writes ``benchmarks/results/tuning.json``, ``.md`` and ``docs/assets/tuning.svg`` after each; rows of
other problems and budgets stay, and with ``--resume`` those of this one that are there are not run again.  Exit status
1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from bench_frontier import MEANS, STDS, WEIGHTS
from models import digits_model, shapes_model
from peers import Problem
from peers.diffusers_schedulers import diffusers_peers
from peers.ours import GRIDS, named
from peers.race import race
from peers.writing import content, write
from torch import Tensor

import retrodict as rd
from retrodict.denoisers import Denoiser, Guided
from retrodict.exact import GaussianMixture
from retrodict.solvers import tuning
from retrodict.solvers.tuning import METHODS, Effort, Entry, Sets, Trajectories, candidates, teach, teacher, tune_budget
from retrodict.solvers.tuning.classical import HEATS
from retrodict.solvers.tuning.trajectories import rms

HERE = Path(__file__).parent
TUNED_AT, BAR_AT, AIM_AT = 5, 7, 8
UNTUNED = (3, BAR_AT, AIM_AT, 15, 20)
MIXTURE_AT, MIXTURE_BAR, SECONDS_BAR = 6, 0.25, 180.0
#: Starts that end in another mode dominate an error that is so many times the median.
TAIL = 5.0
#: Problems of the bar of mixtures, and of that of time.
JUDGED, TIMED = ("frontier", "M.8"), ("digits, guidance 1",)

Row = dict[str, Any]


@dataclass(frozen=True)
class Scale:
    """How much of a problem is run.

    Attributes:
        teacher: evaluations of the teacher; trajectories: to learn from, half as many to choose and to tell.
        budgets: that are tuned; heats: ``(starts, survivors)`` of the diffusers' race before the final; ours: of our
            own where nothing is tuned.
    """

    teacher: int = 60
    trajectories: int = 1024
    budgets: tuple[int, ...] = (5, 8)
    heats: tuple[tuple[int, int], ...] = ((16, 40), (64, 6))
    ours: tuple[tuple[int, int], ...] = HEATS
    effort: Effort = field(default_factory=Effort)


#: Closed forms: evaluations cost next to nothing, and rare starts dominate the error.
PLANE = Scale(teacher=160, trajectories=4096, budgets=(4, 5, 6, 8), heats=())
WIDE = Scale(teacher=160, trajectories=2048, budgets=(5, 6, 8), heats=())
#: Networks; with guidance an evaluation is two passes, and of a picture of 32 by 32 a pass takes ten times as long.
DIGITS, GUIDED_DIGITS = Scale(budgets=(4, 5, 6, 8, 10)), Scale()
FEWER = ((4, 24), (16, 8), (64, 3))
SHAPES = Scale(40, 512, (5,), FEWER, FEWER, Effort(steps=72, batch=96))


@dataclass(frozen=True)
class Case:
    """A problem: its denoiser, guided already; conditions in turn; what the scale of guidance is called."""

    name: str
    denoiser: Denoiser
    shape: tuple[int, ...]
    scale: Scale
    guidance: float = 1.0
    condition: dict[str, Tensor] = field(default_factory=dict)

    @property
    def network(self) -> bool:
        """Whether evaluations cost something."""
        return any(True for _ in self.denoiser.parameters())


def cases() -> Iterator[Case]:
    """Every problem."""
    plane = GaussianMixture(WEIGHTS, MEANS, [s**2 for s in STDS])
    yield Case("frontier", plane.denoiser(rd.DDPM()), (2,), PLANE)
    means, stds = [[0.5884, -0.3353], [-0.4793, -1.8076], [1.5667, -0.9498]], (0.4963, 0.6136, 0.9542)
    smooth = GaussianMixture([0.2861, 0.4715, 0.2424], means, [s**2 for s in stds])
    yield Case("M.8", smooth.denoiser(rd.VP("linear")), (2,), PLANE)
    pick = torch.Generator().manual_seed(0)
    wide = GaussianMixture(
        [0.1] * 10,
        torch.randn(10, 64, dtype=torch.float64, generator=pick),
        (0.1 + 0.4 * torch.rand(10, 64, dtype=torch.float64, generator=pick)) ** 2,
    )
    yield Case("64 dimensions", wide.denoiser(rd.VP("cosine")), (64,), WIDE)
    for name, trained in (("digits", digits_model), ("shapes", shapes_model)):
        denoiser = trained()
        label = {"label": torch.arange(denoiser.conditions["label"])}
        shape = tuple(denoiser.shape or ())
        for guidance in (1.0, 3.0, 7.5):
            model = (denoiser if guidance == 1.0 else Guided(denoiser, guidance)).eval()
            scale = SHAPES if name == "shapes" else DIGITS if guidance == 1.0 else GUIDED_DIGITS
            yield Case(f"{name}, guidance {guidance:g}", model, shape, scale, guidance, label)


def sets_of(case: Case) -> Sets:
    """Three sets of trajectories, each of a seed of its own."""
    plan, n = teacher(case.denoiser, case.scale.teacher, case.guidance), case.scale.trajectories
    words = {"plan": plan, "shape": case.shape, "condition": case.condition}
    return Sets(*(teach(case.denoiser, size, seed=s, **words) for s, size in enumerate((n, n // 2, n // 2))))


def problem_of(case: Case, test: Trajectories) -> Problem:
    """The third set as the peers see it: float64 states, the network's own precision inside."""
    path, dtype = case.denoiser.process, test.start.dtype

    @torch.no_grad()
    def denoise(x: Tensor, t: float) -> Tensor:
        parts = test.take(slice(0, len(x))).batches(256)
        split = x.to(dtype).split(256)
        return torch.cat([part.mean(case.denoiser)(piece, t) for part, piece in zip(parts, split)]).double()

    scale = float(path.sigma(1.0))  # type: ignore[attr-defined]
    return Problem(path, denoise, test.start.double() / scale, test.end.double())  # type: ignore[arg-type]


def study(case: Case, budgets: Sequence[int]) -> Iterator[Row]:
    """A row a budget, those of the bars first."""
    sets = sets_of(case)
    problem = problem_of(case, sets.test)
    theirs: list[Any] = [p for p in diffusers_peers(problem) if not p.tuned]
    for nfe in sorted(budgets, key=lambda nfe: (nfe not in (TUNED_AT, BAR_AT, AIM_AT), nfe)):
        row = tuned(case, nfe, sets) if nfe in case.scale.budgets else untuned(case, nfe, sets)
        rival = race(theirs, problem, nfe, case.scale.heats)[0][0]
        row |= {"problem": case.name, "diffusers": rival.rms, "diffusers_name": rival.runner.name}
        row["diffusers_median"] = float(rival.errors.median())
        if nfe == MIXTURE_AT and not case.network:  # chosen on the third set itself: the hardest rival there is
            best = race([*named(GRIDS), *theirs], problem, nfe)[0][0]
            row |= {"classical": best.rms, "classical_name": best.runner.name}
        yield row


def tuned(case: Case, nfe: int, sets: Sets) -> Row:
    """All methods together, and at one budget each alone."""
    words: Row = {"guidance": case.guidance, "effort": case.scale.effort}
    found = tune_budget(case.denoiser, nfe, sets, **words)
    alone = {}
    if nfe == (TUNED_AT if case.network else MIXTURE_AT):
        words["finalists"] = tuning.race(entrants(case, nfe), case.denoiser, sets.valid)
        alone = {m: tune_budget(case.denoiser, nfe, sets, methods=[m], **words).after for m in METHODS}
    median = float(sets.test.errors(sets.test.run(case.denoiser, found.start)).median())
    return {**found.row(), "tried": found.tried, "alone": alone, "before_median": median}


def entrants(case: Case, nfe: int) -> list[Entry]:
    """The untuned plans."""
    return candidates(case.denoiser.process, nfe, case.guidance, case.denoiser.shape)


def untuned(case: Case, nfe: int, sets: Sets) -> Row:
    """The winner of the race of untuned plans, told on the third set."""
    first = tuning.race(entrants(case, nfe), case.denoiser, sets.valid, case.scale.ours)[0]
    errors = sets.test.errors(sets.test.run(case.denoiser, first.plan))
    told = {"before": float(rms(errors)), "before_median": float(errors.median())}
    return {"evaluations": nfe, "start": first.name, **told}


# -- bars -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bar:
    """A number that may not pass a limit; ``judged`` False where it is only told."""

    problem: str
    evaluations: int
    what: str
    value: float
    limit: float
    judged: bool = True

    @property
    def holds(self) -> bool:
        return self.value <= self.limit

    def __str__(self) -> str:
        verdict = ("holds" if self.holds else "MISSED") if self.judged else "reached" if self.holds else "not reached"
        return f"{self.what} {self.limit:.4g}: {verdict}"


def bars(rows: list[Row]) -> Iterator[Bar]:
    """Every bar of which both sides are measured."""
    at = {(r["problem"], r["evaluations"]): r for r in rows}
    for (problem, nfe), row in at.items():
        if "after" not in row:
            continue
        if nfe == TUNED_AT:
            for budget, judged in ((BAR_AT, True), (AIM_AT, False)):
                if rival := at.get((problem, budget)):
                    yield Bar(problem, nfe, f"diffusers at {budget}", row["after"], rival["diffusers"], judged)
        if nfe == MIXTURE_AT and "classical" in row:
            limit = MIXTURE_BAR * row["classical"]
            yield Bar(problem, nfe, "a quarter of classical", row["after"], limit, problem in JUDGED)
        if problem in TIMED:
            yield Bar(problem, nfe, "seconds", row["seconds"], SECONDS_BAR)


# -- writing ----------------------------------------------------------------------------------------------------------

COLUMNS = [
    "problem",
    "evaluations",
    "best untuned",
    "tuned",
    "ratio (95%)",
    "by",
    "diffusers",
    "seconds",
    "alone",
    "bars",
]
WHAT = "Plans tuned for a model, beside the best untuned ones of ours and of diffusers."
NOTES = [
    "Error: rms Euclidean distance, over starts that had no say in tuning, to the teacher's end of the same start; the "
    "median beside it where a few starts of a thousand, which end in another mode, make up the rms.",
    "Best untuned: the winner of a race of solvers, orders, correctors, grids and shifts on the set that chooses.",
    "diffusers: the best of its deterministic samplers with every grid and flag it offers, told the exact noise level.",
    "Seconds: of the tuning, by the clock; other work ran beside all but the digits without guidance.",
    "Alone: the error that one method reaches by itself; tuned is all of them, one after another.",
    "Rows of closed forms, of digits at guidance 7.5 and of untuned budgets are of an earlier run: a race without late "
    "starts and, for the digits, a descent from one start.",
    "Bars: 5 evaluations within diffusers at 7, and as an aim at 8; a budget of the digits under three minutes; plane "
    "mixtures at 6 within a quarter of the best classical plan of 6, chosen on the reported set itself.",
]


def table(rows: list[Row]) -> list[list[str]]:
    known = list(bars(rows))
    return [line(r, [b for b in known if (b.problem, b.evaluations) == (r["problem"], r["evaluations"])]) for r in rows]


def error(r: Row, key: str) -> str:
    """An error as text, with the median over starts where that tells another story."""
    median = r.get(f"{key}_median", r[key])
    return f"{r[key]:.4g}" + (f" (median {median:.4g})" if r[key] > TAIL * median else "")


def line(r: Row, own: list[Bar]) -> list[str]:
    """A row as text, with the bars that it has to pass."""
    before, theirs = f"{error(r, 'before')} {r['start']}", error(r, "diffusers")
    if "after" not in r:
        return [r["problem"], str(r["evaluations"]), before, "", "", "", theirs, "", "", ""]
    ratio = f"{r['ratio']:.2f} ({r['ratio_low']:.2f} to {r['ratio_high']:.2f})"
    alone = ", ".join(f"{name} {value:.4g}" for name, value in r["alone"].items())
    seconds = f"{r['seconds']:.0f}" + (", more trajectories would help" if r["more_trajectories"] else "")
    found = [f"{r['after']:.4g}", ratio, r["method"], theirs, seconds, alone, "; ".join(map(str, own))]
    return [r["problem"], str(r["evaluations"]), before, *found]


#: What is drawn: ``(key of a row, label, marker)``.
CURVES = (("diffusers", "diffusers", "^"), ("before", "untuned", "o"), ("after", "tuned", "s"))


def draw(rows: list[Row], path: Path) -> None:
    """One panel a problem: untuned, tuned, diffusers."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(r["problem"] for r in rows))
    columns = min(3, len(names))
    lines = -(-len(names) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.2 * lines), layout="constrained")
    for axes, name in zip(figure.subplots(lines, columns, squeeze=False).flat, names):
        own = [r for r in rows if r["problem"] == name]
        for key, label, marker in CURVES:
            told = [r for r in own if key in r]
            axes.plot([r["evaluations"] for r in told], [r[key] for r in told], marker=marker, label=label)
        axes.set(title=name, xlabel="evaluations", ylabel="error", yscale="log", xticks=[3, 5, 8, 10, 15, 20])
        axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def earlier(results: Path) -> list[Row]:
    """Rows that were written before."""
    path = results / "tuning.json"
    return json.loads(path.read_text(encoding="utf-8"))["results"] if path.is_file() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", help="beginnings of names of problems")
    parser.add_argument("--evaluations", nargs="*", type=int, help="budgets, instead of each problem's")
    parser.add_argument("--resume", action="store_true", help="budgets that have a row are not run again")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--assets", type=Path, default=HERE.parent / "docs" / "assets")
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    every = list(cases())
    order = [case.name for case in every]
    for case in every:
        if given.only and not any(case.name.startswith(word) for word in given.only):
            continue
        for p in case.denoiser.parameters():
            p.requires_grad_(False)
        there = {r["evaluations"] for r in earlier(given.results) if r["problem"] == case.name and given.resume}
        wanted = {*given.evaluations} if given.evaluations else {*case.scale.budgets, *UNTUNED}
        missing = sorted(wanted - there)
        for row in study(case, missing) if missing else ():
            print(json.dumps(row), flush=True)
            record(row, order, given)  # after each: a long study may be cut short
    if not all(bar.holds for bar in bars(earlier(given.results)) if bar.judged):
        sys.exit("some bars do not hold")


def record(row: Row, order: list[str], given: argparse.Namespace) -> None:
    """Write a row among those that there are, problems in their order."""
    key = (row["problem"], row["evaluations"])
    rows = [r for r in earlier(given.results) if (r["problem"], r["evaluations"]) != key] + [row]
    rows.sort(key=lambda r: (order.index(r["problem"]) if r["problem"] in order else len(order), r["evaluations"]))
    found = content("tuning", WHAT, COLUMNS, table(rows), NOTES) | {"results": rows}
    write(found, json.dumps(found, indent=1) + "\n", given.results, "tuning.svg", "Error of tuned and untuned plans")
    draw(rows, given.assets / "tuning.svg")


if __name__ == "__main__":
    main()
