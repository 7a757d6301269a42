"""A small network for the noisy steps: how many of them it may take before samples get worse, and what is saved.

The demonstration's U-Net of the digits, and a small network of full connections trained on the same digits in a minute
whose evaluations cost a fraction.  50 DDIM steps on even times with labels, the small network in charge of the first
ones; 300 samples a seed and three seeds, from the same noise for every share.  "energy" is the energy distance to the
300 held-out digits in the feature layer of a fixed classifier, less the floor, which is that of training digits;
"recognised" is the share that the classifier gives the label asked for, "moved" the root mean square distance of a
sample to that of the U-Net alone (data have 1), "nats" what the losses on held-out digits say that the share costs at
most.

Bars: with the small network in charge of 40% of the steps the energy distance, the mean of the seeds, exceeds that of
the U-Net alone by at most a tenth of what the small network alone adds to it, the recognised share is within one point,
and at most .7 of the processor time is needed.

    python benchmarks/bench_stitching.py [--quick]
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from models import digits_model, small_digits_model
from studies import energy_distance, finish, parse
from torch import Tensor

import retrodict as rd
from retrodict.app.measuring import classifier_of
from retrodict.denoisers import Stitched, excess_divergence

WHAT = "Digits by 50 DDIM steps, the first ones by a small network: quality and time against its share of the steps"
STEPS, SEEDS, SAMPLES = 50, (20, 21, 22), 300
SHARES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


def shared(small: rd.Denoiser, big: rd.Denoiser, times: Sequence[float], taken: int) -> rd.Denoiser:
    """The small network for the first ``taken`` evaluations."""
    if taken in (0, len(times)):
        return small if taken else big
    return Stitched([small, big], [(times[taken - 1] + times[taken]) / 2])


def main(argv: Sequence[str] | None = None) -> None:
    given = parse(__doc__, argv)
    small, big, data = small_digits_model(), digits_model(), rd.load_data("digits")
    classifier = classifier_of(Path("runs/demo"), data)
    assert data.heldout is not None and big.scale is not None
    steps, seeds, n = (10, SEEDS[:2], 40) if given.quick else (STEPS, SEEDS, SAMPLES)
    plan = rd.plan("ddim", big.process, steps=steps, grid="uniform")
    times = plan.times[:-1]
    held, label = big.scale(data.heldout.x.float()), torch.arange(n) % 10
    prices = excess_divergence(small, big, held, times, label=data.heldout.conditions["label"]).cumsum(0)
    real = classifier.features(data.heldout.x).double()
    floor = energy_distance(classifier.features(data.x).double(), real)

    rows: list[dict[str, Any]] = []
    alone: list[Tensor] = []
    for share in SHARES:
        taken = round(share * steps)
        denoiser, begun = shared(small, big, times, taken), time.process_time()
        drawn = [rd.sample(denoiser, n, plan=plan, label=label, seed=s, progress=False).x for s in seeds]
        seconds = time.process_time() - begun
        alone = alone or drawn
        moved = [(big.scale(a) - big.scale(b)).square().mean() for a, b in zip(drawn, alone)]
        energies = [energy_distance(classifier.features(x).double(), real) - floor for x in drawn]
        rows.append(
            {
                "share of the small": share,
                "energy": statistics.mean(energies),
                "least": min(energies),
                "largest": max(energies),
                "recognised": statistics.mean(classifier.accuracy(x, label).value for x in drawn),
                "moved": math.sqrt(float(torch.stack(moved).mean())) / float(held.std()),
                "nats": float(prices[taken - 1]) if 0 < taken < steps else 0.0 if not taken else None,
                "seconds": seconds,
                "time": seconds / rows[0]["seconds"] if rows else 1.0,
                "floor": floor,
            }
        )
    by_share = {row["share of the small"]: row for row in rows}
    first, fourth, last = (by_share[share] for share in (0.0, 0.4, 1.0))
    added = (fourth["energy"] - first["energy"]) / (last["energy"] - first["energy"])
    bars = {
        "40%: what it adds to the energy distance, in shares of what the small network alone adds": (added, 0.1),
        "40%: recognised by the U-Net alone less recognised": (first["recognised"] - fourth["recognised"], 0.01),
        "40%: share of the time": (fourth["time"], 0.7),
    }
    finish("stitching", WHAT, rows, bars, given)


if __name__ == "__main__":
    main()
