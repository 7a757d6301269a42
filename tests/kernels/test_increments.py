"""Gamma increments and counted events: laws against SciPy, evidence against enumeration and brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import integrate, linalg, stats
from torch import Tensor

from retrodict.core.errors import InputError, InputTypeError
from retrodict.core.noise import GeneratorNoise
from retrodict.kernels import Chain, CountMessage, Events, GammaIncrement, GammaMessage, Table, Towards


def noise(n: int, seed: int = 0) -> GeneratorNoise:
    return GeneratorNoise(torch.Generator().manual_seed(seed), n, dtype=torch.float64)


def z_score(values: Tensor, exact: float) -> float:
    return abs(float(values.mean()) - exact) / (float(values.std()) / math.sqrt(len(values)))


def bend(x: Tensor) -> Tensor:
    return 1.5 + torch.sin(2 * x)


def guided(chain: Chain, h, start, n: int) -> tuple[Tensor, Tensor]:
    """The end states and the estimates ``exp(h_0 + log weight)``."""
    residual, earlier = chain.pull(h)
    end, log_weight = chain.guide(residual, start, chain.draw(noise(n), ()))
    return end, (earlier(start) + log_weight).exp()


@pytest.mark.parametrize("alpha", [0.02, 0.7, 6.0])
def test_gamma_steps_follow_their_law(alpha):
    """Kolmogorov-Smirnov of 4000 draws (false-alarm rate 1e-4)."""
    x = torch.zeros(4000, dtype=torch.float64)  # elsewhere, increments of 1e-20 would be lost in the sum
    y = GammaIncrement(alpha, bend).sample(x, noise(4000))
    law = stats.gamma(alpha, scale=1 / float(bend(x)[0]))
    assert stats.kstest((y - x).numpy(), law.cdf).pvalue > 1e-4
    lp = GammaIncrement(alpha, bend).log_prob(x[:3], x[:3] + 0.3)
    assert np.abs(lp.numpy() - law.logpdf(0.3)).max() < 1e-12


@pytest.mark.parametrize("shapes", [(0.8, 1.3), (0.05, 2.0)])
def test_the_density_of_a_gamma_end_by_quadrature(shapes):
    """Two increments with a rate that bends: within 4 standard errors (false-alarm rate 6e-5 each)."""
    v, n = 1.7, 20_000
    chain, h = Chain(*(GammaIncrement(a, bend) for a in shapes)), GammaMessage(v, rate=1.8)
    start = h.start(torch.zeros(n, dtype=torch.float64))
    end, w = guided(chain, h, start, n)
    assert torch.equal(end.left, torch.zeros(n).double()) and torch.allclose(end.x, torch.full((n,), v).double())
    a, b = shapes
    first = 1 / float(bend(torch.zeros(1)))

    def integrand(s: float) -> float:
        """In s = y^a, which removes the singularity of the first density at 0."""
        y = s ** (1 / a)
        rate = float(bend(torch.tensor(y)))
        density = math.exp(-y / first) / (math.gamma(a) * first**a) / a
        return density * stats.gamma(b, scale=1 / rate).pdf(v - y)

    exact = integrate.quad(integrand, 0, v**a, epsabs=1e-12, limit=200)[0]
    assert z_score(w, exact) < 4


def test_a_constant_rate_has_constant_weights():
    """The estimate is the Gamma density of the sum of the shapes, path by path."""
    h = GammaMessage(2.0, rate=1.3)
    chain = Chain(*(GammaIncrement(0.4, 1.3) for _ in range(6)))
    _, w = guided(chain, h, h.start(torch.zeros(7).double()), 7)
    assert np.abs(w.numpy() / stats.gamma(2.4, scale=1 / 1.3).pdf(2.0) - 1).max() < 1e-10


def test_a_gamma_bridge_against_brute_force():
    """Six increments: forward to the fifth, then the density of the last (4 standard errors of both together)."""
    v, n, alpha = 2.0, 20_000, 0.5
    chain, h = Chain(*(GammaIncrement(alpha, bend) for _ in range(6))), GammaMessage(v, rate=1.8)
    _, w = guided(chain, h, h.start(torch.zeros(n).double()), n)
    x = Chain(*chain.links[:5]).sample(torch.zeros(n).double(), noise(n, 1))
    gap = (v - x).clamp_min(1e-300)
    brute = torch.where(x < v, chain.links[5].log_prob(x, x + gap).exp(), 0.0)
    spread = math.sqrt(float(w.var() + brute.var()) / n)
    assert abs(float(w.mean() - brute.mean())) < 4 * spread
    assert float(w.sum() ** 2 / (w * w).sum()) > 0.4 * n


def test_near_the_end_no_digits_are_lost():
    """Many small increments towards an end at 1e6: distances fall to 1e-30 and below, and stay above zero."""
    h = GammaMessage(1e6, rate=1.0)
    chain = Chain(*(GammaIncrement(5.0 if i == 0 else 0.05, 1.0) for i in range(40)))
    residual, _ = chain.pull(h)
    n = 200
    x: Towards = h.start(torch.zeros(n).double())
    for link, guide in zip(chain.links[:-1], residual.links):
        x, _ = link.guide(guide, x, link.draw(noise(n), ()))
    assert bool((x.left > 0).all()) and float(x.left.min()) < 1e-12


RATE, END, TIME = (lambda x: 0.5 + 0.6 * x.double()), 6, 1.3


def birth_law(T: float = TIME) -> float:
    Q = np.zeros((END + 2, END + 2))
    for x in range(END + 1):
        rate = float(RATE(torch.tensor(x)))
        Q[x, x], Q[x, x + 1] = -rate, rate
    return float(linalg.expm(Q * T)[1, END])


@pytest.mark.parametrize("pieces", [(TIME,), (0.5, 0.8), (0.1, 0.2, 1.0)])
def test_a_birth_process_against_the_matrix_exponential(pieces):
    """In one interval and in several: within 4 standard errors (false-alarm rate 6e-5 each)."""
    n = 20_000
    chain, h = Chain(*(Events(RATE, dt) for dt in pieces)), CountMessage(END, rate=3.0)
    end, w = guided(chain, h, torch.ones(n, dtype=torch.long), n)
    assert bool((end == END).all())
    assert z_score(w, birth_law()) < 4
    assert float(w.sum() ** 2 / (w * w).sum()) > 0.3 * n


def test_the_states_of_a_birth_bridge():
    """The count half-way, weighted, against the matrix exponential (within 4.5 standard errors of each)."""
    n = 20_000
    chain, h = Chain(Events(RATE, 0.6), Events(RATE, TIME - 0.6)), CountMessage(END, rate=3.0)
    residual, earlier = chain.pull(h)
    x = torch.ones(n, dtype=torch.long)
    states, log_weight = chain.guide_path(residual, x, chain.draw(noise(n, 3), ()))
    w = (earlier(x) + log_weight).exp()
    Q = np.zeros((END + 2, END + 2))
    for k in range(END + 1):
        Q[k, k], Q[k, k + 1] = -float(RATE(torch.tensor(k))), float(RATE(torch.tensor(k)))
    joint = linalg.expm(Q * 0.6)[1] * linalg.expm(Q * (TIME - 0.6))[:, END]
    for k in range(1, END + 1):
        assert z_score(w * (states[0] == k), joint[k]) < 4.5


def test_a_poisson_process_has_constant_weights_and_its_law():
    """The estimate is the Poisson probability, path by path; unguided counts by chi-square (rate 1e-4)."""
    chain, h = Chain(Events(2.0, 0.7), Events(2.0, 0.4)), CountMessage(5, rate=2.0)
    _, w = guided(chain, h, torch.full((9,), 1), 9)
    assert np.abs(w.numpy() / stats.poisson(2.2).pmf(4) - 1).max() < 1e-10
    counts = torch.bincount(Events(2.0, 1.1).sample(torch.zeros(4000, dtype=torch.long), noise(4000)), minlength=12)
    expected = 4000 * stats.poisson(2.2).pmf(np.arange(7))
    expected = np.append(expected, 4000 - expected.sum())
    assert stats.chisquare(np.append(counts[:7].numpy(), int(counts[7:].sum())), expected).pvalue > 1e-4


def test_an_end_that_cannot_be_reached_has_no_weight():
    def stops(x: Tensor) -> Tensor:
        return torch.where(x < 3, 2.0, 0.0).double()

    _, w = guided(Chain(Events(stops, 1.0)), CountMessage(5, rate=2.0), torch.zeros(50, dtype=torch.long), 50)
    assert torch.equal(w, torch.zeros(50, dtype=torch.float64))
    past, w = guided(Chain(Events(1.0, 1.0)), CountMessage(5, rate=2.0), torch.full((4,), 7), 4)
    assert torch.equal(w, torch.zeros(4, dtype=torch.float64)) and past.tolist() == [7] * 4


def test_wrong_input_is_refused():
    with pytest.raises(InputError, match="above zero, got 0"):
        GammaIncrement(0.0, 1.0)
    with pytest.raises(InputError, match="above zero, got -1"):
        Events(1.0, -1.0)
    with pytest.raises(InputError, match="starts below its end"):
        GammaMessage(1.0, 1.0).start(2.0)
    with pytest.raises(InputError, match="pull it through the last increment"):
        GammaMessage(1.0, 1.0)(torch.zeros(1))
    with pytest.raises(InputError, match="auxiliary rate"):
        Events(1.0, 1.0).pull(CountMessage(3, 0.0))
    h = GammaMessage(1.0, 1.0)
    bad = Chain(GammaIncrement(1.0, lambda x: x - 5.0))
    with pytest.raises(InputError, match="got -5 on the path"):
        guided(bad, h, h.start(torch.zeros(2).double()), 2)
    for kernel in (GammaIncrement(1.0, 1.0), Events(1.0, 1.0)):
        with pytest.raises(InputTypeError, match="cannot pull Table"):
            kernel.pull(Table(torch.zeros(1, 2)))  # type: ignore[arg-type]
