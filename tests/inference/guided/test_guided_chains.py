"""Chains guided by all of their future, against Kalman, grids and the bootstrap filter."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Normal, Poisson

from retrodict.core.errors import InputError
from retrodict.core.lin import Lin
from retrodict.inference.models import StateSpace
from retrodict.inference.observed import Observed
from retrodict.inference.posterior import condition_model
from retrodict.kernels import Gaussian, LinearGaussian, NonLinearGaussian

F64 = torch.float64
STANDARD = Gaussian(torch.zeros(1, 1, dtype=F64), Lin.dense(torch.ones(1, 1, 1, dtype=F64)))


def grid_evidence(mean, sd: float, log_g, start_sd: float = 1.0) -> float:
    """Evidence of ``x_0 ~ N(0, start_sd^2), x' ~ N(mean(x), sd^2)`` with ``log_g[k](x)`` at every node k."""
    x = torch.linspace(-7, 7, 2001, dtype=F64)
    dx = float(x[1] - x[0])
    kernel = Normal(mean(x)[:, None], sd).log_prob(x).exp() * dx
    p = Normal(0.0, start_sd).log_prob(x).exp() * log_g[0](x).exp()
    for g in log_g[1:]:
        p = (p @ kernel) * g(x).exp()
    return math.log(float(p.sum() * dx))


def test_a_linear_chain_weighs_every_path_alike() -> None:
    model = StateSpace(STANDARD, LinearGaussian(0.9, 0.1, 0.3), LinearGaussian(1.0, 0.0, 0.5))
    data = Observed([0.3, float("nan"), 1.1, -0.2, 0.7])
    exact = condition_model(model, data, "exact")
    post = condition_model(model, data, "bffg", {"particles": 50, "auxiliary": "linearise"})
    weights = post.sample(50).log_weights
    assert (weights - exact.log_evidence).abs().max() < 1e-10
    assert float(post.ess) == pytest.approx(50)


@pytest.mark.parametrize("law", ["callable", "kernel"])
def test_a_nonlinear_chain_with_normal_observations(law: str) -> None:
    """``x -> Normal`` and a `NonLinearGaussian` kernel alike; 4 s.e."""
    y = [0.5, -0.8, 1.2, 0.1, 0.9, -1.0]
    wave = lambda x: 1.5 * torch.sin(x)  # noqa: E731
    truth = grid_evidence(wave, 0.6, [lambda x, v=v: Normal(x, 0.3).log_prob(torch.tensor(v)) for v in y])
    step = (lambda x: Normal(wave(x), 0.6)) if law == "callable" else NonLinearGaussian(wave, 0.36)
    model = StateSpace(STANDARD, step, lambda x: Normal(x, 0.3))
    post = condition_model(model, Observed(y), "bffg", {"particles": 4000})
    assert float(post.log_evidence_se) < 0.05
    assert abs(float(post.log_evidence) - truth) < 4 * float(post.log_evidence_se)
    smoothed = post.smooth()
    other = {"particles": 4000, "seed": 1, "auxiliary": "brownian", "threshold": 1.0}
    rough = condition_model(model, Observed(y), "bffg", other).smooth()
    assert (smoothed.mean - rough.mean).abs().max() < 0.06


def test_stochastic_volatility_and_counts() -> None:
    """A linear chain seen through other laws: Laplace surrogates, and the evidence of a grid; 4 s.e."""
    y, counts = [0.8, -1.5, 0.2, 2.0, -0.1], [1, 0, 3, 2]
    volatility = lambda x: Normal(torch.zeros_like(x), (x / 2).exp())  # noqa: E731
    poisson = lambda x: Poisson(x.exp())  # noqa: E731
    cases = [
        (volatility, torch.tensor(y, dtype=F64), [torch.tensor(v) for v in y]),
        (poisson, torch.tensor(counts), [torch.tensor(float(v)) for v in counts]),
    ]
    for law, values, seen in cases:
        log_g = [lambda x, law=law, v=v: law(x).log_prob(v) for v in seen]
        truth = grid_evidence(lambda x: 0.9 * x, 0.5, log_g)
        model = StateSpace(STANDARD, LinearGaussian(0.9, 0.0, 0.25), law)
        post = condition_model(model, Observed(values), "bffg", {"particles": 4000})
        assert float(post.log_evidence_se) < 0.05
        assert abs(float(post.log_evidence) - truth) < 4 * float(post.log_evidence_se)


def test_shorter_series_end_early_and_others_are_refused() -> None:
    model = StateSpace(STANDARD, lambda x: Normal(torch.sin(x), 0.5), lambda x: Normal(x, 0.3))
    both = condition_model(model, Observed([[0.4, 0.1, 0.9], [0.2, -0.5]]), "bffg", {"particles": 2000})
    alone = condition_model(model, Observed([0.2, -0.5]), "bffg", {"particles": 2000})
    bar = math.hypot(float(both.log_evidence_se[1]), float(alone.log_evidence_se))
    assert abs(float(both.log_evidence[1] - alone.log_evidence)) < 4 * bar
    assert torch.isnan(both.smooth().mean[1, 2]).all()
    with pytest.raises(InputError, match="different nodes"):
        condition_model(model, Observed(torch.zeros(2, 2, 1), times=[[0, 1], [0, 2]]), "bffg")
