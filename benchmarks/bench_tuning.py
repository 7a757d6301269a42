"""What tuning buys: errors of tuned plans beside the best untuned ones, ours and diffusers', at 3 to 20 evaluations.

Problems: the digits model of the demonstration, and shapes of 32 by 32 in colour by class, both at guidance 1, 3 and
7.5; the mixture of `bench_frontier`; the mixture of three components of the solver tests under VP with linear betas;
one of ten in 64 dimensions.  For each budget `tune_budget` learns from one set of trajectories, chooses on a second,
and everything here is told on a third.  At one budget each method is told on its own too.

Bars, on that third set:

- networks: the tuned plan of 5 evaluations is within the error of the best untuned diffusers sampler, on its best
  grid, at 7 (8 is told beside it);
- both plane mixtures: the tuned plan of 6 evaluations has at most a quarter of the error of the best classical plan of
  6, ours or theirs;
- digits without guidance: a budget takes under three minutes on two cores.

    python benchmarks/bench_tuning.py [--only NAME ...] [--evaluations 5 ...] [--threads N]

Prints a table and writes ``benchmarks/results/tuning.json``, ``.md`` and ``docs/assets/tuning.svg``; with ``--only``
the rows of the other problems stay.  Exit status 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
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
from retrodict.solvers.tuning import METHODS, Effort, Sets, Trajectories, candidates, teach, teacher, tune_budget

HERE = Path(__file__).parent
UNTUNED = (3, 15, 20)
TUNED_AT, BAR_AT, AIM_AT = 5, 7, 8
MIXTURE_AT, MIXTURE_BAR, SECONDS_BAR = 6, 0.25, 180.0

Row = dict[str, Any]


@dataclass(frozen=True)
class Scale:
    """How much of a problem is run.

    Attributes:
        teacher: evaluations of the teacher; trajectories: to learn from, half as many to choose and to tell.
        budgets: that are tuned; heats: ``(starts, survivors)`` of the diffusers' race before the final.
        alone: whether each method is told by itself; timed: whether a budget may take three minutes at most.
    """

    teacher: int = 60
    trajectories: int = 1024
    budgets: tuple[int, ...] = (5, 8)
    heats: tuple[tuple[int, int], ...] = ((16, 40), (64, 6))
    effort: Effort = field(default_factory=Effort)
    alone: bool = True
    timed: bool = False


#: Closed forms: evaluations cost next to nothing, and rare starts dominate the error.
PLANE = Scale(teacher=160, trajectories=4096, budgets=(4, 5, 6, 8), heats=())
WIDE = Scale(teacher=160, trajectories=2048, budgets=(5, 6, 8), heats=())
#: Networks; with guidance an evaluation is two passes, and of a picture of 32 by 32 a pass takes ten times as long.
DIGITS, GUIDED_DIGITS = Scale(budgets=(4, 5, 6, 8, 10), timed=True), Scale()
SHAPES = Scale(40, 512, (5,), ((4, 40), (16, 12), (64, 4)), Effort(steps=72, batch=96), alone=False)


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


def study(case: Case) -> tuple[list[Row], Row]:
    """Rows of every budget, and how the bars of the problem stand."""
    sets, budgets = sets_of(case), case.scale.budgets
    problem = problem_of(case, sets.test)
    theirs: list[Any] = [p for p in diffusers_peers(problem) if not p.tuned]
    rows = []
    for nfe in sorted({*budgets, *UNTUNED}):
        row = tuned(case, nfe, sets) if nfe in budgets else untuned(case, nfe, sets)
        rival = race(theirs, problem, nfe, case.scale.heats)[0][0]
        rows.append({"problem": case.name, **row, "diffusers": rival.rms, "diffusers_name": rival.runner.name})
        print(json.dumps(rows[-1]), flush=True)
    at = {row["evaluations"]: row for row in rows}
    return rows, network_bar(case, at, theirs, problem) if case.network else mixture_bar(case, at, theirs, problem)


def tuned(case: Case, nfe: int, sets: Sets) -> Row:
    """All methods together, and at one budget each alone."""
    found = tune_budget(case.denoiser, nfe, sets, guidance=case.guidance, effort=case.scale.effort)
    alone = {}
    if case.scale.alone and nfe == (TUNED_AT if case.network else MIXTURE_AT):
        for method in METHODS:
            words = {"guidance": case.guidance, "effort": case.scale.effort, "methods": [method]}
            alone[method] = tune_budget(case.denoiser, nfe, sets, **words).after
    return {**found.row(), "tried": found.tried, "alone": alone}


def untuned(case: Case, nfe: int, sets: Sets) -> Row:
    """The winner of the race of untuned plans, told on the third set."""
    first = tuning.race(
        candidates(case.denoiser.process, nfe, case.guidance, case.denoiser.shape), case.denoiser, sets.valid
    )[0]
    return {"evaluations": nfe, "start": first.name, "before": sets.test.error(case.denoiser, first.plan)}


def network_bar(case: Case, at: dict[int, Row], theirs: list[Any], problem: Problem) -> Row:
    """The tuned plan of 5 evaluations against diffusers at 7 and 8, and the time of a budget."""
    needed, aim = (race(theirs, problem, nfe, case.scale.heats)[0][0] for nfe in (BAR_AT, AIM_AT))
    slowest = max(row.get("seconds", 0.0) for row in at.values())
    verdict: Row = {"problem": case.name, "slowest": slowest, "timed": case.scale.timed}
    verdict |= {"bar": needed.rms, "bar_name": needed.runner.name, "aim": aim.rms, "aim_name": aim.runner.name}
    after = at[TUNED_AT]["after"]
    in_time = slowest <= SECONDS_BAR or not case.scale.timed
    return verdict | {"tuned": after, "holds": after <= needed.rms and in_time, "aimed": after <= aim.rms}


def mixture_bar(case: Case, at: dict[int, Row], theirs: list[Any], problem: Problem) -> Row:
    """The tuned plan of 6 evaluations against everything classical of 6, each judged on the third set itself."""
    entrants: list[Any] = [*named(GRIDS), *theirs]
    best = race(entrants, problem, MIXTURE_AT)[0][0]
    after = at[MIXTURE_AT]["after"]
    judged = case.shape == (2,)
    verdict = {"problem": case.name, "tuned": after, "bar": MIXTURE_BAR * best.rms, "bar_name": best.runner.name}
    return verdict | {"holds": after <= MIXTURE_BAR * best.rms if judged else None, "classical": best.rms}


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
    "verdict",
]
WHAT = "Plans tuned for a model, beside the best untuned ones of ours and of diffusers."
NOTES = [
    "Error: rms Euclidean distance, over starts that had no say in tuning, to the teacher's end of the same start.",
    "Best untuned: the winner of a race of solvers, orders, correctors, grids and shifts on the set that chooses.",
    "diffusers: the best of its deterministic samplers with every grid and flag it offers, told the exact noise level.",
    "Seconds: of the tuning, by the clock; other work ran beside all but the digits without guidance.",
    "Alone: the error that one method reaches by itself; tuned is all of them, one after another.",
    "Bars: networks at 5 evaluations within diffusers at 7, a budget of the digits under three minutes; plane "
    "mixtures at 6 within a quarter of the best classical plan of 6, chosen on the reported set itself.",
]


def table(rows: list[Row], verdicts: list[Row]) -> list[list[str]]:
    return [line(r, next(v for v in verdicts if v["problem"] == r["problem"])) for r in rows]


def line(r: Row, verdict: Row) -> list[str]:
    """A row as text, with the verdict where the bar is."""
    network = "aim" in verdict
    text = ""
    if r["evaluations"] == (TUNED_AT if network else MIXTURE_AT) and verdict["holds"] is not None:
        text = f"bar {verdict['bar']:.4g}: {'holds' if verdict['holds'] else 'MISSED'}"
        if network:
            text += f"; aim {verdict['aim']:.4g}: {'reached' if verdict['aimed'] else 'not reached'}"
    before, theirs = f"{r['before']:.4g} {r['start']}", f"{r['diffusers']:.4g}"
    if "after" not in r:
        return [r["problem"], str(r["evaluations"]), before, "", "", "", theirs, "", "", ""]
    ratio = f"{r['ratio']:.2f} ({r['ratio_low']:.2f} to {r['ratio_high']:.2f})"
    alone = ", ".join(f"{name} {error:.4g}" for name, error in r["alone"].items())
    found = [f"{r['after']:.4g}", ratio, r["method"], theirs, f"{r['seconds']:.0f}", alone, text]
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
        for key, label, marker in (
            ("diffusers", "diffusers", "^"),
            ("before", "untuned", "o"),
            ("after", "tuned", "s"),
        ):
            told = [r for r in own if key in r]
            axes.plot([r["evaluations"] for r in told], [r[key] for r in told], marker=marker, label=label)
        axes.set(title=name, xlabel="evaluations", ylabel="error", yscale="log", xticks=[3, 5, 8, 10, 15, 20])
        axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def kept(path: Path, names: set[str]) -> tuple[list[Row], list[Row]]:
    """Rows and verdicts of an earlier run, of other problems than ``names``."""
    earlier = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"results": [], "verdicts": []}
    rows, verdicts = ([r for r in earlier[key] if r["problem"] not in names] for key in ("results", "verdicts"))
    return rows, verdicts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", help="beginnings of names of problems")
    parser.add_argument("--evaluations", nargs="*", type=int, help="budgets that are tuned, instead of each problem's")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--assets", type=Path, default=HERE.parent / "docs" / "assets")
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    order = []
    for case in cases():
        order.append(case.name)
        if given.only and not any(case.name.startswith(word) for word in given.only):
            continue
        if given.evaluations:
            case = replace(case, scale=replace(case.scale, budgets=tuple(given.evaluations)))
        for p in case.denoiser.parameters():
            p.requires_grad_(False)
        more, verdict = study(case)
        print(verdict, flush=True)
        rows, verdicts = kept(given.results / "tuning.json", {case.name})
        conclude([*rows, *more], [*verdicts, verdict], order, given)  # after each: a long study may be cut short
    if not all(v["holds"] in (None, True) for v in kept(given.results / "tuning.json", set())[1]):
        sys.exit("some bars do not hold")


def conclude(rows: list[Row], verdicts: list[Row], order: list[str], given: argparse.Namespace) -> None:
    """Write everything that is known, problems in their order."""
    place = {name: i for i, name in enumerate(order)}
    rows.sort(key=lambda r: (place.get(r["problem"], len(order)), r["evaluations"]))
    found = content("tuning", WHAT, COLUMNS, table(rows, verdicts), NOTES)
    found |= {"results": rows, "verdicts": verdicts}
    write(found, json.dumps(found, indent=1) + "\n", given.results, "tuning.svg", "Error of tuned and untuned plans")
    draw(rows, given.assets / "tuning.svg")


if __name__ == "__main__":
    main()
