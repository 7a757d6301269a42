"""Bridges: for every amount of noise, the law of x_t given the ends is carried to the law of x_s."""

from __future__ import annotations

import pytest
import torch

import retrodict as rd
from processes.paths import INTERPOLANTS, NAMED, D, affine, ends, matrix, structured
from retrodict.core.errors import InputError
from retrodict.core.noise import KeyedNoise
from retrodict.kernels import Point

STRUCTURED = {
    f"{kind}{'-two-ends' * two}": structured(kind, two)
    for kind in ("diagonal", "spectral", "dense")
    for two in (False, True)
}
ALL = NAMED | INTERPOLANTS | STRUCTURED
PAIRS = [(0.9, 0.35), (0.5, 0.49), (0.3, 0.0)]


def moments(path, t, x0, x1):
    """Mean ``(D,)`` and covariance of x_t given the ends, from the coefficients."""
    A, B, S = path._coefficients(torch.tensor(t, dtype=torch.float64))
    mean = A.mv(x0) if B is None else A.mv(x0) + B.mv(x1)
    return mean[0], matrix(S) @ matrix(S).T


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("times", [*PAIRS, (1.0, 0.6)], ids=str)
@pytest.mark.parametrize("name", ALL)
def test_a_bridge_carries_the_law_at_t_to_the_law_at_s(name, times, eta):
    path = ALL[name]
    t, s = times
    x0, x1 = ends(path)
    gain, offset, Q = affine(lambda x: path.bridge(x, t, s, eta, x1), x0)
    mean_t, cov_t = moments(path, t, x0, x1)
    mean_s, cov_s = moments(path, s, x0, x1)
    scale = 1 + float(cov_t.abs().max().sqrt())
    assert torch.allclose(gain @ mean_t + offset, mean_s, rtol=0, atol=1e-12 * scale)
    assert torch.allclose(gain @ cov_t @ gain.T + Q, cov_s, rtol=1e-10, atol=1e-12)
    if eta == 0 and bool((torch.linalg.eigvalsh(cov_t) > 1e-12).all()):
        assert float(Q.abs().max()) < 1e-12


@pytest.mark.parametrize("times", PAIRS[:2], ids=str)
@pytest.mark.parametrize("name", [*NAMED, *(n for n in STRUCTURED if "two" not in n)])
def test_full_noise_is_the_posterior_of_the_forward_chain(name, times):
    """bridge(eta = 1) = kernel(s, t) inverted at what x0 says of x_s."""
    path = ALL[name]
    t, s = times
    x0, _ = ends(path)
    x_t = torch.randn(1, D, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    posterior = path.kernel(s, t).invert(path.kernel(0, s).push(Point(x0)))
    bridge = path.bridge(x_t, t, s, 1.0)
    assert torch.allclose(posterior.mean(x_t), bridge.mean(x0), atol=1e-10)
    assert torch.allclose(matrix(posterior.Q), matrix(bridge.Q), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("eta", [0.3, 0.8])
@pytest.mark.parametrize("name", ALL)
def test_eta_is_a_share_of_standard_deviation(name, eta):
    """The fresh noise of a step has eta^2 of the variance that the forward chain's posterior has (DDIM, eq. (16))."""
    path = ALL[name]
    x0, x1 = ends(path)
    t, s = (0.45, 0.2) if name == "mirror" else (0.9, 0.35)  # a mirror's noise grows before it falls
    fresh = [affine(lambda x, e=e: path.bridge(x, t, s, e, x1), x0)[2] for e in (eta, 1.0)]
    assert torch.allclose(fresh[0], eta**2 * fresh[1], rtol=1e-9, atol=1e-12)
    assert float(fresh[1].diagonal().min()) > 1e-6


@pytest.mark.parametrize("name", [*NAMED, *(n for n in STRUCTURED if "two" not in n)])
def test_kernels_compose(name):
    """kernel(0, s) then kernel(s, t) is kernel(0, t)."""
    path = ALL[name]
    x0, _ = ends(path)
    for t, s in PAIRS[:2]:
        two = path.kernel(s, t).push(path.kernel(0, s).push(Point(x0)))
        one = path.kernel(0, t).push(Point(x0))
        assert torch.allclose(two.mean, one.mean, atol=1e-12)
        assert torch.allclose(matrix(two.cov), matrix(one.cov), rtol=1e-10, atol=1e-12)


def test_ddpm_posterior_in_its_published_form():
    """Mean and variance of Ho et al. (2020), eq. (6) and (7), from the betas alone."""
    path = rd.DDPM(20)
    betas = torch.linspace(1e-4, 0.02, 20, dtype=torch.float64)
    bar = torch.cumprod(1 - betas, 0)
    x0, x_t = torch.tensor([[0.7]], dtype=torch.float64), torch.tensor([[-0.4]], dtype=torch.float64)
    for n in range(1, 20):
        b = path.bridge(x_t, (n + 1) / 20, n / 20, 1.0)
        mean = (bar[n - 1].sqrt() * betas[n] * x0 + (1 - betas[n]).sqrt() * (1 - bar[n - 1]) * x_t) / (1 - bar[n])
        variance = betas[n] * (1 - bar[n - 1]) / (1 - bar[n])
        assert torch.allclose(b.mean(x0), mean, rtol=0, atol=1e-13)
        assert abs(float(b.Q.value) / float(variance) - 1) < 1e-9


def test_the_brownian_interpolant_is_a_brownian_bridge():
    """At full noise, x_s given x_t and x0 is Brownian motion pinned at both."""
    path = INTERPOLANTS["linear"]
    x0, x1 = ends(path)
    t, s = 0.8, 0.3
    gain, offset, Q = affine(lambda x: path.bridge(x, t, s, 1.0, x1), x0)
    eye = torch.eye(D, dtype=torch.float64)
    assert torch.allclose(gain, s / t * eye, atol=1e-13)
    assert torch.allclose(offset, (1 - s / t) * x0[0], atol=1e-13)  # x1 no longer matters, given x_t
    assert torch.allclose(Q, s * (t - s) / t * eye, atol=1e-13)


def test_times_may_differ_within_a_batch():
    path = rd.VP()
    t, s = torch.tensor([0.9, 0.5]), torch.tensor([0.4, 0.1])
    g = torch.Generator().manual_seed(0)
    x_t, x0 = (
        torch.randn(2, 2, 3, generator=g, dtype=torch.float64),
        torch.randn(2, 2, 3, generator=g, dtype=torch.float64),
    )
    both = path.bridge(x_t, t, s, 0.5).push(Point(x0))
    for i in range(2):
        one = path.bridge(x_t[i : i + 1], float(t[i]), float(s[i]), 0.5).push(Point(x0[i : i + 1]))
        assert torch.allclose(both.mean[i], one.mean[0], atol=1e-7)  # the batch holds float32 times
        assert torch.allclose(both.cov.value[i], one.cov.value, rtol=1e-5)


@pytest.mark.parametrize("belief_as", ["mean", "gaussian", "sample"])
def test_a_reverse_step_is_the_pushed_belief(belief_as):
    """With the posterior of a Gaussian, "gaussian" and "sample" give the exact law of x_s at any step size."""
    path, law = rd.VP(), rd.exact.GaussianMixture([1.0], [[1.0]], [0.25])
    n, t, s = 20_000, 0.7, 0.2
    x_t = path.corrupt(law.sample(n, seed=1), t, KeyedNoise(2, n, dtype=torch.float64))
    noise = KeyedNoise(3, n, dtype=torch.float64)
    x_s = path.reverse_step(x_t, t, s, law.denoiser(path).belief(x_t, t), 1.0, noise, belief_as=belief_as)
    exact = law.marginal(path, s)
    error = abs(float(x_s.var() / exact.covariance) - 1)
    assert abs(float(x_s.mean() - exact.mean)) < 4 * float(exact.covariance) ** 0.5 / n**0.5
    if belief_as == "mean":
        assert error > 0.2  # a large step with a mean loses variance: that is why the others exist
    else:
        assert error < 4 * (2 / n) ** 0.5  # four standard errors of a variance: false alarm 6e-5


def test_noise_is_the_share_between_none_and_all():
    x = torch.zeros(1, 1)
    for eta in (-0.1, 1.1):
        with pytest.raises(InputError, match="eta is the share of admissible noise, between 0 and 1"):
            rd.VP().bridge(x, 0.5, 0.3, eta)
