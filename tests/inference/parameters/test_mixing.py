"""R-hat and effective sample size: ArviZ's numbers."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from retrodict.inference.parameters import effective_size, mean_error, r_hat


@pytest.mark.parametrize("memory", [0.0, 0.9, -0.5])
@pytest.mark.parametrize("length", [200, 201])
def test_they_are_those_of_arviz(memory, length):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        import arviz
    rng = np.random.default_rng(0)
    x = np.zeros((4, length))
    for t in range(1, length):
        x[:, t] = memory * x[:, t - 1] + rng.normal(size=4)
    x[0] += 0.5
    draws = torch.tensor(x)
    assert float(r_hat(draws)) == pytest.approx(float(arviz.rhat(x, method="split")), rel=1e-10)
    assert float(effective_size(draws)) == pytest.approx(
        float(arviz.ess(x, method="mean")), rel=0.1
    )  # it cuts off later
    assert float(mean_error(draws)) == pytest.approx(np.asarray(arviz.mcse(x, method="mean")).item(), rel=0.05)


def test_the_size_of_an_autoregression_is_known():
    """n (1 - a) / (1 + a) of n draws: within 10% for 40 long chains."""
    g = torch.Generator().manual_seed(0)
    x = torch.zeros(40, 4000, dtype=torch.float64)
    x[:, 0] = torch.randn(40, generator=g).double()
    for t in range(1, 4000):
        x[:, t] = 0.8 * x[:, t - 1] + 0.6 * torch.randn(40, generator=g).double()
    assert float(effective_size(x)) == pytest.approx(160_000 / 9, rel=0.1)


def test_few_draws_and_constants_have_none():
    assert torch.isnan(r_hat(torch.randn(2, 3))) and torch.isnan(effective_size(torch.randn(2, 3)))
    assert torch.isnan(effective_size(torch.ones(2, 10)))
    assert r_hat(torch.randn(2, 40, 3)).shape == (3,)
