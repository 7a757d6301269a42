"""Guided diffusions against quadrature, Kalman filters, dense Gaussians and each other.

Statistical comparisons are of an estimate with a known value at 4 standard errors: a false alarm has probability
6e-5 each, once, since seeds are fixed.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from oracles.euler_grid import EulerQuadrature, normal
from retrodict.core.errors import InputError, InputTypeError
from retrodict.core.lin import Lin
from retrodict.core.noise import KeyedNoise
from retrodict.inference.guided.auxiliary import exact_steps
from retrodict.inference.observed import Observed
from retrodict.inference.posterior import condition_model
from retrodict.inference.sde import SDE
from retrodict.kernels import Gaussian, LinearSDE
from retrodict.kernels.linear_sde import transition
from retrodict.kernels.scans import gaussian, native

F64 = torch.float64
DOUBLE_WELL = SDE(lambda x, t: x - x**3, 0.8)


def condition(model: SDE, data: Observed, method: str = "guided", **options):
    return condition_model(model, data, method, options)


def agrees(post, truth: float, bars: float = 4.0) -> None:
    """The evidence within some of its own standard errors, and a standard error that says something."""
    error = float(post.log_evidence.exp()) - truth
    bar = float(post.log_evidence_se) * truth
    assert bar < 0.1 * truth, f"the standard error {bar:.3g} is too large to test {truth:.3g}"
    assert abs(error) < bars * bar + 1e-12, f"off by {error / bar:.2f} standard errors"


# --- linear models: weights are one, evidence is Kalman's -------------------------------------------------------


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


@pytest.mark.parametrize("width", [1, 2])
@pytest.mark.parametrize("auxiliary", ["linearise", "regress", "given"])
def test_a_linear_model_guides_itself(width: int, auxiliary: str) -> None:
    """kappa~ = kappa: every log-weight is the evidence of the Kalman filter of the Euler chain, to 1e-9.

    Two-dimensional, hypoelliptic for width 1, random start, an observation at the start, missing coordinates.
    """
    B, beta, sigma = random(0, 2, 2) - torch.eye(2, dtype=F64), random(1, 2), random(2, 2, width)
    prior = Gaussian(random(3, 1, 2), Lin.dense(0.5 * torch.eye(2, dtype=F64)[None]))
    L, R = random(4, 2, 2), torch.tensor([[0.3, 0.1], [0.1, 0.2]], dtype=F64)
    y = random(5, 4, 2)
    y[1, 0] = y[2] = float("nan")
    times = torch.tensor([0.0, 0.3, 0.5, 1.2], dtype=F64)
    given = LinearSDE(B, beta, sigma) if auxiliary == "given" else auxiliary
    model = SDE(lambda x, t: x @ B.mT + beta, sigma, prior=prior)
    data = Observed(y, times=times, operator=L, covariance=R)
    post = condition(model, data, steps=7, particles=64, auxiliary=given)
    gaps = times.diff().repeat_interleave(7) / 7
    H, F, c = torch.zeros(1, 22, 2, 2, dtype=F64), torch.zeros(1, 22, 2, dtype=F64), torch.zeros(1, 22, dtype=F64)
    for j in range(4):
        seen = ~torch.isnan(y[j])
        if seen.any():
            Lj, P = L[seen], torch.linalg.inv(R[seen][:, seen])
            H[0, 7 * j], F[0, 7 * j] = Lj.mT @ P @ Lj, Lj.mT @ P @ y[j][seen]
            law = torch.distributions.MultivariateNormal(torch.zeros(int(seen.sum()), dtype=F64), R[seen][:, seen])
            c[0, 7 * j] = law.log_prob(y[j][seen])
    chain = gaussian.GaussianChain(
        prior.mean, prior.cov.value, torch.eye(2, dtype=F64) + B * gaps[None, :, None, None],
        beta * gaps[None, :, None], (sigma @ sigma.mT) * gaps[None, :, None, None], H, F, c,
    )  # fmt: skip
    truth = gaussian.evidence(chain, route="loop")
    weights = post.sample(16).log_weights
    tolerance = 1e-6 if auxiliary == "regress" else 1e-9  # a regression has a ridge
    assert (weights - truth).abs().max() < tolerance
    torch.testing.assert_close(post.log_evidence, truth, rtol=0, atol=tolerance)
    assert float(post.ess) == pytest.approx(64)


def test_guided_smoothing_of_a_linear_model_is_the_kalman_smoother() -> None:
    """Means and variances of 4,000 exact draws at all nodes: 4.5 standard errors, 2 x 41 comparisons: 6e-4."""
    model = SDE(lambda x, t: -x, 0.7)
    data = Observed([0.5, -0.3], times=[0.4, 1.0], noise=0.2)
    post = condition(model, data, start=[1.0], steps=20, particles=4000, auxiliary="linearise")
    dt = torch.tensor([0.02] * 20 + [0.03] * 20, dtype=F64)
    H, F, c = torch.zeros(1, 41, 1, 1, dtype=F64), torch.zeros(1, 41, 1, dtype=F64), torch.zeros(1, 41, dtype=F64)
    for k, y in ((20, 0.5), (40, -0.3)):
        H[0, k], F[0, k] = 25.0, 25.0 * y
    chain = gaussian.GaussianChain(
        torch.ones(1, 1, dtype=F64), torch.zeros(1, 1, 1, dtype=F64), (1 - dt)[None, :, None, None],
        torch.zeros(1, 40, 1, dtype=F64), (0.49 * dt)[None, :, None, None], H, F, c,
    )  # fmt: skip
    truth = gaussian.smooth(chain, route="loop")
    found = post.smooth(grid=True)
    var = truth.cov[..., 0]
    assert ((found.mean - truth.mean)[:, 1:].abs() < 4.5 * (var[:, 1:] / 4000).sqrt()).all()
    assert ((found.covariance[..., 0] - var)[:, 1:].abs() < 4.5 * var[:, 1:] * math.sqrt(2 / 4000)).all()
    torch.testing.assert_close(post.smooth().mean, found.mean[:, [20, 40]])
    filtered = gaussian.filter(chain, route="loop")
    mean = post.filter().mean
    assert ((mean - filtered.mean[:, [20, 40]]).abs() < 4.5 * (filtered.cov[:, [20, 40], 0] / 4000).sqrt()).all()


# --- the double well --------------------------------------------------------------------------------------------

CASES = {(-0.5, 0.1): 0.101329, (-0.5, 0.03): 0.102046}


@pytest.mark.parametrize(("x0", "sd"), list(CASES))
def test_double_well_evidence_and_effective_sample_size(x0: float, sd: float) -> None:
    truth = EulerQuadrature(lambda x: x - x**3, lambda x: 0.8 + 0 * x, x0, {50: normal(1.0, sd)}).evidence()
    assert truth == pytest.approx(CASES[x0, sd], abs=1e-6)
    data = Observed([1.0], times=[1.0], noise=sd)
    post = condition(DOUBLE_WELL, data, start=[x0], particles=4000)
    agrees(post, truth)
    rough = condition(DOUBLE_WELL, data, "bootstrap", start=[x0], particles=4000)
    assert float(post.ess) > 10 * float(rough.ess)
    assert float(post.ess) > 0.5 * 4000


@pytest.mark.parametrize("method", ["guided", "bootstrap"])
@pytest.mark.parametrize("drift", [lambda x, t: x - x**3, lambda x, t: torch.sin(t) + 0 * x[..., :1], lambda x, t: x])
def test_steps_in_one_loop_are_the_steps_of_torch(
    method: str, drift: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compiled or not: the same paths and weights from the same innovations, with several observations."""
    pytest.importorskip("numba")
    data = Observed([0.3, float("nan"), 1.0], times=[0.2, 0.5, 1.0], noise=0.2)
    found = []
    for there in (True, False):
        monkeypatch.setattr(native, "installed", lambda there=there: there)
        found.append(condition(SDE(drift, 0.8), data, method, start=[-0.2], steps=9, particles=40))
        assert (found[-1].guided.guidance.guide.coefficients is not None) and found[-1].weigh().x.shape == (1, 40, 1)
    one, other = found
    torch.testing.assert_close(one.log_evidence, other.log_evidence, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(one.weigh().log_evidence, one.log_evidence, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(one.sample(20).x, other.sample(20).x, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(one.smooth(grid=True).mean, other.smooth(grid=True).mean, rtol=1e-11, atol=1e-11)


def test_the_drift_keeps_its_gradient() -> None:
    """The derivative of the evidence estimate through guided paths, against a difference quotient of the same."""
    data = Observed([1.0], times=[1.0], noise=0.1)

    def estimate(a: Tensor) -> Tensor:
        model = SDE(lambda x, t: a * x - x**3, 0.8)
        post = condition(model, data, start=[-0.5], steps=10, particles=50, auxiliary="brownian")
        z = post.guided.innovations(50, KeyedNoise(0, 1))
        return torch.logsumexp(post.guided.path(z)[1], -1).sum()

    a = torch.tensor(1.0, dtype=F64, requires_grad=True)
    (slope,) = torch.autograd.grad(estimate(a), a)
    quotient = (estimate(torch.tensor(1 + 1e-5, dtype=F64)) - estimate(torch.tensor(1 - 1e-5, dtype=F64))) / 2e-5
    assert float(slope) == pytest.approx(float(quotient), rel=1e-6)


STATE_DEPENDENT = SDE(lambda x, t: x - x**3, lambda x, t: 0.8 + 0.3 * torch.tanh(x))


@pytest.fixture(scope="module")
def state_dependent_truth() -> float:
    return EulerQuadrature(
        lambda x: x - x**3, lambda x: 0.8 + 0.3 * torch.tanh(x), -0.5, {100: normal(1.0, 0.1)}, steps=100
    ).evidence()


@pytest.mark.parametrize("options", [{}, {"auxiliary": "brownian"}, {"auxiliary": "linearise"}, {"weight": "path"}])
def test_state_dependent_diffusion(options: dict, state_dependent_truth: float) -> None:
    data = Observed([1.0], times=[1.0], noise=0.1)
    post = condition(STATE_DEPENDENT, data, start=[-0.5], steps=100, particles=8000, **options)
    agrees(post, state_dependent_truth)


def test_continuous_weight_has_the_right_sign(state_dependent_truth: float) -> None:
    """The integral of G is biased of the order of a step, 2% here; with the sign of the H term turned it is off by 30%.

    The auxiliary has a~ = 1, far from a, so that the term counts.
    """
    data = Observed([1.0], times=[1.0], noise=0.1)
    aux = LinearSDE(0.0, 0.0, 1.0)
    options = dict(start=[-0.5], steps=100, particles=8000, weight="continuous", auxiliary=aux, grid="uniform")
    post = condition(STATE_DEPENDENT, data, **options)
    error = float(post.log_evidence.exp()) / state_dependent_truth - 1
    assert abs(error) < 0.06
    flipped = _evidence_with_the_other_sign(post)
    assert abs(flipped / state_dependent_truth - 1) > 0.25


def _evidence_with_the_other_sign(post) -> float:
    """The estimate had the trace of (a - a~) H been added: recomputed from the same paths."""
    paths = post.follow(post.guided.innovations(8000, _noise()))
    messages, (_, _, Q_aux) = post.guided.guidance.messages, post.guided.auxiliary_steps
    x = paths.x[:, 0, :-1, 0]
    a = (0.8 + 0.3 * torch.tanh(x)) ** 2 * 0.01
    wrong = ((a - Q_aux[0, :, 0, 0]) * messages.pulled[0][0, :, 0, 0]).sum(-1)
    return float((paths.log_weights[:, 0] + wrong).exp().mean())


def _noise():
    from retrodict.core.noise import KeyedNoise

    return KeyedNoise(5, 1)


def test_continuous_weight_converges_at_first_order() -> None:
    """The bias of the integral of G, against the limit of the chain: errors over steps 25 and 100 shrink fourfold.

    Linear model, so that the limit is known: an OU process with a~ = a but no drift in the auxiliary.
    """
    model, y, sd = SDE(lambda x, t: -x, 0.9), 0.2, 0.3
    mean, var = 0.7 * math.exp(-1.0), 0.81 * (1 - math.exp(-2.0)) / 2 + sd**2
    truth = math.exp(-0.5 * (y - mean) ** 2 / var) / math.sqrt(2 * math.pi * var)
    errors = []
    for steps in (25, 100):
        options = dict(start=[0.7], steps=steps, particles=40_000, weight="continuous", auxiliary="brownian")
        errors.append(
            float(condition(model, Observed([y], times=[1.0], noise=sd), **options).log_evidence.exp()) - truth
        )
    assert abs(errors[1]) < 0.02 * truth
    assert abs(errors[0]) > 2 * abs(errors[1])


# --- exact ends, partial ends, two observations, hypoelliptic ---------------------------------------------------


def ou(B: Tensor, a: Tensor, x0: Tensor, T: float, n: int | None) -> tuple[Tensor, Tensor]:
    """Mean and covariance at T of a linear SDE, or of its Euler chain of n steps."""
    if n is None:
        A, _, Q = transition(B, torch.zeros(len(B), dtype=F64), a, torch.tensor(T, dtype=F64))
        return A @ x0, Q
    A = torch.eye(len(B), dtype=F64) + B * (T / n)
    m, P = x0, torch.zeros_like(B)
    for _ in range(n):
        m, P = A @ m, A @ P @ A.mT + a * (T / n)
    return m, P


@pytest.mark.parametrize("rows", [1, 2])
def test_exact_end_of_a_linear_model(rows: int) -> None:
    """A full and a partial exact end: log-weights are the density of the Euler chain, and the end is met."""
    B = torch.tensor([[-0.5, 1.0], [-0.3, -0.8]], dtype=F64)
    S = torch.tensor([[0.8, 0.0], [0.2, 0.6]], dtype=F64)
    x0, L, v = (
        torch.tensor([0.4, -0.2], dtype=F64),
        torch.tensor([[1.0, 0.5], [0.0, 1.0]], dtype=F64)[:rows],
        [0.7, 0.1],
    )
    m, P = ou(B, S @ S.mT, x0, 1.0, 30)
    truth = torch.distributions.MultivariateNormal(L @ m, L @ P @ L.mT).log_prob(torch.tensor(v[:rows], dtype=F64))
    data = Observed([v[:rows]], times=[1.0], operator=L, noise=0.0)
    model = SDE(lambda x, t: x @ B.mT, S)
    post = condition(model, data, start=x0, steps=30, particles=16, auxiliary="linearise")
    paths = post.sample(16)
    assert (paths.log_weights - truth).abs().max() < 1e-9
    assert (paths.x[:, 0, -1] @ L.mT - torch.tensor(v[:rows], dtype=F64)).abs().max() < 1e-9
    free = condition(model, data, start=x0, steps=30, particles=8000, auxiliary="brownian")
    agrees(free, float(truth.exp()))


def test_exact_end_in_continuous_time() -> None:
    """The integral of G on the grid that thickens toward an exact end, against the density of the OU process.

    The auxiliary has a drift of its own: without the trace of B in its constant the answer would be off by exp(T B).
    """
    model = SDE(lambda x, t: -x, 0.9)
    m, P = ou(-torch.eye(1, dtype=F64), torch.tensor([[0.81]], dtype=F64), torch.tensor([0.7], dtype=F64), 1.0, None)
    truth = torch.distributions.Normal(m, P[0].sqrt()).log_prob(torch.tensor(0.1)).exp()
    aux = LinearSDE(-0.4, 0.1, 0.9)
    options = dict(start=[0.7], steps=200, particles=8000, weight="continuous", auxiliary=aux)
    post = condition(model, Observed([0.1], times=[1.0], noise=0.0), **options)
    assert float(post.log_evidence.exp() / truth) == pytest.approx(1, abs=0.02)
    same = condition(
        model, Observed([0.1], times=[1.0], noise=0.0), **options | {"auxiliary": LinearSDE(-1.0, 0.0, 0.9)}
    )
    assert (same.sample(8).log_weights.exp() / truth - 1).abs().max() < 1e-8
    gaps = post.times[0].diff()
    assert float(gaps[-1]) < 0.02 * float(gaps[0])


def test_exact_end_of_a_double_well() -> None:
    truth = EulerQuadrature(lambda x: x - x**3, lambda x: 0.8 + 0 * x, -0.5, {}, steps=49, T=0.98)
    last = truth.density
    for _ in range(48):
        last = last @ truth.kernel
    step = torch.distributions.Normal(truth.x + 0.02 * (truth.x - truth.x**3), 0.8 * 0.02**0.5)
    density = float((last * step.log_prob(torch.tensor(1.0, dtype=F64)).exp()).sum() * truth.dx)
    post = condition(DOUBLE_WELL, Observed([1.0], times=[1.0], noise=0.0), start=[-0.5], particles=4000)
    agrees(post, density)
    assert float(post.smooth().mean) == pytest.approx(1.0, abs=1e-12)


def test_two_observations_with_resampling_and_without() -> None:
    log_g = {25: normal(-1.0, 0.2), 50: normal(1.0, 0.1)}
    truth = EulerQuadrature(lambda x: x - x**3, lambda x: 0.8 + 0 * x, 0.2, log_g).evidence()
    data = Observed([-1.0, 1.0], times=[0.5, 1.0], noise=[0.15])
    data = Observed(
        [[-1.0, float("nan")], [float("nan"), 1.0]], times=[0.5, 1.0], operator=[[1.0], [1.0]], noise=[0.2, 0.1]
    )
    for threshold in (0.0, 1.0):
        agrees(condition(DOUBLE_WELL, data, start=[0.2], steps=25, particles=4000, threshold=threshold), truth)


def test_hypoelliptic_oscillator() -> None:
    """Noise in the velocity alone, position seen: the evidence against a bootstrap filter of 200,000 paths; 4.5 s.e."""
    drift = lambda x, t: torch.stack((x[..., 1], x[..., 0] - x[..., 0] ** 3 - 0.5 * x[..., 1]), -1)  # noqa: E731
    model = SDE(drift, torch.tensor([[0.0], [0.7]], dtype=F64))
    data = Observed([[0.6], [1.1]], times=[0.5, 1.0], operator=[[1.0, 0.0]], noise=0.1)
    post = condition(model, data, start=[0.0, 0.5], steps=25, particles=4000)
    rough = condition(model, data, "bootstrap", start=[0.0, 0.5], steps=25, particles=200_000)
    bar = math.hypot(float(post.log_evidence_se), float(rough.log_evidence_se))
    assert bar < 0.03
    assert abs(float(post.log_evidence - rough.log_evidence)) < 4.5 * bar
    assert float(post.ess) / 4000 > 10 * float(rough.ess) / 200_000


def test_random_start_of_any_law() -> None:
    """Gaussian and uniform priors of the start, against quadrature over the start."""
    data = Observed([0.8], times=[0.5], noise=0.2)
    nodes = torch.linspace(-1, 1, 41, dtype=F64)
    evidences = torch.tensor(
        [
            EulerQuadrature(
                lambda x: x - x**3, lambda x: 0.8 + 0 * x, float(x0), {20: normal(0.8, 0.2)}, 20, 0.5, points=601
            ).evidence()
            for x0 in nodes
        ],
        dtype=F64,
    )
    uniform = float(torch.trapezoid(evidences, nodes)) / 2
    prior = torch.distributions.Uniform(torch.tensor([-1.0], dtype=F64), torch.tensor([1.0], dtype=F64))
    model = SDE(DOUBLE_WELL.drift, 0.8, prior=prior)
    agrees(condition(model, data, steps=20, particles=8000), uniform)
    gauss = torch.distributions.Normal(torch.tensor([0.1], dtype=F64), torch.tensor([0.2], dtype=F64))
    truth = float(torch.trapezoid(evidences * gauss.log_prob(nodes).exp(), nodes))
    agrees(condition(DOUBLE_WELL, data, steps=20, particles=4000, start=gauss), truth)


def test_counts_through_a_surrogate() -> None:
    """Poisson counts with rate exp(2 x): the Laplace surrogate guides, the correction keeps the evidence right."""
    counts = {20: 0, 40: 3}
    rate = lambda x: torch.distributions.Poisson((2 * x).exp())  # noqa: E731
    log_g = {k: lambda x, v=v: rate(x).log_prob(torch.tensor(float(v))) for k, v in counts.items()}
    truth = EulerQuadrature(lambda x: x - x**3, lambda x: 0.8 + 0 * x, 0.0, log_g, steps=40).evidence()
    model = SDE(DOUBLE_WELL.drift, 0.8, observation=rate)
    data = Observed(torch.tensor([0, 3]), times=[0.5, 1.0])
    post = condition(model, data, start=[0.0], steps=20, particles=16_000)
    agrees(post, truth)
    rough = condition(model, data, "bootstrap", start=[0.0], steps=20, particles=4000)
    assert float(post.ess) / 16_000 > 1.2 * float(rough.ess) / 4000


def test_a_nonlinear_operator_through_a_surrogate() -> None:
    truth = EulerQuadrature(
        lambda x: x - x**3, lambda x: 0.8 + 0 * x, 0.3, {50: lambda x: normal(1.2, 0.2)(x.exp())}
    ).evidence()
    post = condition(
        DOUBLE_WELL, Observed([1.2], times=[1.0], operator=torch.exp, noise=0.2), start=[0.3], particles=20_000
    )
    agrees(post, truth)


def test_numbers_and_tensors_run_the_same_paths() -> None:
    """The fast form of one dimension and one series, the affine form and the general step, from equal innovations."""
    data = Observed([0.4, 1.0], times=[0.5, 1.0], noise=0.1)
    general = SDE(DOUBLE_WELL.drift, lambda x, t: 0.8 + 0 * x)
    posts = [condition(model, data, start=[-0.5], steps=10, auxiliary="brownian") for model in (DOUBLE_WELL, general)]
    fast = posts[0].guided
    z = fast.innovations(30, _noise())
    assert fast.guidance.guide.numbers is not None and posts[1].guided.guidance.guide.bent is None
    path, log_w = fast.path(z)
    fast.guidance.guide.numbers = None
    for other in (fast.path(z), posts[1].guided.path(z)):
        torch.testing.assert_close(other[0], path, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(other[1], log_w, rtol=1e-7, atol=1e-7)


def test_a_learned_auxiliary_raises_the_bound() -> None:
    """The expected log-weight, on fresh noise, well above that of "auto"; the evidence as right as before."""
    data = Observed([1.0], times=[1.0], noise=0.1)
    truth = EulerQuadrature(
        lambda x: x - x**3, lambda x: 0.8 + 0.3 * torch.tanh(x), -0.5, {20: normal(1.0, 0.1)}, steps=20
    ).evidence()
    bounds, shares = [], []
    for auxiliary in ("auto", "learned"):
        post = condition(STATE_DEPENDENT, data, start=[-0.5], steps=20, particles=8000, auxiliary=auxiliary)
        agrees(post, truth)
        bounds.append(float(post.guided.path(post.guided.innovations(8000, _noise()))[1].mean()))
        shares.append(float(post.ess) / 8000)
    assert bounds[0] + 0.1 < bounds[1] < math.log(truth)
    assert shares[1] > shares[0]


# --- batches, times, determinism --------------------------------------------------------------------------------


def test_ragged_batch_equals_series_one_by_one() -> None:
    """With the auxiliary of the user the guide of a series does not depend on the others, and neither do its draws."""
    model, aux = (
        SDE(lambda x, t: torch.sin(2 * x) + 0.1 * t, lambda x, t: 0.5 + 0.1 * torch.cos(x)),
        LinearSDE(-0.2, 0.0, 0.5),
    )
    y = [[0.3, -0.2, 0.5], [0.1, float("nan")], [1.0]]
    times = [[0.2, 0.5, 0.9], [0.4, 0.8], [0.7]]
    options = dict(start=[0.1], steps=6, particles=200, auxiliary=aux)
    both = condition(model, Observed([torch.tensor(v, dtype=F64) for v in y], times=times, noise=0.2), **options)
    mean = both.smooth().mean
    for s in range(3):
        alone = condition(model, Observed(y[s], times=times[s], noise=0.2), **options)
        if s == 0:
            torch.testing.assert_close(alone.log_evidence, both.log_evidence[:1], rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(alone.smooth().mean, mean[:1], rtol=1e-9, atol=1e-9)
        bar = math.hypot(float(alone.log_evidence_se), float(both.log_evidence_se[s]))
        assert abs(float(alone.log_evidence - both.log_evidence[s])) < 4 * bar + 1e-9
        assert torch.isnan(mean[s, len(y[s]) :]).all() and torch.isfinite(mean[s, : len(y[s])]).all()


def test_a_time_with_nothing_seen_changes_no_evidence() -> None:
    data = Observed([float("nan"), 1.0], times=[0.5, 1.0], noise=0.1)
    truth = EulerQuadrature(lambda x: x - x**3, lambda x: 0.8 + 0 * x, -0.5, {50: normal(1.0, 0.1)}).evidence()
    agrees(condition(DOUBLE_WELL, data, start=[-0.5], steps=25, particles=4000), truth)


def test_equal_innovations_give_equal_paths() -> None:
    data = Observed([0.4, 1.0], times=[0.5, 1.0], noise=0.1)
    post = condition(DOUBLE_WELL, data, start=[-0.5], particles=50, steps=10, threshold=1.0)
    paths = post.sample(50, seed=3)
    again = post.follow(paths.innovations)
    torch.testing.assert_close(again.x, paths.x)
    torch.testing.assert_close(post.sample(50, seed=3).x, paths.x)
    assert not torch.equal(post.sample(50, seed=4).x, paths.x)
    total = torch.logsumexp(paths.log_weights, 0) - math.log(50)
    assert float(
        total - condition(DOUBLE_WELL, data, start=[-0.5], particles=50, steps=10, threshold=1.0, seed=3).log_evidence
    ) == pytest.approx(0, abs=1e-9)


def test_exact_steps_are_van_loans() -> None:
    B, beta, S = random(0, 3, 3), random(1, 3), random(2, 3, 2)
    dt = torch.tensor([0.0, 0.01, 0.2], dtype=F64)
    ours = exact_steps((B.expand(3, 3, 3), beta.expand(3, 3), (S @ S.mT).expand(3, 3, 3)), dt)
    for found, known in zip(ours, transition(B, beta, S @ S.mT, dt)):
        torch.testing.assert_close(found, known, rtol=1e-10, atol=1e-12)


def test_bad_input_says_what_to_do() -> None:
    data = Observed([1.0], times=[1.0], noise=0.1)
    for options, words in (
        ({}, "start=x0"),
        ({"start": [0.0], "auxiliary": "linearize"}, "linearise"),
        ({"start": [0.0], "weight": "dob"}, "doob"),
        ({"start": [0.0], "grid": "log"}, "uniform"),
        ({"start": [0.0], "steps": 0}, "at least 1"),
        ({"start": [float("nan")]}, "finite"),
        ({"start": [0.0], "auxiliary": LinearSDE(torch.zeros(2, 2))}, "2 coordinates"),
    ):
        with pytest.raises(InputError, match=words):
            condition(DOUBLE_WELL, data, **options)
    with pytest.raises(InputError, match="after the first observation"):
        condition(SDE(DOUBLE_WELL.drift, 0.8, t0=2.0), data, start=[0.0])
    with pytest.raises(InputError, match="probability zero"):
        condition(DOUBLE_WELL, Observed([1.0], times=[1.0], noise=0.0), "bootstrap", start=[0.0])
    with pytest.raises(InputError, match="small noise"):
        smooth = SDE(lambda x, t: torch.stack((x[..., 1], -x[..., 0]), -1), torch.tensor([[0.0], [1.0]], dtype=F64))
        condition(smooth, Observed([[1.0]], times=[1.0], operator=[[1.0, 0.0]], noise=0.0), start=[0.0, 0.0])
    with pytest.raises(InputTypeError, match="auxiliary is"):
        condition(DOUBLE_WELL, data, start=[0.0], auxiliary=3.0)


@pytest.mark.slow
def test_coverage_of_guided_smoothing() -> None:
    """Truths simulated from a state-dependent SDE; 90% bands of the state at four times, 200 replicates as one batch.

    A correct smoother leaves 84% to 96% at one time with probability 0.6% (binomial), at any of the four with at most
    2.4%.  Seen with these seeds: 88%, 88.5%, 87.5% and 91.5%.
    """
    R, times = 200, torch.tensor([0.4, 0.8, 1.2, 1.6], dtype=F64)
    model = SDE(lambda x, t: 2 * (x - x**3), lambda x, t: 0.6 + 0.2 * torch.tanh(x))
    truth = model.sample(R, times, steps=20, start=[0.2], seed=11).x[:, 0]
    y = truth + 0.4 * torch.randn(R, 4, 1, generator=torch.Generator().manual_seed(12), dtype=F64)
    post = condition(model, Observed(y, times=times, noise=0.4), start=[0.2], steps=20, particles=1000)
    paths = post.sample(1000, seed=3)
    x, w = paths.x[:, :, [20, 40, 60, 80], 0], paths.weights
    below = (w[..., None] * (x < truth[..., 0])).sum(0)  # the posterior's distribution function at the truth
    inside = ((below > 0.05) & (below < 0.95)).double().mean(0)
    print("coverage at the four times:", inside.tolist(), "least ESS:", float(post.ess.min()))
    assert ((inside > 0.84) & (inside < 0.96)).all()


def test_the_map_of_innovations_is_differentiable() -> None:
    """d log-weight / d (drift, diffusion) with the innovations held, against central differences."""
    data = Observed([0.4, 1.0], times=[0.5, 1.0], noise=0.1)

    def weight(theta: Tensor) -> Tensor:
        model = SDE(lambda x, t: theta[0] * x - x**3, lambda x, t: theta[1])
        guided = condition(model, data, start=[-0.5], steps=5, auxiliary="linearise").guided
        return guided.path(guided.innovations(4, _noise()))[1].sum()

    theta = torch.tensor([1.0, 0.8], dtype=F64, requires_grad=True)
    (grad,) = torch.autograd.grad(weight(theta), theta)
    for i in range(2):
        step = torch.zeros(2, dtype=F64)
        step[i] = 1e-5
        with torch.no_grad():
            slope = float(weight(theta + step) - weight(theta - step)) / 2e-5
        assert float(grad[i]) == pytest.approx(slope, rel=1e-5)


def test_collapsed_guiding_starts_again_from_an_unguided_filter() -> None:
    """A relaxation oscillator seen rarely and sharply, its fast variable alone: no linearisation from the start helps.

    The evidence of 30,000 unguided particles within 4 standard errors of both (6e-5); one round alone is off by
    hundreds.
    """

    def drift(x: Tensor, t: Tensor) -> Tensor:
        v, w = x[..., 0], x[..., 1]
        return torch.stack((3 * (v - v**3 / 3 - w + 0.5), (v + 0.7 - 0.8 * w) / 3), -1)

    model, times = SDE(drift, torch.tensor([0.1, 0.1])), [float(k) for k in range(1, 11)]
    path = model.sample(1, times, start=[-1.0, 0.0], seed=0).x[0, 0]
    y = path[:, :1] + 0.05 * torch.randn(10, 1, generator=torch.Generator().manual_seed(0), dtype=F64)
    data = Observed(y.numpy(), times=times, operator=torch.tensor([[1.0, 0.0]]), noise=0.05)
    post = condition(model, data, start=[-1.0, 0.0], steps=20)
    rough = condition(model, data, "bootstrap", start=[-1.0, 0.0], steps=20, particles=30_000)
    assert float(post.ess) > 300
    error = float(post.log_evidence - rough.log_evidence)
    assert abs(error) < 4 * math.hypot(float(post.log_evidence_se), float(rough.log_evidence_se))
    once = condition(model, data, start=[-1.0, 0.0], steps=20, rounds=1)
    assert float(once.log_evidence) < float(post.log_evidence) - 50
