"""Divergence under strong guidance, with momentum and without: the share of samples that leave the data.

Guidance 10 at 5 to 10 evaluations on uniform times, on two problems: a guided pair of mixtures in the plane (512
starts) and the digits model with labels.  A sample has diverged when its largest element exceeds 1.2 times the largest
of all reference samples, made by 200 evaluations from the same noise.  The root mean square error to those is beside
it.  Bars, wherever more than 1% diverge without momentum: around weights of second order the heavy
ball (beta .8) at least halves the share, and around weights of fourth order (beta .5) from 6 evaluations on.

    python benchmarks/bench_momentum.py [--quick]
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from models import digits_model
from studies import finish, parse

import retrodict as rd
from retrodict.denoisers import Product
from retrodict.exact import GaussianMixture

WHAT = "Share of diverged samples under guidance 10, with and without momentum"
GUIDANCE, MARGIN, BUDGETS = 10.0, 1.2, (5, 6, 7, 8, 9, 10)
PLANS: list[tuple[str, str, dict[str, Any]]] = [
    ("DDIM", "ddim", {}),
    ("PLMS 2", "plms", {"order": 2}),
    ("PLMS 2, heavy ball .8", "hb", {"order": 2, "beta": 0.8}),
    ("PLMS 4", "plms", {}),
    ("PLMS 4, heavy ball .8", "hb", {"beta": 0.8}),
    ("PLMS 4, heavy ball .5", "hb", {"beta": 0.5}),
    ("GHVB 4, .8", "ghvb", {"beta": 0.8}),
    ("GHVB 4, .5", "ghvb", {"beta": 0.5}),
    ("GHVB 2, .8", "ghvb", {"order": 2, "beta": 0.8}),
    ("DPM-Solver++ 2M", "dpm++2m", {}),
    ("DPM-Solver++ 2M, heavy ball .8", "hb", {"order": 2, "kind": "data", "weights": "midpoint", "beta": 0.8}),
    ("UniPC 3", "unipc", {"order": 3}),
]


def mixtures() -> rd.Denoiser:
    """Two laws of the same components: all of them, and mostly the first."""
    means = [[0.5884, -0.3353], [-0.4793, -1.8076], [1.5667, -0.9498]]
    variances = [0.3102**2, 0.3835**2, 0.5964**2]
    both = [GaussianMixture(w, means, variances) for w in ([0.2861, 0.4715, 0.2424], [0.9362, 0.0466, 0.0171])]
    return Product([law.denoiser(rd.VP()) for law in both], [1 - GUIDANCE, GUIDANCE])


def problems(quick: bool) -> Iterator[tuple[str, rd.Denoiser, int, dict[str, Any]]]:
    """``(name, denoiser, samples, words of sample)``."""
    yield "mixtures", mixtures(), 512, {"population": False}
    if not quick:
        yield "digits model", digits_model(), 100, {"label": torch.arange(100) % 10, "guidance": GUIDANCE}


def study(denoiser: rd.Denoiser, n: int, words: dict[str, Any], budgets: Sequence[int]) -> Iterator[dict[str, Any]]:
    """One row a plan: shares and errors at all budgets."""
    end = 1e-3
    units: Any = denoiser.scale or (lambda v: v)

    def draw(solver: str, nfe: int, grid: str, options: dict[str, Any]) -> torch.Tensor:
        x = rd.sample(
            denoiser, n, solver=solver, nfe=nfe, grid=grid, end=end, options=options, progress=False, **words
        ).x
        return units(x.double()).flatten(1)

    reference = draw("unipc", 200, "logsnr", {"order": 3})
    bound = MARGIN * float(reference.abs().max())
    for label, solver, options in PLANS:
        row: dict[str, Any] = {"plan": label}
        for nfe in budgets:
            x = draw(solver, nfe, "uniform", options)
            row[f"diverged at {nfe}"] = float((x.abs().amax(1) > bound).double().mean())
            row[f"error at {nfe}"] = float((x - reference).square().mean().sqrt())
        yield row


def main(argv: Sequence[str] | None = None) -> None:
    given = parse(__doc__, argv)
    budgets = (5, 10) if given.quick else BUDGETS
    rows: list[dict[str, Any]] = []
    bars: dict[str, tuple[float, float]] = {}
    for name, denoiser, n, words in problems(given.quick):
        found = {row["plan"]: row for row in study(denoiser, n, words, budgets)}
        rows += [{"problem": name, **row} for row in found.values()]
        for nfe, (order, ball) in itertools.product(budgets, ((2, 0.8), (4, 0.5))):
            plain, calm = (
                found[f"PLMS {order}{tail}"][f"diverged at {nfe}"] for tail in ("", f", heavy ball .{10 * ball:g}")
            )
            if plain > 0.01 and (order == 2 or nfe > 5):
                bars[f"{name}, {nfe} evaluations: PLMS {order} with momentum over without"] = (calm / plain, 0.5)
    finish("momentum", WHAT, rows, bars, given)


if __name__ == "__main__":
    main()
