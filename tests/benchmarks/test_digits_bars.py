"""The verdicts of the digits benchmark, on numbers whose answer is known."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from bench_digits import Distances, Features, above, below, distances, frechet_bar


def known(short: float, long: float, error: float) -> Distances:
    """A floor of 1, and spreads in which only the long run varies."""
    return Distances(short, long, 1.0, np.array([[short, long - error, 1.0], [short, long + error, 1.0]]))


def test_the_ratio_of_excesses_decides_when_the_long_run_is_off_the_floor() -> None:
    assert frechet_bar(known(3.39, 3.0, 0.1), 0.0, 0.0)[2]
    assert not frechet_bar(known(3.41, 3.0, 0.1), 0.9, 0.9)[2]


def test_p_values_decide_when_the_long_run_is_at_the_floor() -> None:
    what, text, holds = frechet_bar(known(9.0, 1.01, 0.1), 0.3, 0.5)
    assert holds
    assert "MMD" in what
    assert "of zero" in text
    assert not frechet_bar(known(1.0, 1.01, 0.1), 0.01, 0.5)[2]
    assert frechet_bar(known(1.0, 1.01, 0.1), 0.01, 0.01)[2]  # no worse than the long run


def test_numbers_are_cut_never_rounded() -> None:
    assert below(0.96999) == "0.9699"
    assert above(1.20001) == "1.2001"


def test_distances_of_one_law_are_zero_within_their_interval() -> None:
    """Four samples of one Gaussian: each FD is near zero; the excess of one that is shifted by 1 is near 1."""
    g = torch.Generator().manual_seed(0)
    draw = lambda n: torch.randn(n, 4, dtype=torch.float64, generator=g)  # noqa: E731
    shift = torch.tensor([1.0, 0, 0, 0], dtype=torch.float64)
    d = distances(Features(draw(800) + shift, draw(800), draw(600), draw(300)))
    _, low, high = d.interval(0, 1, -1)
    assert low < 0 < high
    value, low, high = d.interval(1, 0, -1)
    assert low < 1 < high
    assert abs(value - 1) < 0.3
