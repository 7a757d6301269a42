"""Inner moves against closed forms: stationary laws, acceptance rates, reversibility, and each other."""

from __future__ import annotations

import math

import pytest
import torch

from retrodict.core.errors import InputError
from retrodict.core.noise import GeneratorNoise, KeyedNoise
from retrodict.exact import GaussianMixture
from retrodict.steering import moves

MIX = GaussianMixture([0.3, 0.7], [[-1.0, 0.5], [1.2, -0.4]], [0.4, 0.8])


def noise(n: int, seed: int = 0) -> GeneratorNoise:
    return GeneratorNoise(torch.Generator().manual_seed(seed), n, dtype=torch.float64)


def draws(n: int, seed: int) -> torch.Tensor:
    """Exact draws of MIX, from one generator."""
    g = torch.Generator().manual_seed(seed)
    k = torch.multinomial(MIX.weights, n, replacement=True, generator=g)
    root = torch.tensor([0.4, 0.8], dtype=torch.float64).sqrt()[k]
    return MIX.means[k] + root[:, None] * torch.randn(n, 2, generator=g, dtype=torch.float64)


def standard(x):
    return -0.5 * (x**2).flatten(1).sum(1)


def test_unadjusted_langevin_has_the_variance_that_its_recursion_has():
    """On N(0, v) the chain is AR(1): its stationary variance is v/(1 - e/(2v)), not v.  20,000 chains: 4.5 errors."""
    v, e, n = 0.7, 0.3, 20_000
    start = torch.randn(n, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x = moves.langevin(lambda x: standard(x) / v, start, e, 60, noise(n))
    expected = v / (1 - e / (2 * v))
    assert abs(float(x.var()) - expected) < 4.5 * expected * (2 / n) ** 0.5
    assert expected > v + 10 * expected * (2 / n) ** 0.5


def test_momentum_follows_its_linear_recursion():
    """The velocity form on a Gaussian is linear: variance from the fixed point of its covariance recursion."""
    v, e, m, n = 0.7, 0.1, 0.8, 20_000
    A = torch.tensor([[1 - e / v, math.sqrt(e) * m], [-math.sqrt(e) / v, m]], dtype=torch.float64)
    B = torch.tensor([[math.sqrt(2 * e * (1 - m))], [math.sqrt(2 * (1 - m))]], dtype=torch.float64)
    P = torch.eye(2, dtype=torch.float64)
    for _ in range(2000):
        P = A @ P @ A.T + B @ B.T
    start = torch.zeros(n, 1, dtype=torch.float64)
    x = moves.langevin(lambda x: standard(x) / v, start, e, 150, noise(n), momentum=m)
    assert abs(float(x.var()) - float(P[0, 0])) < 4.5 * float(P[0, 0]) * (2 / n) ** 0.5


def test_momentum_zero_is_langevin_and_a_given_score_is_its_gradient():
    x = draws(50, 0)
    a = moves.langevin(MIX.log_prob, x, 0.05, 3, KeyedNoise(3, 50, dtype=torch.float64))
    z = KeyedNoise(3, 50, dtype=torch.float64)
    b = x
    for _ in range(3):
        b = b + 0.05 * moves.score_of(MIX.log_prob)(b) + 0.1**0.5 * z.normal((2,))
    assert torch.allclose(a, b, atol=1e-12)
    given = moves.langevin(None, x, 0.05, 3, KeyedNoise(3, 50, dtype=torch.float64), score=moves.score_of(MIX.log_prob))
    assert torch.equal(a, given)


def test_random_walk_acceptance_in_closed_form():
    """On N(0, 1) with proposals of deviation s the rate at stationarity is (2/pi) atan(2/s); 30,000 chains."""
    n = 30_000
    start = torch.randn(n, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    for s in (0.5, 2.4):
        moved = moves.metropolis(standard, start, s, 1, noise(n, 5))
        expected = 2 / math.pi * math.atan(2 / s)
        assert abs(float(moved.accepted.mean()) - expected) < 4.5 * (expected * (1 - expected) / n) ** 0.5


EXACT = {
    "metropolis": lambda x, z: moves.metropolis(MIX.log_prob, x, 1.0, 8, z),
    "mala": lambda x, z: moves.mala(MIX.log_prob, x, 0.6, 8, z),
    "hmc": lambda x, z: moves.hmc(MIX.log_prob, x, 0.9, 6, z, leaps=3),
    "preconditioned": lambda x, z: moves.mala(MIX.log_prob, x, torch.tensor([0.9, 0.3]), 8, z),
}


@pytest.mark.parametrize("name", list(EXACT))
def test_adjusted_moves_leave_the_law_as_it_is(name):
    """From exact draws of a two-mode law, large steps: share of a mode, means and squares within 4.5 errors."""
    n = 6_000
    start = draws(n, 4)
    moved = EXACT[name](start, noise(n, 6))
    assert 0.2 < float(moved.accepted.mean()) < 0.97  # steps so large that the unadjusted law would be off
    assert bool((moved.x != start).any(1).double().mean() > 0.8)
    reference = draws(200_000, 9)
    for f in (lambda x: (x[:, 0] > 0).double(), lambda x: x[:, 0], lambda x: x[:, 1], lambda x: x[:, 0] ** 2,
              lambda x: x[:, 1] ** 2, lambda x: x[:, 0] * x[:, 1]):  # fmt: skip
        error = float(f(reference).std()) * (1 / n + 1 / 200_000) ** 0.5
        assert abs(float(f(moved.x).mean() - f(reference).mean())) < 4.5 * error, name
    biased = moves.langevin(MIX.log_prob, start, 0.6, 8, noise(n, 6))
    assert abs(float((biased**2).mean() - (reference**2).mean())) > 0.08


@pytest.mark.parametrize("name", list(EXACT))
def test_detailed_balance(name):
    """At stationarity E[f(x) g(x')] = E[g(x) f(x')], f and g odd and even, within 4.5 errors."""
    n = 6_000
    start = draws(n, 7)
    one = {
        "metropolis": lambda z: moves.metropolis(MIX.log_prob, start, 1.0, 1, z),
        "mala": lambda z: moves.mala(MIX.log_prob, start, 0.6, 1, z),
        "hmc": lambda z: moves.hmc(MIX.log_prob, start, 0.9, 1, z, leaps=3),
        "preconditioned": lambda z: moves.mala(MIX.log_prob, start, torch.tensor([0.9, 0.3]), 1, z),
    }[name]
    end = one(noise(n, 8)).x
    f, g = (lambda x: x[:, 0]), (lambda x: (x[:, 1] > 0).double() * x[:, 0] ** 2)
    flow = f(start) * g(end) - g(start) * f(end)
    assert abs(float(flow.mean())) < 4.5 * float(flow.std()) / n**0.5


def test_leapfrog_is_its_own_inverse_and_preserves_volume():
    score = moves.score_of(MIX.log_prob)
    x, p = draws(20, 0), torch.randn(20, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y, q = moves.leapfrog(score, x, p, 0.3, 7)
    back, r = moves.leapfrog(score, y, -q, 0.3, 7)
    assert torch.allclose(back, x, atol=1e-11) and torch.allclose(r, -p, atol=1e-11)
    assert float((y - x).abs().max()) > 0.1
    gauss = lambda v: torch.cat(moves.leapfrog(lambda s: -(s**3), v[:, :1], v[:, 1:], 0.2, 5), 1)  # noqa: E731
    J = torch.func.jacrev(lambda v: gauss(v[None])[0])(torch.tensor([0.4, -0.7], dtype=torch.float64))
    assert float(torch.linalg.det(J)) == pytest.approx(1, abs=1e-12)


def test_one_leap_accepts_as_the_textbook_of_langevin_says():
    """mala's acceptance against the ratio of proposal densities, state by state."""
    n, e = 40, 0.5
    x = draws(n, 1)
    score = moves.score_of(MIX.log_prob)
    z = KeyedNoise(1, n, dtype=torch.float64)
    y = x + e * score(x) + (2 * e) ** 0.5 * z.normal((2,))
    q = lambda a, b: -((b - a - e * score(a)) ** 2).sum(1) / (4 * e)  # noqa: E731
    ratio = MIX.log_prob(y) + q(y, x) - MIX.log_prob(x) - q(x, y)
    take = z.uniform(()).log() < ratio
    moved = moves.mala(MIX.log_prob, x, e, 1, KeyedNoise(1, n, dtype=torch.float64))
    assert torch.equal(moved.accepted.bool(), take) and 5 < int(take.sum()) < 38
    assert torch.allclose(moved.x, torch.where(take[:, None], y, x), atol=1e-12)


def test_images_move_too_and_chains_have_their_own_steps():
    n = 6
    x = torch.zeros(n, 1, 3, 3)
    step = torch.tensor([1e-8] * 3 + [0.5] * 3)
    out = moves.langevin(standard, x, step, 4, KeyedNoise(0, n))
    assert out.shape == x.shape and out.dtype == x.dtype
    assert float(out[:3].abs().max()) < 1e-2 < float(out[3:].abs().min(0).values.max())


def test_out_of_the_support_is_never_accepted():
    inside = lambda x: torch.where((x[:, 0] > 0) & (x[:, 0] < 1), 0.0, -math.inf)  # noqa: E731
    x = torch.full((500, 1), 0.5, dtype=torch.float64)
    moved = moves.metropolis(inside, x, 0.8, 20, noise(500))
    assert bool(((moved.x > 0) & (moved.x < 1)).all())
    assert abs(float(moved.x.var()) - 1 / 12) < 4.5 * (1 / 180 / 500) ** 0.5  # var of (x - 1/2)^2 is 1/180


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda x, z: moves.langevin(standard, x, 0.0, 1, z), "positive and finite"),
        (lambda x, z: moves.langevin(None, x, 0.1, 1, z), "log density or its score"),
        (lambda x, z: moves.langevin(standard, x, 0.1, 1, z, momentum=1.0), r"in \[0, 1\)"),
        (lambda x, z: moves.hmc(standard, x, 0.1, 1, z, leaps=0), "at least 1"),
        (lambda x, z: moves.mala(lambda v: v.sum(), x, 0.1, 1, z), r"shape \(4,\), got \(\)"),
        (lambda x, z: moves.metropolis(standard, x, 0.1, -1, z), "at least 0"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call(torch.zeros(4, 2), KeyedNoise(0, 4))
