"""Finite-state models against enumeration of all paths and hmmlearn."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hmmlearn.hmm import CategoricalHMM, GaussianHMM
from scipy.linalg import expm
from torch import Tensor
from torch.distributions import Categorical as TorchCategorical
from torch.distributions import Gamma, Independent, MultivariateNormal, Normal

import retrodict as rd
from retrodict.core.errors import InputError
from retrodict.inference import Observed, StateSpace
from retrodict.kernels import Categorical, Finite, Flip, Jump

NAN = float("nan")
RNG = np.random.default_rng(5)
P0 = np.array([0.6, 0.3, 0.1])
P = np.array([[0.8, 0.2, 0.0], [0.1, 0.6, 0.3], [0.3, 0.0, 0.7]])
TABLE = np.array([[0.7, 0.2, 0.1, 0.0], [0.1, 0.1, 0.8, 0.0], [0.0, 0.3, 0.3, 0.4]])
PRIOR, CHAIN = Categorical.of(torch.from_numpy(P0)), Finite.of(torch.from_numpy(P))
MEANS = torch.tensor([[0.0, 1.0], [2.0, -1.0], [-1.0, 0.5]], dtype=torch.float64)


def enumerate_paths(steps: list[np.ndarray], density: Callable[[int, int], float]) -> tuple[np.ndarray, np.ndarray]:
    """All paths ``(K^N, N)`` and their joint probabilities with what was seen."""
    N, K = len(steps) + 1, len(P0)
    paths = np.array(list(itertools.product(range(K), repeat=N)))
    joint = P0[paths[:, 0]].copy()
    for k in range(N):
        joint *= [density(k, x) for x in paths[:, k]]
        if k:
            joint *= steps[k - 1][paths[:, k - 1], paths[:, k]]
    return paths, joint


def marginals(paths: np.ndarray, joint: np.ndarray) -> np.ndarray:
    return np.stack([[joint[paths[:, k] == x].sum() for x in range(3)] for k in range(paths.shape[1])]) / joint.sum()


def check(post: object, paths: np.ndarray, joint: np.ndarray) -> None:
    assert post.exact and post.log_evidence.item() == pytest.approx(np.log(joint.sum()), abs=1e-12)  # type: ignore[attr-defined]
    assert np.abs(post.smooth().probabilities[0].numpy() - marginals(paths, joint)).max() < 1e-12  # type: ignore[attr-defined]


@pytest.mark.parametrize("law", ["table", "torch", "normal", "correlated", "gamma"])
def test_equals_enumeration_with_holes(law: str) -> None:
    y = RNG.gamma(2.0, size=(5, 2))
    y[1, 0], y[2], y[4, 1] = NAN, NAN, NAN
    counts = np.array([0, 2, -1, 3, 1])
    R = torch.tensor([[1.0, 0.4], [0.4, 0.5]], dtype=torch.float64)
    wide = torch.distributions
    laws: dict[str, Callable] = {
        "normal": lambda x: Normal(MEANS[x], 0.7),
        "correlated": lambda x: MultivariateNormal(MEANS[x], R),
        "gamma": lambda x: Independent(Gamma(1 + MEANS[x] ** 2, 1.0), 1),
        "torch": lambda x: TorchCategorical(torch.from_numpy(TABLE)[x]),
        "table": lambda x: TorchCategorical(torch.from_numpy(TABLE)[x]),
    }
    data = Observed(counts if law in ("table", "torch") else y)
    observation = Finite.of(torch.from_numpy(TABLE)) if law == "table" else laws[law]

    def density(k: int, x: int) -> float:
        if law in ("table", "torch"):
            return 1.0 if counts[k] < 0 else TABLE[x, counts[k]]
        at, seen = laws[law](torch.tensor(x)), ~np.isnan(y[k])
        if not seen.any():
            return 1.0
        if law == "correlated":
            at = wide.MultivariateNormal(MEANS[x][seen], R[seen][:, seen])
            return float(at.log_prob(torch.from_numpy(y[k][seen])).exp())
        one = at.base_dist if isinstance(at, Independent) else at
        value = torch.from_numpy(np.where(seen, y[k], 1.0))
        return float(one.log_prob(value)[seen].sum().exp())

    paths, joint = enumerate_paths([P] * 4, density)
    post = rd.condition(StateSpace(PRIOR, CHAIN, observation), data)
    check(post, paths, joint)
    best = post.viterbi()
    assert best.x[0, 0].tolist() == paths[joint.argmax()].tolist()
    assert best.log_weights.item() == pytest.approx(np.log(joint.max()), abs=1e-12)


def test_filter_and_forecast_are_sums_over_fewer_paths() -> None:
    y = np.array([0, 2, 1, 3])
    model = StateSpace(PRIOR, CHAIN, Finite.of(torch.from_numpy(TABLE)))
    post = rd.condition(model, Observed(y))
    for k in range(4):
        paths, joint = enumerate_paths([P] * k, lambda j, x: TABLE[x, y[j]])
        assert np.abs(post.filter().probabilities[0, k].numpy() - marginals(paths, joint)[k]).max() < 1e-12
    ahead = marginals(*enumerate_paths([P] * 5, lambda j, x: TABLE[x, y[j]] if j < 4 else 1.0))[4:]
    assert np.abs(post.forecast(2).probabilities[0].numpy() - ahead).max() < 1e-12
    seen = post.forecast([4.0, 5.0], of="observation")
    assert np.abs(seen.probabilities[0].numpy() - ahead @ TABLE).max() < 1e-12
    normal = rd.condition(StateSpace(PRIOR, CHAIN, lambda x: Normal(MEANS[x], 0.7)), Observed(np.full((2, 2), NAN)))
    p = normal.forecast(1).probabilities[0, 0]
    law = normal.forecast(1, of="observation")
    mean = p @ MEANS
    assert torch.allclose(law.mean[0, 0], mean)
    spread = (MEANS.T * p) @ MEANS - torch.outer(mean, mean) + 0.49 * torch.eye(2, dtype=torch.float64)
    assert torch.allclose(law.covariance[0, 0], spread)


def test_a_jump_process_in_continuous_time() -> None:
    """Irregular and repeated times: the transition is expm of a generator over each gap."""
    Q = np.array([[-0.5, 0.3, 0.2], [0.1, -0.4, 0.3], [0.0, 0.6, -0.6]])
    times, y = np.array([0.0, 0.4, 0.4, 2.0]), np.array([0, 2, 1, 2])
    rates = torch.from_numpy(Q)
    for transition in (
        lambda s, t: Finite.of(torch.linalg.matrix_exp(rates * (t - s))),
        lambda s, t: Jump(rates, t - s),
        lambda s, t: Jump(rates.to_sparse_csr(), t - s),
    ):
        model = StateSpace(PRIOR, transition, Finite.of(torch.from_numpy(TABLE)))
        steps = [np.eye(3) if gap == 0 else expm(Q * gap) for gap in np.diff(times)]
        check(rd.condition(model, Observed(y, times=times)), *enumerate_paths(steps, lambda k, x: TABLE[x, y[k]]))


def test_a_flip_is_a_transition() -> None:
    flip = Flip(torch.tensor(0.7, dtype=torch.float64), torch.tensor(2), 3)
    table = np.array([[0.7, 0, 0.3], [0, 0.7, 0.3], [0, 0, 1.0]])
    y = np.array([0, 2, 1])
    post = rd.condition(StateSpace(PRIOR, flip, Finite.of(torch.from_numpy(TABLE))), Observed(y))
    check(post, *enumerate_paths([table] * 2, lambda k, x: TABLE[x, y[k]]))


def test_a_ragged_batch_equals_its_series_one_by_one() -> None:
    data = Observed([np.array([0, 1, 2]), np.array([2]), np.array([0, 2, -1, 3, 3])])
    model = StateSpace(PRIOR, CHAIN, Finite.of(torch.from_numpy(TABLE)))
    post = rd.condition(model, data)
    draws, best = post.sample(5), post.viterbi()
    for s in range(3):
        alone, n = rd.condition(model, data.series(s)), int(data.lengths[s])
        assert alone.log_evidence[0].item() == pytest.approx(post.log_evidence[s].item(), abs=1e-12)
        assert torch.allclose(alone.smooth().probabilities[0], post.smooth().probabilities[s, :n], atol=1e-13)
        assert best.x[0, s].tolist() == alone.viterbi().x[0, 0].tolist() + [-1] * (5 - n)
        assert bool((draws.x[:, s, :n] >= 0).all()) and bool((draws.x[:, s, n:] == -1).all())
    assert post.smooth().mode[1].tolist()[1:] == [-1] * 4


def test_draws_have_the_law_of_the_paths() -> None:
    """20,000 draws of 27 paths: chi-squared with 15 possible cells below its 1e-4 quantile from above."""
    y = np.array([0, 2, 2])
    _, joint = enumerate_paths([P] * 2, lambda k, x: TABLE[x, y[k]])
    model = StateSpace(PRIOR, CHAIN, Finite.of(torch.from_numpy(TABLE)))
    x = rd.condition(model, Observed(y)).sample(20_000).x[:, 0].numpy()
    expected = joint / joint.sum() * len(x)
    found = np.bincount(x @ [9, 3, 1], minlength=27)
    assert (found[expected == 0] == 0).all()
    cells = expected > 5
    from scipy.stats import chi2

    assert ((found - expected)[cells] ** 2 / expected[cells]).sum() < chi2.ppf(1 - 1e-4, cells.sum() - 1)


def test_gradients_of_the_evidence() -> None:
    """Through a network in the emission and logits of the transition, against central differences of enumeration."""
    logits = torch.nn.Parameter(torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    means = torch.nn.Parameter(torch.tensor([0.0, 1.0, -1.0], dtype=torch.float64))
    y = torch.tensor([0.3, NAN, -1.2, 0.8], dtype=torch.float64)

    def observe(x: Tensor) -> Normal:
        return Normal(means[x], 0.5)

    def evidence() -> Tensor:
        return rd.condition(
            StateSpace(PRIOR, lambda x: TorchCategorical(logits=logits[x]), observe), Observed(y)
        ).log_evidence.sum()

    assert torch.autograd.gradcheck(lambda a, b: evidence(), (logits, means), eps=1e-6, atol=1e-7)
    model = StateSpace(PRIOR, lambda x: TorchCategorical(logits=logits[x]), observe)
    assert {id(p) for p in model.parameters()} == {id(logits), id(means)}


# --- hmmlearn ---------------------------------------------------------------------------------------------------


def test_gaussian_emissions_equal_hmmlearn() -> None:
    rng = np.random.default_rng(2)
    theirs = GaussianHMM(3, covariance_type="full")
    theirs.n_features = 2
    theirs.startprob_, theirs.transmat_, theirs.means_ = P0, P, MEANS.numpy()
    theirs.covars_ = np.stack([np.eye(2), [[1.0, 0.5], [0.5, 1.0]], 0.3 * np.eye(2)])
    y = rng.normal(size=(400, 2)) * 1.5
    covs = torch.from_numpy(theirs.covars_)
    post = rd.condition(StateSpace(PRIOR, CHAIN, lambda x: MultivariateNormal(MEANS[x], covs[x])), Observed(y))
    log_evidence, probabilities = theirs.score_samples(y)
    assert post.log_evidence.item() == pytest.approx(log_evidence, abs=1e-8)
    assert np.abs(post.smooth().probabilities[0].numpy() - probabilities).max() < 1e-8
    log_best, best = theirs.decode(y)
    assert post.viterbi().x[0, 0].tolist() == best.tolist()
    assert post.viterbi().log_weights.item() == pytest.approx(log_best, abs=1e-8)


def test_categorical_emissions_equal_hmmlearn_on_many_series() -> None:
    theirs = CategoricalHMM(3)
    theirs.startprob_, theirs.transmat_, theirs.emissionprob_ = P0, P, TABLE
    lengths = [50, 120, 7]
    series = [theirs.sample(n, random_state=n)[0][:, 0] for n in lengths]
    post = rd.condition(StateSpace(PRIOR, CHAIN, Finite.of(torch.from_numpy(TABLE))), Observed(series))
    stacked = np.concatenate(series)[:, None]
    log_evidence, probabilities = theirs.score_samples(stacked, lengths)
    assert post.log_evidence.sum().item() == pytest.approx(log_evidence, abs=1e-8)
    found = post.smooth().probabilities
    ours = np.concatenate([found[s, :n].numpy() for s, n in enumerate(lengths)])
    assert np.abs(ours - probabilities).max() < 1e-8


# --- bad input --------------------------------------------------------------------------------------------------


def test_an_impossible_observation_is_named() -> None:
    model = StateSpace(Categorical.of(torch.tensor([1.0, 0.0, 0.0])), CHAIN, Finite.of(torch.from_numpy(TABLE)))
    with pytest.raises(InputError, match=r"series 1: the observation at time 1.5 \(number 1\) has probability zero"):
        rd.condition(
            StateSpace(model.prior, lambda s, t: CHAIN, Finite.of(torch.from_numpy(TABLE))),
            Observed([np.array([0, 1]), np.array([0, 3])], times=[[0.0, 1.0], [0.0, 1.5]]),
        ).smooth()
    with pytest.raises(InputError, match=r"series 0: the observation at time 3 \(number 1\) has probability zero"):
        still = Finite.of(torch.eye(3))
        rd.filter(StateSpace(model.prior, still, model.given[2]), np.array([0, 3]), times=[0, 3])
    with pytest.raises(InputError, match="log density of the observation at time 1 of series 0 is NaN in state 0"):
        rd.condition(StateSpace(PRIOR, CHAIN, lambda x, y: y[..., 0] * NAN), Observed([NAN, 1.0]))
    with pytest.raises(InputError, match="give y as integers"):
        rd.condition(model, Observed([0.0, 1.0]))
