"""Posterior draws: against posteriors on a grid, through estimated likelihoods; reproducible; honest when it fails.

The sampler is run with hundreds of chains at once where a test asks for small errors: chains are series of one batch,
each with parameters of its own.
"""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from torch.distributions import HalfNormal, Independent, Normal, Uniform

import retrodict as rd
from retrodict.core.errors import InputError
from retrodict.core.noise import KeyedNoise
from retrodict.inference import Observed, StateSpace
from retrodict.inference.parameters.mixing import mean_error
from retrodict.inference.parameters.sampler import adapted, metropolis
from retrodict.inference.parameters.space import make_space
from retrodict.kernels import Gaussian, LinearGaussian

Y = torch.tensor([0.4, 1.3, 0.7, float("nan"), 0.2, -0.8, -0.3, 0.9, 1.6, 0.8, 1.1, -0.2], dtype=torch.float64)
PRIORS = {
    "a": Uniform(torch.tensor(-1.0).double(), 1.0),
    "s": HalfNormal(torch.tensor(1.0).double()),
}


def model(a, s):
    """An autoregression seen with noise; parameters are numbers, or one a series."""
    a, q = (v.reshape(-1, 1, 1) if v.ndim else v for v in (a, s**2))
    prior = Gaussian(torch.zeros(1).double(), 1.0)
    return StateSpace(prior, LinearGaussian(a, 0.0, q), LinearGaussian(1.0, 0.0, 0.25))


def grid_posterior(y):
    """Posterior mean and standard deviation of (a, s) by quadrature of the Kalman likelihood."""
    a = torch.linspace(-1, 1, 81).double()
    a = 0.5 * (a[1:] + a[:-1])
    s = torch.linspace(0, 4, 101).double()
    s = 0.5 * (s[1:] + s[:-1])
    A, S = (v.flatten() for v in torch.meshgrid(a, s, indexing="ij"))
    wide = Observed(y.expand(len(A), -1).unsqueeze(-1))
    log_p = rd.condition(model(A, S), wide).log_evidence + HalfNormal(1.0).log_prob(S)
    w = torch.softmax(log_p, 0)
    values = torch.stack([A, S], 1)
    mean = w @ values
    return mean, (w @ (values - mean).square()).sqrt()


def log_priors(space, free):
    """`Space.log_prior` of many points at once."""
    total = torch.zeros(len(free), dtype=torch.float64)
    for p, column in zip(space.parameters, free.unbind(1)):
        value = p.map(column)
        total = total + p.prior.log_prob(value) + p.map.log_abs_det_jacobian(column, value)
    return total


def batched_density(y, method, particles):
    """The log posterior of C chains as one batch of C series."""
    space = make_space(model, None, PRIORS, None)

    def density(free, seeds):
        wide = Observed(y.expand(len(free), -1).unsqueeze(-1))
        options = {} if method == "exact" else {"particles": particles, "seed": seeds[0]}
        return log_priors(space, free) + rd.condition(model(**space.values(free)), wide, method, **options).log_evidence

    return space, density


def walk(y, method, chains, steps, burn_in, particles=10, seed=0):
    space, density = batched_density(y, method, particles)
    noise = KeyedNoise(seed, chains, dtype=torch.float64)
    free = space.start + 0.5 * noise.stream("start").normal((space.size,))
    value, tickets = density(free, [1]), [1] * chains
    scale = 0.7 * torch.eye(space.size).double()
    found = metropolis(density, free, steps, burn_in, noise, goal=0.25, value=value, seeds=tickets, scale=scale, thin=1)
    return space.values(found.free), found


@pytest.mark.parametrize(("method", "particles"), [("exact", 0), ("bootstrap", 10)])
def test_the_draws_have_the_grid_posterior(method, particles):
    """64 chains; means and standard deviations within 3.5 standard errors between chains (4 numbers, 2e-3 in all).

    With 10 particles the likelihood is off by a third and more: only the estimate's mean is right.
    """
    with torch.no_grad():
        draws, found = walk(Y, method, chains=64, steps=160, burn_in=100, particles=particles)
        mean, std = grid_posterior(Y)
    assert 0.1 < float(found.acceptance.mean()) < 0.5
    for i, name in enumerate(("a", "s")):
        chains = draws[name]
        error = chains.mean(1).std(0) / 64**0.5
        assert abs(chains.mean() - mean[i]) < 3.5 * error
        second = (chains - mean[i]).square().mean(1)
        assert abs(second.mean() - std[i] ** 2) < 3.5 * second.std(0) / 64**0.5


def test_the_prior_of_free_numbers_has_a_jacobian():
    """Their density integrates to one, and many points at once have the same as one by one."""
    space = make_space(model, None, {"a": PRIORS["a"]} | {"s": PRIORS["s"]}, None)
    u = torch.linspace(-12, 12, 241).double()
    points = torch.stack([v.flatten() for v in torch.meshgrid(u, u, indexing="ij")], 1)
    assert float(log_priors(space, points).exp().sum()) * 0.1**2 == pytest.approx(1.0, abs=1e-3)
    assert float(space.log_prior(points[777])) == pytest.approx(float(log_priors(space, points)[777]))


def test_particles_through_the_front_door():
    """method="pmmh" with a bootstrap filter: means within 4 Monte Carlo errors and 10% of a deviation."""
    fit = rd.fit_parameters(
        model, Y, "pmmh", priors=PRIORS, likelihood="bootstrap", particles=20, steps=100, burn_in=50, chains=2, seed=2
    )
    mean, std = grid_posterior(Y)
    assert not fit.exact and fit.draws["a"].shape == (2, 100)
    for i, name in enumerate(("a", "s")):
        assert abs(fit.parameters[name] - mean[i]) < 4 * float(mean_error(fit.draws[name])) + 0.1 * std[i]
    states = fit.states.x
    assert states.shape == (200, 1, 12, 1) and bool(torch.isfinite(states).all())


def test_exact_likelihoods_are_used_where_there_are():
    fit = rd.fit_parameters(model, Y, "pmmh", priors=PRIORS, steps=400, burn_in=150, chains=2, seed=1)
    assert fit.exact and "particles" not in fit.posterior.route
    mean, std = grid_posterior(Y)
    for i, name in enumerate(("a", "s")):
        assert abs(fit.parameters[name] - mean[i]) < 4 * float(mean_error(fit.draws[name]))
        assert abs(fit.standard_errors[name] - std[i]) < 0.25 * std[i]
        assert fit.r_hat[name] < 1.15 and fit.ess[name] > 25
    # the state's law averages over the parameters: law of total variance against the grid is in `forecast`
    assert fit.forecast(2).mean.shape == (1, 2, 1)


def test_forecasts_average_over_the_draws():
    fit = rd.fit_parameters(model, Y, "pmmh", priors=PRIORS, steps=60, burn_in=40, chains=2, seed=1)
    laws = fit.forecast([13.0, 14.0], of="observation")
    pairs = [
        rd.condition(model(torch.tensor(a), torch.tensor(s)), Observed(Y)).forecast([13.0, 14.0], of="observation")
        for a, s in zip(fit.draws["a"].flatten().tolist(), fit.draws["s"].flatten().tolist())
    ]
    means = torch.stack([law.mean for law in pairs])
    within = torch.stack([law.covariance for law in pairs]).mean(0)
    torch.testing.assert_close(laws.mean, means.mean(0))
    torch.testing.assert_close(laws.covariance[..., 0], within[..., 0] + means.var(0, unbiased=False))


def test_states_follow_the_parameters_of_their_draw():
    """The path of draw i is drawn at its parameters: with s tiny, it hardly moves."""
    still = {"s": Uniform(torch.tensor(1e-4).double(), 2e-4)}
    fit = rd.fit_parameters(
        lambda s: model(torch.tensor(1.0).double(), s), Y, "pmmh", priors=still, steps=20, burn_in=10, chains=2
    )
    assert fit.states.x[:, 0, :, 0].diff(dim=1).abs().max() < 2e-3


def test_runs_are_reproducible_and_longer_ones_continue_shorter_ones():
    run = lambda **how: rd.fit_parameters(model, Y, "pmmh", priors=PRIORS, burn_in=30, **how)  # noqa: E731
    short, long = run(steps=20, chains=2, seed=5), run(steps=40, chains=3, seed=5)
    assert torch.equal(long.draws["a"][:2, :20], short.draws["a"])
    assert not torch.equal(run(steps=20, chains=2, seed=6).draws["a"], short.draws["a"])
    thinned = run(steps=20, chains=2, seed=5, thin=2)
    assert torch.equal(thinned.draws["a"], run(steps=40, chains=2, seed=5).draws["a"][:, 1::2])


def test_modules_are_sampled_by_name_and_left_at_the_mean():
    a = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    built = StateSpace(
        Gaussian(torch.zeros(1).double(), 1.0),
        lambda s, t: LinearGaussian(a, 0.0, 0.36),
        LinearGaussian(1.0, 0.0, 0.25),
    )
    fit = rd.fit_parameters(built, Y, "pmmh", priors={"a": PRIORS["a"]}, steps=60, burn_in=40, chains=2)
    assert list(fit.parameters) == ["a"] and float(a.detach()) == pytest.approx(fit.parameters["a"])
    assert fit.states.x.shape == (120, 1, 12, 1)
    assert float(a.detach()) == pytest.approx(fit.parameters["a"])  # the draws were given back


def test_parameters_may_have_shapes():
    def level(m):
        return StateSpace(Gaussian(m, 1.0), LinearGaussian(1.0, 0.0, 0.5), LinearGaussian(1.0, 0.0, 0.5))

    prior = {"m": Independent(Normal(torch.zeros(2).double(), 2.0), 1)}
    fit = rd.fit_parameters(level, [[1.0, 2.0], [1.5, 2.5]], "pmmh", priors=prior, steps=50, burn_in=30, chains=2)
    assert fit.draws["m"].shape == (2, 50, 2) and fit.parameters["m"].shape == (2,)


def test_adaptation_reaches_its_goal_and_learns_the_shape():
    """A normal target with standard deviations 0.2 and 2 and correlation .9."""
    L = torch.linalg.cholesky(torch.tensor([[0.04, 0.36], [0.36, 4.0]]).double())

    def density(free, seeds):
        return -0.5 * torch.linalg.solve_triangular(L, free.mT, upper=False).square().sum(0)

    noise = KeyedNoise(0, 20, dtype=torch.float64)
    free = torch.zeros(20, 2).double()
    found = metropolis(
        density, free, 2000, 3000, noise, goal=0.234, value=density(free, []), seeds=[0] * 20,
        scale=torch.eye(2).double(),
    )  # fmt: skip
    assert abs(float(found.acceptance.mean()) - 0.234) < 0.04
    shape = (found.scale @ found.scale.mT).mean(0)
    assert 0.6 < shape[0, 1] / (shape[0, 0] * shape[1, 1]).sqrt() < 1
    assert found.free.flatten(0, 1).std(0)[1] == pytest.approx(2, rel=0.1)


def test_one_step_of_adaptation_is_the_published_update():
    root = torch.tensor([[[1.0, 0.0], [0.5, 2.0]]]).double()
    u = torch.tensor([[0.3, -1.2]]).double()
    new = adapted(root, u, torch.tensor([0.3]).double(), 0.7)
    outer = u.mT @ u / u.square().sum()
    expected = root[0] @ (torch.eye(2).double() + 0.7 * 0.3 * outer) @ root[0].T
    torch.testing.assert_close(new[0] @ new[0].T, expected)


# --- failures -----------------------------------------------------------------------------------------------------


def test_a_start_that_cannot_explain_the_data_is_an_error():
    def deaf(a):
        support = lambda x, y: torch.where((y - x).abs()[..., 0] < 0.01, 0.0, -torch.inf).double()  # noqa: E731
        return StateSpace(Gaussian(torch.zeros(1).double(), 1.0), lambda x: Normal(a * x, 0.01), support)

    with pytest.raises(InputError, match=r"likelihood is zero at start .*'a'.*ParticlesDied.*more particles"):
        rd.fit_parameters(
            deaf, [0.1, 5.0, -5.0], "pmmh", priors={"a": PRIORS["a"]}, particles=5, likelihood="bootstrap", steps=5
        )


def test_deaths_on_the_way_are_rejections_and_are_told(caplog):
    def picky(m):
        bound = lambda x, y: torch.where((y - x - m).abs()[..., 0] < 1.0, 0.0, -torch.inf).double()  # noqa: E731
        return StateSpace(Gaussian(torch.zeros(1).double(), 0.01), lambda x: Normal(x, 0.1), bound)

    with caplog.at_level(logging.WARNING):
        fit = rd.fit_parameters(
            picky, [0.0, 0.2, 0.1], "pmmh", priors={"m": Normal(torch.tensor(0.0).double(), 5.0)}, particles=20,
            likelihood="bootstrap", steps=60, burn_in=5, chains=2,
        )  # fmt: skip
    assert sum(fit.history["failures"].values()) > 0 and "had no likelihood" in caplog.text
    assert fit.draws["m"].abs().max() < 1.6


def test_what_is_missing_is_said():
    with pytest.raises(InputError, match=r"needs a prior of every parameter, and 's' has none"):
        rd.fit_parameters(model, Y, "pmmh", priors={"a": PRIORS["a"]}, start={"s": 1.0})
    with pytest.raises(InputError, match="chains is an integer of at least 1"):
        rd.fit_parameters(model, Y, "pmmh", priors=PRIORS, chains=0)
    with pytest.raises(InputError, match="thin at least 1"):
        rd.fit_parameters(model, Y, "pmmh", priors=PRIORS, thin=0)


# --- calibration --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_pmmh_is_calibrated():
    """Ranks of the truth among the draws of 300 replicates are uniform (8 bins, chi-square, false alarms 1e-3 each)."""
    R, n, keep = 300, 8, 15
    g = torch.Generator().manual_seed(11)
    a = 2 * torch.rand(R, generator=g).double() - 1
    s = torch.randn(R, generator=g).double().abs()
    x, rows = torch.randn(R, generator=g).double(), []
    for _ in range(n):
        rows.append(x + 0.5 * torch.randn(R, generator=g).double())
        x = a * x + s * torch.randn(R, generator=g).double()
    space = make_space(model, None, PRIORS, None)
    data = Observed(torch.stack(rows, 1).unsqueeze(-1))

    def density(free, seeds):
        post = rd.condition(model(**space.values(free)), data, "bootstrap", particles=12, seed=seeds[0])
        return log_priors(space, free) + post.log_evidence

    with torch.no_grad():
        noise = KeyedNoise(4, R, dtype=torch.float64)
        free = space.start.expand(R, -1)
        found = metropolis(
            density, free, keep, 400, noise, goal=0.25, value=density(free, [3]), seeds=[3] * R,
            scale=0.7 * torch.eye(2).double(), thin=60,
        )  # fmt: skip
    for name, truth in (("a", a), ("s", s)):
        rank = (space.values(found.free)[name] < truth[:, None]).sum(1)
        counts = np.bincount((rank // 2).numpy(), minlength=8)
        assert ((counts - R / 8) ** 2 / (R / 8)).sum() < 24.3, (name, counts)
