"""Rounds of parallel iteration: network calls that wait for each other, against one after the other.

50 evaluations of five solvers, and of DDIM with noise, on the exact denoisers of two mixtures in the plane and on the
digits model with labels under guidance 1.5.  A run counts when its samples agree with the sequential ones to 1e-4 in
the largest element (model units; in the largest over all samples).  Bar: the default method needs at most a third of
the sequential rounds everywhere.  "evaluations" is the work of a sample relative to the sequential run.

    python benchmarks/bench_parallel.py [--quick]
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from models import digits_model
from studies import finish, parse

import retrodict as rd
from retrodict.exact import GaussianMixture

WHAT = "Rounds of parallel iteration for plans of 50 evaluations, within 1e-4 of the sequential samples"
AGREE = 1e-4
SOLVERS: list[tuple[str, float | None]] = [
    ("ddim", None), ("dpm-solver++", None), ("unipc", None), ("plms", None), ("heun", None), ("ddim", 1.0)
]  # fmt: skip
METHODS = ("jacobi", "picard", "exponential-picard", "quasi-newton")
MIXTURES = {
    "three wide modes": GaussianMixture(
        [0.2861, 0.4715, 0.2424],
        [[0.5884, -0.3353], [-0.4793, -1.8076], [1.5667, -0.9498]],
        [0.4963**2, 0.6136**2, 0.9542**2],
    ),
    "five narrow modes": GaussianMixture(
        [0.30, 0.20, 0.20, 0.15, 0.15],
        [[1.2, 0], [-0.8, 0.9], [-0.8, -0.9], [0.3, 1.6], [0.4, -1.5]],
        [0.25**2, 0.35**2, 0.30**2, 0.20**2, 0.40**2],
    ),
}


def problems(quick: bool) -> Iterator[tuple[str, rd.Denoiser, int, dict[str, Any], tuple[str, ...]]]:
    """``(name, denoiser, samples, words of sample, methods)``."""
    for name, law in MIXTURES.items():
        yield name, law.denoiser(rd.VP()), 64, {}, METHODS
    if not quick:
        words: dict[str, Any] = {"label": torch.arange(8), "guidance": 1.5}
        yield "digits model", digits_model(), 8, words, ("exponential-picard", "quasi-newton")


def measure(
    denoiser: rd.Denoiser, n: int, words: dict[str, Any], solver: str, eta: float | None, methods: tuple[str, ...]
) -> Iterator[dict[str, Any]]:
    """One row a method."""
    plan = rd.plan(solver, denoiser.process, steps=25 if solver == "heun" else 50, eta=eta)
    one = rd.sample(denoiser, n, plan=plan, progress=False, **words)
    units: Any = denoiser.scale or (lambda v: v)
    for method in methods:
        many = rd.sample(denoiser, n, plan=plan, parallel=rd.Parallel(method), progress=False, **words)
        yield {
            "solver": solver + (f", eta {eta:g}" if eta else ""),
            "method": method,
            "sequential rounds": one.rounds,
            "rounds": many.rounds,
            "share": many.rounds / one.rounds,
            "evaluations": many.passes / one.passes,
            "largest difference": float((units(many.x) - units(one.x)).abs().max()),
        }


def main(argv: Sequence[str] | None = None) -> None:
    given = parse(__doc__, argv)
    rows = [
        {"problem": name, **row}
        for name, denoiser, n, words, methods in problems(given.quick)
        for solver, eta in SOLVERS[: 2 if given.quick else None]
        for row in measure(denoiser, n, words, solver, eta, methods)
    ]
    bars = {}
    for name in dict.fromkeys(r["problem"] for r in rows):
        ours = [r for r in rows if r["problem"] == name and r["method"] == "quasi-newton"]
        bars[f"{name}: share of the sequential rounds"] = (max(r["share"] for r in ours), 1 / 3)
        bars[f"{name}: largest difference"] = (max(r["largest difference"] for r in ours), AGREE)
    finish("parallel", WHAT, rows, bars, given)


if __name__ == "__main__":
    main()
