"""Masks and token bridges by enumeration."""

from __future__ import annotations

import itertools

import pytest
import torch

from retrodict.core.errors import InputError
from retrodict.core.noise import KeyedNoise
from retrodict.kernels import Categorical
from retrodict.processes import Masked, TokenBridge, from_config

K = 3
PAIRS = [(1.0, 0.7), (0.8, 0.3), (0.4, 0.39), (0.5, 0.0)]


def point(x0: int, classes: int) -> Categorical:
    return Categorical(torch.nn.functional.one_hot(torch.tensor([[x0]]), classes).double().log())


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("times", PAIRS, ids=str)
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("kind", [Masked, TokenBridge])
def test_bridges_carry_the_marginals_with_remasking(kind, schedule, times, eta):
    """sum over x_t of kappa_t(x_t | ends) bridge(x_s | x_t, ends) = kappa_s, for every pair of ends."""
    process = kind(K, schedule)
    t, s = times
    sources = [K] if kind is Masked else range(K)
    for x0, source in itertools.product(range(K), sources):
        x1 = None if kind is Masked else torch.tensor([[source]])
        at_t = process.kernel(0, t, x1).push(point(x0, process.classes)).log_p.exp()[0, 0]
        at_s = process.kernel(0, s, x1).push(point(x0, process.classes)).log_p.exp()[0, 0]
        carried = torch.zeros(process.classes, dtype=torch.float64)
        for x_t in range(process.classes):
            if at_t[x_t] > 0:
                step = process.bridge(torch.tensor([[x_t]]), t, s, eta, x1)
                carried += at_t[x_t] * step.push(point(x0, process.classes)).log_p.exp()[0, 0]
        assert torch.allclose(carried, at_s, atol=1e-15)
        expected = torch.zeros(process.classes, dtype=torch.float64)
        expected[x0] += float(process.keep(s))
        expected[source] += 1 - float(process.keep(s))
        assert torch.allclose(at_s, expected, atol=1e-15)


@pytest.mark.parametrize("kind", [Masked, TokenBridge])
def test_no_remasking_is_the_posterior_of_the_forward_chain(kind):
    """Bayes over the forward kernels s -> t, with no free stochasticity in it, gives bridge(eta = 0)."""
    process = kind(K, "cosine")
    t, s, source = 0.8, 0.3, 1
    x1 = None if kind is Masked else torch.tensor([[source]])
    for x0 in range(K):
        if kind is TokenBridge and x0 == source:
            continue  # then x_t = x_s = x0 always
        law_s = process.kernel(0, s, x1).push(point(x0, process.classes)).log_p.exp()[0, 0]
        for x_t in (x0, K if kind is Masked else source):
            likelihood = torch.stack(
                [
                    process.kernel(s, t, x1).log_prob(torch.tensor([[x_s]]), torch.tensor([[x_t]])).exp()[0]
                    for x_s in range(process.classes)
                ]
            )
            posterior = law_s * likelihood
            bridge = process.bridge(torch.tensor([[x_t]]), t, s, 0.0, x1).push(point(x0, process.classes))
            assert torch.allclose(bridge.log_p.exp()[0, 0], posterior / posterior.sum(), atol=1e-14)


def test_the_largest_remasking_is_admissible():
    """At eta = 1 every probability is one: the reveal probability stays within [0, 1] for all times."""
    process = Masked(K)
    for t, s in itertools.product(torch.linspace(0.01, 1, 34).tolist(), repeat=2):
        if s < t:
            for x_t in (0, K):
                u = process.bridge(torch.tensor([[x_t]]), t, s, 1.0).u
                assert 0 <= float(u) <= 1


def test_the_reveal_probability_is_accurate_near_the_data():
    """From t = 1e-9 to half of it, a hidden position is revealed with probability 1 - (hide_s / hide_t) = 3/4."""
    u = Masked(K, "cosine").bridge(torch.tensor([[K]]), 1e-9, 0.5e-9, 0.0).u
    assert abs(float(u) - 0.75) < 1e-12


def test_corruption_keeps_with_probability_keep():
    n, process = 4000, TokenBridge(5)
    x0, x1 = torch.full((n, 2), 3), torch.full((n, 2), 4)
    t = torch.linspace(0.2, 0.8, 2).repeat_interleave(n // 2)
    x_t = process.corrupt(x0, t, KeyedNoise(0, n), x1)
    kept = (x_t == 3).double().reshape(2, -1).mean(1)
    error = (0.8 * 0.2 / n) ** 0.5
    assert bool(((kept - torch.tensor([0.8, 0.2])).abs() < 4 * error).all())  # false alarm 1e-4
    assert bool(((x_t == 3) | (x_t == 4)).all())
    assert Masked(5).corrupt(x0, 1.0, KeyedNoise(0, n)).eq(5).all()
    assert TokenBridge(5).corrupt(x0, 0.0, KeyedNoise(0, n), x1).equal(x0)


def test_priors_and_targets():
    noise = KeyedNoise(0, 2)
    assert Masked(4).prior((3,), noise).tolist() == [[4] * 3] * 2
    source = torch.tensor([[1, 2, 3], [0, 0, 1]])
    assert TokenBridge(4).prior((3,), noise, source).equal(source)
    assert Masked(4).target("data", source, source, 0.5).equal(source)
    assert Masked(4).heads() == [("data", "cross-entropy", 4)]
    assert Masked(4).classes == 5 and TokenBridge(4).classes == 4 and Masked(4).mask == 4


def test_a_configuration_rebuilds_the_process():
    for process in (Masked(7, "cosine"), TokenBridge(3)):
        again = from_config(process.config())
        assert type(again) is type(process) and again.config() == process.config()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Masked(1), "at least 2"),
        (lambda: Masked(2.5), "vocabulary is an integer"),
        (lambda: Masked(4, "cosin"), "Did you mean 'cosine'"),
        (lambda: TokenBridge(4).corrupt(torch.zeros(1, 2).long(), 0.5, KeyedNoise(0, 1)), "needs its source sequence"),
        (lambda: Masked(4).bridge(torch.zeros(1, 2).long(), 0.5, 0.2, 1.5), "share of admissible remasking"),
        (lambda: Masked(4).target("noise", *[torch.zeros(1, 2).long()] * 2, 0.5), "discrete states have one target"),
    ],
)
def test_wrong_input_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()
