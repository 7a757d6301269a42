"""What running a plan costs beside the bare tensor operations of its rows, and beside diffusers.

The denoiser is free (it returns one fixed tensor), so that what is left is the solver.  The bare loop is written by
hand: one fused kernel a term of a row (``mul`` for the first, ``add_`` with ``alpha=`` for the rest) into preallocated
memory, with as many terms as the row needs once states that are never evaluated are eliminated, counted by hand below.
Stochastic plans are compared with those kernels plus one ``randn`` a step.  Ours, theirs and the bare loop alternate;
the table shows medians, in microseconds for one step of a 50-step plan.

    python benchmarks/bench_overhead.py [--runs 7] [--threads 1]

Writes ``benchmarks/results/overhead.json``.  Bars: at most twice the bare loop for plans up to order 4, at most 1/6 of
diffusers' DPMSolverMultistep and 1/20 of its UniPC, and 5 milliseconds to build a plan of 50 steps.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import retrodict as rd
from retrodict.core.noise import KeyedNoise
from retrodict.denoisers import Denoiser
from retrodict.solvers import auto, runtime
from retrodict.solvers.passes import eliminate
from retrodict.solvers.plan import Row

STEPS, SHAPES = 50, ((64, 1, 8, 8), (1, 4, 64, 64))
BARS = {"bare": 2.0, "DPMSolverMultistep": 1 / 6, "UniPC": 1 / 20, "build_ms": 5.0}
RESULTS = Path(__file__).parent / "results" / "overhead.json"

# name, solver, options, order, kernels of each row of one step in the middle of the plan, counted by hand:
# the state and one output a node for data prediction; a state and an output a node for noise, flow and velocity; a
# predictor-corrector of p nodes needs the two last evaluated states and p outputs (data), or p + 1 of each
PLANS: list[tuple[str, str, dict[str, Any], int, list[int]]] = [
    ("DDIM", "ddim", {}, 1, [2]),
    ("DPM-Solver++ 2M", "dpm++2m", {}, 2, [3]),
    ("DPM-Solver++ 3M", "dpm-solver++", {"order": 3}, 3, [4]),
    ("exponential Adams 4", "adams", {"order": 4}, 4, [5]),
    ("DPM-Solver 2", "dpm-solver", {"order": 2}, 2, [4]),
    ("DPM-Solver 3", "dpm-solver", {"order": 3}, 3, [6]),
    ("DEIS tab 3", "deis", {"degree": 2}, 3, [6]),
    ("LMS 4", "lms", {}, 4, [8]),
    ("PLMS 4", "plms", {}, 2, [8]),
    ("UniPC 1", "unipc", {"order": 1}, 2, [3]),
    ("UniPC 2", "unipc", {"order": 2}, 3, [4]),
    ("UniPC 3", "unipc", {"order": 3}, 4, [5]),
    ("flow Adams-Bashforth 2", "flow-ab", {}, 2, [4]),
    ("velocity Adams-Bashforth 2", "velocity-ab", {}, 2, [4]),
    ("auto", "auto", {}, 4, [8]),
    ("Heun", "heun", {}, 2, [2, 3]),
    ("midpoint", "rho-rk", {"tableau": "midpoint"}, 2, [2, 3]),
    ("Kutta 3", "rho-rk", {"tableau": "kutta3"}, 3, [2, 3, 4]),
    ("Runge-Kutta 4", "rho-rk", {"tableau": "rk4"}, 4, [2, 3, 3, 5]),
    ("DPM-Solver++ 2S", "dpm-solver++-2s", {}, 2, [2, 2]),
    ("DPM-Solver++ 3S", "dpm-solver++-3s", {}, 3, [2, 3, 3]),
]
NOISY: list[tuple[str, str, dict[str, Any], int, list[int]]] = [
    ("DDPM", "ddpm", {}, 1, [3]),
    ("SDE-DPM-Solver++ 2M", "dpm++2m-sde", {}, 2, [4]),
    ("SDE-DPM-Solver++ 3M", "sde-dpm-solver++", {"order": 3}, 2, [5]),
    ("exponential Adams 2, eta .5", "adams", {"eta": 0.5}, 2, [4]),
]


class Free(Denoiser):
    """A denoiser that costs nothing."""

    def __init__(self, process: rd.GaussianPath, shape: tuple[int, ...]) -> None:
        super().__init__(process, shape[1:])
        self.out = torch.randn(shape)

    def forward(self, x: Tensor, t: float | Tensor, **condition: Any) -> Tensor:
        return self.out


def make(solver: str, options: dict[str, Any]) -> rd.Plan:
    """A plan of 50 steps."""
    if solver == "auto":
        choice = auto.choose(rd.VP(), STEPS)
        return rd.plan(choice.solver, rd.VP(), steps=STEPS, grid=choice.grid, **choice.options)
    return rd.plan(solver, rd.VP(), steps=STEPS, **options)


def bare(shape: tuple[int, ...], rows: list[int], noisy: bool) -> Callable[[], None]:
    """The tensor operations of 50 steps with ``rows`` kernels each, and nothing else."""
    values = [torch.randn(shape) for _ in range(max(rows))]
    out, noise = torch.empty(shape), torch.empty(shape)

    def loop() -> None:
        for _ in range(STEPS):
            if noisy:
                torch.randn(shape, out=noise)
            for terms in rows:
                torch.mul(values[0], 0.9, out=out)
                for value in values[1:terms]:
                    out.add_(value, alpha=0.1)

    return loop


def ours(plan: rd.Plan, shape: tuple[int, ...]) -> Callable[[], None]:
    """A run of the plan; noise is made anew for every run, as `sample` does."""
    denoiser, x = Free(plan.process, shape), torch.randn(shape)

    def loop() -> None:
        runtime.run(plan, denoiser, x, KeyedNoise(0, shape[0]), {})

    return loop


def theirs(name: str, shape: tuple[int, ...]) -> Callable[[], None]:
    """diffusers' scheduler of the name, on a free network."""
    import diffusers

    make_one = {
        "DPMSolverMultistep": lambda: diffusers.DPMSolverMultistepScheduler(solver_order=2),
        "UniPC": lambda: diffusers.UniPCMultistepScheduler(solver_order=2),
    }[name]
    scheduler, x0, out = make_one(), torch.randn(shape), torch.randn(shape)

    def loop() -> None:
        scheduler.set_timesteps(STEPS)
        x = x0
        for t in scheduler.timesteps:
            x = scheduler.step(out, t, x).prev_sample

    return loop


def alternate(loops: dict[str, Callable[[], None]], runs: int) -> dict[str, list[float]]:
    """Microseconds a step of each loop, over alternated runs after one to warm up."""
    times: dict[str, list[float]] = {name: [] for name in loops}
    for run in range(-1, runs):
        for name, loop in loops.items():
            start = time.perf_counter()
            loop()
            if run >= 0:
                times[name].append(1e6 * (time.perf_counter() - start) / STEPS)
    return times


def terms_of(plan: rd.Plan) -> list[int]:
    """Kernels of each row of the shortened plan, from the middle of it."""
    rows = [c for c in eliminate(plan).code if isinstance(c, Row)]
    return [c.terms for c in rows]


def measure(
    case: tuple[str, str, dict[str, Any], int, list[int]], shape: tuple[int, ...], runs: int, noisy: bool
) -> dict[str, Any]:
    """One plan on one shape."""
    name, solver, options, order, rows = case
    plan = make(solver, options)
    assert sum(terms_of(plan)) <= STEPS * sum(rows), f"{name}: longer rows than counted by hand"
    times = alternate({"ours": ours(plan, shape), "bare": bare(shape, rows, noisy)}, runs)
    medians = {k: statistics.median(v) for k, v in times.items()}
    ratio = medians["ours"] / medians["bare"]
    return {
        "plan": name,
        "shape": list(shape),
        "order": order,
        "stochastic": noisy,
        "kernels": rows,
        "evaluations": len(rows),
        "ours_us": medians["ours"],
        "bare_us": medians["bare"],
        "ratio": ratio,
        "gated": order <= 4,
        "ok": ratio <= BARS["bare"],
        "times_us": times,
    }


def against(name: str, solver: str, options: dict[str, Any], shape: tuple[int, ...], runs: int) -> dict[str, Any]:
    """Ours beside diffusers' scheduler of the same method."""
    times = alternate({"ours": ours(make(solver, options), shape), "theirs": theirs(name, shape)}, runs)
    medians = {k: statistics.median(v) for k, v in times.items()}
    ratio = medians["ours"] / medians["theirs"]
    row = {
        "peer": f"diffusers {name}",
        "shape": list(shape),
        "ours_us": medians["ours"],
        "theirs_us": medians["theirs"],
    }
    return row | {"ratio": ratio, "bar": BARS[name], "ok": ratio <= BARS[name], "times_us": times}


def building(case: tuple[str, str, dict[str, Any], int, list[int]], runs: int) -> dict[str, Any]:
    """Milliseconds to make a plan of 50 steps, and to lower it to its program: processor time, which other work on the
    machine does not lengthen."""
    name, solver, options, _, _ = case
    build, lower = [], []
    for run in range(-1, runs):
        times = [time.process_time()]
        plan = make(solver, options)
        times.append(time.process_time())
        runtime.lower(plan)
        times.append(time.process_time())
        if run >= 0:
            build.append(1e3 * (times[1] - times[0]))
            lower.append(1e3 * (times[2] - times[1]))
    value = statistics.median(build)
    return {"plan": name, "build_ms": value, "lower_ms": statistics.median(lower), "ok": value <= BARS["build_ms"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    with torch.no_grad():
        rows = [
            measure(c, s, given.runs, noisy)
            for noisy in (False, True)
            for c in (NOISY if noisy else PLANS)
            for s in SHAPES
        ]
        peers = [
            against(name, solver, options, shape, given.runs)
            for name, solver, options in (("DPMSolverMultistep", "dpm++2m", {}), ("UniPC", "unipc", {"order": 2}))
            for shape in SHAPES
        ]
    builds = [building(case, given.runs) for case in [*PLANS, *NOISY]]
    text = page(rows, peers, builds)
    print(text)
    content = {
        "format": 1,
        "what": "microseconds a step of a 50-step plan on a free denoiser, medians of alternated runs",
        "torch": torch.__version__,
        "threads": given.threads,
        "runs": given.runs,
        "bars": BARS,
        "rows": rows,
        "peers": peers,
        "building": builds,
        "ok": all(r["ok"] for r in [*rows, *peers, *builds] if r.get("gated", True)),
    }
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(content, indent=1) + "\n")
    RESULTS.with_suffix(".md").write_text(text + "\n")
    print(f"written: {RESULTS}")
    sys.exit(0 if content["ok"] else "some bars do not hold")


def page(rows: list[dict[str, Any]], peers: list[dict[str, Any]], builds: list[dict[str, Any]]) -> str:
    """The tables, as Markdown that also reads well in a terminal."""
    lines = ["| plan | shape | kernels of a step | bare us | ours us | ratio |", "|---|---|---|---|---|---|"]
    for r in rows:
        kernels = " + ".join(map(str, r["kernels"])) + (" + randn" if r["stochastic"] else "")
        over = "" if r["ok"] else " (over)"
        timed = f"{r['bare_us']:6.1f} | {r['ours_us']:6.1f} | {r['ratio']:.2f}{over}"
        lines.append(f"| {r['plan']:27} | {_shape(r)} | {kernels:13} | {timed} |")
    lines += ["", "| beside | shape | theirs us | ours us | ratio | bar |", "|---|---|---|---|---|---|"]
    for r in peers:
        over = "" if r["ok"] else " (over)"
        lines.append(
            f"| {r['peer']:28} | {_shape(r)} | {r['theirs_us']:6.1f} | {r['ours_us']:6.1f} "
            f"| 1/{1 / r['ratio']:.0f}{over} | 1/{1 / r['bar']:.0f} |"
        )
    slowest = max(builds, key=lambda r: r["build_ms"])
    lines += ["", f"Building a plan of 50 steps takes {slowest['build_ms']:.1f} ms at most ({slowest['plan']})."]
    return "\n".join(lines)


def _shape(row: dict[str, Any]) -> str:
    return "x".join(map(str, row["shape"]))


if __name__ == "__main__":
    main()
