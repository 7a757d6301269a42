"""Interpolants between two data sets: coefficients, conversions between estimates, transport."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

import retrodict as rd
from processes.paths import INTERPOLANTS
from retrodict.core.errors import InputError
from retrodict.core.noise import GeneratorNoise, KeyedNoise
from retrodict.exact import GaussianMixture
from retrodict.processes import Interpolant, conversions, from_config

TWO_ENDS = ["linear", "trigonometric", "encoding-decoding"]
A = GaussianMixture([0.6, 0.4], [[-1.0, 0.5], [1.2, -0.3]], [[[0.2, 0.05], [0.05, 0.1]], [[0.1, 0.0], [0.0, 0.3]]])
B = GaussianMixture([0.5, 0.5], [[2.0, 1.0], [0.0, -1.5]], [[[0.1, 0.0], [0.0, 0.1]], [[0.3, -0.1], [-0.1, 0.2]]])


def test_coefficients_at_both_ends_are_exact():
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    for kind in TWO_ENDS:
        path = INTERPOLANTS[kind]
        assert path.alpha(ends).tolist() == [1.0, 0.0]
        assert path.beta(ends).tolist() == [0.0, 1.0]
        assert path.sigma(ends).tolist() == [0.0, 0.0]
    assert INTERPOLANTS["mirror"].alpha(ends).tolist() == [1.0, 1.0]
    assert INTERPOLANTS["mirror"].sigma(ends).tolist() == [0.0, 0.0]


def test_coefficients_follow_their_formulas():
    t = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    gamma = {
        "brownian": (t * (1 - t)).sqrt(),
        "quadratic": t * (1 - t),
        "sin2": torch.sin(math.pi * t) ** 2,
        "zero": 0 * t,
    }
    for name, value in gamma.items():
        assert torch.allclose(Interpolant("linear", name, scale=0.7).sigma(t), 0.7 * value, atol=1e-15)
    path = Interpolant("trigonometric", "brownian", scale=1.5)
    damping = (1 - 2.25 * t * (1 - t)).sqrt()
    assert torch.allclose(path.alpha(t), damping * torch.cos(math.pi * t / 2), atol=1e-15)
    assert torch.allclose(path.beta(t), damping * torch.sin(math.pi * t / 2), atol=1e-15)
    path = Interpolant("encoding-decoding")
    assert torch.allclose(path.alpha(t) + path.beta(t), torch.cos(math.pi * t) ** 2, atol=1e-15)
    assert torch.allclose(path.sigma(t), torch.sin(math.pi * t) ** 2, atol=1e-15)
    assert float(path.alpha(0.5)) == float(path.beta(0.5)) == 0  # pure noise half way
    straight, one_sided = rd.RectifiedFlow(), Interpolant("one-sided")
    assert one_sided.alpha(t).equal(straight.alpha(t)) and one_sided.sigma(t).equal(straight.sigma(t))
    assert one_sided.ends == straight.ends
    assert torch.allclose(one_sided.log_snr(t), straight.log_snr(t), atol=1e-14)


@pytest.mark.parametrize("gamma", ["brownian", "quadratic", "sin2", "zero"])
@pytest.mark.parametrize("kind", INTERPOLANTS)
def test_rates_are_derivatives(kind, gamma):
    path = Interpolant(kind, None if kind == "one-sided" else gamma, scale=0.8)
    t = torch.tensor([0.11, 0.3, 0.62, 0.93], dtype=torch.float64)
    h = 1e-6
    for rate, value in zip(path.rates(t), (path.alpha, path.beta, path.sigma)):
        assert torch.allclose(rate, (value(t + h) - value(t - h)) / (2 * h), atol=1e-8)
    assert torch.allclose(path.noise_rate(t), path.sigma(t) * path.rates(t)[2], atol=1e-14)
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert bool(path.noise_rate(ends).isfinite().all())
    if gamma == "brownian" and kind != "one-sided":
        assert torch.allclose(path.noise_rate(ends), torch.tensor([0.32, -0.32], dtype=torch.float64))


def _law(path, t):
    """The exact law of x_t for independent ends: a mixture of every pair of components."""
    a, b, s = (float(c(t)) for c in (path.alpha, path.beta, path.sigma))
    pairs = [(i, j) for i in range(2) for j in range(2)]
    return GaussianMixture(
        torch.stack([A.weights[i] * B.weights[j] for i, j in pairs]),
        torch.stack([a * A.means[i] + b * B.means[j] for i, j in pairs]),
        torch.stack(
            [
                a**2 * A.covariances[i] + b**2 * B.covariances[j] + s**2 * torch.eye(2, dtype=torch.float64)
                for i, j in pairs
            ]
        ),
    )


@pytest.mark.parametrize("kind", TWO_ENDS)
def test_the_score_of_a_mixture_is_the_mean_noise(kind):
    """s = -E[z | x] / gamma against the gradient of the exact log density of x_t."""
    path, t = INTERPOLANTS[kind], 0.35
    law = _law(path, t)
    x = law.sample(50).requires_grad_()
    (gradient,) = torch.autograd.grad(law.log_prob(x).sum(), x)
    x = x.detach()
    belief = A.denoiser(path, x1=B).belief(x, t)
    assert torch.allclose(conversions.score(path, x, t, belief.mean, belief.x1), gradient, rtol=0, atol=1e-10)
    noise = conversions.noise(path, x, t, belief.mean, belief.x1)
    assert torch.allclose(-noise / float(path.sigma(t)), gradient, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", TWO_ENDS)
def test_the_velocity_satisfies_the_continuity_equation(kind):
    """d p / dt + div(b p) = 0 for the exact law of x_t, by central differences in t and autograd in x."""
    path, t, h = INTERPOLANTS[kind], 0.35, 1e-4
    x = A.sample(40, seed=2) * 0.5
    density = lambda u: _law(path, u).log_prob(x).exp()  # noqa: E731
    change = (density(t + h) - density(t - h)) / (2 * h)
    y = x.clone().requires_grad_()
    belief = A.denoiser(path, x1=B).belief(y, t)
    flux = conversions.velocity(path, y, t, belief.mean, belief.x1) * _law(path, t).log_prob(y).exp()[:, None]
    divergence = sum(torch.autograd.grad(flux[:, i].sum(), y, retain_graph=True)[0][:, i] for i in range(2))
    assert float((change + divergence).abs().max()) < 1e-6
    assert float(change.abs().max()) > 1e-2


def test_the_mirror_velocity_has_the_sign_of_the_mathematics():
    """b = -gamma gamma' s, checked by the continuity equation; the other sign misses it."""
    path, t, h = INTERPOLANTS["mirror"], 0.3, 1e-4
    x = A.sample(40, seed=3)
    density = lambda u: A.marginal(path, u).log_prob(x).exp()  # noqa: E731
    change = (density(t + h) - density(t - h)) / (2 * h)
    residuals = []
    for sign in (1, -1):
        y = x.clone().requires_grad_()
        velocity = sign * conversions.velocity(path, y, t, A.denoiser(path)(y, t))
        flux = velocity * A.marginal(path, t).log_prob(y).exp()[:, None]
        divergence = sum(torch.autograd.grad(flux[:, i].sum(), y, retain_graph=True)[0][:, i] for i in range(2))
        residuals.append(float((change + divergence).abs().max()))
    assert residuals[0] < 1e-6 and residuals[1] > 0.05


@pytest.mark.parametrize("kind", TWO_ENDS)
def test_every_pair_of_estimates_gives_the_others(kind):
    path = INTERPOLANTS[kind]
    g = torch.Generator().manual_seed(0)
    x, x0, x1 = torch.randn(3, 6, 2, generator=g, dtype=torch.float64)
    t = torch.tensor([0.1, 0.2, 0.45, 0.6, 0.8, 0.95], dtype=torch.float64)
    noise, drift = conversions.noise(path, x, t, x0, x1), conversions.drift(path, x, t, x0, x1)
    gamma = path.sigma(t)[:, None]
    assert torch.allclose(path.corrupt(x0, t, noise, x1), x, atol=1e-13)
    velocity, score = conversions.velocity(path, x, t, x0, x1), conversions.score(path, x, t, x0, x1)
    assert torch.allclose(score, -noise / gamma, atol=1e-12)
    assert torch.allclose(velocity, drift - path.noise_rate(t)[:, None] * score, atol=1e-12)
    assert torch.allclose(velocity, path.target("flow", x0, x, t, x1=x1, z=noise), atol=1e-12)
    if kind != "encoding-decoding":  # there only one end is in x_t at a time: the other cannot be solved for
        for found, given in zip(conversions.ends(path, x, t, drift, noise), (x0, x1)):
            assert torch.allclose(found, given, atol=1e-9)


def test_estimates_at_an_end_of_time_are_finite():
    path = INTERPOLANTS["linear"]
    x0, x1 = torch.ones(3, 2), -torch.ones(3, 2)
    for t, x in ((0.0, x0), (1.0, x1)):
        for function in (conversions.noise, conversions.score, conversions.velocity):
            assert bool(function(path, x, t, x0, x1).isfinite().all())


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("kind", TWO_ENDS)
def test_transport_with_any_noise_level(kind, eta):
    """B carried to A with the exact posterior means: within twice the distance between two samples of A.

    The floor is the largest of ten energy distances, the seeds are fixed: no false alarm.
    """
    path, n, steps = INTERPOLANTS[kind], 1000, 80
    denoiser = A.denoiser(path, x1=B)
    noise = GeneratorNoise(torch.Generator().manual_seed(0), n, dtype=torch.float64)
    x = path.prior((2,), noise, B.sample(n, seed=50))
    floor = max(_energy(A.sample(n, seed=k), A.sample(n, seed=100 + k)) for k in range(10))
    assert _energy(x, A.sample(n, seed=30)) > 50 * floor
    # finer at both ends, where the noise of these paths rises and falls
    times = (torch.linspace(1, 0, steps + 1, dtype=torch.float64) * math.pi / 2).sin().square().tolist()
    for t, s in itertools.pairwise(times):
        x = path.reverse_step(x, t, s, denoiser.belief(x, t), eta, noise)
    assert _energy(x, A.sample(n, seed=30)) < 2 * floor


def _energy(x, y):
    """Energy distance ``2 E|X - Y| - E|X - X'| - E|Y - Y'|`` of two samples."""
    n = len(x)
    within = lambda v: torch.cdist(v, v).sum() / (n * (n - 1))  # noqa: E731
    return abs(float(2 * torch.cdist(x, y).mean() - within(x) - within(y)))


def test_transport_from_a_known_source():
    """Paired ends: given x1, the bridge reproduces p(x0 | x1) for a Gaussian pair, with a sampled belief."""
    path, n = Interpolant("linear", "brownian", scale=0.5), 4000
    source, slope, spread = 1.3, 0.7, 0.4  # x0 = slope x1 + N(0, spread^2)
    x1 = torch.full((n, 1), source, dtype=torch.float64)
    noise = KeyedNoise(0, n, dtype=torch.float64)
    x = path.prior((1,), noise, x1)
    for t, s in zip([1.0, 0.75, 0.5, 0.25], [0.75, 0.5, 0.25, 0.0]):
        a, b, g = (float(c(t)) for c in (path.alpha, path.beta, path.sigma))
        gain = a * spread**2 / (a**2 * spread**2 + g**2) if a else 0.0
        mean = slope * source + gain * (x - a * slope * source - b * source)
        std = (spread**2 * (1 - gain * a)) ** 0.5
        belief = rd.kernels.Belief(mean, draw=lambda q, m=mean, d=std: m + d * q.normal((1,)))
        x = path.reverse_step(x, t, s, belief, 1.0, noise, x1, belief_as="sample")
    assert abs(float(x.mean()) - slope * source) < 4 * spread / n**0.5
    assert abs(float(x.std()) / spread - 1) < 4 / (2 * n) ** 0.5  # four standard errors each: false alarm 6e-5


def test_priors():
    noise = KeyedNoise(0, 3)
    x1 = torch.randn(3, 2)
    assert torch.allclose(INTERPOLANTS["linear"].prior((2,), noise, x1), x1)
    assert INTERPOLANTS["mirror"].prior((2,), noise, x1) is x1
    assert INTERPOLANTS["one-sided"].prior((2,), KeyedNoise(0, 3)).equal(KeyedNoise(0, 3).normal((2,)))


@pytest.mark.parametrize("path", [*INTERPOLANTS.values(), Interpolant("linear", "sin2", 0.3)], ids=repr)
def test_a_configuration_rebuilds_the_path(path):
    again = from_config(path.config())
    t = torch.linspace(0, 1, 9, dtype=torch.float64)
    assert again.alpha(t).equal(path.alpha(t)) and again.sigma(t).equal(path.sigma(t)) and again.ends == path.ends


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Interpolant("lineal"), "Did you mean 'linear'"),
        (lambda: Interpolant(gamma="brown"), "Did you mean 'brownian'"),
        (lambda: Interpolant(scale=0.0), "use gamma='zero'"),
        (lambda: Interpolant("trigonometric", "brownian", scale=3.0), "needs gamma <= 1"),
        (lambda: Interpolant("one-sided", "brownian"), "its end is the noise"),
        (lambda: Interpolant("mirror").prior((1,), KeyedNoise(0, 1)), "starts from data: pass them as x1"),
        (lambda: Interpolant().prior((1,), KeyedNoise(0, 1)), "pass x1, the other end"),
        (lambda: Interpolant().kernel(0.2, 0.5, torch.zeros(1, 1)), "not transitions between them"),
        (
            lambda: conversions.noise(rd.VP(), torch.zeros(1, 1), 0.5, torch.zeros(1, 1), torch.zeros(1, 1)),
            "has the ends x0:",
        ),
        (
            lambda: conversions.ends(rd.VP(), *[torch.zeros(1, 1)] * 1, 0.5, *[torch.zeros(1, 1)] * 2),
            "this path has one",
        ),
    ],
)
def test_wrong_input_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()
