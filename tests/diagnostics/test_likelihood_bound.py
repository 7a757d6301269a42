"""Evidence bounds: tight for exact posteriors, loose for others, and the same in every form."""

from __future__ import annotations

import math

import pytest
import torch

import retrodict as rd
from retrodict.core.errors import InputError
from retrodict.data import Scale
from retrodict.denoisers import Wrapped
from retrodict.diagnostics.likelihood import elbo
from retrodict.exact import Atoms, GaussianMixture
from retrodict.processes import Interpolant, Masked, TokenBridge

MIXTURE = GaussianMixture([0.4, 0.6], [[-1.0, 0.2], [0.8, -0.5]], [0.2, 0.1])
LEVELS = [1 / 6, 1 / 3, 1 / 2, 2 / 3, 5 / 6, 1.0]


def close(bound, log_prob, errors: float = 4.0) -> bool:
    """Whether the mean bound is the mean log-likelihood, within so many standard errors over data and noise."""
    gap = bound.log_prob - log_prob
    return abs(float(gap.mean())) < errors * float(gap.std()) / len(gap) ** 0.5


@pytest.mark.parametrize("path", [rd.VP(beta_max=40.0), rd.VP("cosine"), rd.RectifiedFlow()], ids=repr)
def test_continuous_time_with_the_exact_posterior(path):
    """Averaged over the data the bound is their log-likelihood (false alarm 6e-5 each)."""
    x = MIXTURE.sample(500, seed=1)
    bound = elbo(MIXTURE.denoiser(path), x, end=float(path.time_at(4.0)), samples=150)
    assert close(bound, MIXTURE.log_prob(x))
    assert float((bound.log_prob - MIXTURE.log_prob(x)).std()) / 500**0.5 < 0.06
    assert 0.7 < float(bound.std_error.square().mean().sqrt() / (bound.log_prob - MIXTURE.log_prob(x)).std()) < 1.6


def test_a_worse_denoiser_has_a_lower_bound():
    path, x = rd.RectifiedFlow(), MIXTURE.sample(200, seed=1)
    shifted = GaussianMixture([0.5, 0.5], [[-0.7, 0.2], [0.8, -0.1]], [0.2, 0.1])
    gap = elbo(MIXTURE.denoiser(path), x).log_prob - elbo(shifted.denoiser(path), x).log_prob
    assert float(gap.mean()) > 4 * float(gap.std()) / 200**0.5


def test_a_finite_data_set_has_its_entropy():
    law = Atoms(torch.tensor([[-1.0, 0.0], [0.5, 0.5], [1.0, -1.0]], dtype=torch.float64), [0.5, 0.3, 0.2])
    x = law.data.repeat_interleave(torch.tensor([50, 30, 20]), 0)
    for path in (rd.VP("cosine"), rd.VE(0.01, 100.0)):
        bound = elbo(law.denoiser(path), x, decoder="none", samples=1024, end=1e-3)
        error = float(bound.std_error.square().sum().sqrt()) / len(x)
        assert abs(float(bound.log_prob.mean()) + law.entropy()) < 4 * error < 0.15
        assert not bound.reconstruction.any()


@pytest.mark.parametrize("levels", [[1.0], [0.5, 1.0], LEVELS], ids=len)
def test_a_chain_with_exact_kernels_is_tight_at_every_length(levels):
    """sum KL + reconstruction + prior = entropy: for Gaussian data every reverse kernel is Gaussian, hence exact."""
    law = GaussianMixture([1.0], [[0.8, -0.3]], [[[0.3, 0.1], [0.1, 0.2]]])
    path, x = rd.VP(beta_max=40.0), law.sample(1500, seed=2)
    bound = elbo(law.denoiser(path), x, chain=levels, belief_as="gaussian", samples=8)
    assert close(bound, law.log_prob(x))
    assert bool((bound.diffusion >= 0).all()) and bool((bound.prior >= 0).all())


def test_the_sum_of_kl_terms_of_standard_normal_data():
    """For N(0, 1) under VP the KL terms average to log((1 - abar_T)/beta_1)/2, whatever the levels between."""
    law, path = GaussianMixture([1.0], [[0.0]], [1.0]), rd.DDPM(12, beta_start=0.05, beta_end=0.5)
    x = law.sample(4000, seed=3)
    levels = [(n + 1) / 12 for n in range(12)]
    bound = elbo(law.denoiser(path), x, chain=levels, belief_as="gaussian", samples=4)
    beta = 1 - float(path.alpha(1 / 12)) ** 2
    expected = 0.5 * math.log(float(path.sigma(1.0)) ** 2 / beta)
    assert abs(float(bound.diffusion.mean()) - expected) < 4 * float(bound.diffusion.std()) / 4000**0.5


def test_a_chain_at_the_mean_is_loose_and_tightens_with_its_length():
    """The loss of the mean-only kernel is a Jensen gap of first order in the step."""
    law = GaussianMixture([1.0], [[0.8]], [0.3])
    path, x = rd.VP(beta_max=40.0), law.sample(400, seed=2)
    gaps = []
    for count in (4, 16, 64):
        times = path.time_at(torch.linspace(5.0, float(path.log_snr(1.0)), count, dtype=torch.float64)).tolist()
        times[-1] = 1.0
        gaps.append(float((law.log_prob(x) - elbo(law.denoiser(path), x, chain=times).log_prob).mean()))
    assert gaps[0] > 2 * gaps[1] > 4 * gaps[2] > 0


def test_tokens_by_the_entropy():
    """Masks: H(x0); a token bridge: H(x0 | x1), also where targets equal their source."""
    x0 = torch.tensor([[0, 1], [0, 2], [3, 3]])
    law = Atoms(x0, [0.5, 0.3, 0.2])
    x = x0.repeat_interleave(torch.tensor([100, 60, 40]), 0)
    for schedule in ("linear", "cosine"):
        bound = elbo(law.denoiser(Masked(4, schedule)), x, samples=32)
        error = float(bound.std_error.square().sum().sqrt()) / len(x)
        assert abs(float(bound.log_prob.mean()) + law.entropy()) < 4 * error < 0.2
        assert torch.allclose(bound.per_dim, -bound.log_prob / 2)
    x1 = torch.zeros(3, 2, dtype=torch.long)
    bridged = Atoms(x0, [0.5, 0.3, 0.2], x1=x1)
    bound = elbo(bridged.denoiser(TokenBridge(4)), x, x1=torch.zeros(200, 2, dtype=torch.long), samples=32)
    error = float(bound.std_error.square().sum().sqrt()) / len(x)
    assert abs(float(bound.log_prob.mean()) + law.entropy()) < 4 * error < 0.2


def test_the_noise_of_a_datum_does_not_depend_on_its_batch():
    path, x = rd.RectifiedFlow(), MIXTURE.sample(30)
    whole, split = (elbo(MIXTURE.denoiser(path), x, batch_size=size).log_prob for size in (4096, 7 * 32))
    assert torch.allclose(whole, split, rtol=1e-12)
    one = elbo(MIXTURE.denoiser(path), x[:1]).log_prob
    assert torch.allclose(one, whole[:1], rtol=1e-12)
    assert not torch.allclose(elbo(MIXTURE.denoiser(path), x, seed=1).log_prob, whole)


def test_the_users_units_and_bits():
    path, x = rd.RectifiedFlow(), MIXTURE.sample(10)
    denoiser = MIXTURE.denoiser(path)
    plain, scaled = elbo(denoiser, x), elbo(denoiser, 3 * x + 1, scale=Scale(1.0, 3.0))
    assert torch.allclose(scaled.log_prob, plain.log_prob - 2 * math.log(3), atol=1e-5)
    assert torch.allclose(plain.bits_per_dim(1 / 17), plain.per_dim / math.log(2) + math.log2(17))


def test_networks_in_single_precision():
    class Zero(torch.nn.Module):
        def forward(self, x, t):
            assert x.dtype == torch.float32
            return torch.zeros_like(x)

    denoiser = Wrapped(Zero(), rd.RectifiedFlow(), "data")
    bound = elbo(denoiser, torch.randn(4, 1, 3, 3), samples=4)
    assert bound.dims == 9 and bool(bound.log_prob.isfinite().all())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d, x: elbo(d, x, samples=0), "samples is at least 1"),
        (lambda d, x: elbo(d, x, decoder="normal"), "decoder is one of"),
        (lambda d, x: elbo(d, x, end=0.0), "sigma is 0 at t = 0.0"),
        (lambda d, x: elbo(d, x, chain=[0.5, 0.4, 1.0]), "a chain has levels"),
        (lambda d, x: elbo(d, x, chain=[0.0, 1.0]), "a chain has levels"),
        (lambda d, x: elbo(d, x, chain=[0.5, 1.0], belief_as="sample"), "'mean' or 'gaussian' in a bound"),
        (lambda d, x: elbo(d, x[:, :1]), "takes data of shape"),
        (lambda d, x: elbo(MIXTURE.denoiser(Interpolant(), MIXTURE), x), "needs tokens or a scalar Gaussian path"),
    ],
)
def test_wrong_input_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call(MIXTURE.denoiser(rd.RectifiedFlow()), MIXTURE.sample(2))
