"""Time shift on a trained network: energy distance of ten-step samples to held-out digits, with and without.

The digits model with labels, DDIM and DDPM on uniform times, 600 samples a seed, the same noise for all rules.  Window
.2 and cutoff .1 were chosen on other seeds.  "floor" is the distance of training digits to the held-out ones, of which
there are 300.  Bar: the corrected rule is nearer than no shift at every seed; the published rule is measured beside it.

    python benchmarks/bench_time_shift.py [--quick]
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import torch
from models import digits_model
from studies import energy_distance, finish, parse
from torch import Tensor

import retrodict as rd
from retrodict.solvers import time_shifted

WHAT = "Ten-step samples of the digits model with times shifted: energy distance to held-out digits"
SEEDS, SAMPLES = (10, 11, 12), 600


def main(argv: Sequence[str] | None = None) -> None:
    given = parse(__doc__, argv)
    denoiser, data = digits_model(), rd.load_data("digits")
    assert data.heldout is not None
    units: Any = lambda x: x.double().flatten(1) / 8 - 1  # noqa: E731
    real, train = units(data.heldout.x), units(data.x)
    label = torch.arange(60 if given.quick else SAMPLES) % 10

    def away(plan: rd.Plan, seed: int) -> float:
        x: Tensor = rd.sample(denoiser, len(label), plan=plan, label=label, seed=seed, progress=False).x
        return energy_distance(units(x), real)

    rows, bars = [], {}
    floor = energy_distance(train[: len(label)], real)
    for solver in ("ddim", "ddpm"):
        plain = rd.plan(solver, denoiser.process, steps=10, grid="uniform")
        plans = {"none": plain}
        for rule in ("corrected", "paper"):
            plans[rule] = time_shifted(plain, 0.2, 0.1, rule, float(train.var()))
        found = {
            rule: [away(plan, seed) for seed in SEEDS[: 1 if given.quick else None]] for rule, plan in plans.items()
        }
        for rule, values in found.items():
            row: dict[str, Any] = {"solver": solver, "rule": rule, "energy distance": statistics.mean(values)}
            rows.append(row | {"least": min(values), "largest": max(values), "floor": floor})
        worst = max(a - b for a, b in zip(found["corrected"], found["none"]))
        bars[f"{solver}: corrected less none, the largest of the seeds"] = (worst, 0.0)
    finish("time_shift", WHAT, rows, bars, given)


if __name__ == "__main__":
    main()
