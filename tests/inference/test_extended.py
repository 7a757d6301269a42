"""Extended and unscented filtering: exact on linear models, textbook recursions and stationary paths elsewhere."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal, Poisson

import retrodict as rd
from retrodict.core.errors import InputError
from retrodict.inference import Observed, StateSpace
from retrodict.inference.linearise import rules, taylor_potential, unscented
from retrodict.kernels import Gaussian, LinearGaussian

NAN = float("nan")
A = torch.tensor([[0.9, 0.3], [-0.2, 0.8]], dtype=torch.float64)
Q = torch.tensor([[0.3, 0.1], [0.1, 0.2]], dtype=torch.float64)
L = torch.tensor([[1.0, 0.5], [0.0, 1.0]], dtype=torch.float64)
R = torch.tensor([[0.4, 0.1], [0.1, 0.3]], dtype=torch.float64)
PRIOR = Gaussian(torch.tensor([0.5, -0.5], dtype=torch.float64), torch.eye(2, dtype=torch.float64))


def holes(n: int, seed: int = 0) -> np.ndarray:
    y = np.random.default_rng(seed).normal(size=(n, 2))
    y[1, 0], y[2], y[4, 1] = NAN, NAN, NAN
    return y


@pytest.mark.parametrize("method", ["extended", "unscented"])
@pytest.mark.parametrize("iterations", [0, 2])
@pytest.mark.parametrize("written", ["transition", "observation", "both"])
def test_on_linear_models_it_is_the_kalman_filter(method: str, iterations: int, written: str) -> None:
    transition = LinearGaussian(A, 0.1, Q)
    observation = LinearGaussian(L, 0.2, R)
    exact = StateSpace(PRIOR, transition, observation)
    model = StateSpace(
        PRIOR,
        transition if written == "observation" else lambda x: MultivariateNormal(x @ A.T + 0.1, Q),
        observation if written == "transition" else lambda x: MultivariateNormal(x @ L.T + 0.2, R),
    )
    data = Observed([holes(6), holes(5, 1)], times=[[0, 1, 1, 3, 4, 5], [2, 3, 4, 5, 6]])
    truth, post = rd.condition(exact, data), rd.condition(model, data, method, iterations=iterations)
    assert not post.exact and method in post.route
    assert torch.allclose(post.log_evidence, truth.log_evidence, atol=1e-10, rtol=0)
    for verb in ("filter", "smooth"):
        a, b = getattr(post, verb)(), getattr(truth, verb)()
        assert torch.allclose(a.mean, b.mean, atol=1e-10, rtol=0, equal_nan=True)
        assert torch.allclose(a.covariance, b.covariance, atol=1e-10, rtol=0, equal_nan=True)
    assert torch.allclose(post.residuals(), truth.residuals(), atol=1e-9, equal_nan=True)
    for of in ("state", "observation"):
        assert torch.allclose(post.forecast([7.0, 9.0], of).covariance, truth.forecast([7.0, 9.0], of).covariance)
    assert torch.allclose(post.sample(3, seed=2).x, truth.sample(3, seed=2).x, atol=1e-9, equal_nan=True)
    assert rd.condition(exact, data, method).exact


@pytest.mark.parametrize("method", ["extended", "unscented"])
def test_observation_laws_that_vary_keep_their_places(method: str) -> None:
    """Two observations at one time, each with rows of its own."""
    rows = torch.randn(1, 4, 1, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    law = LinearGaussian(rows, 0.0, 0.5)
    data = Observed([0.3, -1.0, 0.7, 0.1], times=[0, 1, 1, 3])
    truth = rd.condition(StateSpace(PRIOR, LinearGaussian(A, 0.1, Q), law), data)
    post = rd.condition(StateSpace(PRIOR, lambda x: MultivariateNormal(x @ A.T + 0.1, Q), law), data, method)
    assert torch.allclose(post.log_evidence, truth.log_evidence, atol=1e-10, rtol=0)
    assert torch.allclose(post.smooth().mean, truth.smooth().mean, atol=1e-10, rtol=0)


# --- a pendulum, against the recursions of the books ------------------------------------------------------------


def swing(x: np.ndarray) -> np.ndarray:
    return np.stack([x[..., 0] + 0.1 * x[..., 1], x[..., 1] - 0.98 * np.sin(x[..., 0])], -1)


def pendulum() -> StateSpace:
    def move(x: Tensor) -> MultivariateNormal:
        mean = torch.stack([x[..., 0] + 0.1 * x[..., 1], x[..., 1] - 0.98 * torch.sin(x[..., 0])], -1)
        return MultivariateNormal(mean, 0.1 * Q)

    prior = Gaussian(torch.tensor([1.0, 0.0], dtype=torch.float64), 0.2 * torch.eye(2, dtype=torch.float64))
    return StateSpace(prior, move, lambda x: Normal(torch.sin(x[..., :1]), 0.3))


def textbook(y: np.ndarray, rule: Callable) -> tuple[np.ndarray, np.ndarray, float]:
    """Filtered means and covariances and the log likelihood; ``rule(f, m, P) -> mean, covariance, cross``."""
    m, P, total = np.array([1.0, 0.0]), 0.2 * np.eye(2), 0.0
    means, covs = [], []
    for k, value in enumerate(y):
        if k:
            m, P, _ = rule(swing, m, P)
            P = P + 0.1 * Q.numpy()
        mean, S, cross = rule(lambda x: np.sin(x[..., :1]), m, P)
        S = S + 0.09
        gain = cross / S
        total += -0.5 * np.log(2 * np.pi * S[0, 0]) - 0.5 * (value - mean[0]) ** 2 / S[0, 0]
        m, P = m + gain[:, 0] * (value - mean[0]), P - gain @ S @ gain.T
        means.append(m)
        covs.append(P)
    return np.stack(means), np.stack(covs), total


def taylor(f: Callable, m: np.ndarray, P: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    h = 1e-6
    J = np.stack([(f(m + h * e) - f(m - h * e)) / (2 * h) for e in np.eye(2)], -1)
    return f(m), J @ P @ J.T, P @ J.T


def sigma_points(f: Callable, m: np.ndarray, P: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    root = np.linalg.cholesky(3.0 * P)  # d + kappa = 3
    x = np.concatenate([[m], m + root.T, m - root.T])
    w = np.array([1 / 3, *[1 / 6] * 4])
    y = f(x)
    mean = w @ y
    return mean, (y - mean).T @ np.diag(w) @ (y - mean), (x - m).T @ np.diag(w) @ (y - mean)


@pytest.mark.parametrize(("method", "rule", "tol"), [("extended", taylor, 1e-7), ("unscented", sigma_points, 1e-10)])
def test_a_pendulum_as_in_the_books(method: str, rule: Callable, tol: float) -> None:
    y = np.random.default_rng(1).normal(size=12) * 0.5
    means, covs, total = textbook(y, rule)
    post = rd.condition(pendulum(), Observed(y), method)
    assert np.abs(post.filter().mean[0].numpy() - means).max() < tol
    assert np.abs(post.filter().covariance[0].numpy() - covs).max() < tol
    assert post.log_evidence.item() == pytest.approx(total, abs=10 * tol)


def log_joint(path: Tensor, y: Tensor, observe: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    model = pendulum()
    steps = model.transition.law(path[:-1]).log_prob(path[1:]).sum()  # type: ignore[misc]
    start = MultivariateNormal(torch.tensor([1.0, 0.0]).double(), 0.2 * torch.eye(2).double()).log_prob(path[0])
    return start + steps + observe(path, y)


@pytest.mark.parametrize("counts", [False, True])
def test_iterations_end_at_the_most_probable_path(counts: bool) -> None:
    """Gauss-Newton (or Newton, for counts) has converged where the log joint density is stationary."""
    y = np.random.default_rng(2).normal(size=8) * 0.5
    if counts:
        y = np.random.default_rng(2).poisson(3.0, size=8)
        model = StateSpace(pendulum().prior, pendulum().given[1], lambda x: Poisson((1 + x[..., 0]).exp()))
        observe = lambda x, y: Poisson((1 + x[:, 0]).exp()).log_prob(y).sum()  # noqa: E731
    else:
        model = pendulum()
        observe = lambda x, y: Normal(torch.sin(x[:, 0]), 0.3).log_prob(y).sum()  # noqa: E731
    slopes = []
    for iterations in (0, 15):
        path = rd.condition(model, Observed(y), "extended", iterations=iterations).smooth().mean[0].requires_grad_()
        log_joint(path, torch.as_tensor(y), observe).backward()
        assert path.grad is not None
        slopes.append(float(path.grad.abs().max()))
    assert slopes[1] < 1e-7 < 1e-2 < slopes[0]


def test_a_batch_equals_its_series_one_by_one() -> None:
    data = Observed([np.zeros(3) + 0.3, np.array([0.1, NAN, 0.5, -0.4, 0.2])], times=[[0, 2, 3], [0, 1, 1, 2, 5]])
    for method in ("extended", "unscented"):
        post = rd.condition(pendulum(), data, method, iterations=1)
        for s in range(2):
            alone, n = rd.condition(pendulum(), data.series(s), method, iterations=1), int(data.lengths[s])
            assert alone.log_evidence[0].item() == pytest.approx(post.log_evidence[s].item(), abs=1e-10)
            assert torch.allclose(alone.smooth().mean[0], post.smooth().mean[s, :n], atol=1e-10)


@pytest.mark.parametrize("method", ["extended", "unscented"])
@pytest.mark.parametrize("iterations", [0, 1])
def test_gradients_reach_parameters_of_the_laws(method: str, iterations: int) -> None:
    a = torch.nn.Parameter(torch.tensor(0.98, dtype=torch.float64))
    s = torch.nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

    def evidence(a: Tensor, s: Tensor) -> Tensor:
        model = StateSpace(
            pendulum().prior,
            lambda x: Normal(torch.stack([x[..., 0] + 0.1 * x[..., 1], x[..., 1] - a * torch.sin(x[..., 0])], -1), 0.2),
            lambda x: Normal(torch.sin(x[..., :1]), s),
        )
        return rd.condition(model, Observed([0.3, NAN, -0.5, 0.9]), method, iterations=iterations).log_evidence.sum()

    assert torch.autograd.gradcheck(evidence, (a, s), eps=1e-6, atol=1e-6)


# --- the rules --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("singular", [False, True])
def test_sigma_points_match_moments(singular: bool) -> None:
    """The mean of a square is exact, and with kappa = 3 - d its variance in one dimension; lines are exact."""
    V = torch.tensor([[[2.0, 1.0], [1.0, 0.5 if singular else 1.0]]], dtype=torch.float64)
    m = torch.tensor([[0.3, -0.2]], dtype=torch.float64)
    zero = torch.zeros(2, 2, dtype=torch.float64)
    for kappa in (0.0, 1.0, None):
        line, b, left = unscented(kappa)(lambda x: (x @ A.T, zero), m, V)
        assert torch.allclose(line @ V, A @ V) and torch.allclose((line @ m[..., None])[..., 0] + b, m @ A.T)
        assert torch.allclose(left, torch.zeros_like(left), atol=1e-12)
        line, b, _ = unscented(kappa)(lambda x: (x**2, zero), m, V)
        mean = (line @ m[..., None])[..., 0] + b
        assert torch.allclose(mean, m**2 + V.diagonal(dim1=1, dim2=2))
    v, one = torch.tensor([[[0.7]]], dtype=torch.float64), torch.tensor([[0.4]], dtype=torch.float64)
    line, _, left = rules["unscented"](lambda x: (x**2, torch.zeros(1, 1).double()), one, v)
    assert torch.allclose(line @ v @ line.mT + left, 4 * one[..., None] ** 2 * v + 2 * v**2)
    with pytest.raises(InputError, match="kappa is at least 0"):
        unscented(-1.0)(lambda x: (x, zero), m, V)


def test_taylor_potentials() -> None:
    H0 = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
    m = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    H, F, c = taylor_potential(lambda x: 1.0 + x[..., 0] - 0.5 * ((x @ H0) * x).sum(-1), m)
    assert torch.allclose(H, H0.expand(3, 2, 2)) and torch.allclose(c, torch.ones(3).double())
    assert torch.allclose(F, torch.tensor([1.0, 0.0]).double().expand(3, 2))
    bowl, _, _ = taylor_potential(lambda x: (x**2).sum(-1), m)  # not log-concave: flat
    assert float(bowl.abs().max()) == 0.0


# --- where it does not apply ------------------------------------------------------------------------------------


def test_what_is_not_gaussian_is_refused_with_the_reason() -> None:
    cauchy = StateSpace(PRIOR, lambda x: torch.distributions.Cauchy(x, 1.0), LinearGaussian(L, 0.0, R))
    with pytest.raises(InputError, match="'extended' does not apply: the transition is not Gaussian given the state"):
        rd.condition(cauchy, Observed(holes(6)), "extended")
    with pytest.raises(InputError, match="iterations is 0 or more"):
        rd.condition(pendulum(), Observed([0.0]), "extended", iterations=-1)
    counts = StateSpace(pendulum().prior, LinearGaussian(A, 0.0, Q), lambda x: Poisson(x[..., 0].exp()))
    post = rd.condition(counts, Observed(np.array([1, 2])), "unscented")
    with pytest.raises(InputError, match="not Gaussian given the state, and residuals needs one"):
        post.residuals()
