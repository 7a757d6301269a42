"""Non-linear Gaussian kernels: exact against linear ones, quadrature and constraints."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from retrodict.core.errors import InputError
from retrodict.core.lin import Lin
from retrodict.core.noise import GeneratorNoise, KeyedNoise
from retrodict.kernels import LinearGaussian, Quadratic
from retrodict.kernels.euler import Doob, EulerStep, NonLinearGaussian, Pin, dispersion, jacobian, whiten

F64 = torch.float64


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def message(batch: int, d: int, rank: int, seed: int) -> Quadratic:
    root = normal(seed, batch, d, rank)
    H = root @ root.mT
    return Quadratic(Lin.dense(H), (H @ normal(seed + 1, batch, d, 1)).squeeze(-1), normal(seed + 2, batch))


@pytest.mark.parametrize("rank_Q", [1, 2, 3])
@pytest.mark.parametrize("rank_H", [0, 1, 3])
def test_a_linear_mean_is_guided_as_the_linear_kernel_guides(rank_Q: int, rank_H: int) -> None:
    """kappa~ = kappa: the weight is exactly one, and the draw has the mean and covariance of the linear guide."""
    batch, d = 4, 3
    A, b, S = normal(0, d, d), normal(1, d), normal(2, d, rank_Q)
    linear = LinearGaussian(A, b.expand(batch, d), S @ S.mT)
    kernel = NonLinearGaussian(lambda x: x @ A.mT + b, root=lambda x: S.unsqueeze(0), aux=linear)
    h = message(batch, d, rank_H, 5)
    guided, earlier = kernel.pull(h)
    exact, same = linear.pull(h)
    x = normal(9, batch, d)
    torch.testing.assert_close(earlier(x), same(x))
    y0, log_w = kernel.guide(guided, x, torch.zeros(batch, rank_Q, dtype=F64))
    assert log_w.abs().max() < 1e-10
    torch.testing.assert_close(y0, exact.mean(x), rtol=1e-9, atol=1e-9)
    columns = [
        kernel.guide(guided, x, torch.eye(rank_Q, dtype=F64)[i].expand(batch, -1))[0] - y0 for i in range(rank_Q)
    ]
    spread = torch.stack(columns, -1)
    torch.testing.assert_close(spread @ spread.mT, exact.Q.value, rtol=1e-9, atol=1e-9)


def grid(n: int = 4001, width: float = 8.0) -> tuple[Tensor, float]:
    y = torch.linspace(-width, width, n, dtype=F64)
    return y, float(y[1] - y[0])


@pytest.mark.parametrize("weight", ["doob", "path"])
def test_one_step_is_unbiased_whatever_the_auxiliary(weight: str) -> None:
    """E[w] h'(x) = (kappa h)(x), the right side by quadrature.  Two-sided 4 s.e.: false alarm 6e-5."""
    kernel = EulerStep(
        lambda x, t: x - x**3, lambda x, t: 0.8 + 0.3 * torch.tanh(x), 0.0, 0.3,
        aux=LinearGaussian(Lin.scalar(0.8), 0.1, Lin.scalar(0.36)), weight=weight,
    )  # fmt: skip
    h = Quadratic(Lin.dense(torch.full((1, 1, 1), 3.0, dtype=F64)), torch.full((1, 1), 2.0, dtype=F64), normal(0, 1))
    x = torch.tensor([[0.4]], dtype=F64)
    y, dy = grid()
    truth = (kernel.log_prob(x, y[:, None]) + h(y[:, None])).exp().sum() * dy
    n = 40_000
    guided, earlier = kernel.pull(h)
    xs = x.expand(n, 1)
    _, log_w = kernel.guide(
        guided, xs, kernel.draw(GeneratorNoise(torch.Generator().manual_seed(1), n, dtype=F64), (1,))
    )
    estimate = (log_w + earlier(xs)).exp()
    assert abs(estimate.mean() - truth) < 4 * estimate.std() / math.sqrt(n) + 1e-9 * truth


def test_guided_draws_follow_the_tilted_law() -> None:
    """Mean and variance of the guided step against quadrature; 4 s.e. each: false alarm 1e-4."""
    kernel = EulerStep(lambda x, t: x - x**3, 0.8, 0.0, 0.3, aux=LinearGaussian(1.0, 0.0, 0.2))
    h = Quadratic(Lin.dense(torch.full((1, 1, 1), 3.0, dtype=F64)), torch.full((1, 1), 2.0, dtype=F64), normal(0, 1))
    x = torch.tensor([[0.4]], dtype=F64)
    y, _ = grid()
    p = torch.softmax(kernel.log_prob(x, y[:, None]) + h(y[:, None]), 0)
    mean = (p * y).sum()
    var = (p * (y - mean) ** 2).sum()
    n = 20_000
    drawn, _ = kernel.guide(kernel.pull(h)[0], x.expand(n, 1), normal(3, n, 1))
    assert abs(drawn.mean() - mean) < 4 * (var / n).sqrt()
    assert abs(drawn.var() - var) < 4 * var * math.sqrt(2 / n)


def test_a_pin_is_the_limit_of_a_small_noise_and_is_met_exactly() -> None:
    d, p = 3, 2
    S, E, e = normal(0, 1, 1, d, d), normal(1, 1, 1, p, d), normal(2, 1, 1, p)
    h = message(1, d, 2, 3)
    H, F, c = h.H.value.unsqueeze(1), h.F.unsqueeze(1), h.c.unsqueeze(1)
    m, z = normal(7, 1, 5, d), normal(8, 1, 5, d)
    y, log_kh = Doob(H, F, c, S, Pin(E, e))(m, z)
    torch.testing.assert_close(y @ E[0, 0].mT, e.expand(1, 5, p), rtol=1e-11, atol=1e-11)
    eps = 1e-8
    seen = Quadratic.observe(e[0], Lin.dense(E[0, 0]), Lin.dense(eps * torch.eye(p, dtype=F64)))
    near = Doob(H + seen.H.value, F + seen.F, c + seen.c, S)
    torch.testing.assert_close(near(m, z * 0)[1], log_kh, rtol=0, atol=1e-5)
    torch.testing.assert_close(near(m, z * 0)[0], Doob(H, F, c, S, Pin(E, e))(m, z * 0)[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("r", [1, 2, 3, 4])
def test_whiten_is_the_inverse_of_the_cholesky_factor(r: int) -> None:
    root, B = normal(0, 5, r, r), normal(1, 5, r, 2)
    K = torch.eye(r, dtype=F64) + root @ root.mT
    W, log_det = whiten(K, B)
    L = torch.linalg.cholesky(K)
    torch.testing.assert_close(L @ W, B)
    torch.testing.assert_close(log_det, 0.5 * torch.logdet(K))


def test_a_pin_without_noise_raises() -> None:
    S = torch.tensor([[0.0], [1.0]], dtype=F64).expand(1, 1, 2, 1)
    zero = torch.zeros(1, 1, 2, 2, dtype=F64)
    pin = Pin(torch.tensor([[[[1.0, 0.0]]]], dtype=F64), torch.zeros(1, 1, 1, dtype=F64))
    with pytest.raises(InputError, match="small noise"):
        Doob(zero, zero[..., 0], zero[..., 0, 0], S, pin)


def test_dispersion_reads_numbers_diagonals_and_matrices() -> None:
    x = normal(0, 2, 5, 3)
    eye = torch.eye(3, dtype=F64)
    torch.testing.assert_close(dispersion(2.0, x), 2 * eye[None, None])
    torch.testing.assert_close(dispersion(x[..., :1], x), x[..., :1, None] * eye)
    torch.testing.assert_close(dispersion(x, x), torch.diag_embed(x))
    assert dispersion(eye[:, :2], x).shape == (1, 1, 3, 2)
    assert dispersion(normal(1, 2, 1, 3, 2), x).shape == (2, 1, 3, 2)
    for wrong in (normal(0, 4), normal(0, 2, 2), normal(0, 2, 5, 4)):
        with pytest.raises(InputError, match="accepted are"):
            dispersion(wrong, x)


def test_jacobian_is_each_points_own() -> None:
    A = normal(0, 3, 3)
    x = normal(1, 2, 4, 3)
    value, J = jacobian(lambda x: torch.tanh(x @ A.mT), x)
    torch.testing.assert_close(J, (1 - value**2).unsqueeze(-1) * A)


def test_errors_say_what_to_do() -> None:
    kernel = EulerStep(lambda x, t: -x, 1.0, 0.0, 0.1)
    with pytest.raises(InputError, match="linearised"):
        kernel.pull(message(1, 1, 1, 0))
    with pytest.raises(InputError, match="positive"):
        EulerStep(lambda x, t: -x, 1.0, 0.0, 0.0)
    with pytest.raises(InputError, match="either"):
        NonLinearGaussian(lambda x: x)
    singular = EulerStep(lambda x, t: -x, torch.tensor([[0.0], [1.0]], dtype=F64), 0.0, 0.1)
    with pytest.raises(InputError, match="1 of 2"):
        singular.log_prob(normal(0, 3, 2), normal(1, 3, 2))
    assert singular.draw(KeyedNoise(0, 4), (2,)).shape == (4, 1)


def test_linearised_weights_are_small_near_the_point() -> None:
    """The linearisation is of first order: halving the distance divides the log weight by four."""
    at = torch.tensor([[0.3, -0.2]], dtype=F64)
    kernel = EulerStep(lambda x, t: torch.sin(x) + x.flip(-1) ** 2, 0.5, 0.0, 0.1).linearised(at)
    h = message(1, 2, 2, 4)
    guided, _ = kernel.pull(h)
    z = torch.zeros(1, 2, dtype=F64)
    far, near = (kernel.guide(guided, at + step, z)[1].abs() for step in (2e-2, 1e-2))
    assert 3.5 < float(far / near) < 4.5
