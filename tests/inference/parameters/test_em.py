"""EM: the likelihood never falls, the optimum is the gradient's, one step is hmmlearn's, and closed forms."""

from __future__ import annotations

import logging
import warnings

import numpy as np
import pytest
import torch
from hmmlearn import hmm
from torch.distributions import Bernoulli, Exponential, Independent, MultivariateNormal, Normal, Poisson

import retrodict as rd
from retrodict.core.errors import InputError
from retrodict.inference import JumpProcess, Observed, StateSpace
from retrodict.kernels import Categorical, Finite, Gaussian, LinearGaussian, rates_of

NAN = float("nan")


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def rises(fit):
    steps = fit.history["log_likelihood"].diff()
    return len(steps) > 0 and bool((steps > -1e-9 * abs(fit.log_likelihood)).all()) and bool(steps[0] > 1e-3)


# --- linear-Gaussian ----------------------------------------------------------------------------------------------

TWO = StateSpace(
    Gaussian(tensor([0.0, 0.0]), torch.eye(2).double()),
    LinearGaussian(tensor([[0.7, 0.2], [-0.1, 0.6]]), tensor([0.1, 0.0]), tensor([[0.4, 0.1], [0.1, 0.3]])),
    LinearGaussian(tensor([[1.0, 0.0], [0.3, 1.0], [0.5, 0.5]]), tensor([0.0, 0.2, 0.0]), tensor(
        [[0.5, 0.2, 0.0], [0.2, 0.6, 0.1], [0.0, 0.1, 0.4]])),
)  # fmt: skip


def two_series(lengths=(25, 14)):
    """Two ragged series of the model, of three coordinates, some missing, some times empty."""
    g = torch.Generator().manual_seed(5)
    (_, step, seen), series = TWO.given, []
    for n in lengths:
        x, rows = torch.zeros(2).double(), []
        for _ in range(n):
            z = [torch.randn(k, generator=g).double() for k in (2, 3)]
            x = step.A.value @ x + step.b + torch.linalg.cholesky(step.Q.value) @ z[0]
            rows.append(seen.A.value @ x + seen.b + torch.linalg.cholesky(seen.Q.value) @ z[1])
        y = torch.stack(rows)
        y[torch.rand(y.shape, generator=g) < 0.25] = NAN
        y[3] = NAN
        series.append(y)
    return Observed(series)


@pytest.mark.parametrize(
    "fixed",
    [(), ("A", "b"), ("b", "Q", "m0"), ("A", "Q"), ("C", "c", "R"), ("c", "R", "P0"), ("A", "C"), ("m0", "P0")],
    ids="-".join,
)
def test_the_likelihood_never_falls_whatever_is_fixed(fixed):
    fit = rd.fit_parameters(TWO, two_series(), "em", steps=12, fixed=fixed)
    assert rises(fit)
    assert set(fit.parameters) == {"A", "b", "Q", "C", "c", "R", "m0", "P0"} - set(fixed)
    assert rd.condition(fit.model, two_series()).log_evidence.sum() == pytest.approx(fit.log_likelihood, abs=1e-9)


@pytest.mark.parametrize("free", [("R",), ("Q",), ("A", "b"), ("C", "c"), ("m0",)], ids="-".join)
def test_a_fixed_point_has_no_gradient(free):
    """Where EM ends the likelihood is flat: with missing coordinates, empty times, ragged series."""
    data = two_series((60, 30))
    fixed = [name for name in ("A", "b", "Q", "C", "c", "R", "m0", "P0") if name not in free]
    fit = rd.fit_parameters(TWO, data, "em", steps=400, tolerance=1e-14, fixed=fixed)
    law, step, seen = fit.model.given
    blocks = {"A": step.A.value, "b": step.b, "Q": step.Q.value, "C": seen.A.value, "c": seen.b, "R": seen.Q.value}
    blocks["m0"] = law.mean
    b = {name: value.detach().clone().requires_grad_() for name, value in blocks.items()}
    model = StateSpace(
        Gaussian(b["m0"], law.cov), LinearGaussian(b["A"], b["b"], b["Q"]), LinearGaussian(b["C"], b["c"], b["R"])
    )
    rd.condition(model, data).log_evidence.sum().backward()
    for name in free:
        assert b[name].grad.abs().max() < 5e-3, name
    assert max(float(b[name].grad.abs().max()) for name in b if name not in free) > 0.1  # the others are not


def test_em_and_gradients_meet_at_one_optimum():
    y = torch.randn(60, generator=torch.Generator().manual_seed(1)).double().cumsum(0) * 0.5
    y = y + torch.randn(60, generator=torch.Generator().manual_seed(2)).double()
    y[10:15] = NAN

    def model(A, Q, R):
        return StateSpace(Gaussian(0.0, 1.0), LinearGaussian(A, 0.0, Q), LinearGaussian(1.0, 0.0, R))

    gradient = rd.fit_parameters(
        model, y, start={"A": 0.5, "Q": 1.0, "R": 1.0}, supports={"Q": "positive", "R": "positive"}
    )
    em = rd.fit_parameters(
        model(0.5, 1.0, 1.0), y, "em", steps=5000, tolerance=1e-13, fixed=("b", "C", "c", "m0", "P0")
    )
    assert rises(em) and em.converged
    assert em.log_likelihood == pytest.approx(gradient.log_likelihood, abs=1e-6)
    for name in ("A", "Q", "R"):
        assert float(em.parameters[name]) == pytest.approx(gradient.parameters[name], abs=2e-3)


def test_exact_observations_are_fitted_by_regression():
    """Seen without error, EM is least squares in one step."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(40, 2, generator=g).double().cumsum(0)
    start = StateSpace(
        Gaussian(x[0], 1.0), LinearGaussian(torch.eye(2).double(), 0.0, 1.0), LinearGaussian(1.0, 0.0, 0.0)
    )
    fit = rd.fit_parameters(start, x, "em", steps=3, fixed=("C", "c", "R", "m0", "P0"))
    design = torch.cat([x[:-1], torch.ones(39, 1).double()], 1)
    both = torch.linalg.lstsq(design, x[1:]).solution.T
    torch.testing.assert_close(fit.parameters["A"], both[:, :2], atol=1e-9, rtol=0)
    torch.testing.assert_close(fit.parameters["b"], both[:, 2], atol=1e-9, rtol=0)
    residual = x[1:] - design @ both.T
    torch.testing.assert_close(fit.parameters["Q"], residual.T @ residual / 39, atol=1e-9, rtol=0)


# --- finite chains ------------------------------------------------------------------------------------------------

P0, P = tensor([0.6, 0.4]), tensor([[0.8, 0.2], [0.3, 0.7]])
TABLE = tensor([[0.5, 0.4, 0.1], [0.1, 0.3, 0.6]])
LENGTHS = (30, 12, 20)


def categories():
    rng = np.random.default_rng(0)
    return [torch.tensor(rng.integers(0, 3, size=n)) for n in LENGTHS]


def chain(observation):
    return StateSpace(Categorical(P0.log()), Finite(P.log()), observation)


def peer_step(model, y):
    model.startprob_, model.transmat_ = P0.numpy(), P.numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("hmmlearn").setLevel(logging.CRITICAL)
        return model.fit(y, LENGTHS)


def test_one_step_is_hmmlearns_categorical_step():
    y = categories()
    fit = rd.fit_parameters(chain(Finite(TABLE.log())), Observed(y), "em", steps=1)
    peer = hmm.CategoricalHMM(2, n_iter=1, init_params="", params="ste", n_features=3)
    peer.emissionprob_ = TABLE.numpy()
    peer_step(peer, torch.cat(y).numpy()[:, None])
    np.testing.assert_allclose(fit.parameters["prior"], peer.startprob_, atol=1e-12)
    np.testing.assert_allclose(fit.parameters["transition"], peer.transmat_, atol=1e-12)
    np.testing.assert_allclose(fit.parameters["emission"], peer.emissionprob_, atol=1e-12)
    assert rises(rd.fit_parameters(chain(Finite(TABLE.log())), Observed(y), "em", steps=20))


@pytest.mark.parametrize("kind", ["diag", "full"])
def test_one_step_is_hmmlearns_gaussian_step(kind):
    g = torch.Generator().manual_seed(0)
    y = [torch.randn(n, 2, generator=g).double() * 1.5 for n in LENGTHS]
    means, stds = tensor([[0.0, 1.0], [1.0, -1.0]]), tensor([[1.0, 2.0], [1.5, 0.7]])
    if kind == "diag":
        law = lambda x: Independent(Normal(means[x], stds[x]), 1)  # noqa: E731
    else:
        law = lambda x: MultivariateNormal(means[x], torch.diag_embed(stds.square())[x])  # noqa: E731
    fit = rd.fit_parameters(chain(law), Observed(y), "em", steps=1)
    peer = hmm.GaussianHMM(2, kind, n_iter=1, init_params="", params="stmc", covars_prior=0, covars_weight=1)
    peer.means_ = means.numpy()
    peer.covars_ = stds.square().numpy() if kind == "diag" else torch.diag_embed(stds.square()).numpy()
    peer.min_covar = 0.0
    peer_step(peer, torch.cat(y).numpy())
    np.testing.assert_allclose(fit.parameters["transition"], peer.transmat_, atol=1e-12)
    np.testing.assert_allclose(fit.parameters["mean"], peer.means_, atol=1e-12)
    theirs = peer.covars_
    ours = torch.diag_embed(fit.parameters["std"].square()) if kind == "diag" else fit.parameters["covariance"]
    np.testing.assert_allclose(ours, theirs, atol=1e-12)


def counts_law(rate):
    return lambda x: Poisson(rate[x])


def switch_law(probs):
    return lambda x: Independent(Bernoulli(probs[x]), 1)


def wait_law(rate):
    return lambda x: Exponential(rate[x])


@pytest.mark.parametrize(
    ("law", "name", "value", "y"),
    [
        (counts_law, "rate", [1.0, 4.0], [1, 2, 5, 3, -1, 1, 6, 2, 1, 2, 4]),
        (switch_law, "probs", [[0.2, 0.5], [0.7, 0.4]], [[0, 1.0], [1, 1], [1, NAN], [0, 0], [1, 0], [1, 1], [0, 1]]),
        (wait_law, "rate", [0.5, 2.0], [[0.3], [2.2], [NAN], [0.9], [0.1], [4.0], [1.3]]),
        (lambda v: lambda x: Normal(v[x], 0.5 + v[x].abs()), "mean", [-1.0, 1.0], [[0.3], [2.0], [NAN], [-1.5], [0.1]]),
    ],
    ids=["Poisson", "Bernoulli", "Exponential", "Normal"],
)
def test_laws_of_observation_end_where_the_likelihood_is_flat(law, name, value, y):
    """EM in the law of observation alone: its fixed point has no gradient, whatever the family."""
    data = Observed(torch.tensor(y))
    fit = rd.fit_parameters(
        chain(law(tensor(value))), data, "em", steps=4000, tolerance=1e-15, fixed=("prior", "transition")
    )
    assert rises(fit)
    blocks = {key: part.clone().requires_grad_() for key, part in fit.parameters.items()}
    if "std" in blocks:
        observation = lambda x: Normal(blocks["mean"][x], blocks["std"][x])  # noqa: E731
    else:
        observation = law(blocks[name])
    rd.condition(chain(observation), data).log_evidence.sum().backward()
    for part in blocks.values():
        assert part.grad.abs().max() < 1e-4


def test_states_that_are_never_visited_keep_their_rows():
    p0 = tensor([1.0, 0.0, 0.0])
    moves = tensor([[0.7, 0.3, 0.0], [0.4, 0.6, 0.0], [0.2, 0.3, 0.5]])
    table = tensor([[0.7, 0.3], [0.2, 0.8], [0.6, 0.4]])
    model = StateSpace(Categorical(p0.log()), Finite.of(moves), Finite.of(table))
    fit = rd.fit_parameters(model, Observed([0, 1, 0, 0, 1, 1]), "em", steps=5)
    torch.testing.assert_close(fit.parameters["transition"][2], moves[2])
    torch.testing.assert_close(fit.parameters["emission"][2], table[2])


# --- jump processes -----------------------------------------------------------------------------------------------


def test_rates_from_a_path_that_is_all_but_seen_are_jumps_over_time():
    """Seen without error every 0.002: the estimate is the number of jumps over the time in each state."""
    states = torch.repeat_interleave(torch.tensor([0, 1, 0, 2, 1]), torch.tensor([500, 300, 400, 200, 100]))
    times = torch.arange(len(states)) * 0.002
    start = rates_of(torch.full((3, 3), 1.0).double())
    fit = rd.fit_parameters(JumpProcess(start), Observed(states, times=times), "em", fixed=("prior", "emission"))
    time = tensor([900.0, 400.0, 200.0]) * 0.002
    jumps = tensor([[0, 1, 1], [1, 0, 0], [0, 1, 0]])
    expected = jumps / time[:, None]
    rates = fit.parameters["rates"]
    assert (rates - torch.diag_embed(rates.diagonal()) - expected).abs().max() < 0.01
    assert fit.parameters["rates"].sum(-1).abs().max() < 1e-12


def test_rates_of_em_and_of_gradients_agree():
    y = Observed(torch.tensor([0, 0, 1, 1, 1, 0, 0, 1, 0, 0, 0, 1, 1, 1, 1, 0]), times=torch.arange(16) * 0.5)

    def process(u, v):
        rates = torch.stack([torch.stack([-u, u]), torch.stack([v, -v])])
        return JumpProcess(rates, None, Finite(tensor([[0.9, 0.1], [0.2, 0.8]]).log()))

    one = tensor(1.0)
    em = rd.fit_parameters(process(one, one), y, "em", tolerance=1e-13, steps=3000, fixed=("prior", "emission"))
    best = rd.fit_parameters(process, y, start={"u": 1.0, "v": 1.0}, supports={"u": "positive", "v": "positive"})
    assert rises(em)
    assert em.log_likelihood == pytest.approx(best.log_likelihood, abs=1e-8)
    assert float(em.parameters["rates"][0, 1]) == pytest.approx(best.parameters["u"], rel=1e-3)
    assert float(em.parameters["rates"][1, 0]) == pytest.approx(best.parameters["v"], rel=1e-3)


def test_pieces_of_rates_are_fitted_each_from_its_own_time():
    """Two pieces; data in the second are the first's with states swapped, so that their rates swap too."""
    first = torch.tensor([0, 0, 0, 1, 0, 0, 0, 0, 1, 1, 0])
    y = torch.cat([first, 1 - first[1:]])
    model = JumpProcess(
        rates_of(torch.ones(2, 2, 2).double()), None, Finite.of(tensor([[0.9, 0.1], [0.1, 0.9]])), breaks=[10.0]
    )
    fit = rd.fit_parameters(model, Observed(y, times=torch.arange(21.0)), "em", steps=100, fixed=("prior", "emission"))
    rates = fit.parameters["rates"]
    assert rates.shape == (2, 2, 2) and rises(fit)
    assert rates[0, 1, 0] > rates[0, 0, 1] and rates[1, 0, 1] > rates[1, 1, 0]


# --- bad input ----------------------------------------------------------------------------------------------------


def test_what_em_cannot_do_says_what_can():
    y = [0.1, 0.4, 0.3]
    line = StateSpace(Gaussian(0.0, 1.0), LinearGaussian(1.0, 0.0, 0.5), LinearGaussian(1.0, 0.0, 1.0))
    with pytest.raises(InputError, match=r"'c_0'.*A, b, Q, C, c, R, m0, P0.*Did you mean 'c'|fixed names 'c_0'"):
        rd.fit_parameters(line, y, "em", fixed=("c_0",))
    with pytest.raises(InputError, match="every block is fixed"):
        rd.fit_parameters(line, y, "em", fixed=("A", "b", "Q", "C", "c", "R", "m0", "P0"))
    with pytest.raises(InputError, match=r"a function of parameters.*gradient"):
        rd.fit_parameters(lambda a: line, y, "em")
    with pytest.raises(InputError, match=r"takes no start="):
        rd.fit_parameters(line, y, "em", start={"a": 1.0})
    with pytest.raises(InputError, match=r"closed forms, and the transition.*gradient"):
        rd.fit_parameters(
            StateSpace(Gaussian(0.0, 1.0), lambda x: Normal(x.sin(), 1.0), lambda x: Normal(x, 1.0)), y, "em"
        )
    timed = StateSpace(Gaussian(0.0, 1.0), lambda s, t: LinearGaussian(1.0, 0.0, t - s), LinearGaussian(1.0, 0.0, 1.0))
    with pytest.raises(InputError, match="varies with the time"):
        rd.fit_parameters(timed, Observed(y, times=[0.0, 1.0, 3.0]), "em")
    with pytest.raises(InputError, match="part of the model"):
        rd.fit_parameters(StateSpace(Gaussian(0.0, 1.0), LinearGaussian(1.0, 0.0, 0.5)), Observed(y, noise=1.0), "em")
    means = torch.zeros(2, 2).double()
    vectors = chain(lambda x: MultivariateNormal(means[x], torch.eye(2).double()))
    with pytest.raises(InputError, match="seen as a whole or not at all"):
        rd.fit_parameters(vectors, Observed([[0.1, 0.2], [0.3, NAN]]), "em")
