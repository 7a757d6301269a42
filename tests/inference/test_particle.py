"""Particle methods on state-space models: against closed forms, missing data, ragged batches, bad input.

Replicates are series of one batch with the same data: the mean of R of them is compared with the exact answer in
standard errors, limit 5 (false alarms 6e-7 a number) unless said otherwise.
"""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Independent, MultivariateNormal, Normal, StudentT

import retrodict as rd
from retrodict.core.errors import InputError
from retrodict.core.lin import Lin
from retrodict.core.noise import GeneratorNoise
from retrodict.inference import Observed, Problem, StateSpace
from retrodict.inference.particle import Bootstrap
from retrodict.inference.particle_posterior import ParticlePosterior
from retrodict.kernels import Categorical, Finite, Gaussian, LinearGaussian
from retrodict.particles import ParticlesDied, particle_gibbs

METHODS = ["bootstrap", "auxiliary", "guided", "ffbs", "paris", "pgibbs", "two-filter"]
NAN = float("nan")
A = torch.tensor([[0.9, 0.2], [-0.1, 0.8]], dtype=torch.float64)
Q = torch.tensor([[0.3, 0.1], [0.1, 0.4]], dtype=torch.float64)
R = torch.tensor([[0.5, 0.2], [0.2, 0.6]], dtype=torch.float64)
EYE = torch.eye(2, dtype=torch.float64)
LINEAR = StateSpace(Gaussian(torch.zeros(2).double(), EYE), LinearGaussian(A, 0.1, Q), LinearGaussian(EYE, 0.0, R))
# the same laws, not known to be linear
LAWS = StateSpace(
    MultivariateNormal(torch.zeros(2).double(), EYE),
    lambda x: MultivariateNormal(x @ A.T + 0.1, Q),
    lambda x: MultivariateNormal(x, R),
)
Y = [[0.5, -0.4], [1.3, NAN], [NAN, NAN], [0.2, 1.1], [NAN, -0.9], [-0.7, 0.3]]


def few(method):
    return {"particles": 12, "sweeps": 25, "burn_in": 5} if method == "pgibbs" else {"particles": 150}


def replicate(y, count):
    one = torch.tensor(y, dtype=torch.float64).reshape(len(y), -1)
    return Observed(one.expand(count, *one.shape))


def first(means):
    return means[0]


def z_score(values, truth):
    return (values.mean(0) - truth) / (values.std(0) / len(values) ** 0.5)


@pytest.mark.parametrize("method", METHODS)
def test_moments_are_those_of_the_kalman_smoother(method):
    exact = rd.condition(LINEAR, Observed(Y))
    post = rd.condition(LINEAR, replicate(Y, 40), method=method, **few(method))
    smooth, filtered = post.smooth(), post.filter()
    bias = 0.02 if method == "pgibbs" else 0.015  # of ratio estimates, of order 1/N
    error = (smooth.mean.mean(0) - exact.smooth().mean[0]).abs()
    assert (error < 5 * smooth.mean.std(0) / 40**0.5 + bias).all()
    spread = smooth.covariance.mean(0) / exact.smooth().covariance[0].diagonal(dim1=-2, dim2=-1).mean()
    truth = exact.smooth().covariance[0] / exact.smooth().covariance[0].diagonal(dim1=-2, dim2=-1).mean()
    assert (spread - truth).abs().max() < (0.3 if method == "pgibbs" else 0.15)  # of 25 dependent paths, and of 150
    if method != "pgibbs":
        assert (
            (filtered.mean.mean(0) - exact.filter().mean[0]).abs() < 5 * filtered.mean.std(0) / 40**0.5 + bias
        ).all()
        ratio = (post.log_evidence - exact.log_evidence).exp()
        assert z_score(ratio, 1.0).abs() < 5
    assert not post.exact and smooth.exact is False
    paths = post.sample(30)
    assert paths.x.shape == (30, 40, 6, 2) and not paths.x.isnan().any()


def test_paths_have_the_smoothing_law_between_times_too():
    exact = rd.condition(LINEAR, Observed(Y))
    draws = exact.sample(20_000).x[:, 0]
    paths = rd.condition(LINEAR, replicate(Y, 60), method="guided", particles=300).sample(100).x
    lag = lambda x: (x[..., :-1, :, None] * x[..., 1:, None, :]).mean(0)  # noqa: E731
    each = lag(paths)
    assert ((each.mean(0) - lag(draws)).abs() < 5 * each.std(0) / 60**0.5 + 0.05).all()


@pytest.mark.parametrize("method", ["bootstrap", "auxiliary", "guided"])
def test_evidence_is_unbiased_with_resampling_at_every_step(method):
    y = [0.5, 2.4, -1.0, 0.2, 3.0]
    laws = (Normal(torch.zeros(1), 1.0), lambda x: Normal(0.9 * x, 0.6), lambda x: Normal(x, 0.5))
    exact = StateSpace(
        Gaussian(torch.zeros(1), torch.eye(1)),
        LinearGaussian(torch.eye(1) * 0.9, 0.0, torch.eye(1) * 0.36),
        LinearGaussian(torch.eye(1), 0.0, torch.eye(1) * 0.25),
    )
    truth = rd.condition(exact, Observed(y)).log_evidence
    post = rd.condition(StateSpace(*laws), replicate(y, 2000), method=method, particles=30, threshold=1.0)
    assert bool(post.run.resampled.all())
    assert z_score((post.log_evidence - truth).exp(), 1.0).abs() < 5


def test_guided_particles_of_a_linear_model_see_one_step_ahead():
    """Their weights depend on the parent alone, and first-stage choice helps the bootstrap filter."""
    y = [[3.0, -2.0], [-3.0, 2.5], [3.5, -3.0], [-2.5, 3.0]]
    ess = {m: float(rd.condition(LAWS, Observed(y), method=m).ess) for m in ("bootstrap", "guided")}
    assert ess["guided"] > 2 * ess["bootstrap"]
    spread = {
        m: float(rd.condition(LAWS, replicate(y, 100), method=m, particles=100, threshold=1.0).log_evidence.std())
        for m in ("bootstrap", "auxiliary", "guided")
    }
    assert spread["guided"] < spread["auxiliary"] < spread["bootstrap"]


@pytest.mark.parametrize("method", METHODS)
def test_a_missing_coordinate_is_a_dropped_one(method):
    """NaN in the second coordinate at every time against a model without it: the same numbers."""
    y = [[0.5, NAN], [1.3, NAN], [0.2, NAN]]
    whole = StateSpace(LAWS.given[0], LAWS.given[1], lambda x: Independent(Normal(x, 0.7), 1))
    part = StateSpace(LAWS.given[0], LAWS.given[1], lambda x: Normal(x[..., :1], 0.7))
    options = {**few(method), "particles": 20}
    a = rd.condition(whole, Observed(y), method=method, **options)
    b = rd.condition(part, Observed([row[:1] for row in y]), method=method, **options)
    assert torch.allclose(a.log_evidence, b.log_evidence, rtol=0, atol=1e-12)
    assert torch.allclose(a.smooth().mean, b.smooth().mean, rtol=0, atol=1e-9)


@pytest.mark.parametrize("method", ["bootstrap", "auxiliary", "guided"])
def test_nothing_seen_weighs_nothing(method):
    post = rd.condition(LAWS, Observed([[NAN, NAN]] * 4), method=method, particles=50)
    assert float(post.log_evidence) == 0.0 and float(post.log_evidence_se) < 1e-7
    assert torch.allclose(post.run.ess, torch.full((1, 4), 50.0).double())


@pytest.mark.parametrize("method", METHODS)
def test_a_ragged_batch_equals_its_series(method):
    """Series of 5, 2 and 3 times, each against itself alone with the noise of its own slot."""
    data = Observed([torch.tensor(Y, dtype=torch.float64)[:n] for n in (5, 2, 3)])
    options = {**few(method), "particles": 15}
    together = rd.condition(LAWS, data, method=method, **options)
    smooth, seen, paths = together.smooth().mean, together.filter().mean, together.sample(4)
    for s, n in enumerate((5, 2, 3)):
        alone = ParticlePosterior(
            LAWS,
            data.series(s),
            15,
            0,
            together.resampling,
            0.5,
            together.proposal,
            together.smoother,
            sweeps=together.sweeps,
            burn_in=together.burn_in,
            index=[s],
        )
        assert torch.allclose(alone.log_evidence, together.log_evidence[s : s + 1], atol=1e-12)
        assert torch.allclose(first(alone.smooth().mean), smooth[s, :n], atol=1e-9)
        assert torch.allclose(first(alone.filter().mean), seen[s, :n], atol=1e-9)
        assert torch.allclose(alone.sample(4).x[:, 0], paths.x[:, s, :n], atol=1e-9)
    assert smooth[1, 2:].isnan().all()


@pytest.mark.parametrize("resample", ["multinomial", "systematic"])
def test_the_standard_error_is_that_of_replicates(resample):
    """Mean estimated variance over the variance of 400 log evidences: 1 for multinomial resampling (their own error
    is 7%), no less for systematic."""
    g = torch.Generator().manual_seed(3)
    y = torch.randn(60, generator=g).cumsum(0).tolist()
    model = StateSpace(Normal(torch.zeros(1), 1.0), lambda x: Normal(x, 1.0), lambda x: Normal(x, 1.0))
    post = rd.condition(model, replicate(y, 400), method="bootstrap", particles=200, resample=resample)
    ratio = float((post.log_evidence_se**2).mean() / post.log_evidence.var())
    assert (0.7 if resample == "multinomial" else 0.75) < ratio < (1.4 if resample == "multinomial" else 3.0)


def test_finite_states():
    table = torch.tensor([[0.8, 0.2, 0.0], [0.1, 0.7, 0.2], [0.3, 0.0, 0.7]]).double()
    means = torch.tensor([-1.0, 0.5, 2.0]).double()
    model = StateSpace(
        Categorical(torch.tensor([0.5, 0.3, 0.2]).log()), Finite(table.log()), lambda x: Normal(means[x], 0.8)
    )
    y = [-0.7, 0.1, NAN, 2.2, 1.0]
    exact = rd.condition(model, Observed(y))
    for method in ("bootstrap", "ffbs", "paris", "pgibbs"):
        post = rd.condition(model, replicate(y, 60), method=method, **few(method))
        for found, truth in ((post.smooth(), exact.smooth()), (post.filter(), exact.filter())):
            error = (found.probabilities.mean(0) - truth.probabilities[0]).abs()
            assert (error < 5 * found.probabilities.std(0) / 60**0.5 + 0.01).all(), method
    ratio = (
        rd.condition(model, replicate(y, 2000), method="bootstrap", particles=20).log_evidence - exact.log_evidence
    ).exp()
    assert z_score(ratio, 1.0).abs() < 5


def test_laws_of_any_family():
    """Student transitions and priors: the evidence against a grid, smoothing by backward simulation."""
    model = StateSpace(
        Independent(StudentT(5.0, torch.zeros(1), 1.0), 1),
        lambda x: Independent(StudentT(4.0, 0.8 * x, 0.5), 1),
        lambda x: Normal(x, 0.4),
    )
    y = [0.3, 2.0, 0.1]
    x = torch.linspace(-30, 30, 3001).double()
    width = float(x[1] - x[0])
    law = StudentT(5.0, 0.0, 1.0).log_prob(x).exp() * width
    total = torch.ones(()).double()
    for k, value in enumerate(y):
        if k:
            law = StudentT(4.0, 0.8 * x[:, None], 0.5).log_prob(x[None]).exp().T @ law * width
        law = law * Normal(x, 0.4).log_prob(torch.tensor(value).double()).exp()
        total, law = total * law.sum(), law / law.sum()
    post = rd.condition(model, replicate(y, 300), particles=100)
    assert post.method == "bootstrap"
    assert z_score(post.log_evidence.exp() / total, 1.0).abs() < 5
    assert (z_score(post.smooth().mean[:, -1, 0], (law * x).sum())).abs() < 5


def test_expectations_of_additive_functionals():
    """PaRIS and the Parisian sampler: E sum x_{k-1}[0] x_k[1] + x_0[0] against the exact lag-one moments."""
    term = lambda k, x, y: (x[..., 0] * y[..., 1]).unsqueeze(-1)  # noqa: E731
    start = lambda x: x[..., :1]  # noqa: E731
    draws = rd.condition(LINEAR, Observed(Y)).sample(40_000).x[:, 0]
    value = draws[:, 0, 0] + (draws[:, :-1, 0] * draws[:, 1:, 1]).sum(1)
    for method, options in (("paris", {"particles": 200}), ("pgibbs", {"particles": 20, "sweeps": 8, "burn_in": 6})):
        found = rd.condition(LAWS, replicate(Y, 80), method=method, **options).expect(term, start)[:, 0]
        error = 5 * (found.var() / 80 + value.var() / 40_000).sqrt() + (0.03 if method == "paris" else 0.0)
        assert abs(found.mean() - value.mean()) < error, method


def test_stochastic_volatility_is_guided_by_expansion():
    """A likelihood that is not Gaussian: guided and bootstrap particles agree on the evidence."""
    model = StateSpace(
        Normal(torch.full((1,), -1.0), 0.7),
        lambda x: Normal(-1 + 0.9 * (x + 1), 0.3),
        lambda x: Normal(0.0, (x / 2).exp()),
    )
    y = [0.1, -3.0, 0.4, 1.2, -0.02]
    runs = {
        m: rd.condition(model, replicate(y, 200), method=m, particles=300, threshold=1.0)
        for m in ("bootstrap", "guided")
    }
    a, b = (r.log_evidence.exp() for r in runs.values())
    assert abs(a.mean() - b.mean()) < 5 * ((a.var() + b.var()) / 200).sqrt()
    assert runs["guided"].ess.mean() > 1.2 * runs["bootstrap"].ess.mean()
    assert rd.condition(model, Observed(y)).method == "guided"


@pytest.mark.parametrize("method", ["bootstrap", "auxiliary", "guided", "ffbs"])
def test_independent_normals_take_the_short_way_to_the_same_numbers(method):
    """The same laws as Normal, which particles read off, and as MultivariateNormal, which goes through kernels."""
    scale = torch.tensor([0.5, 0.8], dtype=torch.float64)
    mean = lambda x: torch.sin(x) + 0.1 * x.flip(-1)  # noqa: E731
    prior = MultivariateNormal(torch.zeros(2).double(), EYE)
    plain = StateSpace(prior, lambda x: Normal(mean(x), scale), lambda x: Independent(Normal(x, 0.7), 1))
    whole = StateSpace(
        prior,
        lambda x: MultivariateNormal(mean(x), torch.diag(scale**2)),
        lambda x: MultivariateNormal(x, 0.49 * EYE),
    )
    before = torch.distributions.Distribution._validate_args
    a, b = (rd.condition(m, Observed(Y), method=method, particles=40) for m in (plain, whole))
    assert torch.allclose(a.log_evidence, b.log_evidence, rtol=0, atol=1e-10)
    assert torch.allclose(first(a.smooth().mean), first(b.smooth().mean), rtol=0, atol=1e-9)
    assert torch.distributions.Distribution._validate_args is before


def test_what_goes_wrong_is_said():
    cut = StateSpace(
        Normal(torch.zeros(1), 1.0), lambda x: Normal(x, 1.0), lambda x, y: torch.where(y[..., 0] < 5, 0.0, -torch.inf)
    )
    with pytest.raises(ParticlesDied, match=r"at time 7: all 50 particles of series 0.*node 2"):
        rd.condition(cut, Observed([0.0, 1.0, 9.0], times=[5, 6, 7]), method="bootstrap", particles=50)
    finite = StateSpace(
        Categorical(torch.zeros(2)), Finite.of(torch.full((2, 2), 0.5)), lambda x: Normal(x.double(), 1.0)
    )
    with pytest.raises(InputError, match="the states are finite"):
        rd.condition(finite, Observed([0.0]), method="guided")
    for options, message in [
        ({"method": "bootstrap", "smoother": "backwards"}, "smoother is one of"),
        ({"method": "ffbs", "proposal": "guide"}, "Did you mean 'guided'"),
        ({"method": "bootstrap", "threshold": 2.0}, "threshold is a share"),
        ({"method": "bootstrap", "particles": 0}, "particles is at least 1"),
    ]:
        with pytest.raises(InputError, match=message):
            rd.condition(LAWS, Observed(Y), **options)
    flat = StateSpace(
        Gaussian(torch.zeros(2), EYE),
        LinearGaussian(A, 0.0, torch.diag(torch.tensor([1.0, 0.0]))),
        LinearGaussian(EYE, 0.0, R),
    )
    with pytest.raises(InputError, match="does not apply"):
        rd.condition(flat, Observed(Y), method="ffbs")
    assert "genealogy" in rd.condition(flat, Observed(Y), method="bootstrap", particles=20).route


def test_parisian_gibbs_needs_no_functional() -> None:
    """Vector paths without a term: their mean over 64 chains is Kalman's: 12 numbers at 5 standard errors (7e-6)."""
    turn = torch.tensor([[0.8, 0.3], [-0.3, 0.7]], dtype=torch.float64)
    eye = torch.eye(2, dtype=torch.float64)
    model = StateSpace(
        Gaussian(torch.zeros(1, 2).double(), Lin.dense(eye[None])), LinearGaussian(turn, 0.0, 0.3 * eye),
        LinearGaussian(eye, 0.0, 0.49 * eye),
    )  # fmt: skip
    y = torch.tensor([[0.5, -0.2], [1.0, 0.3], [0.1, 0.4], [-0.8, 0.2], [0.0, 1.0], [0.6, 0.1]], dtype=torch.float64)
    fk = Bootstrap(Problem(model, Observed(y.expand(64, 6, 2).numpy())))
    noise = GeneratorNoise(torch.Generator().manual_seed(0), 64, dtype=torch.float64)
    chain = particle_gibbs(fk, 10, 60, noise, burn_in=10, select="parisian")
    assert chain.paths.shape == (60, 64, 6, 2) and chain.estimates is None
    truth = rd.condition(model, Observed(y.numpy())).smooth().mean[0]
    mean = chain.paths.mean(0)
    error = (mean.mean(0) - truth) / (mean.std(0) / 8)
    assert error.abs().max() < 5
