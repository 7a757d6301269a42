"""Embedded tokens that are seen as their nearest neighbours."""

from __future__ import annotations

import pytest
import torch

from retrodict.core.errors import InputError, InputTypeError
from retrodict.core.noise import KeyedNoise
from retrodict.processes import VP, Interpolant, Quantised, from_config

N = 10000
RING = torch.stack([torch.cos(torch.arange(6) * torch.pi / 3), torch.sin(torch.arange(6) * torch.pi / 3)], 1)


@pytest.mark.parametrize("embeddings", [None, RING.tolist()], ids=["line", "ring"])
def test_the_likelihood_is_that_of_the_draws(embeddings):
    """On a line it is exact; on a ring it is measured to 0.001."""
    process = Quantised(VP("cosine"), embeddings)
    K = process.vocabulary
    for t in (0.2, 0.6, 1.0):
        for u in range(K):
            drawn = process.corrupt(torch.full((N, 1), u), t, KeyedNoise(u, N))
            share = torch.bincount(drawn.flatten(), minlength=K).double() / N
            p = process.kernel(0.0, t).log_prob(torch.full((K, 1), u), torch.arange(K)[:, None]).exp()
            bound = 4.5 * (p * (1 - p) / N).sqrt() + (1e-9 if embeddings is None else 1e-3)
            assert bool(((share - p).abs() <= bound).all())  # false alarm below 1e-3


def test_near_tokens_are_confused_first():
    p = Quantised(VP("cosine"), RING).table(0.3)[0]
    assert p[0] > p[1] > p[2] and abs(float(p[1] - p[5])) < 0.001


def test_no_noise_no_confusion_and_the_prior_forgets():
    process = Quantised()
    assert torch.allclose(process.table(0.0), torch.eye(3, dtype=torch.float64))
    x = torch.tensor([[0, 1, 2]])
    assert process.nearest(process.embed(x)).equal(x)
    drawn = torch.bincount(process.prior((1,), KeyedNoise(0, N)).flatten(), minlength=3).double() / N
    p = process.prior_log_p().exp()
    assert bool(((drawn - p).abs() <= 4.5 * (p * (1 - p) / N).sqrt()).all())
    assert torch.allclose(p, process.table(1.0)[0], atol=1e-6)


def test_configuration_and_refusals():
    process = Quantised(VP("cosine"), RING)
    again = from_config(process.config())
    assert isinstance(again, Quantised) and torch.equal(again.table(0.4), process.table(0.4))
    t = torch.tensor([0.2, 0.6], dtype=torch.float64)
    assert torch.allclose(process.time_at(process.hide(t)), t, atol=1e-9)
    with pytest.raises(InputTypeError, match="scalar Gaussian path with one end"):
        Quantised(Interpolant())
    with pytest.raises(InputError, match="at least 2 tokens"):
        Quantised(VP(), [[1.0]])
    with pytest.raises(InputError, match="only kernel"):
        process.kernel(0.2, 0.5)
    with pytest.raises(InputError, match="use the solver 'step'"):
        process.exit(torch.zeros(1, 1).long(), 0.5, 0.2)
