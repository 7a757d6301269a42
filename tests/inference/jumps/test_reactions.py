"""Reaction networks: exact sums over a box of states, and particles whose evidence estimates are unbiased."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import linalg, stats
from torch import Tensor

from retrodict.core.errors import InputError
from retrodict.core.noise import KeyedNoise
from retrodict.inference import Observed, condition_model
from retrodict.inference.jumps import BoxPosterior, NetworkPosterior, ReactionNetwork
from retrodict.kernels import LinearGaussian

TIMES = [0.8, 1.5, 2.0]
Y = [[13.0, 6.0], [float("nan"), 9.0], [16.0, 9.0]]


def lotka_volterra(**options) -> ReactionNetwork:
    """Prey are born, predators eat prey and multiply, predators die."""
    consumed, produced = [[1, 0], [1, 1], [0, 1]], [[2, 0], [0, 2], [0, 0]]
    return ReactionNetwork.mass_action(consumed, produced, [0.6, 0.04, 0.5], [10, 6], **options)


def seen(noise: float = 1.0, copies: int = 1) -> Observed:
    """The data, or as many series of the same: their particles are independent runs."""
    return Observed(np.array([Y] * copies), TIMES, operator=torch.eye(2), noise=noise)


def queue(**options) -> ReactionNetwork:
    """Arrivals at rate 2, one server at rate 1.5: its generator on 0..30 is a small matrix."""
    return ReactionNetwork([[1], [-1]], lambda x: torch.cat([2.0 + 0 * x, 1.5 * (x > 0)], -1), [3.0], **options)


def queue_rates(K: int = 40) -> np.ndarray:
    Q = np.diag(np.full(K - 1, 2.0), 1) + np.diag(np.full(K - 1, 1.5), -1)
    return Q - np.diag(Q.sum(1))


def test_sums_over_a_box_by_exponentials():
    """Evidence, filter and smoother of a queue; the data of two series at their own times."""
    y, times = [[4.2, 3.1], [2.0, 7.5]], [[0.5, 2.0], [1.0, 1.4]]
    post = condition_model(queue(), Observed(torch.tensor(y)[..., None], times, noise=0.8), "exact", {"upper": 39})
    assert isinstance(post, BoxPosterior)
    Q, states = queue_rates(), np.arange(40)
    for s in range(2):
        g = [stats.norm(states, 0.8).pdf(v) for v in np.float32(y[s])]
        first = linalg.expm(Q * times[s][0])[3] * g[0]
        back = linalg.expm(Q * (times[s][1] - times[s][0])) @ g[1]
        Z = first @ back
        assert abs(float(post.log_evidence[s]) - math.log(Z)) < 1e-9
        assert post.filter().mean is not None and post.smooth().mean is not None
        assert abs(float(post.filter().mean[s, 0, 0]) - first @ states / first.sum()) < 1e-8  # type: ignore[index]
        assert abs(float(post.smooth().mean[s, 0, 0]) - (first * back) @ states / Z) < 1e-8  # type: ignore[index]
        spread = (first * back) @ states**2 / Z - ((first * back) @ states / Z) ** 2
        assert abs(float(post.smooth().covariance[s, 0, 0, 0]) - spread) < 1e-7  # type: ignore[index]
    assert float(post.lost.max()) < 1e-9 and post.exact


def test_what_leaves_the_box_is_told():
    small = condition_model(lotka_volterra(), seen(), "exact", {"upper": [20, 15]})
    large, larger = (condition_model(lotka_volterra(), seen(), "exact", {"upper": n}) for n in (50, 70))
    assert 1e-3 < float(small.lost) < 1 and not small.exact and float(small.log_evidence) < float(large.log_evidence)
    assert abs(float(large.log_evidence - larger.log_evidence)) < 1e-6


def test_simulation_follows_the_master_equation():
    """Counts of the queue after a time, by chi-square (false-alarm rate 1e-4)."""
    n = 4000
    x = queue().kernel(0.0, 1.3).sample(torch.full((n, 1), 3.0).double(), KeyedNoise(0, n))
    expected = n * linalg.expm(queue_rates() * 1.3)[3, :9]
    counts = torch.bincount(x[:, 0].long(), minlength=9)
    expected, observed = np.append(expected, n - expected.sum()), np.append(counts[:9], counts[9:].sum())
    assert stats.chisquare(observed, expected).pvalue > 1e-4


def test_mass_action_counts_the_ways_to_choose():
    """2A + B -> 3C at rate 0.5: 0.5 * A(A-1)/2 * B."""
    network = ReactionNetwork.mass_action([[2, 1, 0]], [[0, 0, 3]], [0.5], [5, 2, 0])
    x = torch.tensor([[5.0, 2.0, 0.0], [1.0, 4.0, 0.0], [2.0, 0.0, 7.0]]).double()
    assert network.hazards(x)[:, 0].tolist() == [10.0, 0.0, 0.0]
    assert network.changes.tolist() == [[-2.0, -1.0, 3.0]]


@pytest.mark.parametrize(("method", "noise"), [("guided", 1.0), ("bootstrap", 1.0), ("guided", 0.5), ("guided", 0.3)])
def test_the_evidence_of_predators_and_prey_is_unbiased(method, noise):
    """E[Z_hat] = Z: 200 independent runs of 150 particles, with a missing coordinate, against the sum over a box.

    Within 3 standard errors (false-alarm rate 3e-3 each); 2,000 runs of 1,000 particles gave 1.0012 +- .0027 at
    noise .5.  The right tail is long: of few runs of few particles most lie below, and so do their mean and spread."""
    exact = float(condition_model(lotka_volterra(), seen(noise), "exact", {"upper": 50}).log_evidence)
    post = condition_model(lotka_volterra(), seen(noise, 200), method, {"particles": 150})
    ratio = (post.log_evidence - exact).exp()
    assert abs(float(ratio.mean()) - 1) < 3 * float(ratio.std()) / 200**0.5
    assert float(ratio.std()) < 1


def test_guided_paths_are_worth_more_with_sharp_observations():
    """Spread of the estimated evidence over runs at equal numbers of particles."""
    spread = {}
    for method in ("guided", "bootstrap"):
        Z = condition_model(lotka_volterra(), seen(0.2, 30), method, {"particles": 200}).log_evidence.exp()
        spread[method] = float(Z.std() / Z.mean())
    assert spread["guided"] < 0.5 * spread["bootstrap"]


def test_smoothed_states_of_predators_and_prey():
    """Means of the last filter and of the smoother within 5 times their spread over independent runs."""
    exact = condition_model(lotka_volterra(), seen(), "exact", {"upper": 50})
    post = condition_model(lotka_volterra(), seen(copies=12), "auto", {"particles": 300})
    assert isinstance(post, NetworkPosterior) and post.method == "guided"
    assert 1 < float(post.ess.min()) and float(post.ess.max()) <= 300
    for verb in ("filter", "smooth"):
        runs = getattr(post, verb)().mean
        error = (runs.mean(0) - getattr(exact, verb)().mean[0]).abs()
        assert bool((error < 5 * runs.std(0) / 12**0.5).all())


def test_series_side_by_side_and_draws():
    """A batch with series of unequal length; the evidence of each is estimated as if alone."""
    data = Observed([np.array([[4.2], [3.1]]), np.array([[2.0]])], [[0.5, 2.0], [1.0]], noise=0.8)
    exact = condition_model(queue(), data, "exact", {"upper": 39})
    post = condition_model(queue(), data, "guided", {"particles": 3000})
    assert bool(((post.log_evidence - exact.log_evidence).abs() < 4 * post.log_evidence_se).all())
    paths = post.sample(50, seed=2)
    assert paths.x.shape == (50, 2, 2, 1) and bool(paths.x[:, 1, 1].isnan().all())
    assert bool((paths.x[:, 0] == paths.x[:, 0].round()).all())


def test_counts_seen_without_error_and_counts_with_a_prior():
    """Poisson start and exact counts: the guided filter still finds paths that hit them."""
    prior = torch.distributions.Poisson(torch.tensor([3.0]))
    network = ReactionNetwork([[1], [-1]], lambda x: torch.cat([2.0 + 0 * x, 1.5 * (x > 0)], -1), prior)
    data = Observed([[4.0], [6.0]], [0.7, 1.5], noise=0.05)
    exact = condition_model(network, data, "exact", {"upper": 39})
    start = stats.poisson(3).pmf(np.arange(40))
    Q = queue_rates()
    expected = (start @ linalg.expm(Q * 0.7))[4] * linalg.expm(Q * 0.8)[4, 6] * stats.norm(0, 0.05).pdf(0) ** 2
    assert abs(float(exact.log_evidence) - math.log(expected)) < 1e-8
    post = condition_model(network, data, "guided", {"particles": 4000})
    assert float((post.log_evidence - exact.log_evidence).abs()) < 4 * float(post.log_evidence_se)


def test_wrong_input_is_refused():
    with pytest.raises(InputError, match="takes upper="):
        condition_model(queue(), Observed([1.0], [1.0], noise=1.0), "exact")
    with pytest.raises(InputError, match=r"got -1 at the state \[3.0\]"):
        ReactionNetwork([[1]], lambda x: -1.0 + 0 * x, [3.0])
    with pytest.raises(InputError, match="one rate for each of 2 reactions"):
        ReactionNetwork([[1], [-1]], lambda x: x, [3.0])
    with pytest.raises(InputError, match="whole numbers"):
        ReactionNetwork([[0.5]], lambda x: x, [3.0])
    with pytest.raises(InputError, match="counts are 0, 1, 2"):
        ReactionNetwork([[1]], lambda x: x, [-3.0])
    with pytest.raises(InputError, match="prior is of 2 species"):
        ReactionNetwork([[1]], lambda x: x[..., :1], [3.0, 1.0])
    with pytest.raises(InputError, match="makes a count negative"):
        bad = ReactionNetwork([[-1]], lambda x: 1.0 + 0 * x, [3.0])
        condition_model(bad, Observed([1.0], [1.0], noise=1.0), "exact", {"upper": 5})
    with pytest.raises(InputError, match="outside of the box"):
        condition_model(queue(), Observed([1.0], [1.0], noise=1.0), "exact", {"upper": 2})

    def counts(x: Tensor) -> torch.distributions.Distribution:
        return torch.distributions.Independent(torch.distributions.Poisson(x + 0.1), 1)

    counted = queue(observation=counts)
    data = Observed([[2.0], [3.0]], [0.5, 1.0])
    with pytest.raises(InputError, match="guiding needs one y = L x"):
        condition_model(counted, data, "guided")
    assert condition_model(counted, data).method == "bootstrap"
    linear = queue(observation=LinearGaussian(torch.ones(1, 1), 0.0, 0.5))
    assert condition_model(linear, data).method == "guided"
