"""Linear-Gaussian kernels, messages and chains against one dense Gaussian of everything."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from retrodict.core.errors import InputError, InputTypeError
from retrodict.core.lin import Lin
from retrodict.core.noise import KeyedNoise
from retrodict.kernels import Chain, Factor, Gaussian, LinearGaussian, Point, Quadratic, Table

BATCH, D = 2, 3


def rng(seed: int):
    g = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)


def spread(normal, *lead: int) -> Tensor:
    root = normal(*lead, D, D)
    return root @ root.mT / D + 0.1 * torch.eye(D, dtype=torch.float64)


class Model:
    """A random chain ``x_0 -> ... -> x_T`` with linear observations at some times, for a batch of series.

    Transition noises cycle through full rank, rank one and zero; the observations are of one or two
    coordinates (so that no message is of full rank), some of them missing.
    """

    def __init__(self, length: int, seed: int, observe_start: bool = True, prior_rank: int = D) -> None:
        normal = rng(seed)
        self.prior = Gaussian(normal(BATCH, D), Lin.dense(spread(normal, BATCH)))
        if prior_rank < D:  # singular: a start that is known in some directions, or altogether
            root = normal(BATCH, D, max(prior_rank, 1)) * (prior_rank > 0)
            self.prior = Gaussian(self.prior.mean, Lin.dense(root @ root.mT))
        self.transitions, self.observations = [], {}
        for n in range(length):
            v = normal(BATCH, D)
            rank_one = v.unsqueeze(-1) * v.unsqueeze(-2)
            noise = [spread(normal, BATCH), rank_one, torch.zeros(BATCH, D, D, dtype=torch.float64)][n % 3]
            A = normal(BATCH, D, D) * 0.6
            self.transitions.append(LinearGaussian(Lin.dense(A), normal(BATCH, D), Lin.dense(noise)))
        for n in range(0 if observe_start else 1, length + 1, 1 if length < 4 else 2):
            rows = 1 + n % 2
            y = normal(BATCH, rows)
            if n % 3 == 2:
                y[0, 0] = math.nan
            root = normal(rows, rows)
            R = root @ root.mT + 0.2 * torch.eye(rows, dtype=torch.float64)
            self.observations[n] = (y, normal(rows, D), R)

    def chain(self) -> Chain:
        links = []
        for n in range(len(self.transitions) + 1):
            if n:
                links.append(self.transitions[n - 1])
            if n in self.observations:
                y, H, R = self.observations[n]
                links.append(Factor(Quadratic.observe(y, Lin.dense(H), Lin.dense(R))))
        return Chain(*links)

    def joint(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Mean and covariance of (x_0, ..., x_T) of series i."""
        T = len(self.transitions)
        mean = [self.prior.mean[i].numpy()]
        cov = np.zeros((T + 1, T + 1, D, D))
        cov[0, 0] = self.prior.cov.value[i].numpy()
        for n, k in enumerate(self.transitions):
            A = k.A.value[i].numpy()
            mean.append(A @ mean[n] + k.b[i].numpy())
            for m in range(n + 1):
                cov[n + 1, m] = A @ cov[n, m]
                cov[m, n + 1] = cov[n + 1, m].T
            cov[n + 1, n + 1] = A @ cov[n, n] @ A.T + k.Q.value[i].numpy()
        size = (T + 1) * D
        return np.concatenate(mean), cov.transpose(0, 2, 1, 3).reshape(size, size)

    def posterior(self, i: int) -> tuple[np.ndarray, np.ndarray, float]:
        """Posterior mean, covariance and log evidence of series i, by conditioning the dense Gaussian."""
        mean, cov = self.joint(i)
        rows, values, noise = [], [], []
        for n, (y, H, R) in self.observations.items():
            seen = ~torch.isnan(y[i]).numpy()
            block = np.zeros((int(seen.sum()), len(mean)))
            block[:, n * D : (n + 1) * D] = H.numpy()[seen]
            rows.append(block)
            values.append(y[i].numpy()[seen])
            noise.append(R.numpy()[np.ix_(seen, seen)])
        H, y = np.concatenate(rows), np.concatenate(values)
        R = np.zeros((len(y), len(y)))
        at = 0
        for block in noise:
            R[at : at + len(block), at : at + len(block)] = block
            at += len(block)
        S = H @ cov @ H.T + R
        gain = cov @ H.T @ np.linalg.inv(S)
        evidence = stats.multivariate_normal(H @ mean, S).logpdf(y) if len(y) else 0.0
        return mean + gain @ (y - H @ mean), cov - gain @ H @ cov, float(evidence)


@pytest.mark.parametrize("length", [1, 2, 3, 5, 8, 16, 17])
@pytest.mark.parametrize(("observe_start", "prior_rank"), [(True, D), (False, D), (True, 1), (True, 0)])
def test_smoothing_and_evidence_equal_the_dense_gaussian(length, observe_start, prior_rank):
    model = Model(length, seed=length, observe_start=observe_start, prior_rank=prior_rank)
    chain = model.chain()
    residual, message = chain.pull()
    start, evidence = model.prior.fuse(message)
    laws = residual.laws(start)
    if observe_start:
        laws = laws[1:]  # the link of the observation at time 0
    after = [
        law
        for law, link in zip(laws, chain.links[1:] if observe_start else chain.links)
        if isinstance(link, LinearGaussian)
    ]
    for i in range(BATCH):
        mean, cov, expected = model.posterior(i)
        assert abs(float(evidence[i]) - expected) < 1e-9
        for n, law in enumerate([start, *after]):
            where = slice(n * D, (n + 1) * D)
            assert np.abs(law.mean[i].numpy() - mean[where]).max() < 1e-9
            assert np.abs(law.cov.value[i].numpy() - cov[where, where]).max() < 1e-9


@pytest.mark.parametrize("length", [1, 3, 8])
def test_filtering_is_push_with_bayes_at_the_observations(length):
    """The law after the last link, pushed forward, is the last marginal of the posterior."""
    model = Model(length, seed=20 + length)
    law = model.chain().push(model.prior)
    for i in range(BATCH):
        mean, cov, _ = model.posterior(i)
        assert np.abs(law.mean[i].numpy() - mean[-D:]).max() < 1e-9
        assert np.abs(law.cov.value[i].numpy() - cov[-D:, -D:]).max() < 1e-9


def test_guided_paths_have_constant_weights_and_the_posterior_law():
    """Guided draws are affine in the innovations: their moments are exact, from a basis of innovations."""
    model = Model(3, seed=5)
    chain = model.chain()
    residual, message = chain.pull()
    start, _ = model.prior.fuse(message)
    noise = KeyedNoise(0, BATCH, dtype=torch.float64)
    z = chain.draw(noise, (D,))
    x, log_weight = chain.guide(residual, start.sample(noise), z)
    assert x.shape == (BATCH, D)
    assert bool((log_weight == 0).all())
    # covariance of x_T given x_0: one push of a unit innovation at a time
    x0 = start.mean
    zero = [None if v is None else torch.zeros_like(v) for v in z]
    base = chain.guide(residual, x0, zero)[0]
    columns = []
    for n, v in enumerate(z):
        if v is None:
            continue
        for j in range(D):
            unit = [w if w is None else w.clone() for w in zero]
            unit[n][:, j] = 1.0
            columns.append(chain.guide(residual, x0, unit)[0] - base)
    carry = torch.stack([chain.guide(residual, x0 + e, zero)[0] - base for e in torch.eye(D, dtype=torch.float64)], -1)
    G = torch.stack(columns, -1)
    cov = G @ G.mT + carry @ start.cov.value @ carry.mT
    for i in range(BATCH):
        mean, expected, _ = model.posterior(i)
        assert np.abs(base[i].numpy() - mean[-D:]).max() < 1e-9
        assert np.abs(cov[i].numpy() - expected[-D:, -D:]).max() < 1e-9


def test_pull_is_the_h_transform():
    """k(x, y) h(y) = h'(x) k*(x, y) at every x and y, for a singular h."""
    normal = rng(1)
    kernel = LinearGaussian(Lin.dense(normal(D, D)), normal(BATCH, D), Lin.dense(spread(normal)))
    h = Quadratic.observe(normal(BATCH, 1), Lin.dense(normal(1, D)), Lin.scalar(torch.tensor(0.3, dtype=torch.float64)))
    guided, earlier = kernel.pull(h)
    x, y = normal(BATCH, D), normal(BATCH, D)
    left = kernel.log_prob(x, y) + h(y)
    right = earlier(x) + guided.log_prob(x, y)
    assert torch.allclose(left, right, rtol=0, atol=1e-11)


def test_pull_of_an_image_message_with_scalar_maps_equals_the_flattened_one():
    normal = rng(2)
    shape = (4, 3, 8, 8)
    a, q = torch.rand(4, dtype=torch.float64) + 0.2, torch.tensor([0.5, 0.1, 0.0, 2.0], dtype=torch.float64)
    b, F = normal(*shape), normal(*shape)
    H = torch.tensor([0.0, 1.0, 3.0, 0.4], dtype=torch.float64)
    kernel = LinearGaussian(Lin.scalar(a), b, Lin.scalar(q))
    guided, h = kernel.pull(Quadratic(Lin.scalar(H), F, torch.zeros(4, dtype=torch.float64)))
    x = normal(*shape)
    assert h.F.shape == shape and h.c.shape == (4,)
    for i in range(4):
        n = 3 * 8 * 8
        eye = torch.eye(n, dtype=torch.float64)
        flat = LinearGaussian(Lin.dense(a[i] * eye), b[i].reshape(1, n), Lin.dense(q[i] * eye))
        message = Quadratic(Lin.dense(H[i] * eye), F[i].reshape(1, n), torch.zeros(1, dtype=torch.float64))
        guided_flat, h_flat = flat.pull(message)
        xi = x[i].reshape(1, n)
        assert torch.allclose(h(x)[i], h_flat(xi)[0], rtol=1e-12, atol=1e-9)
        assert torch.allclose(guided.mean(x)[i].reshape(1, n), guided_flat.mean(xi), atol=1e-12)
        assert torch.allclose(guided.Q.value[i] * eye, guided_flat.Q.value, atol=1e-12)


@pytest.mark.parametrize("kind", ["scalar", "diagonal", "dense"])
def test_invert_is_bayes_rule(kind):
    """p(x) k(x, y) = p(y) k'(y, x)."""
    normal = rng(3)
    lift = {
        "scalar": lambda v: Lin.scalar(v[:, 0]),
        "diagonal": lambda v: Lin.diagonal(v),
        "dense": lambda v: Lin.dense(torch.diag_embed(v) + (0.1 if (v > 0).all() else 0.3)),
    }[kind]
    A, Q, V = normal(BATCH, D), normal(BATCH, D) ** 2 + 0.1, normal(BATCH, D) ** 2 + 0.1
    kernel = LinearGaussian(lift(A), normal(BATCH, D), lift(Q))
    law = Gaussian(normal(BATCH, D), lift(V))
    x, y = normal(BATCH, D), normal(BATCH, D)
    left = law.log_prob(x) + kernel.log_prob(x, y)
    right = kernel.push(law).log_prob(y) + kernel.invert(law).log_prob(y, x)
    assert torch.allclose(left, right, atol=1e-11)


@pytest.mark.parametrize("kind", ["scalar", "diagonal", "dense"])
def test_lens_law(kind):
    """Inverting a composite is composing the inverses, backward, at the laws that reach them."""
    normal = rng(4)
    lift = {
        "scalar": lambda v: Lin.scalar(v[0, 0]),
        "diagonal": lambda v: Lin.diagonal(v[0]),
        "dense": Lin.dense,
    }[kind]
    square = (lambda: normal(D, D) @ torch.eye(D, dtype=torch.float64)) if kind == "dense" else (lambda: normal(1, D))
    cov = (lambda: spread(normal)) if kind == "dense" else (lambda: normal(1, D) ** 2 + 0.2)
    kernels = [LinearGaussian(lift(square()), normal(BATCH, D), lift(cov())) for _ in range(3)]
    law = Gaussian(normal(BATCH, D), lift(cov()))
    whole = kernels[0]
    for k in kernels[1:]:
        whole = LinearGaussian(k.A @ whole.A, k.mean(whole.b), k.A @ whole.Q @ k.A.T + k.Q)
    chain = (kernels[0] >> kernels[1] >> kernels[2]).invert(law)
    inverse = chain.links[0]
    for k in chain.links[1:]:
        inverse = LinearGaussian(k.A @ inverse.A, k.mean(inverse.b), k.A @ inverse.Q @ k.A.T + k.Q)
    expected = whole.invert(law)
    for a, b in ((inverse.A, expected.A), (inverse.Q, expected.Q)):
        assert torch.allclose(a.value, b.value, atol=1e-12)
    assert torch.allclose(inverse.b, expected.b, atol=1e-12)
    # and it carries the law at the end back to the law at the start
    back = chain.push((kernels[0] >> kernels[1] >> kernels[2]).push(law))
    assert torch.allclose(back.mean, law.mean, atol=1e-12)
    assert torch.allclose(back.cov.value, law.cov.value, atol=1e-12)


def test_grouping_does_not_matter():
    normal = rng(6)
    a, b, c = (LinearGaussian(Lin.dense(normal(D, D)), normal(BATCH, D), Lin.dense(spread(normal))) for _ in range(3))
    assert ((a >> b) >> c).links == (a >> (b >> c)).links == (a, b, c)


@pytest.mark.parametrize("R", ["scalar", "diagonal", "dense"])
def test_missing_coordinates_leave_the_likelihood(R):
    normal = rng(7)
    m = 4
    y, H, x = normal(BATCH, m), normal(m, D), normal(BATCH, D)
    root = normal(m, m)
    cov = {
        "scalar": Lin.scalar(torch.tensor(0.7, dtype=torch.float64)),
        "diagonal": Lin.diagonal(normal(m) ** 2 + 0.1),
        "dense": Lin.dense(root @ root.mT + 0.1 * torch.eye(m, dtype=torch.float64)),
    }[R]
    matrix = cov.value if R == "dense" else torch.diag(cov.value.expand(m).clone())
    y[0, 1] = y[1, 0] = y[1, 3] = math.nan
    log_h = Quadratic.observe(y, Lin.dense(H), cov)(x)
    for i in range(BATCH):
        seen = ~torch.isnan(y[i])
        law = stats.multivariate_normal((H @ x[i])[seen].numpy(), matrix[seen][:, seen].numpy())
        assert abs(float(log_h[i]) - law.logpdf(y[i][seen].numpy())) < 1e-11


def test_missing_pixels_leave_the_likelihood_of_an_image():
    normal = rng(14)
    y, x = normal(BATCH, 1, 4, 4), normal(BATCH, 1, 4, 4)
    y[0, 0, 1, 2] = y[1, 0, 3] = math.nan
    log_h = Quadratic.observe(y, Lin.scalar(2.0), Lin.scalar(torch.tensor(0.3, dtype=torch.float64)))(x)
    expected = torch.nansum(-0.5 * ((y - 2 * x) ** 2 / 0.3 + math.log(2 * math.pi * 0.3)), (1, 2, 3))
    assert torch.allclose(log_h, expected, atol=1e-11)
    with pytest.raises(InputError, match="a spectral covariance mixes them"):
        Quadratic.observe(y, Lin.scalar(2.0), Lin.spectral(torch.ones(4, 4), event=2))


def test_nothing_observed_is_the_flat_message():
    y = torch.full((BATCH, 2), math.nan, dtype=torch.float64)
    normal = rng(8)
    h = Quadratic.observe(y, Lin.dense(normal(2, D)), Lin.scalar(torch.tensor(0.5, dtype=torch.float64)))
    assert torch.allclose(h(normal(BATCH, D)), torch.zeros(BATCH, dtype=torch.float64), atol=1e-14)
    x = normal(BATCH, D)
    assert Quadratic.flat(x)(x).equal(torch.zeros(BATCH, dtype=torch.float64))


@pytest.mark.parametrize("rank", [0, 1, D])
def test_the_integral_of_a_message_needs_no_inverse(rank):
    """Against the density of the observation that the message came from; the law may be singular."""
    normal = rng(9)
    U = normal(BATCH, D, max(rank, 1)) * (rank > 0)
    law = Gaussian(normal(BATCH, D), Lin.dense(U @ U.mT))
    H, y = normal(1, D), normal(BATCH, 1)
    h = Quadratic.observe(y, Lin.dense(H), Lin.scalar(torch.tensor(0.4, dtype=torch.float64)))
    variance = (H @ law.cov.value @ H.mT).flatten(1) + 0.4
    expected = stats.norm((law.mean @ H.mT).numpy(), variance.sqrt().numpy()).logpdf(y.numpy())[:, 0]
    assert np.abs(h.integrate(law).numpy() - expected).max() < 1e-11


def test_fused_messages_multiply():
    normal = rng(10)
    h = [Quadratic(Lin.dense(spread(normal)), normal(BATCH, D), normal(BATCH)) for _ in range(2)]
    x = normal(BATCH, D)
    assert torch.allclose(h[0].fuse(h[1])(x), h[0](x) + h[1](x), atol=1e-12)


def test_densities_and_draws_of_a_gaussian():
    """log_prob against SciPy; draws by a chi-square of the Mahalanobis distance (false-alarm rate 1e-4)."""
    normal = rng(11)
    n = 4000
    V = spread(normal)
    law = Gaussian(normal(D).expand(n, D), Lin.dense(V))
    x = law.sample(KeyedNoise(0, n, dtype=torch.float64))
    expected = stats.multivariate_normal(law.mean[0].numpy(), V.numpy()).logpdf(x.numpy())
    assert np.abs(law.log_prob(x).numpy() - expected).max() < 1e-9
    difference = (x - law.mean).numpy()
    distance = (difference @ np.linalg.inv(V.numpy()) * difference).sum(1)
    assert stats.kstest(distance, stats.chi2(D).cdf).pvalue > 1e-4


def test_log_prob_counts_the_axes_of_an_event():
    """Leading axes broadcast: densities of every datum against every state, for one time each."""
    normal = rng(12)
    data, states = normal(5, 2, 2), normal(3, 2, 2)
    sigma = torch.tensor([0.3, 1.0, 2.0], dtype=torch.float64)
    kernel = LinearGaussian(Lin.scalar(torch.ones(3, 1, dtype=torch.float64)), 0.0, Lin.scalar(sigma[:, None] ** 2))
    table = kernel.log_prob(data.unsqueeze(0), states.unsqueeze(1), event=2)
    assert table.shape == (3, 5)
    for i in range(3):
        expected = stats.norm(data.numpy(), float(sigma[i])).logpdf(states[i].numpy()).sum((1, 2))
        assert np.abs(table[i].numpy() - expected).max() < 1e-11


def test_point_masses_push_to_the_kernel_itself():
    normal = rng(13)
    kernel = LinearGaussian(Lin.dense(normal(D, D)), normal(BATCH, D), Lin.dense(spread(normal)))
    x = normal(BATCH, D)
    law = kernel.push(Point(x))
    assert law.mean.equal(kernel.mean(x)) and torch.allclose(law.cov.value, kernel.Q.value)


def test_single_precision_states_keep_their_dtype():
    kernel = LinearGaussian(
        Lin.scalar(torch.tensor(0.5, dtype=torch.float64)),
        1.0,
        Lin.scalar(torch.tensor(2.0, dtype=torch.float64)),
    )
    x = torch.randn(4, 3)
    assert kernel.sample(x, KeyedNoise(0, 4)).dtype == torch.float32
    assert kernel.push(Point(x)).mean.dtype == torch.float32


def test_wrong_kinds_are_refused():
    kernel = LinearGaussian(Lin.scalar(1.0), 0.0, Lin.scalar(1.0))
    with pytest.raises(InputError, match="at least one kernel"):
        Chain()
    chain = kernel >> kernel
    with pytest.raises(InputTypeError, match="what pull returned"):
        chain.guide(kernel, torch.zeros(1, 2), chain.draw(KeyedNoise(0, 1), (2,)))
    with pytest.raises(InputTypeError, match="LinearGaussian cannot pull Table"):
        kernel.pull(Table(torch.zeros(1, 2)))
