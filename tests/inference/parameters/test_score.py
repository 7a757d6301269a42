"""The score by Parisian particle Gibbs is the Kalman filter's gradient, and climbing it finds the maximum."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Laplace, Normal

import retrodict as rd
from retrodict.core.errors import InputError
from retrodict.core.noise import KeyedNoise
from retrodict.inference import Observed, StateSpace
from retrodict.inference.parameters.likelihood import Likelihood
from retrodict.inference.parameters.score import Score, Terms
from retrodict.inference.particle import Bootstrap
from retrodict.inference.problem import Problem
from retrodict.kernels import Categorical, Finite, Gaussian, LinearGaussian
from retrodict.particles import particle_gibbs

NAN = float("nan")
Y = [0.4, 1.3, NAN, 0.2, -0.8, 0.5]


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def linear(m, a, s, r):
    prior = Gaussian(m.reshape(1), (s**2 / (1 - a**2)).reshape(1, 1))  # the score has a term at node 0 too
    return StateSpace(prior, LinearGaussian(a, 0.0, s**2), LinearGaussian(1.0, 0.0, r**2))


def in_disguise(m, a, s, r):
    """The same laws as torch distributions, not known to be linear."""
    return StateSpace(Normal(m.reshape(1), s / (1 - a**2).sqrt()), lambda x: Normal(a * x, s), lambda x: Normal(x, r))


def finite(u, v):
    one = torch.ones_like(u)
    moves = torch.stack([torch.stack([1 - u, u]), torch.stack([v, 1 - v])])
    return StateSpace(
        Categorical(torch.stack([u, 1 - u]).log()),
        Finite(moves.log()),
        lambda x: Normal(torch.stack([-one, v])[x], 1.0),
    )


@pytest.mark.parametrize(
    ("model", "exact", "theta", "proposal", "particles"),
    [
        (linear, linear, [0.2, 0.8, 0.6, 0.5], "bootstrap", 4),
        (linear, linear, [0.2, 0.8, 0.6, 0.5], "guided", 2),
        (in_disguise, linear, [0.2, 0.8, 0.6, 0.5], "bootstrap", 6),
        (finite, finite, [0.3, 0.2], "bootstrap", 4),
    ],
    ids=["linear", "guided, two particles", "laws", "finite"],
)
def test_the_score_is_the_gradient_of_the_exact_likelihood(model, exact, theta, proposal, particles):
    """Means of 1,000 series of the same data after 20 sweeps: within 4.5 standard errors (3e-5 in all)."""
    R = 1000
    leaves = [tensor(v).requires_grad_() for v in theta]
    y = tensor(Y).reshape(-1, 1)
    post = rd.condition(exact(*leaves), Observed(y))
    truth = torch.stack(torch.autograd.grad(post.log_evidence.sum(), leaves))
    wide = Observed(y.expand(R, -1, 1))
    score = Score(Likelihood(wide), KeyedNoise(0, R, dtype=torch.float64), particles, proposal)
    for _ in range(20):
        score.renew(model(*[v.detach() for v in leaves]))
    # one leaf a series, so that every series tells its own derivative
    found = score.of_series(model(*leaves))
    slopes = [torch.autograd.grad(part.sum(), leaves, retain_graph=True) for part in found.split(R // 40)]
    batches = torch.stack([torch.stack(row) for row in slopes]) / (R // 40)
    error = batches.std(0) / 40**0.5
    assert ((batches.mean(0) - truth).abs() < 4.5 * error + 1e-9).all(), (batches.mean(0), truth, error)


def test_ragged_series_add_up():
    """Two series of unequal length have the score of each by itself."""
    theta = [tensor(v).requires_grad_() for v in (0.2, 0.8, 0.6, 0.5)]
    series = [tensor(Y[:3]).reshape(-1, 1), tensor(Y).reshape(-1, 1)]
    data = Observed([series[i % 2] for i in range(1000)])
    truth = torch.autograd.grad(rd.condition(linear(*theta), Observed(series)).log_evidence.sum(), theta)
    score = Score(Likelihood(data), KeyedNoise(1, 1000, dtype=torch.float64), 4)
    for _ in range(20):
        score.renew(linear(*[v.detach() for v in theta]))
    parts = score.of_series(linear(*theta)).split(25)
    slopes = torch.stack([torch.stack(torch.autograd.grad(p.sum(), theta, retain_graph=True)) for p in parts]) / 12.5
    error = slopes.std(0) / 40**0.5
    assert ((slopes.mean(0) - torch.stack(truth)).abs() < 4.5 * error).all()


def test_climbing_reaches_the_maximum_of_a_linear_model():
    """Within 0.3 standard errors of the exact maximum; it starts 2 and 4 of them away."""
    g = torch.Generator().manual_seed(2)
    x, y = 0.0, []
    for _ in range(30):
        x = 0.8 * x + 0.6 * float(torch.randn((), generator=g))
        y.append(x + 0.5 * float(torch.randn((), generator=g)))
    start, supports = {"a": 0.3, "s": 1.2}, {"a": (-1, 1), "s": "positive"}
    zero, half = tensor(0.0), tensor(0.5)
    best = rd.fit_parameters(lambda a, s: linear(zero, a, s, half), y, start=start, supports=supports)
    fit = rd.fit_parameters(
        lambda a, s: linear(zero, a, s, half), y, "score-climbing", start=start, supports=supports,
        steps=150, particles=30, sweeps=1,
    )  # fmt: skip
    for name in ("a", "s"):
        assert abs(fit.parameters[name] - best.parameters[name]) < 0.3 * best.standard_errors[name]
    assert fit.history["free"].shape == (150, 2)


@pytest.mark.slow
@pytest.mark.parametrize("select", ["parisian", "backward"])
def test_the_paths_of_particle_gibbs_are_calibrated(select):
    """Ranks of true states among the sampler's paths, 4 particles, 480 replicates side by side: uniform.

    Chi-square with 7 degrees of freedom at two nodes; false alarms 1e-3 each.
    """
    R, n, keep = 480, 6, 15
    g = torch.Generator().manual_seed(8)
    truth = [torch.randn(R, generator=g).double()]
    for _ in range(n - 1):
        truth.append(0.8 * truth[-1] + 0.6 * torch.randn(R, generator=g).double())
    x = torch.stack(truth, 1)
    data = Observed((x + 0.5 * torch.randn(R, n, generator=g).double()).unsqueeze(-1))
    model = linear(*(tensor(v) for v in (0.0, 0.8, 0.6, 0.5)))
    problem = Problem(model, data)
    terms = Terms(problem)
    chain = particle_gibbs(
        Bootstrap(problem), 4, keep * 12, KeyedNoise(0, R, dtype=torch.float64), burn_in=20, select=select,
        term=terms.step, start=terms.start,
    )  # fmt: skip
    for node in (0, 3):
        rank = (chain.paths[11::12, :, node, 0] < x[:, node]).sum(0)
        counts = torch.bincount(rank // 2, minlength=8).double()
        assert ((counts - R / 8).square() / (R / 8)).sum() < 24.3, (node, counts)


def test_priors_pull():
    fit = rd.fit_parameters(
        lambda a: linear(tensor(0.0), a, tensor(0.6), tensor(0.5)), Y, "score-climbing",
        priors={"a": torch.distributions.Beta(tensor(40.0), tensor(60.0))}, steps=60, particles=10, sweeps=1,
    )  # fmt: skip
    assert 0.3 < fit.parameters["a"] < 0.5


def test_what_it_needs_is_said():
    with pytest.raises(InputError, match=r"transition with a density.*pmmh"):
        rd.fit_parameters(
            lambda a: StateSpace(Gaussian(0.0, 1.0), LinearGaussian(a, 0.0, 0.0), LinearGaussian(1.0, 0.0, 1.0)),
            Y, "score-climbing", start={"a": 0.5},
        )  # fmt: skip
    with pytest.raises(InputError, match="takes a StateSpace, got SDE"):
        rd.fit_parameters(lambda a: rd.SDE(lambda x, t: a * x, 1.0), Y, "score-climbing", start={"a": 0.5})
    with pytest.raises(InputError, match="power is in"):
        rd.fit_parameters(
            lambda a: StateSpace(Gaussian(0.0, 1.0), lambda x: Laplace(a * x, 1.0), lambda x: Normal(x, 1.0)),
            Y, "score-climbing", start={"a": 0.5}, power=0.3,
        )  # fmt: skip


def test_laws_without_a_closed_form_climb():
    """A Laplace transition, which no other method differentiates."""
    fit = rd.fit_parameters(
        lambda a: StateSpace(Gaussian(0.0, 1.0), lambda x: Laplace(a * x, 0.5), lambda x: Normal(x, 0.5)),
        [0.4, 0.5, 0.4, 0.3, 0.3], "score-climbing", start={"a": 0.2}, steps=30, particles=10, sweeps=1,
    )  # fmt: skip
    assert fit.history["free"][-1, 0] > 0.2 and not fit.exact
