"""Jump processes against matrix exponentials, Bayes' rule and the exact reversal of a finite chain."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import expm

from processes.discrete_cases import CASES, generator, law, states, transition
from retrodict.core.errors import InputError, InputTypeError
from retrodict.core.noise import KeyedNoise
from retrodict.kernels import Categorical
from retrodict.processes import Blackout, FiniteJump, Masked, TokenBridge, Uniform, birth_death, from_config
from retrodict.processes.discrete import divergence, one_hot_law

TIMES = (0.9, 0.55, 0.2)


def posterior(process, t):
    """p(v | x_t = x) as `Categorical` over ``(classes, 1, vocabulary)``, and p_t ``(classes,)``."""
    joint = (law(process)[:, None] * transition(process, t)).T
    return Categorical((joint / joint.sum(1, keepdim=True)).log()[:, None]), joint.sum(1)


@pytest.mark.parametrize("name", CASES)
def test_transitions_are_exponentials_of_the_generator(name):
    """P_{s,t} solves the forward equation: a product of 4000 small exponentials of the written-out generators."""
    process, s, t, n = CASES[name], 0.2, 0.6, 400
    P = np.eye(process.classes)
    for i in range(n):
        P = P @ expm(generator(process, s + (i + 0.5) * (t - s) / n) * (t - s) / n)
    x, y = states(process), torch.arange(process.classes)
    ours = torch.stack([process.kernel(s, t).log_prob(x, torch.full_like(x, int(v))).exp() for v in y], 1)
    assert np.abs(ours.numpy() - P).max() < 2e-6
    assert torch.allclose(transition(process, s) @ ours, transition(process, t), atol=1e-12)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("name", CASES)
def test_bridges_carry_the_marginals_and_are_bayes_rule_without_churn(name, eta):
    process = CASES[name]
    for t, s in [(1.0, 0.7), (0.9, 0.4), (0.5, 0.45), (0.3, 0.0)]:
        at_t, at_s = transition(process, t), transition(process, s)
        x = states(process)
        forward = torch.stack([process.kernel(s, t).log_prob(torch.full_like(x, v), x).exp() for v in range(len(x))])
        for v in range(process.vocabulary):
            seen = at_t[v] > 1e-14
            law_s = process.bridge(x, t, s, eta).push(one_hot_law(torch.full_like(x, v), process.vocabulary))
            rows = law_s.log_p.exp()[:, 0]
            assert torch.allclose(at_t[v, seen] @ rows[seen], at_s[v], atol=1e-13)
            if eta == 0:
                bayes = (at_s[v][:, None] * forward / at_t[v].clamp_min(1e-300)).T
                assert torch.allclose(rows[seen], bayes[seen], atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_backward_rates_are_the_exact_reversal(name):
    """Q[y, x] p_t(y) / p_t(x) of the chain that starts from any law (U3): births of Blackout, reveals of masks."""
    process = CASES[name]
    for t in TIMES:
        Q = torch.from_numpy(generator(process, t))
        given, p_t = posterior(process, t)
        exact = Q.T * p_t[None, :] / p_t[:, None]
        jumps = process.jumps(given, states(process), t)
        ours = torch.zeros_like(exact).scatter_add_(1, jumps.to[:, 0], jumps.rate[:, 0])
        ours.fill_diagonal_(0.0)
        exact.fill_diagonal_(0.0)
        assert torch.allclose(ours, exact, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", CASES)
def test_the_chance_to_stay_is_that_of_the_reversal(name):
    """exp(-int of the total backward rate along a constant path), the rates recomputed at every time."""
    process, t, s, n = CASES[name], 0.7, 0.3, 400
    given, _ = posterior(process, t)
    total = torch.zeros(process.classes, dtype=torch.float64)
    for i in range(n):
        u = s + (i + 0.5) * (t - s) / n
        total += process.jumps(posterior(process, u)[0], states(process), u).rate[:, 0].sum(-1) * (t - s) / n
    assert torch.allclose(process.log_stay(given, states(process), t, s)[:, 0], -total, atol=2e-4)
    later, _ = process.at_time(given, states(process), t, s)
    exact = posterior(process, s)[0].log_p.exp()
    assert torch.allclose(later.log_p.exp(), exact, atol=1e-10)


@pytest.mark.parametrize("name", CASES)
def test_corruption_draws_from_the_likelihood(name):
    process, n = CASES[name], 6000
    x0 = torch.full((n, 2), process.vocabulary - 1)
    t = torch.tensor([0.15, 0.5]).repeat_interleave(n // 2)
    drawn = process.corrupt(x0, t, KeyedNoise(0, n))
    for half, time in enumerate((0.15, 0.5)):
        counts = torch.bincount(drawn[half * n // 2 : (half + 1) * n // 2].flatten(), minlength=process.classes) / n
        p = transition(process, time)[-1]
        assert bool(((counts - p).abs() <= 4.5 * (p * (1 - p) / n).sqrt() + 1e-9).all())  # false alarm below 1e-4


@pytest.mark.parametrize("name", CASES)
def test_times_of_each_sample_are_its_own(name):
    """A batch of times gives what each time gives alone: kernel, likelihood, bridge and rates."""
    process, t, s = CASES[name], torch.tensor([0.8, 0.5, 0.3]).double(), torch.tensor([0.4, 0.45, 0.1]).double()
    x = torch.tensor([[0, 1], [1, 0], [2 % process.classes, 1]])
    given = Categorical(law(process).log().expand(3, 2, -1))
    batch = process.bridge(x, t, s, 0.3).push(given).log_p
    rates = process.jumps(given, x, t).rate
    for i in range(3):
        one = slice(i, i + 1)
        alone = process.bridge(x[one], float(t[i]), float(s[i]), 0.3).push(Categorical(given.log_p[one])).log_p
        assert torch.allclose(batch[one].exp(), alone.exp(), atol=1e-12)
        assert torch.allclose(rates[one], process.jumps(Categorical(given.log_p[one]), x[one], float(t[i])).rate)
        assert torch.allclose(
            process.kernel(0, t).log_prob(x.clamp(max=process.vocabulary - 1), x)[one],
            process.kernel(0, float(t[i])).log_prob(x.clamp(max=process.vocabulary - 1)[one], x[one]),
        )


def test_the_binomial_chain_of_2015():
    """beta_k = 1/(T-k+1) destroys 1/T of the signal a step: the marginal is x0 (1 - k/T) + k/(2T)."""
    T, process = 10, Uniform(2)
    keep = 1.0
    for k in range(1, T + 1):
        beta = 1 / (T - k + 1)
        keep *= 1 - beta
        flip = float(transition(process, k / T)[1, 0])
        assert abs(flip - (1 - keep) / 2) < 1e-15
        step = process.kernel((k - 1) / T, k / T).log_prob(torch.tensor([[1]]), torch.tensor([[0]])).exp()
        assert abs(float(step) - beta / 2) < 1e-12
    betas = np.linspace(0.05, 0.4, T)
    table = Uniform(2, [1.0, *np.cumprod(1 - betas)])
    assert abs(float(transition(table, 0.3)[0, 1]) - (1 - np.prod(1 - betas[:3])) / 2) < 1e-15


def test_a_death_process_by_its_generator_is_blackout():
    """Two implementations: binomials in closed form, and a generator by its matrix exponential."""
    table = FiniteJump(birth_death([0.0] * 5, [1.0, 2, 3, 4, 5]), "exponential", 4.0)
    closed = CASES["blackout"]
    for t in TIMES:
        assert torch.allclose(transition(table, t), transition(closed, t), atol=1e-13)
        given, _ = posterior(closed, t)
        theirs = table.jumps(given, states(table), t)
        assert torch.allclose(theirs.rate.sum(-1), closed.jumps(given, states(closed), t).rate[..., 0], atol=1e-9)


def test_the_relative_entropy_of_jumps():
    """Zero at equality, positive elsewhere, and the Poisson KL of the rates."""
    r = torch.tensor([[0.5, 0.0, 2.0]], dtype=torch.float64)
    assert float(divergence(r, r)) == 0
    m = torch.tensor([[0.7, 0.1, 1.0]], dtype=torch.float64)
    expected = (0.7 - 0.5 + 0.5 * np.log(0.5 / 0.7)) + 0.1 + (1.0 - 2.0 + 2 * np.log(2.0))
    assert abs(float(divergence(r, m)) - expected) < 1e-14


@pytest.mark.parametrize("name", CASES)
def test_configurations_rebuild(name):
    again = from_config(CASES[name].config())
    assert type(again) is type(CASES[name]) and again.config() == CASES[name].config()
    assert torch.equal(transition(again, 0.4), transition(CASES[name], 0.4))


@pytest.mark.parametrize("name", CASES)
def test_the_clock_and_its_inverse(name):
    process = CASES[name]
    t = torch.tensor([0.01, 0.3, 0.7], dtype=torch.float64)
    assert torch.allclose(process.time_at(process.hide(t)), t, atol=1e-12)
    assert torch.allclose(process.keep(t) + process.hide(t), torch.ones(3, dtype=torch.float64), atol=1e-14)


def test_priors_are_the_laws_at_the_end():
    for process in (Uniform(4), CASES["birth-death"], CASES["any-generator"], Masked(3)):
        assert torch.allclose(transition(process, 1.0), process.prior_log_p().exp().expand(process.vocabulary, -1))
        drawn = torch.bincount(process.prior((2,), KeyedNoise(1, 4000)).flatten(), minlength=process.classes) / 8000
        p = process.prior_log_p().exp()
        assert bool(((drawn - p).abs() <= 4.5 * (p * (1 - p) / 8000).sqrt() + 1e-9).all())


def test_unreachable_values_are_known():
    assert Uniform(3).possible(torch.tensor([[0]])) is None
    assert CASES["birth-death"].possible(torch.tensor([[0]])) is None
    death = FiniteJump(birth_death([0.0, 0.0], [1.0, 1.0]))
    assert death.possible(torch.tensor([[1]])).tolist() == [[[False, True, True]]]
    assert Blackout(3).possible(torch.tensor([[1]])).tolist() == [[[False, True, True]]]


GOOD = torch.tensor([[-1.0, 1.0], [2.0, -2.0]])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FiniteJump([[-1.0, 1.0], [-2.0, 2.0]]), "rate from 1 to 0 is -2; rates between two values"),
        (lambda: FiniteJump([[-1.0, 1.0], [2.0, -1.5]]), "row 1 of the rates sums to 0.5 and not to 0"),
        (lambda: FiniteJump([[-1.0, 1.0]]), r"square matrix \(S, S\)"),
        (lambda: FiniteJump([[float("nan"), 1.0], [1.0, -1.0]]), "finite numbers"),
        (lambda: FiniteJump([[0.0, 0.0], [0.0, 0.0]]), "never forgets its start"),
        (lambda: FiniteJump([[-1.0, 1.0, 0], [0, 0, 0], [0, 0, 0]]), "never forgets its start"),
        (lambda: birth_death([1.0, 2.0], [1.0]), "S - 1 rates each"),
        (lambda: Uniform(1), "at least 2"),
        (lambda: Uniform(3, "linaer"), "Did you mean 'linear'"),
        (lambda: Uniform(3, rate=-1.0), "rate of a schedule is positive"),
        (lambda: Uniform(3, [1.0, 0.5, 0.6]), "starts at 1 and falls"),
        (lambda: Uniform(3, [0.9, 0.5]), "starts at 1 and falls"),
        (lambda: FiniteJump(GOOD).bridge(torch.zeros(1, 1).long(), 0.5, 0.2, 1.5), "share of admissible"),
        (lambda: Uniform(3).check(torch.tensor([[0, 1], [3, 0]])), r"token 3 at \(1, 0\) of x0 is outside the vocab"),
        (lambda: Uniform(3).check(torch.tensor([[0, -1]])), r"token -1 at \(0, 1\)"),
        (lambda: Masked(3).check(torch.tensor([[0, 3]]), "init"), r"token 3 at \(0, 1\) of init"),
        (lambda: Blackout(5).check(torch.tensor([[0, -2]])), r"count -2 at \(0, 1\)"),
        (lambda: Blackout(5).check(torch.tensor([[0.0, 1.5]])), r"counts are integers; x0 has 1.5 at \(0, 1\)"),
        (lambda: Blackout(5).check(torch.tensor([[0.0, 1.0]])), "use .long()"),
        (lambda: Blackout(5, births="gauss"), "births is one of poisson, binomial"),
        (lambda: TokenBridge(3).prior_log_p(), "starts from its source"),
    ],
)
def test_wrong_input_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_wrong_types_are_refused():
    with pytest.raises(InputTypeError, match="tensor of tokens, got list"):
        Uniform(3).check([[0]])
    Masked(3).check(torch.tensor([[3]]), noisy=True)
