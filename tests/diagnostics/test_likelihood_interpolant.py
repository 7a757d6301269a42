"""Likelihood and its control on a path between two data sets, at any noise level."""

from __future__ import annotations

import math

import pytest
import torch

import retrodict as rd
from retrodict.core.errors import InputError
from retrodict.denoisers import Denoiser
from retrodict.diagnostics.likelihood import interpolant_kl_bound, interpolant_log_likelihood
from retrodict.exact import GaussianMixture
from retrodict.kernels import Belief
from retrodict.processes import Interpolant, conversions

DATA, BASE = GaussianMixture([1.0], [[0.4]], [4.0]), GaussianMixture([1.0], [[-0.3]], [1.0])
MIXTURE = GaussianMixture([0.6, 0.4], [[-1.0, 0.5], [1.2, -0.3]], [0.2, 0.3])
OTHER = GaussianMixture([0.5, 0.5], [[1.0, 1.0], [0.0, -1.0]], [0.3, 0.2])
PATH = Interpolant("linear", "brownian")


def test_the_flow_s_likelihood_of_a_mixture():
    x = MIXTURE.sample(12, seed=1)
    for path in (PATH, Interpolant("trigonometric", "quadratic")):
        found = interpolant_log_likelihood(MIXTURE.denoiser(path, x1=OTHER), x, OTHER.log_prob, steps=200)
        assert float((found.log_prob - MIXTURE.log_prob(x)).abs().max()) < 2e-3
        assert not found.std_error.any()


@pytest.mark.parametrize("noise_level", [0.3, 1.0])
def test_the_diffusion_s_likelihood_of_a_gaussian(noise_level):
    """Each datum within 3.5 standard errors (false alarm 2e-3), with the first-order bias of the steps taken out."""
    x = torch.tensor([[-4.0], [-1.0], [2.0], [5.0]], dtype=torch.float64)
    denoiser = DATA.denoiser(PATH, x1=BASE)
    coarse, fine = (
        interpolant_log_likelihood(denoiser, x, BASE.log_prob, noise_level=noise_level, steps=n, paths=1000)
        for n in (50, 100)
    )
    estimate = 2 * fine.log_prob - coarse.log_prob
    error = (4 * fine.std_error**2 + coarse.std_error**2).sqrt()
    assert float(error.max()) < 0.25
    assert bool(((estimate - DATA.log_prob(x)).abs() < 3.5 * error).all())


class Perturbed(Denoiser):
    """The exact ends of two Gaussians, with affine errors."""

    def __init__(self, exact: Denoiser, slope0: float, slope1: float) -> None:
        super().__init__(exact.process, exact.shape)
        self.exact, self.slope0, self.slope1 = exact, slope0, slope1

    def belief(self, x, t, **condition):
        belief = self.exact.belief(x, t)
        # errors that vanish at both ends of time, so that velocity and score stay finite
        size = float(self.process.sigma(t)) ** 2
        return Belief(belief.mean + self.slope0 * size * x, x1=belief.x1 + self.slope1 * size * (x - 0.1))

    @property
    def dtype(self):
        return torch.float64


@pytest.mark.parametrize("noise_level", [0.1, 0.5, 2.0])
def test_the_bound_of_a_perturbed_model_holds(noise_level):
    """The model's SDE is affine: its law is Gaussian by the equations of mean and variance, and KL is exact."""
    exact = DATA.denoiser(PATH, x1=BASE)
    model = Perturbed(exact, 0.4, -0.3)
    n = 2000
    bound = interpolant_kl_bound(exact, model, DATA.sample(n, seed=1), BASE.sample(n, seed=2), noise_level=noise_level)
    mean, variance = _model_law(model, noise_level)
    m, v = float(DATA.mean), float(DATA.covariance)
    kl = 0.5 * (v / variance + (m - mean) ** 2 / variance - 1 + math.log(variance / v))
    assert 1e-4 < kl < bound.joint + 3 * bound.std_error
    assert bound.joint < bound.split


def _model_law(model, eps):
    """Mean and variance at t = 0 of ``dx = (b - eps s) dt`` backward with noise, from the base at t = 1."""
    mean, variance, steps = float(BASE.mean), float(BASE.covariance), 600
    points = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    for k in range(steps, 0, -1):
        t, s = (math.sin(math.pi / 2 * j / steps) ** 2 for j in (k, k - 1))
        middle, dt = (t + s) / 2, t - s
        belief = model.belief(points, middle)
        b = conversions.velocity(PATH, points, middle, belief.mean, belief.x1)
        score = conversions.score(PATH, points, middle, belief.mean, belief.x1)
        drift = (b - eps * score)[:, 0]
        offset, slope = float(drift[0]), float(drift[1] - drift[0])
        grow = math.exp(-slope * dt)  # exact for constant coefficients
        mean = mean * grow - offset * (1 - grow) / slope if slope else mean - offset * dt
        variance = variance * grow**2 + 2 * eps * (grow**2 - 1) / (-2 * slope)
    return mean, variance


def test_an_exact_model_has_no_divergence():
    exact = DATA.denoiser(PATH, x1=BASE)
    bound = interpolant_kl_bound(exact, exact, DATA.sample(50), BASE.sample(50), noise_level=0.5)
    assert bound.joint == bound.split == 0


def test_the_best_noise_level_balances_the_two_errors():
    exact = DATA.denoiser(PATH, x1=BASE)
    model, x0, x1 = Perturbed(exact, 0.4, -0.3), DATA.sample(500, seed=1), BASE.sample(500, seed=2)
    best = interpolant_kl_bound(exact, model, x0, x1, noise_level=0.5).best_level
    splits = [interpolant_kl_bound(exact, model, x0, x1, noise_level=best * f).split for f in (0.8, 1.0, 1.25)]
    assert splits[1] < min(splits[0], splits[2])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d: interpolant_log_likelihood(d, torch.zeros(1, 1), BASE.log_prob, noise_level=-1.0), "at least 0"),
        (lambda d: interpolant_log_likelihood(d, torch.zeros(1, 1), BASE.log_prob, steps=0), "steps and paths"),
        (lambda d: interpolant_log_likelihood(DATA.denoiser(rd.VP()), torch.zeros(1, 1), BASE.log_prob), "two ends"),
        (lambda d: interpolant_kl_bound(d, d, torch.zeros(1, 1), torch.zeros(1, 1), noise_level=0.0), "positive"),
        (
            lambda d: interpolant_kl_bound(
                d, DATA.denoiser(Interpolant("trigonometric"), BASE), *[torch.zeros(1, 1)] * 2, noise_level=1.0
            ),
            "of one path",
        ),
    ],
)
def test_wrong_input_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call(DATA.denoiser(PATH, x1=BASE))
