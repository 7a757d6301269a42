"""Denoisers of unnormalised densities against closed forms."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import retrodict as rd
from retrodict.core.errors import InputError
from retrodict.denoisers.monte_carlo import MonteCarlo
from retrodict.exact import GaussianMixture

PATH: Any = rd.VP()
TWO = GaussianMixture([0.7, 0.3], [[-4.0], [4.0]], [0.25, 0.25])
UNNORMALISED = lambda x: TWO.log_prob(x) + 3.0  # noqa: E731


def test_gaussian_target():
    """D of N(0, v) is alpha v/(alpha^2 v + sigma^2) x: within three standard errors of the draws, seed fixed."""
    v, n = 0.6, 4000
    denoiser = MonteCarlo(lambda x: -0.5 * (x**2).sum(1) / v, PATH, (2,), n, gradient=False)
    x = torch.tensor([[0.5, -1.0], [1.2, 0.3]]).double()
    for t in (0.2, 0.4):
        alpha, sigma = float(PATH.alpha(t)), float(PATH.sigma(t))
        exact = alpha * v / (alpha**2 * v + sigma**2) * x
        std = (v * sigma**2 / (alpha**2 * v + sigma**2)) ** 0.5
        error = (denoiser(x, t) - exact).abs()
        assert bool((error < 3.5 * std / denoiser.effective.sqrt()[:, None]).all())


@pytest.mark.parametrize("time", [1.5, 0.5, 0.1, 0.02])
def test_the_combination_is_better_than_both_estimates(time):
    """At four times of the Ornstein-Uhlenbeck path, 200 draws, modes eight apart: root mean square errors of the score
    over 400 states, by posterior means .12, .17, .13, .37, by the target score identity alone 2.6, .44, .13, .056, by
    both .12, .15, .008, .050."""
    alpha, sigma = math.exp(-time), math.sqrt(-math.expm1(-2 * time))
    t = float(PATH.time_at(torch.tensor(math.log(alpha / sigma), dtype=torch.float64)))
    g = torch.Generator().manual_seed(0)
    x = PATH.corrupt(TWO.sample(400, seed=1), t, torch.randn(400, 1, generator=g, dtype=torch.float64))
    exact, errors = TWO.denoiser(PATH)(x, t), torch.zeros(3, dtype=torch.float64)
    for seed in range(6):
        draws = (x + sigma * torch.randn(200, 400, 1, generator=g, dtype=torch.float64)) / alpha
        flat = draws.flatten(0, 1).requires_grad_()
        log_p = UNNORMALISED(flat)
        slope = torch.autograd.grad(log_p.sum(), flat)[0].view_as(draws)
        w = torch.softmax(log_p.detach().view(200, 400), 0).unsqueeze(-1)
        found = [MonteCarlo(UNNORMALISED, PATH, (1,), 200, gradient, seed)(x, t) for gradient in (False, True)]
        found.insert(1, x / alpha + (sigma / alpha) ** 2 * (w * slope).sum(0))
        errors += torch.stack([(d - exact).square().mean() for d in found])
    assert errors[2] <= errors[:2].min(), (alpha / sigma**2 * (errors / 6).sqrt()).tolist()


def test_masses_of_two_far_modes():
    """Modes eight apart, .7 and .3, by nothing but the density, from t = .5: the masses come out; Langevin dynamics
    from one mode never leaves."""
    denoiser = MonteCarlo(UNNORMALISED, PATH, (1,), 300).double()
    start = denoiser.start(600, 0.5, steps=60)
    plan = rd.plan("ddpm", PATH, steps=30, start=0.5)
    out = rd.sample(denoiser, 600, plan=plan, init=start, progress=False).x.double()
    assert float((out < 0).double().mean()) == pytest.approx(0.7, abs=0.07)
    left = out[out[:, 0] < 0, 0]
    assert float(left.mean()) == pytest.approx(-4.0, abs=0.1) and float(left.std()) == pytest.approx(0.5, abs=0.12)
    x = torch.full((200, 1), -4.0).double()
    for i in range(500):
        score = torch.autograd.grad(TWO.log_prob(y := x.clone().requires_grad_()).sum(), y)[0]
        x = x + 0.02 * score + 0.2 * torch.randn(200, 1, generator=torch.Generator().manual_seed(i)).double()
    assert float((x < 0).double().mean()) > 0.85


def test_starts_have_the_law_of_their_time():
    """Langevin dynamics under the estimated score: mean and variance of x_t within four standard errors and the bias
    of its step (seed fixed)."""
    denoiser = MonteCarlo(UNNORMALISED, PATH, (1,), 100).double()
    x = denoiser.start(600, 0.5, step=0.15, steps=80)
    law = TWO.marginal(PATH, 0.5)
    spread = float(law.covariance[0, 0])
    assert float(x.mean()) == pytest.approx(float(law.mean[0]), abs=4 * (spread / 600) ** 0.5)
    assert float(x.var()) == pytest.approx(spread, rel=0.25)


def test_arguments():
    with pytest.raises(InputError, match="one number a sample"):
        MonteCarlo(lambda x: x, PATH, (2,))(torch.zeros(3, 2), 0.5)
    made = MonteCarlo(UNNORMALISED, PATH, (1,), 8)
    for words, match in [
        ({"step": 0.0}, "step"),
        ({"steps": 0}, "steps"),
        ({"t": 0.0}, "no noise"),
        ({"t": 3.0}, "time"),
    ]:
        with pytest.raises(InputError, match=match):
            made.start(4, **{"t": 0.5} | words)
    with pytest.raises(InputError, match="draws"):
        MonteCarlo(UNNORMALISED, PATH, (1,), 1)
    with pytest.raises(InputError, match="one end"):
        MonteCarlo(UNNORMALISED, rd.Interpolant(), (1,))
