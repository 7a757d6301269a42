"""Forecasts by particles against closed forms; what a method cannot answer, it says."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, Poisson

import retrodict as rd
from retrodict.core.errors import InputError
from retrodict.inference import JumpProcess, Observed, ReactionNetwork, StateSpace, Tree
from retrodict.inference.posterior import serving
from retrodict.kernels import Categorical, Finite, Gaussian, LinearGaussian, LinearSDE

NAN = float("nan")
A = torch.tensor([[0.9, 0.2], [-0.1, 0.8]], dtype=torch.float64)
EYE = torch.eye(2, dtype=torch.float64)
LINEAR = StateSpace(
    Gaussian(torch.zeros(2).double(), EYE), LinearGaussian(A, 0.1, 0.3 * EYE), LinearGaussian(EYE, 0.0, EYE)
)
Y = torch.tensor([[0.5, -0.4], [1.3, NAN], [0.2, 1.1]], dtype=torch.float64)
COPIES = 40


def copies(y: Tensor) -> Tensor:
    return y.expand(COPIES, *y.shape)


def agree(found: Tensor, truth: Tensor, slack: float = 0.02) -> None:
    """Means over independent series within 5 standard errors (false alarms 6e-7 a number) and the bias of ratios."""
    assert ((found.mean(0) - truth).abs() < 5 * found.std(0) / COPIES**0.5 + slack).all()


@pytest.mark.parametrize("method", ["bootstrap", "guided", "auxiliary", "ffbs", "paris", "two-filter", "bffg"])
@pytest.mark.parametrize("of", ["state", "observation"])
def test_particles_of_a_linear_model_are_forecast_as_kalman_does(method: str, of: str) -> None:
    exact = rd.condition(LINEAR, Observed(Y)).forecast([2.0, 4.0, 5.0], of=of)
    post = rd.condition(LINEAR, Observed(copies(Y)), method=method, particles=300)
    found = post.forecast([2.0, 4.0, 5.0], of=of)
    assert found.what == of and not found.exact and torch.equal(found.times[:1], exact.times)
    agree(found.mean, exact.mean[0])
    agree(found.covariance, exact.covariance[0], 0.05)


@pytest.mark.parametrize("method", ["guided", "bootstrap"])
def test_a_diffusion(method: str) -> None:
    """Euler steps of an Ornstein-Uhlenbeck process against its exact law; series that end at different times."""
    y = [torch.tensor([0.8, 0.3]), torch.tensor([1.0])]
    times = [[0.5, 1.0], [0.5]]
    linear = StateSpace(Gaussian(0.0, 0.5), LinearSDE(-1.0, 0.0, 0.7), t0=0.0)
    truth = rd.condition(linear, Observed(y, times, noise=0.5)).forecast([1.0, 1.5, 2.0])
    sde = rd.SDE(lambda x, t: -x, 0.7, prior=Gaussian(0.0, 0.5))
    data = Observed(y * COPIES, times * COPIES, noise=0.5)
    found = rd.condition(sde, data, method=method, steps=40, particles=300).forecast([1.0, 1.5, 2.0])
    for s in range(2):
        agree(found.mean[s::2], truth.mean[s], 0.03)
        agree(found.covariance[s::2], truth.covariance[s], 0.03)
    seen = rd.condition(sde, Observed([1.0], noise=0.5), particles=4000).forecast(1, of="observation")
    state = rd.condition(sde, Observed([1.0], noise=0.5), particles=4000).forecast(1)
    assert math.isclose(float(seen.covariance - state.covariance), 0.25, abs_tol=1e-9)


@pytest.mark.parametrize("method", ["guided", "bootstrap"])
def test_a_network_of_births(method: str) -> None:
    """Yule process: the expected count grows as exp(rate t) from what is known at the last observation."""
    births = ReactionNetwork([[1]], lambda x: 0.5 * x, [3.0])
    data = Observed(copies(torch.tensor([[5.0]])), times=[1.0], noise=0.1)
    found = rd.condition(births, data, method=method, particles=300).forecast([1.0, 2.0], of="observation")
    agree(found.mean[..., 0], torch.tensor([5.0, 5 * math.exp(0.5)]).double(), 0.1)
    variance = 0.01 + 5 * math.exp(0.5) * (math.exp(0.5) - 1)
    agree(found.covariance[:, 1, 0, 0], torch.tensor(variance), 0.5)


def test_finite_states_and_counts() -> None:
    table = torch.tensor([[0.8, 0.2, 0.0], [0.1, 0.7, 0.2], [0.3, 0.0, 0.7]]).double()
    rates = torch.tensor([1.0, 3.0, 9.0]).double()
    for observation in (Finite.of(table), lambda x: Poisson(rates[x])):
        model = StateSpace(Categorical.of(torch.ones(3) / 3), Finite.of(table), observation)
        y = torch.tensor([0, 1, 2])
        exact = rd.condition(model, Observed(y)).forecast(2)
        post = rd.condition(model, Observed([y] * COPIES), method="bootstrap", particles=300)
        agree(post.forecast(2).probabilities, exact.probabilities[0])
        seen = post.forecast(2, of="observation")
        if seen.probabilities is not None:
            agree(seen.probabilities, exact.probabilities[0] @ table)
        else:
            mean = exact.probabilities[0] @ rates
            agree(seen.mean[..., 0], mean, 0.1)
            spread = exact.probabilities[0] @ (rates + rates**2) - mean**2
            agree(seen.covariance[..., 0, 0], spread, 0.6)


CASES: dict[str, tuple[Any, Observed, dict]] = {
    "chain": (LINEAR, Observed(Y), {}),
    "sde": (rd.SDE(lambda x, t: -x, 0.7), Observed([1.0, 2.0], times=[1.0, 2.0], noise=0.5), {"start": 0.0}),
    "jumps": (
        JumpProcess([[-1.0, 1.0], [1.0, -1.0]], observation=lambda x: Normal(x.double(), 1.0)),
        Observed([1.0, 2.0], times=[1.0, 2.0]),
        {},
    ),
    "network": (ReactionNetwork([[1]], lambda x: x, [3.0]), Observed([4.0, 5.0], times=[0.1, 0.2], noise=1.0), {}),
    "tree": (
        Tree([("r", "a"), ("r", "b")], LinearGaussian(1.0, 0.0, 1.0), prior=Gaussian(0.0, 1.0)),
        Observed([1.0, 2.0], noise=0.5),
        {},
    ),
}


@pytest.mark.parametrize("key", CASES)
def test_every_verb_of_every_method_answers_or_says_who_does(key: str) -> None:
    model, data, options = CASES[key]
    for name, method in serving(type(model)).items():
        if method.why_not(model, data) is not None:
            continue
        needed = {"upper": 30, "auxiliary": [[-1.0, 1.0], [2.0, -2.0]]} if name in ("exact", "guided") else {}
        small = {"particles": 20, "sweeps": 4, "burn_in": 1, **needed, **options}
        given = {k: v for k, v in small.items() if k in method.options()}
        if key in ("sde", "tree", "chain"):
            given.pop("auxiliary", None)
        post = rd.condition(model, data, method=name, **given)
        assert torch.isfinite(post.log_evidence).all()
        for verb in ("filter", "smooth", "forecast", "residuals"):
            try:
                found = getattr(post, verb)(*([2] if verb == "forecast" else []))
            except InputError as error:
                assert "does not give" in str(error) or "needs one that is" in str(error), (name, verb)
                assert verb != "smooth"
            else:
                assert found is not None
