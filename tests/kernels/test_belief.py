"""Beliefs: one object, pushed as a mean, a Gaussian, marginals or a draw."""

from __future__ import annotations

import pytest
import torch

from retrodict.core.errors import InputError
from retrodict.core.lin import Lin
from retrodict.core.noise import KeyedNoise
from retrodict.kernels import Belief, Categorical, Gaussian


def test_a_real_belief_in_every_form():
    noise = KeyedNoise(0, 2)
    mean, cov = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), Lin.scalar(torch.tensor([0.5, 2.0]))
    belief = Belief(mean, cov=lambda: cov, draw=lambda n: mean + 10)
    point = belief.as_("mean", noise)
    assert isinstance(point, Gaussian) and point.mean.equal(mean) and float(point.cov.value) == 0
    assert belief.as_("gaussian", noise).cov is cov
    assert belief.as_("sample", noise).mean.equal(mean + 10)
    assert belief.unsteered.equal(mean)
    assert Belief(mean, base=mean - 1).unsteered.equal(mean - 1)
    drawn = Belief(mean, cov=cov).as_("sample", KeyedNoise(0, 2)).mean
    assert torch.allclose(drawn, mean + cov.sqrt().mv(KeyedNoise(0, 2).normal((2,))))


def test_a_belief_of_tokens():
    log_p = torch.tensor([[[0.2, 0.8], [1.0, 0.0]]], dtype=torch.float64).log()
    belief = Belief(log_p.exp(), law=Categorical(log_p))
    assert belief.as_("mean", KeyedNoise(0, 1)).log_p.equal(log_p)
    assert belief.as_("marginal", KeyedNoise(0, 1)).log_p.equal(log_p)
    drawn = belief.as_("sample", KeyedNoise(0, 1)).log_p.exp()
    assert drawn.sum(-1).equal(torch.ones(1, 2, dtype=torch.float64)) and bool((drawn.max(-1).values == 1).all())
    assert int(drawn[0, 1].argmax()) == 0


def test_the_beliefs_of_chosen_slots():
    mean = torch.arange(6.0).reshape(3, 2)
    cov = Lin.scalar(torch.tensor([1.0, 2.0, 3.0]))
    part = Belief(mean + 1)
    belief = Belief(mean, x1=mean * 2, cov=cov, base=mean - 1, log_h=mean[:, 0], parts=[(0.5, part)])
    index = torch.tensor([2, 2, 0])
    taken = belief.take(index)
    assert taken.mean.equal(mean[index]) and taken.x1.equal(2 * mean[index]) and taken.base.equal(mean[index] - 1)
    assert taken.covariance().value.tolist() == [3.0, 3.0, 1.0]
    assert taken.log_h.equal(mean[index, 0])
    assert taken.parts[0][0] == 0.5 and taken.parts[0][1].mean.equal(mean[index] + 1)
    shared = Belief(mean, cov=Lin.scalar(torch.tensor(2.0))).take(index)
    assert float(shared.covariance().value) == 2.0


def test_what_is_missing_is_said():
    belief = Belief(torch.zeros(1, 2))
    with pytest.raises(InputError, match="offers no posterior covariance"):
        belief.covariance()
    with pytest.raises(InputError, match="belief_as is 'mean', 'gaussian', 'marginal' or 'sample', got 'median'"):
        belief.as_("median", KeyedNoise(0, 1))
