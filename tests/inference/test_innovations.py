"""Chains over innovations against grid smoothers, grid posteriors, Kalman smoothers and priors.

Means are compared at 4 standard errors between independent chains (false alarm: 2e-4 to 1e-3 each, Student's t).
"""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Gamma, LogNormal, Normal

from oracles.euler_grid import EulerQuadrature, normal
from retrodict.core.errors import InputError, InputTypeError
from retrodict.inference.innovations import innovation_chain
from retrodict.inference.observed import Observed
from retrodict.inference.sde import SDE

F64 = torch.float64
DOUBLE_WELL = SDE(lambda x, t: x - x**3, 0.8)


def close(estimate: tuple[torch.Tensor, torch.Tensor], truth: float) -> None:
    mean, bar = (float(v) for v in estimate)
    assert abs(mean - truth) < 4 * bar, f"{mean:.4f} +- {bar:.4f}, not {truth:.4f}"


def test_paths_of_a_double_well_follow_the_grid_smoother() -> None:
    """From a poor auxiliary on purpose: a third of the moves are refused, so that accepting all of them fails."""
    data = Observed([1.0], times=[1.0], noise=0.1)
    truth = EulerQuadrature(lambda x: 3 * (x - x**3), lambda x: 0.8 + 0 * x, -0.5, {40: normal(1.0, 0.1)}, 40)
    mean, var = truth.smoothed(20)
    options = dict(start=[-0.5], steps=40, auxiliary="brownian", chains=100, sweeps=400, grid=True, seed=1)
    draws = innovation_chain(SDE(lambda x, t: 3 * (x - x**3), 0.8), data, **options)
    assert draws.x.shape == (300, 100, 1, 41, 1) and 0.1 < draws.acceptance["path"] < 0.8
    close(draws.mean(lambda d: d.x[:, :, 0, 20, 0]), mean)
    close(draws.mean(lambda d: (d.x[:, :, 0, 20, 0] - mean) ** 2), var)


def test_blocks_between_observations() -> None:
    log_g = {10: normal(-0.5, 0.3), 20: normal(0.6, 0.3), 30: normal(0.2, 0.3)}
    truth = EulerQuadrature(lambda x: x - x**3, lambda x: 0.8 + 0 * x, 0.0, log_g, 30, 1.5)
    data = Observed([-0.5, 0.6, 0.2], times=[0.5, 1.0, 1.5], noise=0.3)
    draws = innovation_chain(DOUBLE_WELL, data, start=[0.0], steps=10, auxiliary="brownian", chains=60, sweeps=400)
    for j, node in enumerate(log_g):
        mean, var = truth.smoothed(node)
        close(draws.mean(lambda d, j=j: d.x[:, :, 0, j, 0]), mean)
        close(draws.mean(lambda d, j=j, mean=mean: (d.x[:, :, 0, j, 0] - mean) ** 2), var)


def test_a_random_start_is_part_of_the_chain() -> None:
    """Linear model: the law of the start given y is Gaussian and known."""
    prior = Normal(torch.tensor([0.5], dtype=F64), torch.tensor([0.7], dtype=F64))
    data = Observed([-0.4], times=[0.5], noise=0.2)
    dt, n = 0.05, 10
    A = (1 - dt) ** n
    V = sum(0.36 * dt * (1 - dt) ** (2 * k) for k in range(n)) + 0.04
    gain = 0.49 * A / (0.49 * A * A + V)
    mean, var = 0.5 + gain * (-0.4 - A * 0.5), 0.49 * (1 - gain * A)
    draws = innovation_chain(
        SDE(lambda x, t: -x, 0.6, prior=prior), data, steps=n, auxiliary="brownian", chains=60, sweeps=400, grid=True
    )
    close(draws.mean(lambda d: d.x[:, :, 0, 0, 0]), mean)
    close(draws.mean(lambda d: (d.x[:, :, 0, 0, 0] - mean) ** 2), var)


def ou_log_likelihood(sigma: torch.Tensor, y: list[float], dt: float, steps: int, sd: float) -> torch.Tensor:
    """Kalman likelihood of the Euler chain of dX = -X dt + sigma dW from 0, for many sigmas at once."""
    m, P, total = torch.zeros_like(sigma), torch.zeros_like(sigma), torch.zeros_like(sigma)
    for value in y:
        for _ in range(steps):
            m, P = (1 - dt) * m, (1 - dt) ** 2 * P + sigma**2 * dt
        S = P + sd**2
        total = total - 0.5 * ((value - m) ** 2 / S + torch.log(2 * math.pi * S))
        m, P = m + P / S * (value - m), P * sd**2 / S
    return total


def test_the_diffusion_coefficient_of_an_ou_process() -> None:
    """Posterior mean and variance of sigma against a grid, with an auxiliary far from the truth."""
    y = [0.5, -0.3, 0.8, 0.2, -0.6, 0.1]
    law = Gamma(torch.tensor(2.0, dtype=F64), 2.0)
    grid = torch.linspace(0.05, 6, 3000, dtype=F64)
    p = torch.softmax(law.log_prob(grid) + ou_log_likelihood(grid, y, 0.1, 5, 0.2), 0)
    mean = float((p * grid).sum())
    var = float((p * (grid - mean) ** 2).sum())
    data = Observed(y, times=[0.5 * (i + 1) for i in range(6)], noise=0.2)
    draws = innovation_chain(
        lambda theta: SDE(lambda x, t: -x, theta["sigma"]), data, {"sigma": law},
        start=[0.0], steps=5, auxiliary="brownian", chains=48, sweeps=130, burn=50,
    )  # fmt: skip
    assert draws.theta["sigma"].shape == (80, 48)
    assert 0.1 < draws.acceptance["theta"] < 0.7
    close(draws.mean(lambda d: d.theta["sigma"]), mean)
    close(draws.mean(lambda d: (d.theta["sigma"] - mean) ** 2), var)


def test_without_data_chains_return_the_prior() -> None:
    """Nothing seen in two series: every path move is accepted, and theta follows its prior."""
    law = LogNormal(torch.tensor(0.0, dtype=F64), 0.4)
    data = Observed(torch.full((2, 1, 1), float("nan"), dtype=F64), times=[1.0], noise=0.1)
    draws = innovation_chain(
        lambda theta: SDE(lambda x, t: -theta["rate"] * x, 0.5), data, {"rate": law},
        start=[1.0], steps=3, auxiliary="brownian", chains=48, sweeps=120, burn=40,
    )  # fmt: skip
    assert draws.acceptance["path"] == pytest.approx(1)
    assert draws.x.shape == (80, 48, 2, 1, 1)
    close(draws.mean(lambda d: d.theta["rate"].log()), 0.0)
    close(draws.mean(lambda d: d.theta["rate"].log() ** 2), 0.16)


def test_bad_input_says_what_to_do() -> None:
    data = Observed([1.0], times=[1.0], noise=0.1)
    with pytest.raises(InputError, match="rho"):
        innovation_chain(DOUBLE_WELL, data, rho=1.0, start=[0.0])
    with pytest.raises(InputError, match="burn"):
        innovation_chain(DOUBLE_WELL, data, sweeps=10, burn=10, start=[0.0])
    with pytest.raises(InputTypeError, match="function"):
        innovation_chain(DOUBLE_WELL, data, {"sigma": Gamma(2.0, 2.0)}, start=[0.0])
    with pytest.raises(InputTypeError, match="without prior"):
        innovation_chain(lambda theta: DOUBLE_WELL, data, start=[0.0])
    with pytest.raises(InputError, match="at least 2"):
        innovation_chain(DOUBLE_WELL, data, start=[0.0], chains=1, sweeps=4, steps=2).mean(lambda d: d.x)
