"""Are eight evaluations as good as two hundred?  The digits model that the demonstration trains, measured.

Two thousand class-conditional samples over three seeds, by the default solver at one guidance scale, once with 8 and
once with 200 evaluations from the same noise.  With FD the bias-corrected Frechet distance to the 300 held-out digits
in the feature layer of a fixed classifier, and floor the FD of the training set at equal sizes, the bars are

    FD_8 - floor <= 1.2 (FD_200 - floor),    recognised_8 >= 97%,    coverage_8 >= 0.9 of the training set's.

If FD_200 is not told from the floor, the first ratio means nothing; the kernel test (MMD in the features) decides
then: samples of 8 evaluations may not be told from held-out digits where samples of 200 are not.

    python benchmarks/bench_digits.py [runs/demo] [--guidance 1.5] [--threads N]

Prints a table and writes ``benchmarks/results/digits.json`` and ``docs/assets/digits.png``.  The model is trained
first if its folder does not exist.  Numbers are cut, never rounded, to the side that is against us.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from models import digits_model
from peers.writing import content, write
from torch import Tensor

import retrodict as rd
from retrodict.app import measuring
from retrodict.app.demo import GUIDANCE
from retrodict.diagnostics.classifier import FeatureClassifier
from retrodict.diagnostics.distances import Measure, mmd
from retrodict.diagnostics.distances.gaussian import frechet_value
from retrodict.diagnostics.distances.neighbours import prdc
from retrodict.diagnostics.distances.report import at_equal_sizes

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
SHORT, LONG, SAMPLES, SEEDS, CLASSES = 8, 200, 2000, (0, 1, 2), 10
EXCESS, RECOGNISED, COVERAGE, LEVEL = 1.2, 0.97, 0.9, 0.05
HALVES, SUBSETS = 200, 20


def draw(denoiser: rd.Denoiser, nfe: int, guidance: float, n: int) -> tuple[Tensor, Tensor]:
    """``(samples, labels)`` over the seeds; the noise of a sample depends on its seed and index only."""
    sizes = [n // len(SEEDS) + (i < n % len(SEEDS)) for i in range(len(SEEDS))]
    parts = [measuring.draw(denoiser, size, CLASSES, guidance, seed=seed, nfe=nfe) for size, seed in zip(sizes, SEEDS)]
    x, label = (torch.cat(column) for column in zip(*parts))
    return x, label


# -- Frechet distances ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Features:
    """Float64 features of what is compared, one row a digit."""

    short: Tensor
    long: Tensor
    train: Tensor
    heldout: Tensor

    @property
    def size(self) -> int:
        """The size at which samples and training set are compared with the held-out part."""
        return min(len(self.short), len(self.train))


@dataclass(frozen=True)
class Distances:
    """FD of both budgets and of the training set, and random halves of all three, taken together."""

    short: float
    long: float
    floor: float
    spread: np.ndarray

    def interval(self, short: float, long: float, floor: float) -> tuple[float, float, float]:
        """``(value, low, high)`` of a linear combination, 95% by random halves."""
        weights = np.array([short, long, floor])
        value = float(weights @ [self.short, self.long, self.floor])
        error = 1.96 * float(np.std(self.spread @ weights, ddof=1))
        return value, value - error, value + error


def distances(f: Features, seed: int = 0) -> Distances:
    """Bias-corrected FD at equal sizes: the mean over random subsets of what is larger."""
    g = torch.Generator().manual_seed(seed)

    def at_size(x: Tensor) -> float:
        subsets = [torch.randperm(len(x), generator=g)[: f.size] for _ in range(SUBSETS if len(x) > f.size else 1)]
        return float(np.mean([frechet_value(f.heldout, x[i], True) for i in subsets]))

    def half(x: Tensor) -> Tensor:
        return torch.randperm(len(x), generator=g)[: len(x) // 2]

    spread = []
    for _ in range(HALVES):
        # one half of the held-out part for all three, and of the noise for both budgets: they share them in truth too
        real, pick, trained = f.heldout[half(f.heldout)], half(f.short), half(f.train)
        spread.append([frechet_value(real, x, True) for x in (f.short[pick], f.long[pick], f.train[trained])])
    return Distances(at_size(f.short), at_size(f.long), at_size(f.train), np.array(spread))


def coverage(real: Tensor, fake: Tensor) -> Measure:
    """Coverage (k = 5) of the held-out digits at equal sizes: the mean over blocks of 300."""
    return at_equal_sizes(lambda a, b: {"coverage": prdc(a, b, 5)["coverage"]}, real, fake)["coverage"]


# -- the bars -------------------------------------------------------------------------------------------------------


def frechet_bar(d: Distances, p_short: float, p_long: float) -> tuple[str, str, bool]:
    """``(what was compared, the verdict's numbers, whether it holds)`` of the first bar."""
    excess_short, excess_long = d.short - d.floor, d.long - d.floor
    _, low, high = d.interval(0, 1, -1)
    if low <= 0 <= high:
        holds = p_short >= min(LEVEL, p_long)
        text = (
            f"FD_{LONG} - floor = {excess_long:.4f} is within its interval ({low:.4f} to {high:.4f}) of zero; "
            f"by MMD p = {p_short:.4f} at {SHORT}, {p_long:.4f} at {LONG}"
        )
        return "MMD p-values", text, holds
    ratio = excess_short / excess_long
    text = f"{above(excess_short)} / {below(excess_long)} = {above(ratio)}"
    return "FD - floor", text, excess_long > 0 and excess_short <= EXCESS * excess_long


def above(value: float, digits: int = 4) -> str:
    """A number cut upwards."""
    return f"{math.ceil(value * 10**digits) / 10**digits:.{digits}f}"


def below(value: float, digits: int = 4) -> str:
    """A number cut downwards."""
    return f"{math.floor(value * 10**digits) / 10**digits:.{digits}f}"


def bars(
    d: Distances, p: dict[str, float], recognised: dict[str, Measure], covered: dict[str, Measure]
) -> list[dict[str, Any]]:
    """Each bar with its numbers and whether it holds."""
    what, numbers, holds = frechet_bar(d, p["short"], p["long"])
    share = covered["short"].value / covered["train"].value
    return [
        {
            "measure": f"Frechet distance ({what})",
            "short": above(d.short),
            "long": above(d.long),
            "floor": below(d.floor),
            "result": numbers,
            "bar": f"excess at {SHORT} at most {EXCESS} x excess at {LONG}",
            "holds": holds,
        },
        {
            "measure": "recognised",
            "short": below(recognised["short"].value),
            "long": below(recognised["long"].value),
            "floor": below(recognised["heldout"].value),
            "result": f"{below(recognised['short'].low)} to {below(recognised['short'].high)}",
            "bar": f"at least {RECOGNISED}",
            "holds": recognised["short"].value >= RECOGNISED,
        },
        {
            "measure": "coverage, k=5",
            "short": below(covered["short"].value),
            "long": below(covered["long"].value),
            "floor": above(covered["train"].value),
            "result": f"{below(share)} of the floor",
            "bar": f"at least {COVERAGE} of the floor",
            "holds": share >= COVERAGE,
        },
    ]


# -- the whole ------------------------------------------------------------------------------------------------------


def study(
    denoiser: rd.Denoiser, classifier: FeatureClassifier, guidance: float, n: int
) -> tuple[list[dict[str, Any]], dict[str, Any], dict[str, Tensor]]:
    """``(bars, everything measured, samples)``."""
    data = rd.load_data("digits")
    assert data.heldout is not None
    (short, label), (long, _) = (draw(denoiser, nfe, guidance, n) for nfe in (SHORT, LONG))
    f = Features(*(classifier.features(x).double() for x in (short, long, data.x, data.heldout.x)))
    d = distances(f)
    tests = {name: mmd(f.heldout, getattr(f, name), permutations=1000) for name in ("short", "long", "train")}
    half = len(short) // 2  # of different noise, for the two budgets share theirs
    tests["short against long"] = mmd(f.short[:half], f.long[half:], permutations=1000)
    recognised = {"short": classifier.accuracy(short, label), "long": classifier.accuracy(long, label)}
    recognised["heldout"] = classifier.accuracy(data.heldout.x, data.heldout.conditions["label"])
    covered = {name: coverage(f.heldout, getattr(f, name)) for name in ("short", "long", "train")}
    rows = bars(d, {name: float(m.p_value or 0.0) for name, m in tests.items()}, recognised, covered)
    measured = {
        "frechet": {"short": d.short, "long": d.long, "floor": d.floor, "size": f.size},
        "excess_short": d.interval(1, 0, -1),
        "excess_long": d.interval(0, 1, -1),
        "excess_short_minus_bar": d.interval(1, -EXCESS, EXCESS - 1),
        "mmd": {name: m.to_dict() for name, m in tests.items()},
        "recognised": {name: m.to_dict() for name, m in recognised.items()},
        "coverage": {name: m.to_dict() for name, m in covered.items()},
        "by_seed": [frechet_value(f.heldout, part, True) for part in f.short.chunk(len(SEEDS))],
    }
    return rows, measured, {"short": short, "long": long}


def picture(samples: dict[str, Tensor], path: Path, columns: int = 20) -> None:
    """The first samples of both budgets, one above the other: the same noise, the same labels."""
    fig, axes = plt.subplots(2, columns, figsize=(columns * 0.5, 1.15))
    for row, name in zip(axes, ("short", "long")):
        for axis, x in zip(row, samples[name][:columns]):
            axis.imshow(x[0], cmap="gray_r", vmin=0, vmax=16)
            axis.set_xticks([])
            axis.set_yticks([])
    for axis, nfe in zip(axes[:, 0], (SHORT, LONG)):
        axis.set_ylabel(nfe, rotation=0, ha="right", va="center")
    fig.tight_layout(pad=0.2)
    fig.savefig(path, dpi=160, metadata={"Software": None})
    plt.close(fig)


WHAT = f"Digits: are {SHORT} evaluations as good as {LONG}?"
CAPTION = f"Samples of {SHORT} evaluations above those of {LONG}, from the same noise"
COLUMNS = ["measure", f"{SHORT} evaluations", f"{LONG} evaluations", "floor", "result", "bar", "holds"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", default="runs/demo", type=Path)
    parser.add_argument("--guidance", type=float, default=GUIDANCE)
    parser.add_argument("--samples", type=int, default=SAMPLES)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--assets", type=Path, default=HERE.parent / "docs" / "assets")
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    begun = time.perf_counter()
    denoiser = digits_model(given.folder)
    classifier = measuring.classifier_of(given.folder, rd.load_data("digits"))
    rows, measured, samples = study(denoiser, classifier, given.guidance, given.samples)
    table = [
        [r["measure"], r["short"], r["long"], r["floor"], r["result"], r["bar"], "yes" if r["holds"] else "NO"]
        for r in rows
    ]
    for line in [COLUMNS, *table]:
        print("  |  ".join(line))
    notes = [
        f"{given.samples:,} samples over {len(SEEDS)} seeds, default solver, guidance {given.guidance:g}, the same "
        "noise for both budgets; held out: 300 digits.",
        "Frechet distances are bias-corrected, in classifier features, at equal sizes "
        f"({measured['frechet']['size']:,} against 300); the floor is that of the training set.",
        "The floor of 'recognised' is that of the held-out digits.",
        "Numbers are cut to the side that is against us.",
    ]
    result = content("digits", WHAT, COLUMNS, table, notes)
    result |= {
        "holds": all(r["holds"] for r in rows),
        "seconds": round(time.perf_counter() - begun),
        "measured": measured,
    }
    write(result, json.dumps(result, indent=1) + "\n", given.results, "digits.png", CAPTION)
    given.assets.mkdir(parents=True, exist_ok=True)
    picture(samples, given.assets / "digits.png")
    sys.exit(0 if result["holds"] else "some bars do not hold")


if __name__ == "__main__":
    main()
