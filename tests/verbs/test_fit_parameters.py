"""The verb: what it takes, what it refuses and in which words, and what a `Fit` gives back."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Beta, HalfNormal

import retrodict as rd
from retrodict.core.errors import InputError, InputTypeError
from retrodict.inference import Observed, StateSpace
from retrodict.inference.parameters.likelihood import Likelihood
from retrodict.inference.parameters.result import forecast
from retrodict.kernels import Categorical, Finite, Gaussian, LinearGaussian

Y = [0.4, 1.3, 0.7, float("nan"), 0.2, -0.8]


def model(a, s):
    return StateSpace(Gaussian(0.0, 1.0), LinearGaussian(a, 0.0, s**2), LinearGaussian(1.0, 0.0, 0.25))


START, SUPPORTS = {"a": 0.5, "s": 0.6}, {"a": (-1, 1), "s": "positive"}


@pytest.fixture(scope="module")
def fit():
    return rd.fit_parameters(model, Y, start=START, supports=SUPPORTS)


def test_a_fit_at_a_point(fit):
    post = rd.condition(model(fit.parameters["a"], fit.parameters["s"]), Observed(Y))
    assert fit.log_likelihood == pytest.approx(float(post.log_evidence), abs=1e-9)
    torch.testing.assert_close(fit.forecast(2).mean, post.forecast(2).mean)
    assert fit.states.x.shape == (100, 1, 6, 1)
    text = repr(fit)
    assert "a = " in text and "+-" in text and "exact" in text and "converged" in text
    with pytest.raises(InputError, match="no draws"):
        fit.to_arviz()
    assert fit.plot().get_ylabel() == "log likelihood"


def test_draws_to_arviz_and_pictures():
    priors = {"a": Beta(torch.tensor(2.0).double(), 2.0), "s": HalfNormal(torch.tensor(1.0).double())}
    fit = rd.fit_parameters(model, Y, "pmmh", priors=priors, steps=12, burn_in=5, chains=2, seed=3)
    data = fit.to_arviz(states=True)
    assert data.posterior["a"].shape == (2, 12) and data.posterior["x"].shape == (2, 12, 6, 1)
    assert data.sample_stats["lp"].shape == (2, 12)
    assert torch.equal(torch.tensor(data.posterior["s"].values), fit.draws["s"])
    assert fit.plot().shape == (2, 2)
    assert "R-hat" in repr(fit)


def test_forecasts_without_a_closed_form_are_filters_that_see_nothing():
    """Of a linear model by particles: the exact forecast within 5 standard errors of 4,000 particles."""
    made = model(0.8, 0.5)
    exact = rd.condition(made, Observed(Y)).forecast([6.0, 8.0])
    likelihood = Likelihood(Observed(Y), "bootstrap", 4000)
    law = forecast(likelihood.condition(made), likelihood, [6.0, 8.0], "state", 0)
    assert torch.equal(law.times, exact.times)
    assert ((law.mean - exact.mean).abs() < 5 * exact.std / 4000**0.5 * 1.5).all()
    assert (law.std / exact.std - 1).abs().max() < 0.06


def test_names_are_checked_with_the_nearest():
    with pytest.raises(InputError, match=r"unknown method 'gradiant'.*Did you mean 'gradient'"):
        rd.fit_parameters(model, Y, "gradiant", start=START)
    with pytest.raises(InputError, match=r"start names 'sd'; the parameters are: a, s"):
        rd.fit_parameters(model, Y, start={"a": 0.5, "sd": 0.6})
    with pytest.raises(InputError, match=r"takes no 'tolerence'.*Did you mean 'tolerance'"):
        rd.fit_parameters(model, Y, start=START, tolerence=1e-3)
    with pytest.raises(InputError, match=r"takes no 'chains'"):
        rd.fit_parameters(model, Y, start=START, chains=2)
    with pytest.raises(InputError, match=r"no value for s"):
        rd.fit_parameters(model, Y, start={"a": 0.5})
    with pytest.raises(InputError, match=r"words are: real, positive.*Did you mean 'positive'"):
        rd.fit_parameters(model, Y, start=START, supports={"s": "positiv"})
    with pytest.raises(InputError, match="optimiser is 'lbfgs' or 'adam'"):
        rd.fit_parameters(model, Y, start=START, optimiser="newton")


def test_starts_and_priors_are_checked():
    with pytest.raises(InputError, match=r"start\['s'\] = -1.0 is not inside the support .* of supports"):
        rd.fit_parameters(model, Y, start={"a": 0.5, "s": -1.0}, supports=SUPPORTS)
    prior = {"a": Beta(torch.tensor(2.0), 2.0)}
    with pytest.raises(InputError, match=r"start\['a'\] = 1.5 is not inside .* of its prior Beta"):
        rd.fit_parameters(model, Y, start={"a": 1.5, "s": 0.6}, priors=prior)
    with pytest.raises(InputError, match=r"'a' has a prior, whose support it takes"):
        rd.fit_parameters(model, Y, start=START, priors=prior, supports=SUPPORTS)
    with pytest.raises(InputError, match="not finite"):
        rd.fit_parameters(model, Y, start={"a": float("nan"), "s": 1.0})
    with pytest.raises(InputTypeError, match=r"torch\.distributions object, got float"):
        rd.fit_parameters(model, Y, start=START, priors={"a": 0.5})


def test_data_and_models_are_checked():
    with pytest.raises(InputError, match="nothing is seen in the data"):
        rd.fit_parameters(model, [float("nan")] * 3, start=START)
    with pytest.raises(InputError, match="holds nothing to fit"):
        rd.fit_parameters(model(0.5, 0.5), Y)
    with pytest.raises(InputTypeError, match="a function of parameters that returns one, got float"):
        rd.fit_parameters(3.0, Y)


def test_finite_models_are_fitted_by_every_method():
    """The probability of staying, by gradients, EM and draws: one answer."""
    y = [0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0, 0, 1, 1, 1, 0]
    table = Finite.of(torch.tensor([[0.9, 0.1], [0.2, 0.8]], dtype=torch.float64))

    def sticky(p):
        moves = torch.stack([torch.stack([p, 1 - p]), torch.stack([1 - p, p])])
        return StateSpace(Categorical(torch.tensor([0.5, 0.5]).double().log()), Finite(moves.log()), table)

    best = rd.fit_parameters(sticky, y, start={"p": 0.6}, supports={"p": "unit"})
    slope = torch.linspace(0.01, 0.99, 981).double()
    curve = torch.stack([rd.condition(sticky(p), Observed(y)).log_evidence.sum() for p in slope[::20]])
    assert best.log_likelihood >= float(curve.max()) - 1e-9
    climbed = rd.fit_parameters(
        sticky,
        y,
        "score-climbing",
        start={"p": 0.6},
        supports={"p": "unit"},
        steps=60,
        particles=20,
        sweeps=1,
        rate=0.3,
    )
    assert abs(climbed.parameters["p"] - best.parameters["p"]) < 0.3 * best.standard_errors["p"]
