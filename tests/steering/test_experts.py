"""Feynman-Kac correctors of real states: the rate of weight against the PDE, kernels, and exact mode weights.

A weighted process with drift b, noise z^2 and rate c (in reverse time) carries gamma iff

    c = d log gamma + div b + <b, grad log gamma> - z^2/2 (div grad log gamma + |grad log gamma|^2).
"""

from __future__ import annotations

import pytest
import torch

import retrodict as rd
from retrodict.denoisers import Denoiser, Step
from retrodict.exact import GaussianMixture
from retrodict.kernels import Belief
from retrodict.solvers.plan import Row

QUIET = {"progress": False}
PATHS = [rd.VP(), rd.VE(0.01, 20.0), rd.RectifiedFlow()]


def log_q(law, C, x, alpha, sigma):
    """Log density of ``alpha x0 + sigma z`` at one x, from first principles."""
    d = len(x)
    terms = []
    for w, m, c in zip(law.weights, law.means, C):
        V = alpha**2 * c + sigma**2 * torch.eye(d, dtype=torch.float64)
        e = x - alpha * m
        terms.append(w.log() - 0.5 * e @ torch.linalg.solve(V, e) - 0.5 * torch.logdet(V))
    return torch.logsumexp(torch.stack(terms), 0)


def random_laws(count, d=2):
    """Mixtures, each with the covariances of its components."""
    g = torch.Generator().manual_seed(1)
    for _ in range(count):
        B = torch.randn(3, d, d, generator=g, dtype=torch.float64)
        C = B @ B.mT + 0.3 * torch.eye(d, dtype=torch.float64)
        yield GaussianMixture([0.2, 0.5, 0.3], 2 * torch.randn(3, d, generator=g, dtype=torch.float64), C), C


def residual(product, laws, eta, x, t0):
    """Of the equation at one state, relative to its terms; and the rate."""
    path, W, d = product.process, product.total, len(x)
    at = lambda t: (path.alpha(t), path.sigma(t))  # noqa: E731
    t = torch.tensor(t0, dtype=torch.float64)
    (alpha, sigma), (da, ds) = at(t), torch.autograd.functional.jacobian(at, t)
    f, snr_rate = da / alpha, -2 * (alpha / sigma) ** 2 * (da / alpha - ds / sigma)  # of t; reverse time is -t
    g2 = 2 * sigma * ds - 2 * f * sigma**2
    gamma = lambda x, s: sum(w * log_q(law, C, x, *at(s)) for w, (law, C) in zip(product.weights, laws))  # noqa: E731
    score = torch.func.grad(gamma)(x, t)
    divergence = torch.func.jacfwd(torch.func.grad(gamma))(x, t).trace()
    drift = lambda x: -f * x + (1 + eta**2) * g2 / 2 * (alpha * product(x[None], t0)[0] - x) / sigma**2  # noqa: E731
    terms = [
        -torch.func.grad(gamma, argnums=1)(x, t),
        torch.autograd.functional.jacobian(drift, x).trace(),
        drift(x) @ score,
        -(eta**2) * g2 * product.temperature / 2 * (divergence + score @ score),
    ]
    constant = (W - 1) * d * (f + g2 / (2 * sigma**2))
    rate = -0.5 * snr_rate * product.rate(product.belief(x[None], t0))[0]
    gap = float((sum(terms) - constant - rate).detach())
    return gap / (sum(float(v.detach().abs()) for v in terms) + 1), float(rate.detach())


@pytest.mark.parametrize("eta", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("path", PATHS, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("weights", [(1.7, -0.4), (-1.0, 2.0), (3.0,)], ids=str)
def test_the_rate_of_weight_solves_the_equation(weights, path, eta):
    """What runs move by and weigh with carries prod q_i^w_i, by automatic differentiation, to 1e-10."""
    laws = list(random_laws(len(weights)))
    product = rd.Product([law.denoiser(path) for law, _ in laws], weights)
    assert product.temperature == pytest.approx(1 / sum(weights))
    for t in (0.2, 0.6):
        for x in 2 * torch.randn(2, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64):
            gap, rate = residual(product, laws, eta, x, t)
            assert abs(gap) < 1e-10 and abs(rate) > 1e-7


@pytest.mark.parametrize("path", PATHS, ids=lambda p: type(p).__name__)
def test_the_weight_of_an_ancestral_step_is_the_normaliser_of_the_product_of_kernels(path):
    """log of the integral of prod_i N(x_s; m_i, v)^w_i at total weight 1, at any step size: to 1e-9."""
    law = GaussianMixture([0.5, 0.5], [[-1.0, 0.5], [1.0, 0.0]], [0.3, 0.6], labels=[0, 1])
    guided = rd.Guided(law.denoiser(path), 2.5)
    plan = rd.plan("ddim", path, eta=1.0, grid=[0.9, 0.6, 0.35, 0.1])
    x = torch.tensor([[0.4, -0.3], [1.5, 2.0]], dtype=torch.float64)
    rows = [code for code in plan.code if isinstance(code, Row)]
    assert len(rows) == 3
    for row, (t, s) in zip(rows, zip(plan.times[:-1], plan.times[1:])):
        (b,), (c,) = row.d.values(), row.z.values()
        belief = guided.belief(x, t, label=0)
        means = [b * part.mean for _, part in belief.parts]
        w = [weight for weight, _ in belief.parts]
        together = sum(wi * m for wi, m in zip(w, means))
        exact = -0.5 / c**2 * (sum(wi * (m**2).sum(1) for wi, m in zip(w, means)) - (together**2).sum(1))
        snr = [(float(path.alpha(v)) / float(path.sigma(v))) ** 2 for v in (t, s)]
        none = torch.zeros(2, dtype=torch.float64)
        step = Step(belief, belief, t, s, snr[0], snr[1], none, True, x)
        assert torch.allclose(guided.increment(step), exact, rtol=1e-9) and float(exact.abs().min()) > 1e-3


# -- mode weights ---------------------------------------------------------------------------------------------

Q = GaussianMixture([0.3, 0.7], [[-3.0], [2.0]], [0.25, 1.0])


class Steeper(Denoiser):
    """The heuristic: the score times b, with the noise as it was."""

    def __init__(self, denoiser, b):
        super().__init__(denoiser.process, denoiser.shape)
        self.denoiser, self.b = denoiser, b

    def forward(self, x, t, **condition):
        alpha = float(self.process.alpha(t))
        return x / alpha + self.b * (self.denoiser(x, t) - x / alpha)


def right(x):
    return (x[:, 0] > -0.5).double()


def test_annealing_reaches_the_mode_weights():
    """q^3, P(right) = .7605 by quadrature: mean of 8 runs of 1,500 within .03 (their standard error is .005).

    The score times 3 with unchanged noise is off by more than .1.
    """
    x = torch.linspace(-12, 12, 24_001, dtype=torch.float64)[:, None]
    p = (3 * Q.log_prob(x)).exp()
    exact = float((p * right(x)).sum() / p.sum())
    assert exact == pytest.approx(0.7605, abs=1e-3)
    denoiser = Q.denoiser(rd.VP())
    words = {"solver": "ddim", "eta": 1.0, "grid": "logsnr", "steps": 150, **QUIET}
    runs = torch.tensor(
        [float(rd.sample(rd.Anneal(denoiser, 3.0), 1500, seed=s, **words).mean(right)) for s in range(8)]
    )
    assert abs(float(runs.mean()) - exact) < 0.03, (runs.mean(), runs.std() / 8**0.5)
    plain = rd.sample(Steeper(denoiser, 3.0), 4000, **(words | {"steps": 400}), start=0.995, init=_noise(4000)).x
    assert abs(float(right(plain).mean()) - exact) > 0.1


def _noise(n):
    return torch.randn(n, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) / 3**0.5


class Bare(Denoiser):
    """An oracle that keeps its covariance to itself."""

    def __init__(self, denoiser):
        super().__init__(denoiser.process, denoiser.shape)
        self.denoiser = denoiser

    def belief(self, x, t, **condition):
        return Belief(self.denoiser.belief(x, t).mean)


def test_traces_by_one_probe():
    """Exact in one dimension; unbiased over times' probes otherwise; so that networks are annealed too."""
    x = torch.tensor([[0.5], [-2.0]], dtype=torch.float64)
    known, probed = (rd.Anneal(d, 2.0) for d in (Q.denoiser(rd.VP()), Bare(Q.denoiser(rd.VP()))))
    for t in (0.1, 0.5, 0.9):
        assert torch.allclose(known.rate(known.belief(x, t)), probed.rate(probed.belief(x, t)), rtol=1e-9)
    V = torch.tensor([[1.0, 0.8], [0.8, 1.0]], dtype=torch.float64)
    law = GaussianMixture([1.0], [[0.0, 0.0]], V[None])
    plane, blind = (rd.Anneal(d, 2.0) for d in (law.denoiser(rd.VP()), Bare(law.denoiser(rd.VP()))))
    y = torch.zeros(1, 2, dtype=torch.float64)
    ratios = torch.stack(
        [
            blind.rate(blind.belief(y, t)) / plane.rate(plane.belief(y, t))
            for t in torch.linspace(0.3, 0.7, 200).tolist()
        ]
    )
    assert abs(float(ratios.mean()) - 1) < 4.5 * float(ratios.std()) / 200**0.5 and float(ratios.std()) > 0.1
    run = rd.sample(probed, 400, nfe=20, **QUIET)
    assert run.correction == "weighted"
