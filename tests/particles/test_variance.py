"""The estimated variance of the log evidence against that of replicates."""

from __future__ import annotations

import pytest
import torch

from particles.linear import Linear, simulate
from retrodict.core.noise import GeneratorNoise
from retrodict.particles import resamplers, smc
from retrodict.particles.variance import EvidenceVariance


@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("scheme", sorted(resamplers))
def test_variance_is_that_of_replicates(scheme, threshold):
    """500 runs of 100 particles over 25 nodes (8 without resampling): the ratio's own standard error is 7%."""
    y = simulate(8 if threshold == 0 else 25, 21)
    found = EvidenceVariance(scheme)
    noise = GeneratorNoise(torch.Generator().manual_seed(1), 500, dtype=torch.float64)
    run = smc(Linear(y.expand(500, -1)), 100, noise, resample=scheme, threshold=threshold, observers=[found])
    ratio = float(found.variance.mean() / run.log_evidence.var())
    assert 0.6 < ratio < 1.5, ratio


def test_long_series_are_read_off_by_lag():
    """Over 300 nodes every particle has one forebear: without a lag the estimate says nothing."""
    y = simulate(300, 22)
    short, never = EvidenceVariance("multinomial", lag=12), EvidenceVariance("multinomial", lag=10_000)
    noise = GeneratorNoise(torch.Generator().manual_seed(2), 150, dtype=torch.float64)
    model = Linear(y.expand(150, -1))
    run = smc(model, 100, noise, resample="multinomial", threshold=0.9, observers=[short, never])
    truth = run.log_evidence.var()
    assert 0.6 < float(short.variance.mean() / truth) < 1.6  # of 150 replicates: 12% standard error
    assert float(never.variance.max()) < 1 + 1e-9 < float(truth)


def test_counts_vary_as_the_schemes_say():
    """Sum of Var(count) over 40,000 draws against the closed form (the systematic family's is that of each count)."""
    weights = torch.tensor([[0.37, 0.13, 0.08, 0.22, 0.2]], dtype=torch.float64)
    g = torch.Generator().manual_seed(3)
    for name in ("systematic", "ssp", "multinomial", "residual"):
        u = torch.rand(40_000, 5, generator=g, dtype=torch.float64)
        counts = resamplers[name].counts(weights.expand(40_000, -1), u, 5).double()
        assert torch.allclose(counts.var(0), resamplers[name].variance(5 * weights)[0], rtol=0.05, atol=0.01), name
