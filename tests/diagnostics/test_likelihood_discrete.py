"""Bounds on the likelihood of tokens, categories and counts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from processes.discrete_cases import CASES, law
from retrodict.core.errors import InputError
from retrodict.diagnostics.likelihood import elbo
from retrodict.exact import Atoms
from retrodict.processes import Blackout, Masked, Quantised, TokenBridge, Uniform


@pytest.mark.parametrize("name", ["uniform", "birth-death", "any-generator", "masked", "blackout-linear"])
@pytest.mark.parametrize("chain", [None, [0.1, 0.4, 1.0]], ids=["continuous", "chain"])
def test_one_coordinate_has_the_entropy_of_its_law(name, chain):
    """Averaged over the law, within four standard errors, in nats and in bits."""
    process = CASES[name]
    x, p = torch.arange(process.vocabulary)[:, None], law(process)
    bound = elbo(Atoms(x, p).denoiser(process), x, samples=4000, chain=chain, batch_size=20000)
    error = float((p**2 @ bound.std_error**2).sqrt())
    entropy = float(-(p * p.log()).sum())
    assert error < 0.08 and abs(float(-(p @ bound.log_prob)) - entropy) < 4 * error + 1e-6
    bits = float(p @ bound.bits_per_dim())
    assert abs(bits - entropy / np.log(2)) < 6 * error + 1e-6


def test_blackout_pays_for_a_prior_that_is_not_its_end():
    process = Blackout(6, rate=12.0, mean=3.0)
    x, p = torch.arange(6)[:, None], torch.full((6,), 1 / 6, dtype=torch.float64)
    bound = elbo(Atoms(x, p).denoiser(process), x, samples=4000, batch_size=24000)
    error = float((p**2 @ bound.std_error**2).sqrt())
    assert 0 < float(p @ bound.prior) < 1e-3
    assert abs(float(-(p @ bound.log_prob)) - np.log(6)) < 4 * error + 1e-3


def test_two_coordinates_and_a_source():
    """H(x0 | x1) per token, and the same noise whatever the batch."""
    x0, x1 = torch.tensor([[0, 1], [2, 2], [1, 0]]), torch.tensor([[0, 0], [0, 0], [0, 0]])
    data = Atoms(x0, [0.5, 0.3, 0.2], x1=x1)
    bound = elbo(data.denoiser(TokenBridge(3)), x0, x1=x1, samples=3000, batch_size=9000)
    error = float((data.weights**2 @ bound.std_error**2).sqrt())
    assert abs(float(data.weights @ bound.per_dim) * 2 - data.entropy()) < 4 * error + 1e-6
    small = elbo(data.denoiser(TokenBridge(3)), x0, x1=x1, samples=64)
    split = elbo(data.denoiser(TokenBridge(3)), x0, x1=x1, samples=64, batch_size=64)
    assert torch.allclose(small.log_prob, split.log_prob)


def test_quantised_states_have_a_chain_and_no_rates():
    process = Quantised()
    x, p = torch.arange(3)[:, None], torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
    denoiser = Atoms(x, p).denoiser(process)
    bound = elbo(denoiser, x, chain=[0.2, 0.6, 1.0], samples=500)
    # fresh draws at every step forget what x_t had said: more than the entropy, and more for more steps
    assert float(-(p @ bound.log_prob)) > float(-(p * p.log()).sum())
    with pytest.raises(InputError, match="do not jump"):
        elbo(denoiser, x)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.tensor([[0, 5]]), r"token 5 at \(0, 1\) of x"),
        (torch.tensor([[0.0, 0.5]]), r"tokens are integers; x has 0.5 at \(0, 1\)"),
    ],
)
def test_wrong_states_are_named(x, message):
    with pytest.raises(InputError, match=message):
        elbo(Atoms(torch.tensor([[0, 1], [2, 2]])).denoiser(Uniform(3)), x)
    with pytest.raises(InputError, match=message):
        elbo(Atoms(torch.tensor([[0, 1], [2, 2]])).denoiser(Masked(3)), x)
