"""Gaussian chains, every route, against one dense Gaussian of all nodes."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
import torch
from torch import Tensor

from kernels.scans import dense
from retrodict.core.errors import InputError, InputTypeError
from retrodict.core.noise import KeyedNoise
from retrodict.kernels.scans import gaussian
from retrodict.kernels.scans.gaussian import GaussianChain

LENGTHS = (0, 1, 2, 3, 5, 8, 16, 17)
D = 3


def close(a: Tensor | np.ndarray, b: Tensor | np.ndarray, tol: float = 1e-9) -> bool:
    return np.allclose(np.asarray(a), np.asarray(b), rtol=tol, atol=tol)


@pytest.fixture(params=list(gaussian.ROUTES))
def route(request: pytest.FixtureRequest) -> str:
    return request.param


def able(c: GaussianChain, route: str, verb: str, singular: bool = False) -> None:
    """Skip where the route says that it cannot; that it says so rightly has a test of its own."""
    reason = gaussian.ROUTES[route].refuses(c, verb)
    if reason or (singular and route == "cholesky"):
        pytest.skip(reason or "cholesky needs invertible P0 and Q")


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("singular", [True, False])
@pytest.mark.parametrize("n", LENGTHS)
def test_smoother_is_dense_conditioning(route: str, n: int, singular: bool, shared: bool) -> None:
    c = dense.chain(n, n, singular=singular, shared=shared)
    able(c, route, "smooth", singular)
    s = gaussian.smooth(c, route, cross=True)
    assert s.route == route and s.mean.shape == (2, n + 1, D) and s.cov.shape == (2, n + 1, D, D)
    assert s.cross is not None and s.cross.shape == (2, n, D, D)
    for i in range(2):
        mean, cov, log_evidence = dense.condition(c, i)
        assert close(s.mean[i].ravel(), mean)
        assert close(s.cov[i], dense.blocks(cov, D))
        assert close(gaussian.means(c, route)[0][i].ravel(), mean)
        assert close(s.log_evidence[i], log_evidence) and close(gaussian.evidence(c, route)[i], log_evidence)
        assert n == 0 or close(s.cross[i], dense.blocks(cov, D, lag=1))


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("singular", [True, False])
@pytest.mark.parametrize("n", LENGTHS)
def test_filter_is_dense_conditioning_on_the_past(route: str, n: int, singular: bool, shared: bool) -> None:
    c = dense.chain(n, n + 100, singular=singular, shared=shared)
    able(c, route, "filter", singular)
    f = gaussian.filter(c, route)
    for i in range(2):
        for k in range(n + 1):
            mean, cov, log_evidence = dense.condition(c, i, k + 1)
            assert close(f.mean[i, k], mean[k * D : (k + 1) * D])
            assert close(f.cov[i, k], dense.blocks(cov, D)[k])
        assert close(f.log_evidence[i], log_evidence)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("singular", [True, False])
@pytest.mark.parametrize("n", LENGTHS)
def test_draws_have_the_posterior_covariance_exactly(route: str, n: int, singular: bool, shared: bool) -> None:
    """A draw is mean + M z: with basis vectors for z the columns of M appear, and M M' is the covariance."""
    c = dense.chain(n, n + 200, singular=singular, shared=shared)
    able(c, route, "draw", singular)
    size = (n + 1) * D
    z = torch.zeros(size + 1, 2, size, dtype=torch.float64)
    z[:size] = torch.eye(size, dtype=torch.float64).unsqueeze(1)
    x = gaussian.draw(c, size + 1, z.reshape(size + 1, 2, n + 1, D), route).reshape(size + 1, 2, size)
    for i in range(2):
        mean, cov, _ = dense.condition(c, i)
        M = (x[:size, i] - x[size, i]).T.numpy()
        assert close(x[size, i], mean) and close(M @ M.T, cov)


@pytest.mark.parametrize("n", LENGTHS)
def test_messages_carry_the_evidence_from_every_node(route: str, n: int) -> None:
    """<law of x_k before any potential, h_k> is the evidence of the potentials at k..n alone."""
    c = dense.chain(n, n + 300, singular=n % 2 == 0)
    able(c, route, "messages")
    H, F, const = gaussian.messages(c, route)
    for k in range(n + 1):
        late = [torch.cat((torch.zeros_like(x[:, :k]), x[:, k:]), 1) for x in (c.H, c.F, c.c)]
        later = GaussianChain(*c.tensors[:5], *late)
        for i in range(2):
            mean, cov = dense.joint(c, i)
            one = torch.zeros(1, 1, D, D, dtype=torch.float64)
            m = torch.tensor(mean[k * D : (k + 1) * D])[None]
            V = torch.tensor(dense.blocks(cov, D)[k])[None]
            Hk = H.expand(2, -1, -1, -1)[i, k][None, None]
            node = GaussianChain(m, V, one, one[..., 0], one, Hk, F[i, k][None, None], const[i, k][None, None])
            assert close(gaussian.evidence(node, "loop"), dense.condition(later, i)[2])


def parameters(c: GaussianChain) -> tuple[list[Tensor], object]:
    """Free parameters of a chain, with covariances as products so that they stay symmetric, and the way back."""
    factors = [torch.linalg.cholesky(c.P0), torch.linalg.cholesky(c.Q)]
    rows = torch.linalg.eigh(c.H.expand(2, -1, -1, -1))
    W = rows.eigenvectors[..., -1:] * rows.eigenvalues[..., -1:].clamp_min(0).sqrt().unsqueeze(-1)
    leaves = [x.detach().clone().requires_grad_() for x in (c.m0, factors[0], c.A, c.b, factors[1], W, c.F, c.c)]

    def build(m0: Tensor, S0: Tensor, A: Tensor, b: Tensor, S: Tensor, W: Tensor, F: Tensor, const: Tensor):
        return GaussianChain(m0, S0 @ S0.mT, A, b, S @ S.mT, W @ W.mT, F, const)

    return leaves, build


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("n", [0, 3])
def test_gradient_of_the_evidence(route: str, n: int, shared: bool) -> None:
    c = dense.chain(n, 7, d=2, singular=False, shared=shared)
    able(c, route, "evidence")
    leaves, build = parameters(c)
    assert torch.autograd.gradcheck(lambda *x: gaussian.evidence(build(*x), route), leaves)


def test_gradient_needs_no_inverse_of_singular_matrices(route: str) -> None:
    """Singular P0 and Q: the gradient is that of autograd through the plain recursion."""
    c = dense.chain(6, 8, shared=False)
    able(c, route, "evidence", singular=True)

    def gradient(f) -> tuple[Tensor, ...]:
        leaves = [x.clone().requires_grad_() for x in c.tensors]
        return torch.autograd.grad(f(GaussianChain(*leaves)).sum(), leaves)

    def symmetric(x: Tensor, name: str) -> Tensor:
        return (x + x.mT) / 2 if name in ("P0", "Q", "H") else x

    by_tape = gradient(lambda x: gaussian.filter(x, "loop").log_evidence)
    names = ("m0", "P0", "A", "b", "Q", "H", "F", "c")
    for name, a, b in zip(names, gradient(lambda x: gaussian.evidence(x, route)), by_tape):
        assert close(symmetric(a, name), symmetric(b, name)), name


def test_second_derivatives_of_the_evidence(route: str) -> None:
    c = dense.chain(2, 9, S=1, d=2, singular=False)
    able(c, route, "evidence")
    A, b = c.A.clone().requires_grad_(), c.b.clone().requires_grad_()
    f = lambda A, b: gaussian.evidence(GaussianChain(c.m0, c.P0, A, b, *c.tensors[4:]), route)  # noqa: E731
    assert torch.autograd.gradgradcheck(f, (A, b))


def test_series_do_not_touch_each_other(route: str) -> None:
    c = dense.chain(9, 10, S=4, singular=False)
    able(c, route, "smooth")
    whole = gaussian.smooth(c, route)
    for i in range(4):
        one = gaussian.smooth(GaussianChain(*(x[i : i + 1] for x in c.tensors)), route)
        assert close(one.mean[0], whole.mean[i], 1e-12) and close(one.log_evidence[0], whole.log_evidence[i], 1e-12)


def test_draws_depend_on_their_slot_alone(route: str) -> None:
    c = dense.chain(4, 11, singular=False)
    able(c, route, "draw")
    many = gaussian.draw(c, 5, 3, route)
    assert many.shape == (5, 2, 5, D)
    few = gaussian.draw(c, 2, KeyedNoise(3, [1, 4], dtype=torch.float64), route)
    assert close(many[[1, 4]], few, 1e-12)


def test_cholesky_refuses_what_it_cannot_invert() -> None:
    c = dense.chain(5, 12)
    for f in (gaussian.smooth, gaussian.evidence, lambda c, r: gaussian.draw(c, 2, 0, r)):
        with pytest.raises(InputError, match=r"needs well-conditioned P0, Q and posterior precision, and P0 is"):
            f(c, "cholesky")
    for verb in ("filter", "messages"):
        with pytest.raises(InputError, match=f"route 'cholesky' cannot {verb} this chain"):
            getattr(gaussian, verb)(c, "cholesky")
    assert gaussian.smooth(c).route != "cholesky"
    leaves = [x.requires_grad_() for x in dense.chain(5, 12, singular=False).tensors]
    with pytest.raises(InputError, match="its gradients are those of the evidence only"):
        gaussian.smooth(GaussianChain(*leaves), "cholesky")


def test_cholesky_hands_a_nearly_singular_precision_on() -> None:
    """Nearly noiseless rotations: P0 and Q have inverses, but in the precision those of Q drown what was seen."""
    c = dense.chain(60, 13, singular=False)
    A = torch.linalg.qr(c.A).Q
    near = GaussianChain(c.m0, c.P0, A, c.b, c.Q * 1e-13, c.H, c.F, c.c)
    with pytest.raises(InputError, match="the precision is"):
        gaussian.smooth(near, "cholesky")
    s = gaussian.smooth(near)
    assert s.route != "cholesky"
    assert close(s.mean, gaussian.smooth(near, "loop").mean, 1e-7)


def test_bad_input_says_what_is_wrong() -> None:
    c = dense.chain(4, 0)
    tensors = dict(zip(("m0", "P0", "A", "b", "Q", "H", "F", "c"), c.tensors))
    with pytest.raises(InputError, match=r"GaussianChain\.A has shape \(2, 3, 3, 3\); \(2\|1, 4\|1, 3, 3\)"):
        GaussianChain(**(tensors | {"A": c.A[:, 1:]}))
    with pytest.raises(InputTypeError, match=r"GaussianChain\.m0 is a tensor"):
        GaussianChain(**(tensors | {"m0": [0.0]}))
    with pytest.raises(InputError, match=r"GaussianChain\.H has 4 axes"):
        GaussianChain(**(tensors | {"H": c.H[0]}))
    with pytest.raises(InputError, match=r"Did you mean 'scan'"):
        gaussian.smooth(c, "scna")
    with pytest.raises(InputError, match="3 slots for 2 draws"):
        gaussian.draw(c, 2, KeyedNoise(0, 3, dtype=torch.float64))
    with pytest.raises(InputError, match="normals have shape"):
        gaussian.draw(c, 2, torch.zeros(2, 4, 3, dtype=torch.float64))


def test_diffuse_prior_against_fifty_digits(route: str) -> None:
    """A local linear trend started from a variance of 1e7 at data around 100: the evidence to 1e-8, the means to 1e-12.

    The reference is the dense Gaussian in 50 digits.
    """
    n, scale, q, noise = 8, 1e7, 0.1, 1.0
    A, Q = torch.tensor([[1.0, 1.0], [0.0, 1.0]], dtype=torch.float64), torch.tensor([q, q / 10], dtype=torch.float64)
    y = 100 + 3 * dense.normals(0)(n + 1).cumsum(0)
    F = torch.stack((y / noise, torch.zeros_like(y)), -1)
    H = torch.tensor([[1 / noise, 0.0], [0.0, 0.0]], dtype=torch.float64)
    const = -0.5 * (y.square() / noise + np.log(2 * np.pi * noise))
    zero = torch.zeros(1, 1, 2, dtype=torch.float64)
    P0 = scale * torch.eye(2, dtype=torch.float64)
    c = GaussianChain(
        zero[0], P0[None], A[None, None], zero, torch.diag(Q)[None, None], H[None, None], F[None], const[None]
    )
    with mpmath.workdps(50):
        # x_k[0] is linear in (x_0, w_1, ..., w_n): rows of the map, in exact arithmetic
        rows = mpmath.matrix(n + 1, 2 * (n + 1))
        for k in range(n + 1):
            for j in range(k + 1):
                rows[k, 2 * j], rows[k, 2 * j + 1] = 1, k - j
        spread = mpmath.diag([mpmath.mpf(scale)] * 2 + [mpmath.mpf(float(v)) for v in Q] * n)
        cov = rows * spread * rows.T + noise * mpmath.eye(n + 1)
        v = mpmath.matrix([mpmath.mpf(float(x)) for x in y])
        solved = mpmath.lu_solve(cov, v)
        quadratic = (v.T * solved)[0]
        want = -(quadratic + mpmath.log(mpmath.det(cov)) + (n + 1) * mpmath.log(2 * mpmath.pi)) / 2
        signal = (rows * spread * rows.T) * solved
        want, level = float(want), np.array([float(x) for x in signal])
    assert abs(float(gaussian.evidence(c, route)) - want) < 1e-8
    assert close(gaussian.means(c, route)[0][0, :, 0], level, 1e-12)


def test_parameters_that_want_gradients_may_be_used_without(route: str) -> None:
    c = dense.chain(5, 14, singular=False)
    leaves = GaussianChain(*(x.clone().requires_grad_() for x in c.tensors))
    with torch.no_grad():
        assert torch.equal(gaussian.smooth(leaves, route).cov, gaussian.smooth(c, route).cov)
        assert torch.equal(gaussian.draw(leaves, 2, 0, route), gaussian.draw(c, 2, 0, route))
        assert torch.equal(gaussian.evidence(leaves, route), gaussian.evidence(c, route))
