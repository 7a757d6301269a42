"""Likelihoods by the probability flow, against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import retrodict as rd
from retrodict.core.errors import InputError, InputTypeError
from retrodict.data import Scale
from retrodict.denoisers import Wrapped
from retrodict.denoisers.networks import make_network
from retrodict.diagnostics.likelihood import bits_per_dim, dequantise, log_likelihood
from retrodict.exact import Atoms, GaussianMixture
from retrodict.processes import Interpolant, Masked

LAW = GaussianMixture(
    [0.3, 0.7], [[1.0, 0.0], [-0.5, 0.8]], [[[0.2, 0.05], [0.05, 0.1]], [[0.1, 0.0], [0.0, 0.3]]], labels=[0, 1]
)
X = LAW.sample(20, seed=3)
# paths whose last noise level has forgotten the data, so that the sampler's prior is exact to 1e-7
PATHS = {
    "vp-linear": rd.VP(beta_max=70.0),
    "vp-cosine": rd.VP("cosine"),
    "sub-vp": rd.SubVP(beta_max=70.0),
    "ve": rd.VE(0.001, 1e5),
    "rectified-flow": rd.RectifiedFlow(),
    "by-functions": rd.GaussianPath(lambda t: torch.cos(math.pi / 2 * t), lambda t: torch.sin(math.pi / 2 * t)),
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n in ("sub-vp", "by-functions"))) for n in PATHS]
)
def test_a_mixture_to_six_digits(name):
    """The density of the mixture itself: at lambda = 9 what noise is left changes it by 1e-7."""
    path = PATHS[name]
    end = 0.0 if name == "ve" else float(path.time_at(9.0))
    found = log_likelihood(LAW.denoiser(path), X, rtol=1e-8, atol=1e-8, end=end)
    assert float((found.log_prob - LAW.log_prob(X)).abs().max()) < 1e-6 if name != "ve" else 1e-4
    assert found.divergence == "exact" and bool((found.std_error == 0).all()) and found.dims == 2


def test_the_density_at_a_larger_end_is_that_of_the_noised_law():
    """At noise level ``end`` the law of x_t / alpha: the same mixture with the variance e^(-2 lambda) added."""
    path = rd.RectifiedFlow()
    found = log_likelihood(LAW.denoiser(path), X, rtol=1e-8, atol=1e-8, end=0.2)
    variance = (0.2 / 0.8) ** 2 * torch.eye(2, dtype=torch.float64)
    noised = GaussianMixture(LAW.weights, LAW.means, LAW.covariances + variance)
    assert float((found.log_prob - noised.log_prob(X)).abs().max()) < 1e-6


def test_the_sampler_s_own_prior_is_used():
    """VP-linear ends at alpha = .0066: the flow of its sampler starts from N(0, 1), not from the exact law."""
    path, law = rd.VP(), GaussianMixture([1.0], [[0.7]], [0.3])
    x = law.sample(10)
    found = log_likelihood(law.denoiser(path), x, rtol=1e-9, atol=1e-9, end=float(path.time_at(9.0)))
    # the flow of a Gaussian is affine: x = m + k (u - alpha_1 m) with k = sqrt(0.3 / (alpha_1^2 0.3 + sigma_1^2))
    alpha, sigma = float(path.alpha(1.0)), float(path.sigma(1.0))
    stretch = math.sqrt(0.3 / (alpha**2 * 0.3 + sigma**2))
    exact = torch.distributions.Normal(0.7 - stretch * alpha * 0.7, stretch * sigma).log_prob(x)[:, 0]
    assert float((found.log_prob - exact).abs().max()) < 1e-6


def test_tolerances_control_the_error():
    path, errors = rd.RectifiedFlow(), []
    for tolerance in (1e-3, 1e-5, 1e-7):
        found = log_likelihood(LAW.denoiser(path), X, rtol=tolerance, atol=tolerance, end=1e-4)
        errors.append(float((found.log_prob - LAW.log_prob(X)).abs().max()))
    assert errors[0] > 10 * errors[1] > 30 * errors[2]


def test_hutchinson_is_unbiased():
    """Per datum, the mean over 800 solves is within 3.5 standard errors of the exact trace (false alarm 5e-4)."""
    law = GaussianMixture([0.5, 0.5], [[1.0, 0.0, 0.3], [-0.5, 0.8, -1.0]], torch.stack([_spread(1), _spread(2)]))
    path, x = rd.RectifiedFlow(), law.sample(4, seed=1)
    exact = log_likelihood(law.denoiser(path), x, end=1e-3)
    rows = x.repeat_interleave(800, 0)  # each row has a probe of its own
    estimate = log_likelihood(law.denoiser(path), rows, divergence="hutchinson", end=1e-3).log_prob.reshape(4, 800)
    error = estimate.std(1) / 800**0.5
    assert bool((error > 1e-3).all())  # off-diagonal Jacobians: the estimate is not trivially exact
    assert bool(((estimate.mean(1) - exact.log_prob).abs() < 3.5 * error).all())


def _spread(seed):
    root = torch.randn(3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return root @ root.T / 3 + 0.1 * torch.eye(3, dtype=torch.float64)


def test_several_probes_give_an_honest_standard_error():
    law = GaussianMixture([1.0], [[0.2, -0.3, 0.1]], _spread(3)[None])
    path, x = rd.RectifiedFlow(), law.sample(1, seed=1)
    exact = float(log_likelihood(law.denoiser(path), x, end=1e-2).log_prob)
    found = log_likelihood(law.denoiser(path), x.expand(200, 3), divergence="hutchinson", probes=8, end=1e-2)
    spread = float((found.log_prob - exact).square().mean().sqrt())
    assert 0.8 < float(found.std_error.square().mean().sqrt()) / spread < 1.25
    assert bool(log_likelihood(law.denoiser(path), x, divergence="hutchinson", end=1e-2).std_error.isnan().all())


def test_a_datum_has_the_same_probe_in_every_batch():
    path = rd.RectifiedFlow()
    solve = lambda size: log_likelihood(  # noqa: E731
        LAW.denoiser(path), X, divergence="hutchinson", seed=5, batch_size=size, rtol=1e-7, atol=1e-7
    )
    whole, split = solve(None), solve(7)
    assert float((whole.log_prob - split.log_prob).abs().max()) < 1e-5
    assert split.nfe > 2 * whole.nfe
    other = log_likelihood(LAW.denoiser(path), X, divergence="hutchinson", seed=6)
    assert float((whole.log_prob - other.log_prob).abs().max()) > 1e-3


def test_conditions_are_one_a_datum_or_one_for_all():
    path = rd.RectifiedFlow()
    labels = torch.arange(20) % 2
    found = log_likelihood(LAW.denoiser(path), X, end=1e-4, rtol=1e-7, atol=1e-7, label=labels, batch_size=6).log_prob
    for label in (0, 1):
        component = GaussianMixture([1.0], LAW.means[label : label + 1], LAW.covariances[label : label + 1])
        assert float((found - component.log_prob(X))[labels == label].abs().max()) < 1e-4
    shared = log_likelihood(LAW.denoiser(path), X[:4], end=1e-4, label=1).log_prob
    assert float((shared[labels[:4] == 1] - found[:4][labels[:4] == 1]).abs().max()) < 1e-3


def test_the_users_units():
    """A model of standardised data gives densities of the data: the log-determinant is added."""
    path, shift, size = rd.RectifiedFlow(), torch.tensor([3.0, -1.0]), torch.tensor([2.0, 0.25])
    denoiser = LAW.denoiser(path)
    y = X * size + shift
    expected = LAW.log_prob(X) - math.log(2.0 * 0.25)
    for given in (
        log_likelihood(denoiser, y, end=1e-4, scale=Scale(shift, size)),
        _carrying(denoiser, y, Scale(shift, size)),
    ):
        assert float((given.log_prob - expected).abs().max()) < 1e-4


def _carrying(denoiser, y, scale):
    denoiser.scale = scale
    return log_likelihood(denoiser, y, end=1e-4)


@pytest.mark.parametrize(
    ("name", "shape"), [("mlp", (6,)), ("unet", (1, 8, 8)), ("transformer", (4, 8, 8)), ("unet1d", (16, 2))]
)
def test_networks_of_every_kind(name, shape):
    """The exact trace and the mean of many probes agree, and one datum's density does not depend on another's."""
    torch.manual_seed(0)
    network = make_network(name, shape).eval()
    for parameter in network.parameters():  # networks start at zero output
        parameter.data += 0.02 * torch.randn_like(parameter)
    denoiser = Wrapped(network, rd.RectifiedFlow(), "flow", shape=shape)
    x = torch.randn(2, *shape)
    one = log_likelihood(denoiser, x, divergence="hutchinson", rtol=1e-2, atol=1e-2, end=0.05)
    assert bool(one.log_prob.isfinite().all()) and one.dims == math.prod(shape)
    alone = log_likelihood(denoiser, x[:1], divergence="hutchinson", rtol=1e-2, atol=1e-2, end=0.05)
    assert abs(float(alone.log_prob - one.log_prob[0])) < 0.02 * one.dims


def test_the_trace_of_a_network():
    """Of a linear network the divergence is the trace of its matrix: the density is Gaussian, by hand."""
    d, path = 5, rd.RectifiedFlow()
    C = _spread(4)
    C = torch.block_diag(C, torch.eye(2, dtype=torch.float64) * 0.4)

    class Linear(nn.Module):
        """The exact posterior mean of N(0, C)."""

        def forward(self, x, t):
            a, s = 1 - t[:, None, None], t[:, None, None]
            M = a * C @ torch.linalg.inv(a**2 * C + s**2 * torch.eye(d, dtype=torch.float64))
            return (M @ x.unsqueeze(-1)).squeeze(-1)

    x = torch.randn(8, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    denoiser = Wrapped(Linear(), path, "data", time=lambda t: t)
    denoiser.register_buffer("anchor", torch.zeros(1, dtype=torch.float64))
    found = log_likelihood(denoiser, x, rtol=1e-8, atol=1e-8, end=1e-4).log_prob
    exact = torch.distributions.MultivariateNormal(torch.zeros(d, dtype=torch.float64), C).log_prob(x)
    assert float((found - exact).abs().max()) < 1e-5


def test_bits_of_the_uniform_density():
    """17 grey levels with density 1 on the cube: log2(17) bits a dimension."""
    assert float(bits_per_dim(torch.zeros(3, dtype=torch.float64), 64, width=1 / 17)[0]) == pytest.approx(math.log2(17))
    # the same model in other units: levels one apart, or on [-1, 1]
    for span in (17.0, 2.0):
        log_prob = torch.tensor(-64 * math.log(span), dtype=torch.float64)
        assert float(bits_per_dim(log_prob, 64, width=span / 17)) == pytest.approx(math.log2(17))


def test_bits_of_a_discrete_law_are_at_least_its_entropy():
    """A density that is right on every bin reaches the entropy: dequantisation loses nothing then."""
    p = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
    v = torch.tensor([0, 0, 1, 2])
    u = dequantise(v, 3, torch.Generator().manual_seed(0))
    density = p[(u * 3).long()] * 3
    assert float(bits_per_dim(density.log(), 1, width=1 / 3).mean()) == pytest.approx(1.5)


def test_dequantised_levels_stay_in_their_bins():
    v = torch.arange(17).repeat(2000)
    u = dequantise(v, 17, torch.Generator().manual_seed(0))
    assert u.dtype == torch.float32 and bool((u >= 0).all()) and bool((u < 1).all())
    inside = u.double() * 17 - v
    assert float(inside.min()) > -1e-5 and float(inside.max()) < 1 + 1e-5
    assert abs(float(inside.mean()) - 0.5) < 4 / math.sqrt(12 * len(v))  # false alarm 6e-5
    for bad in (torch.tensor([0.5]), torch.tensor([17]), torch.tensor([-1])):
        with pytest.raises(InputError, match=r"17 grey levels are the integers 0..16"):
            dequantise(bad, 17, torch.Generator())


FLOW = rd.RectifiedFlow()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d: log_likelihood(d, X, divergence="exactly"), "Did you mean 'exact'"),
        (lambda d: log_likelihood(d, X, method="dopri6"), "Did you mean 'dopri"),
        (lambda d: log_likelihood(d, X, probes=0), "probes is at least 1"),
        (lambda d: log_likelihood(d, X, end=0.0), "sigma is 0 at t = 0.0"),
        (lambda d: log_likelihood(d, X, end=1.0), r"end is a time in \[0, 1\)"),
        (lambda d: log_likelihood(d, X, labels=0), "Did you mean 'label'"),
        (lambda d: log_likelihood(d, X[:, :1]), r"takes data of shape \(n, 2\), got \(20, 1\)"),
        (lambda d: log_likelihood(d, X[0]), "data have shape"),
        (lambda d: log_likelihood(d, X * float("nan")), "got NaN or infinity"),
        (lambda d: log_likelihood(d, X, batch_size=0), "batch_size is at least 1"),
        (lambda d: log_likelihood(Atoms(torch.zeros(1, 2).long()).denoiser(Masked(2)), X), "use elbo for tokens"),
        (lambda d: log_likelihood(LAW.denoiser(Interpolant(), LAW), X), "interpolant_log_likelihood for two ends"),
        (lambda d: bits_per_dim(torch.zeros(1), 0), "dims is at least 1"),
    ],
)
def test_wrong_input_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call(LAW.denoiser(FLOW))


def test_data_are_a_tensor():
    with pytest.raises(InputTypeError, match="data are a tensor"):
        log_likelihood(LAW.denoiser(FLOW), X.tolist())
