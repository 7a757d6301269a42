"""Resampling schemes: unbiased counts, how far counts stray, batches, and particles of weight zero."""

from __future__ import annotations

import itertools

import pytest
import torch

from retrodict.core.errors import InputError
from retrodict.core.noise import KeyedNoise
from retrodict.particles import Population, normalise, resample_indices, resamplers
from retrodict.particles.resampling import parents, pick

SCHEMES = ["systematic", "stratified", "multinomial", "residual", "ssp"]
WEIGHTS = torch.tensor(
    [[0.5, 0.02, 0.0, 0.28, 0.2], [0.2, 0.2, 0.2, 0.2, 0.2], [0.0, 0.0, 1.0, 0.0, 0.0], [0.31, 0.07, 0.11, 0.38, 0.13]],
    dtype=torch.float64,
)


def counts(scheme, weights, children, draws, seed=0):
    """``draws`` independent counts ``(draws, K)`` of one weight vector."""
    g = torch.Generator().manual_seed(seed)
    width = resamplers[scheme].width(len(weights), children)
    u = torch.rand(draws, width, generator=g, dtype=torch.float64)
    return resamplers[scheme].counts(weights.expand(draws, -1), u, children)


@pytest.mark.parametrize("children", [4, 5, 13])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_counts_are_unbiased(scheme, children):
    """E count = M w: z-scores of 20 means below 5.5; false alarms 8e-7 a case."""
    for row, weights in enumerate(WEIGHTS):
        n = counts(scheme, weights, children, 40_000, seed=row).double()
        assert (n.sum(1) == children).all()
        assert (n.min() >= 0) and (n[:, weights == 0] == 0).all()
        error = (n.mean(0) - children * weights).abs()
        spread = n.std(0) / 200
        assert (error <= 5.5 * spread + 1e-12).all(), (scheme, row, error / spread)


@pytest.mark.parametrize("children", [3, 5, 8])
def test_systematic_counts_are_exactly_unbiased(children):
    """One uniform: counts are constant between breakpoints, so the expectation is a finite sum."""
    for weights in WEIGHTS:
        edges = torch.cat(
            [(children * weights.cumsum(0)).remainder(1), 1 - (children * weights.cumsum(0)).remainder(1)]
        )
        edges = torch.cat([torch.tensor([0.0, 1.0], dtype=torch.float64), edges]).clamp(0, 1).unique()
        middle, width = (edges[1:] + edges[:-1]) / 2, edges.diff()
        n = resamplers["systematic"].counts(weights.expand(len(middle), -1), middle.unsqueeze(1), children)
        assert ((width.unsqueeze(1) * n).sum(0) - children * weights).abs().max() < 1e-12


@pytest.mark.parametrize("scheme", ["systematic", "ssp"])
def test_counts_stay_within_one(scheme):
    g = torch.Generator().manual_seed(1)
    for size, children in [(2, 2), (7, 7), (64, 64), (33, 50), (100, 10)]:
        weights = torch.rand(500, size, generator=g, dtype=torch.float64).pow(4)
        weights /= weights.sum(1, keepdim=True)
        u = torch.rand(500, resamplers[scheme].width(size, children), generator=g, dtype=torch.float64)
        n = resamplers[scheme].counts(weights, u, children)
        assert ((n - children * weights).abs() < 1 + 1e-9).all()


def test_stratified_and_residual_counts_keep_their_bounds():
    g = torch.Generator().manual_seed(2)
    weights = torch.rand(500, 20, generator=g, dtype=torch.float64).pow(3)
    weights /= weights.sum(1, keepdim=True)
    u = torch.rand(500, 20, generator=g, dtype=torch.float64)
    assert ((resamplers["stratified"].counts(weights, u, 20) - 20 * weights).abs() < 2).all()
    assert (resamplers["residual"].counts(weights, u, 20) >= (20 * weights).floor()).all()


def test_ssp_settles_pairs_as_srinivasan_says():
    """Two particles with fractions a, b: the law of the counts, against the pairwise rule written out."""
    for a, b in [(0.3, 0.7), (0.6, 0.4)]:
        weights = torch.tensor([a, 2 + b], dtype=torch.float64) / 3
        n = counts("ssp", weights, 3, 200_000)
        assert abs((n[:, 0] == 1).double().mean() - a) < 5 * 0.5 / 200_000**0.5  # false alarms 6e-7
    # three fractions .5 .8 .7 sum to 2: exactly one of them gets nothing
    n = counts("ssp", torch.tensor([0.25, 0.4, 0.35], dtype=torch.float64), 2, 1000)
    assert ((n == 0).sum(1) == 1).all() and (n.max() == 1)


def test_multinomial_counts_are_multinomial():
    """Chi-square of all outcomes of 3 draws from 3 weights; the quantile is passed with probability 1e-6."""
    weights = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    n = counts("multinomial", weights, 3, 50_000)
    outcomes = [o for o in itertools.product(range(4), repeat=3) if sum(o) == 3]
    chi = 0.0
    for o in outcomes:
        ways = 6 / torch.tensor([1.0, 1.0, 2.0, 6.0])[list(o)].prod()
        expected = 50_000 * float(ways * (weights ** torch.tensor(o)).prod())
        chi += (int((n == torch.tensor(o)).all(1).sum()) - expected) ** 2 / expected
    assert len(outcomes) == 10 and chi < 46.0


def test_parents_are_the_counts_spelled_out():
    n = torch.tensor([[2, 0, 1, 3], [0, 0, 6, 0], [6, 0, 0, 0]])
    expected = torch.stack([torch.repeat_interleave(torch.arange(4), row) for row in n])
    assert (parents(n.cumsum(1), 6) == expected).all()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_batch_equals_its_groups(scheme):
    g = torch.Generator().manual_seed(3)
    weights = torch.rand(6, 9, generator=g, dtype=torch.float64)
    weights /= weights.sum(1, keepdim=True)
    u = torch.rand(6, 9, generator=g, dtype=torch.float64)
    whole = resamplers[scheme](weights, u)
    assert all((whole[i] == resamplers[scheme](weights[i : i + 1], u[i : i + 1])[0]).all() for i in range(6))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("edge", [0.0, 1 - 2**-53])
def test_extreme_uniforms_stay_in_range(scheme, edge):
    weights = torch.tensor([[0.0, 0.1, 0.2, 0.7, 0.0]], dtype=torch.float64)
    picks = resamplers[scheme](weights, torch.full((1, 5), edge, dtype=torch.float64))
    assert picks.min() >= 1 and picks.max() <= 3


def test_single_precision_weights_and_large_populations():
    """10,000 float32 weights: the counts follow them to within one all the same."""
    g = torch.Generator().manual_seed(4)
    weights = torch.rand(1, 10_000, generator=g).pow(2)
    n = resamplers["systematic"].counts(weights, torch.rand(1, 1, generator=g, dtype=torch.float64), 10_000)
    share = 10_000 * weights.double() / weights.double().sum()
    assert int(n.sum()) == 10_000 and ((n - share).abs() < 1.001).all()


def test_pick_draws_from_its_weights():
    weights = torch.tensor([[0.0, 3.0, 1.0, 0.0]], dtype=torch.float64)
    u = torch.tensor([[0.0, 0.74, 0.76, 1 - 2**-53]], dtype=torch.float64)
    assert pick(weights, u).tolist() == [[1, 1, 2, 2]]


def test_resampling_by_log_weights():
    log_w = torch.randn(3, 8, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    picks = resample_indices("ssp", log_w, KeyedNoise(0, 3))
    n = torch.stack([row.bincount(minlength=8) for row in picks])
    assert ((n - 8 * normalise(log_w)).abs() < 1).all()
    with pytest.raises(InputError, match="Did you mean 'systematic'"):
        Population(resample="sytematic")
