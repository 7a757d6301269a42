"""Linear-Gaussian models against a dense Gaussian, statsmodels, and themselves written otherwise."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import statsmodels.api as sm
import torch
from scipy.linalg import expm, solve_discrete_lyapunov

import retrodict as rd
from inference.dense import Dense
from retrodict.core.errors import InputError
from retrodict.inference import Conditioned, Observed, StateSpace
from retrodict.kernels import Gaussian, Kernel, LinearGaussian, LinearSDE
from retrodict.processes import GaussianPath

NAN = float("nan")
RNG = np.random.default_rng(3)
B = np.array([[-0.3, 1.0, 0.0], [-1.0, -0.2, 0.3], [0.0, 0.1, -0.5]])
DRIVE = np.array([[0.0, 0.0], [1.0, 0.2], [0.0, 0.7]])  # noise enters two of three coordinates
L = np.array([[1.0, 0.0, 0.5], [0.0, 1.0, -1.0]])
M0, SINGULAR = np.array([1.0, -0.5, 0.2]), np.diag([1.0, 0.0, 2.0])


def step(s: float, t: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    gap = float(t - s)
    return expm(B * gap), np.array([0.1, 0.0, -0.2]) * gap, DRIVE @ DRIVE.T * gap


def kernel(s: torch.Tensor, t: torch.Tensor) -> Kernel:
    return LinearGaussian(*(torch.from_numpy(v) for v in step(float(s), float(t))))


def oracle(R: np.ndarray) -> Dense:
    return Dense(M0, SINGULAR, step, L, np.array([0.3, -0.1]), R)


def model(R: np.ndarray, **options: float) -> StateSpace:
    prior = Gaussian(torch.from_numpy(M0), torch.from_numpy(SINGULAR))
    law = LinearGaussian(torch.from_numpy(L), torch.tensor([0.3, -0.1], dtype=torch.float64), torch.from_numpy(R))
    return StateSpace(prior, kernel, law, **options)


FULL = np.array([[0.5, 0.2], [0.2, 0.4]])
RANK_ONE = np.array([[0.25, 0.5], [0.5, 1.0]])
TIMES = {
    "regular": np.arange(6.0),
    "irregular": np.array([0.0, 0.1, 0.9, 2.0, 2.3, 4.0]),
    "repeated": np.array([0.0, 0.0, 1.0, 1.0, 1.0, 3.5]),
}


def series(n: int, holes: bool) -> np.ndarray:
    y = RNG.normal(size=(n, 2))
    if holes:
        y[1, 0], y[2], y[3, 1] = NAN, NAN, NAN
    return y


NOISES = {"full": FULL, "rank one": RANK_ONE, "none": np.zeros((2, 2))}
# two exact observations of one state contradict each other
CASES = [c for c in itertools.product(TIMES, NOISES) if c == ("repeated", "full") or c[0] != "repeated"]


@pytest.mark.parametrize(("times", "noise"), CASES)
@pytest.mark.parametrize("holes", [False, True])
@pytest.mark.parametrize("route", ["loop", "scan", "auto"])
def test_equals_a_dense_gaussian(times: str, holes: bool, noise: str, route: str) -> None:
    R, t, y = NOISES[noise], TIMES[times], series(6, holes)
    post = rd.condition(model(R), Observed(y, times=t), route=route)
    mean, cov, evidence = oracle(R).posterior(t, y)
    assert post.exact and post.log_evidence.item() == pytest.approx(evidence, abs=1e-9)
    assert np.abs(post.smooth().mean[0].numpy() - mean).max() < 1e-9
    assert np.abs(post.smooth().covariance[0].numpy() - cov).max() < 1e-9
    mean, cov = oracle(R).filtered(t, y)
    assert np.abs(post.filter().mean[0].numpy() - mean).max() < 1e-9
    assert np.abs(post.filter().covariance[0].numpy() - cov).max() < 1e-9


@pytest.mark.parametrize("R", [FULL, np.zeros((2, 2))])
def test_residuals_are_the_cholesky_whitening_of_the_data(R: np.ndarray) -> None:
    t, y = TIMES["irregular"], series(6, True)
    found = rd.condition(model(R), Observed(y, times=t)).residuals()[0].numpy()
    _, _, my, Cy, _ = oracle(R).joint(t)
    seen = ~np.isnan(y.reshape(-1))
    white = np.linalg.solve(np.linalg.cholesky(Cy[np.ix_(seen, seen)]), (y.reshape(-1) - my)[seen])
    assert (np.isnan(found.reshape(-1)) == ~seen).all()
    assert np.abs(found.reshape(-1)[seen] - white).max() < 1e-9


def test_prior_at_t0_or_at_the_first_observation() -> None:
    t, y = np.array([0.7, 1.5, 2.0]), series(3, False)
    late = rd.condition(model(FULL, t0=-0.5), Observed(y, times=t))
    mean, _, evidence = oracle(FULL).posterior(np.concatenate([[-0.5], t]), np.vstack([[NAN, NAN], y]))
    assert late.log_evidence.item() == pytest.approx(evidence, abs=1e-10)
    ahead = oracle(FULL).posterior(np.array([-0.5, 0.7, 1.5, 2.0, 3.0]), np.vstack([[NAN, NAN], y, [NAN, NAN]]))[0]
    assert np.abs(late.forecast([3.0]).mean[0].numpy() - ahead[4:]).max() < 1e-10
    assert np.abs(late.smooth().mean[0].numpy() - mean[1:]).max() < 1e-10
    here = rd.condition(model(FULL), Observed(y, times=t))
    assert here.log_evidence.item() == pytest.approx(oracle(FULL).posterior(t, y)[2], abs=1e-10)


@pytest.mark.parametrize("R", [FULL, np.zeros((2, 2))])
def test_a_ragged_batch_equals_its_series_one_by_one(R: np.ndarray) -> None:
    times = [np.array([0.0, 1.0, 1.7]), np.array([2.0]), np.array([0.5, 0.8, 2.0, 2.5, 9.0])]
    data = Observed([series(len(t), False) for t in times], times=times)
    data.y[2, 1, 0] = NAN
    post = rd.condition(model(R), data)
    draws = post.sample(3).x
    for s in range(3):
        alone = rd.condition(model(R), data.series(s))
        n = int(data.lengths[s])
        assert alone.log_evidence[0].item() == pytest.approx(post.log_evidence[s].item(), abs=1e-11)
        for verb in ("filter", "smooth"):
            one, many = getattr(alone, verb)(), getattr(post, verb)()
            assert torch.allclose(one.mean[0], many.mean[s, :n], atol=1e-11, rtol=0)
            assert torch.allclose(one.covariance[0], many.covariance[s, :n], atol=1e-11, rtol=0)
            assert bool(torch.isnan(many.mean[s, n:]).all())
        assert torch.allclose(post.residuals()[s, :n], alone.residuals()[0], atol=1e-10, equal_nan=True)
        assert bool(torch.isfinite(draws[:, s, :n]).all()) and bool(torch.isnan(draws[:, s, n:]).all())


def test_a_missing_coordinate_counts_for_nothing() -> None:
    """NaN in a coordinate throughout is the model that never had it, to 1e-12."""
    y = series(6, False)
    y[:, 1] = NAN
    both = rd.condition(model(FULL), Observed(y, times=TIMES["irregular"]))
    first = StateSpace(
        Gaussian(torch.from_numpy(M0), torch.from_numpy(SINGULAR)),
        kernel,
        LinearGaussian(torch.from_numpy(L[:1]), torch.tensor([0.3], dtype=torch.float64), 0.5),
    )
    one = rd.condition(first, Observed(y[:, 0], times=TIMES["irregular"]))
    assert one.log_evidence.item() == pytest.approx(both.log_evidence.item(), abs=1e-12)
    assert torch.allclose(one.smooth().mean, both.smooth().mean, atol=1e-12, rtol=0)
    nothing = rd.condition(model(FULL), Observed(np.full((6, 2), NAN), times=TIMES["irregular"]))
    assert nothing.log_evidence.item() == 0.0


def test_draws_have_the_smoothed_law_at_the_times_of_the_data() -> None:
    """4,000 draws over 6 times and 3 coordinates; |z| < 4.5 in 18 means: a false alarm once in 8,000."""
    y = series(6, True)
    walk = StateSpace(
        Gaussian(torch.from_numpy(M0), 1.0),
        LinearGaussian(*(torch.from_numpy(v) for v in step(0.0, 1.0))),
    )
    data = Observed(y, times=[0.0, 1.0, 3.0, 3.0, 4.0, 8.0], operator=L, covariance=FULL)  # steps between, a tie
    post = rd.condition(walk, data)
    laws, paths = post.smooth(), post.sample(4000, seed=1)
    z = (paths.mean() - laws.mean) / (laws.std / 4000**0.5)
    assert float(z.abs().max()) < 4.5
    spread = paths.x.std(0) / laws.std
    assert float((spread - 1).abs().max()) < 4.5 / (2 * 4000) ** 0.5
    assert torch.equal(post.sample(2, seed=1).x, post.sample(5, seed=1).x[:2])


def test_unit_steps_between_times_are_powers_of_the_kernel() -> None:
    A, b, Q = step(0.0, 1.0)
    squared = LinearGaussian(*(torch.from_numpy(v) for v in (A @ A, A @ b + b, A @ Q @ A.T + Q)))
    y = series(3, False)
    prior = Gaussian(torch.from_numpy(M0), torch.from_numpy(SINGULAR))
    one = LinearGaussian(*(torch.from_numpy(v) for v in (A, b, Q)))
    a = rd.condition(StateSpace(prior, one), Observed(y, times=[0, 2, 3], operator=L, covariance=FULL))
    b_ = rd.condition(StateSpace(prior, [squared, one]), Observed(y, times=[0, 2, 3], operator=L, covariance=FULL))
    assert torch.allclose(a.log_evidence, b_.log_evidence, atol=1e-11)
    assert torch.allclose(a.smooth().mean, b_.smooth().mean, atol=1e-11)


def test_forecasts_are_predictions_of_the_dense_law() -> None:
    t, y = TIMES["irregular"], series(6, True)
    later = np.array([4.0, 4.5, 7.0])
    post = rd.condition(model(FULL), Observed(y, times=t))
    mean, cov, _ = oracle(FULL).posterior(np.concatenate([t, later]), np.vstack([y, np.full((3, 2), NAN)]))
    ahead = post.forecast(later)
    assert ahead.times.tolist() == [later.tolist()]
    assert np.abs(ahead.mean[0].numpy() - mean[6:]).max() < 1e-9
    assert np.abs(ahead.covariance[0].numpy() - cov[6:]).max() < 1e-9
    seen = post.forecast(later, of="observation")
    assert np.abs(seen.mean[0].numpy() - (mean[6:] @ L.T + [0.3, -0.1])).max() < 1e-9
    assert np.abs(seen.covariance[0].numpy() - (L @ cov[6:] @ L.T + FULL)).max() < 1e-9
    assert post.forecast(2).times.tolist() == [[5.0, 6.0]]
    with pytest.raises(InputError, match="forecast time 1 lies before the last observation of series 0, at 4"):
        post.forecast([1.0, 6.0])


@pytest.mark.parametrize(
    "transition",
    [
        GaussianPath(lambda t: torch.exp(-2 * t), lambda t: torch.sqrt(-torch.expm1(-4 * t))),
        LinearSDE(-2.0, 0.0, 2.0, d=2),
    ],
)
def test_processes_and_linear_sdes_are_transitions(transition: object) -> None:
    """A stationary Ornstein-Uhlenbeck path two ways, beside its kernel in closed form."""

    def written(s: torch.Tensor, t: torch.Tensor) -> Kernel:
        return LinearGaussian(torch.exp(-2 * (t - s)), 0.0, -torch.expm1(-4 * (t - s)))

    data = Observed(series(4, True), times=[0.0, 0.3, 0.35, 0.9], noise=0.5)
    a, b = (rd.condition(StateSpace(Gaussian(torch.zeros(2), 1.0), k), data) for k in (transition, written))
    assert torch.allclose(a.log_evidence, b.log_evidence, atol=1e-10)
    assert torch.allclose(a.smooth().mean, b.smooth().mean, atol=1e-10)


def test_observation_laws_may_vary_with_time() -> None:
    """Regression on changing covariates: one row L_k a time, whose posterior is recursive least squares."""
    X = torch.from_numpy(RNG.normal(size=(20, 2)))
    y = torch.from_numpy(RNG.normal(size=20))
    fixed = LinearGaussian(1.0, 0.0, 0.0)
    law = LinearGaussian(X[None, :, None, :], 0.0, 0.7)
    post = rd.condition(StateSpace(Gaussian(torch.zeros(2), 3.0), fixed, law), Observed(y))
    precision = X.T @ X / 0.7 + torch.eye(2) / 3.0
    mean = torch.linalg.solve(precision, X.T @ y / 0.7)
    assert torch.allclose(post.smooth().mean[0, 5], mean) and torch.allclose(post.filter().mean[0, -1], mean)
    assert torch.allclose(post.smooth().covariance[0, 0], precision.inverse())


def test_integers_are_numbers_to_a_gaussian_law() -> None:
    walk = StateSpace(Gaussian(0.0, 1.0), LinearGaussian(1.0, 0.0, 1.0), LinearGaussian(1.0, 0.0, 1.0))
    y = [np.array([3, 0, 2]), np.array([1])]
    found, truth = rd.condition(walk, Observed(y)), rd.condition(walk, Observed([v.astype(float) for v in y]))
    assert torch.equal(found.smooth().mean.nan_to_num(), truth.smooth().mean.nan_to_num())
    assert torch.equal(found.forecast(1).mean, truth.forecast(1).mean)
    with pytest.raises(InputError, match="-1 among them may be a number or mean missing"):
        rd.condition(walk, Observed(np.array([1, -1, 2])))


@pytest.mark.parametrize("noise", [0.6, 0.0])
def test_gradients_of_the_evidence(noise: float) -> None:
    """d log p(y) / d (A, Q, L, m0) against central differences of the dense Gaussian."""
    y = series(5, True)
    start = {"A": expm(B), "Q": DRIVE @ DRIVE.T + 0.1 * np.eye(3), "L": L, "m0": M0}

    def dense(values: dict[str, np.ndarray]) -> float:
        law = Dense(
            values["m0"],
            np.eye(3),
            lambda s, t: (values["A"], np.zeros(3), values["Q"]),
            values["L"],
            np.zeros(2),
            noise * np.eye(2),
        )
        return law.posterior(np.arange(5.0), y)[2]

    p = {k: torch.from_numpy(v.copy()).requires_grad_() for k, v in start.items()}
    ssm = StateSpace(
        Gaussian(p["m0"], torch.eye(3).double()),
        LinearGaussian(p["A"], 0.0, p["Q"]),
        LinearGaussian(p["L"], 0.0, noise * torch.eye(2).double()),
    )
    assert {id(v) for v in ssm.parameters()} == {id(v) for v in p.values()}
    for _ in range(2):  # a second pass: nothing may hang on the first one's graph
        for v in p.values():
            v.grad = None
        rd.condition(ssm, Observed(y)).log_evidence.sum().backward()
    for name, value in start.items():
        for index in itertools.islice(np.ndindex(value.shape), 0, None, 2):
            up, down = ({k: v.copy() for k, v in start.items()} for _ in range(2))
            h = 1e-5
            up[name][index] += h
            down[name][index] -= h
            if name == "Q":  # symmetric
                up[name][index[::-1]] = up[name][index]
                down[name][index[::-1]] = down[name][index]
            grad = p[name].grad
            assert grad is not None
            found = grad[index] + (grad[index[::-1]] if name == "Q" and index[0] != index[1] else 0)
            assert float(found) == pytest.approx((dense(up) - dense(down)) / (2 * h), rel=1e-5, abs=1e-6)


# --- statsmodels ------------------------------------------------------------------------------------------------


def test_nile_equals_statsmodels() -> None:
    volume = sm.datasets.nile.load_pandas().data["volume"].to_numpy()
    theirs = sm.tsa.UnobservedComponents(volume, "llevel")
    theirs.ssm.initialize_known(np.array([1000.0]), np.array([[1e5]]))
    theirs.ssm.loglikelihood_burn = 0
    found = theirs.smooth([15099.0, 1469.1])
    level = StateSpace(Gaussian(1000.0, 1e5), LinearGaussian(1.0, 0.0, 1469.1), LinearGaussian(1.0, 0.0, 15099.0))
    check_statsmodels(rd.condition(level, Observed(volume)), found)


def test_arma_equals_statsmodels() -> None:
    """ARMA(2, 1): observed without noise, a singular Q."""
    y = np.random.default_rng(0).normal(size=200).cumsum() * 0.1
    y[[3, 50, 51]] = NAN
    theirs = sm.tsa.SARIMAX(y, order=(2, 0, 1))
    theirs.ssm.tolerance = 0  # no shortcut by a steady state: it moves their log-likelihood by 1e-7
    found = theirs.smooth([0.5, 0.2, 0.4, 0.3])
    T, Z = (torch.tensor(theirs.ssm[name]) for name in ("transition", "design"))
    Q = torch.tensor(theirs.ssm["selection"] @ theirs.ssm["state_cov"] @ theirs.ssm["selection"].T)
    P0 = torch.from_numpy(solve_discrete_lyapunov(T.numpy(), Q.numpy()))
    arma = StateSpace(Gaussian(torch.zeros(2).double(), P0), LinearGaussian(T, 0.0, Q), LinearGaussian(Z, 0.0, 0.0))
    check_statsmodels(rd.condition(arma, Observed(y)), found)


def check_statsmodels(post: Conditioned, found: object) -> None:
    """Log-likelihood, smoothed and filtered states, standardised residuals and forecasts: equal to 1e-8."""
    theirs: dict = {
        name: getattr(found, name) for name in dir(found) if name[:8] in ("smoothed", "filtered", "standard")
    }
    assert post.log_evidence.item() == pytest.approx(found.llf, abs=1e-8)  # type: ignore[attr-defined]
    for laws, name in ((post.smooth(), "smoothed"), (post.filter(), "filtered")):
        scale = max(1.0, np.abs(theirs[f"{name}_state"]).max())
        assert np.abs(laws.mean[0].numpy() - theirs[f"{name}_state"].T).max() < 1e-8 * scale
        cov = theirs[f"{name}_state_cov"].transpose(2, 0, 1)
        assert np.abs(laws.covariance[0].numpy() - cov).max() < 1e-8 * max(1.0, np.abs(cov).max())
    ours, error = post.residuals()[0, :, 0].numpy(), theirs["standardized_forecasts_error"][0]
    kept = ~np.isnan(ours)
    assert np.abs(ours[kept] - error[kept]).max() < 1e-8
    ahead = found.get_forecast(4)  # type: ignore[attr-defined]
    assert post.forecast(4, of="observation").mean[0, :, 0].numpy() == pytest.approx(ahead.predicted_mean, rel=1e-8)
    assert post.forecast(4, of="observation").std[0, :, 0].numpy() == pytest.approx(ahead.se_mean, rel=1e-8)


# --- bad input --------------------------------------------------------------------------------------------------


def test_contradictions_are_named() -> None:
    still = StateSpace(Gaussian(torch.zeros(1), 1.0), LinearGaussian(1.0, 0.0, 0.0))
    with pytest.raises(InputError, match="observation at time 1 of series 0 has no noise of its own"):
        rd.condition(still, Observed([0.0, 1.0], noise=0.0))
    with pytest.raises(InputError, match=r"y has 2 coordinates .* observation law 1"):
        rd.condition(
            StateSpace(Gaussian(torch.zeros(1), 1.0), LinearGaussian(1.0, 0.0, 1.0), LinearGaussian(1.0, 0.0, 1.0)),
            Observed(np.zeros((3, 2))),
        )
    with pytest.raises(InputError, match=r"unknown route 'scna'.*Did you mean 'scan'"):
        rd.condition(model(FULL), Observed(series(3, False)), route="scna")
