"""Blackout: binomial bridges, their draws, and what a mean alone does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from retrodict.core.errors import InputTypeError
from retrodict.core.noise import KeyedNoise
from retrodict.kernels import Categorical, Table
from retrodict.kernels.laws import Point
from retrodict.processes import Blackout
from retrodict.processes.counts import draw_binomial, draw_poisson, log_binomial, log_poisson
from retrodict.processes.discrete import one_hot_law

N = 8000


def agrees(drawn: torch.Tensor, p: torch.Tensor) -> bool:
    """Every frequency within 4.5 standard errors: false alarm below 1e-4."""
    share = torch.bincount(drawn.flatten(), minlength=len(p)).double() / drawn.numel()
    return bool(((share - p).abs() <= 4.5 * (p * (1 - p) / drawn.numel()).sqrt() + 1e-9).all())


def test_log_probabilities_are_scipys():
    k, n = torch.arange(8), torch.tensor(6)
    for p in (0.0, 1e-9, 0.3, 1.0):
        ours = log_binomial(k, n, torch.tensor(p, dtype=torch.float64), 1 - torch.tensor(p, dtype=torch.float64)).exp()
        assert np.abs(ours.numpy() - stats.binom.pmf(k.numpy(), 6, p)).max() < 1e-14
    assert np.abs(log_poisson(k, torch.tensor(2.5).double()).exp().numpy() - stats.poisson.pmf(k, 2.5)).max() < 1e-15
    assert float(log_poisson(torch.tensor(0), torch.tensor(0.0).double())) == 0


def test_draws_follow_their_laws():
    u = KeyedNoise(0, N).uniform(())
    n = torch.full((N,), 6)
    for p in (0.0, 0.3, 1.0):
        drawn = draw_binomial(n, torch.tensor(p), u)
        assert agrees(drawn, torch.from_numpy(stats.binom.pmf(np.arange(7), 6, p)))
    poisson = torch.from_numpy(stats.poisson.pmf(np.arange(5), 1.3))
    poisson[-1] = stats.poisson.sf(3, 1.3)  # cut at 4
    assert agrees(draw_poisson(torch.full((N,), 1.3, dtype=torch.float64), 4, u), poisson)


def test_a_step_from_a_mean():
    """Poisson births of mean q (y - n), or binomial ones of y - n rounded at random; never above the largest count."""
    n, mean = torch.full((N, 1), 2), torch.full((N, 1), 4.6, dtype=torch.float64)
    for births in ("poisson", "binomial"):
        process = Blackout(8, births=births)
        t, s = 0.1, 0.05
        q = float((process.keep(s) - process.keep(t)) / process.hide(t))
        law = process.bridge(n, t, s, 0.0).push(Point(mean))
        assert abs(float(law.log_p[0].exp().sum()) - 1) < 1e-12
        assert agrees(law.sample(KeyedNoise(0, N)), law.log_p[0, 0].exp())
        k = np.arange(6)
        if births == "poisson":
            expected = stats.poisson.pmf(k, 2.6 * q)
            expected[-1] = stats.poisson.sf(4, 2.6 * q)
        else:
            expected = 0.4 * stats.binom.pmf(k, 2, q) + 0.6 * stats.binom.pmf(k, 3, q)
        assert np.abs(law.log_p[0, 0, 2:].exp().numpy() - expected).max() < 1e-12
    low = Blackout(8).bridge(n, 0.1, 0.05, 0.0).push(Point(torch.zeros(N, 1).double()))
    assert bool((low.sample(KeyedNoise(1, N)) == 2).all())  # a mean below the count at hand: no births


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_the_law_of_a_step_is_what_is_drawn(eta):
    process = Blackout(7, rate=4.0)
    p = torch.tensor([0.0, 0.1, 0.0, 0.3, 0.2, 0.1, 0.3], dtype=torch.float64)
    x = torch.full((N, 1), 1)
    bridge = process.bridge(x, 0.5, 0.2, eta)
    law = bridge.push(Categorical(p.log().expand(N, 1, -1)))
    assert abs(float(law.log_p[0].exp().sum()) - 1) < 1e-12
    assert agrees(law.sample(KeyedNoise(0, N)), law.log_p[0, 0].exp())
    single = bridge.push(one_hot_law(torch.full((N, 1), 5), 7)).log_p[0, 0].exp()
    assert agrees(bridge.sample(torch.full((N, 1), 5), KeyedNoise(1, N)), single)
    assert abs(float(bridge.log_prob(torch.full((N, 1), 5), torch.full((N, 1), 3))[0].exp()) - float(single[3])) < 1e-12


def test_a_belief_below_the_count_at_hand_gives_no_births():
    process = Blackout(5)
    belief = one_hot_law(torch.zeros(1, 1).long(), 5)
    law = process.bridge(torch.tensor([[3]]), 0.5, 0.2, 0.0).push(belief)
    assert law.log_p.exp().tolist() == [[[0, 0, 0, 1, 0]]]


def test_the_start_is_black_but_for_what_is_left():
    process = Blackout(17, rate=3.0)
    drawn = process.prior((2,), KeyedNoise(0, N))
    assert agrees(drawn, process.prior_log_p().exp())
    assert int(Blackout(17).prior((64,), KeyedNoise(0, 4)).sum()) == 0
    assert bool(Blackout(17).prior_log_p().isfinite().all())


def test_only_laws_and_means_are_pushed():
    step = Blackout(5).bridge(torch.zeros(1, 1).long(), 0.5, 0.2, 0.0)
    with pytest.raises(InputTypeError, match="pushes a law over values or a mean, got Table"):
        step.push(Table(torch.zeros(1, 1, 5)))
