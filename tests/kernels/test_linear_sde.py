"""Transitions of linear diffusions against closed forms, quadrature and one another."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import integrate, linalg

from retrodict.core.errors import InputError
from retrodict.kernels import LinearSDE

D = 3


def system(seed: int = 0, scale: float = 1.0):
    g = torch.Generator().manual_seed(seed)
    B = scale * torch.randn(D, D, generator=g, dtype=torch.float64)
    return B, torch.randn(D, generator=g, dtype=torch.float64), torch.randn(D, 1, generator=g, dtype=torch.float64)


@pytest.mark.parametrize("dt", [0.0, 0.01, 1.3])
def test_transitions_equal_the_integrals(dt):
    B, beta, sigma = system()
    kernel = LinearSDE(B, beta, sigma).kernel(0.5, 0.5 + dt)
    b, a = B.numpy(), (sigma @ sigma.mT).numpy()

    def integrand(u: float) -> np.ndarray:
        E = linalg.expm(b * u)
        return np.concatenate([(E @ a @ E.T).ravel(), E @ beta.numpy()])

    total = integrate.quad_vec(integrand, 0, dt, epsabs=1e-13)[0]
    assert np.abs(kernel.A.value.numpy() - linalg.expm(b * dt)).max() < 1e-12
    assert np.abs(kernel.Q.value.numpy().ravel() - total[: D * D]).max() < 1e-11
    assert np.abs(kernel.b.numpy() - total[D * D :]).max() < 1e-12


def test_stiff_and_slow_parts_keep_their_precision():
    """Rates 1000 and 0.01 over a time of 50, coupled by a rotation: one exponential of -B dt would overflow."""
    c, s = math.cos(0.7), math.sin(0.7)
    U = torch.tensor([[c, -s], [s, c]], dtype=torch.float64)
    rate, t = torch.tensor([1000.0, 0.01], dtype=torch.float64), 50.0
    kernel = LinearSDE(-U @ torch.diag(rate) @ U.mT, 0.0, 0.5).kernel(0.0, t)
    variance = 0.25 * (1 - torch.exp(-2 * rate * t)) / (2 * rate)
    assert torch.allclose(kernel.Q.value, U @ torch.diag(variance) @ U.mT, rtol=1e-11, atol=0)
    assert torch.allclose(kernel.A.value, U @ torch.diag(torch.exp(-rate * t)) @ U.mT, rtol=1e-10, atol=1e-300)


def test_a_hypoelliptic_system():
    """Integrated Brownian motion: Q = [[t^3/3, t^2/2], [t^2/2, t]], also over a very short time."""
    sde = LinearSDE(torch.tensor([[0.0, 1.0], [0.0, 0.0]]).double(), 0.0, torch.tensor([[0.0], [1.0]]).double())
    for t in (2.0, 1e-4):
        Q = sde.kernel(0.0, t).Q.value
        expected = torch.tensor([[t**3 / 3, t**2 / 2], [t**2 / 2, t]], dtype=torch.float64)
        assert torch.allclose(Q, expected, rtol=1e-12, atol=0)


def test_a_batch_of_times_equals_the_times_one_by_one_and_composes():
    sde = LinearSDE(*system(1))
    s, t = torch.tensor([0.0, 0.4, 0.4]).double(), torch.tensor([0.4, 3.0, 0.4]).double()
    batch = sde.kernel(s, t)
    for i in range(3):
        one = sde.kernel(float(s[i]), float(t[i]))
        assert torch.allclose(batch.A.value[i], one.A.value) and torch.allclose(batch.Q.value[i], one.Q.value)
        assert torch.allclose(batch.b[i], one.b)
    both = (sde.kernel(0.0, 0.4) >> sde.kernel(0.4, 3.0)).collapse()
    whole = sde.kernel(0.0, 3.0)
    assert torch.allclose(both.A.value, whole.A.value, rtol=1e-10)
    assert torch.allclose(both.Q.value, whole.Q.value, rtol=1e-10) and torch.allclose(both.b, whole.b, rtol=1e-10)


def test_euler_steps_and_their_order():
    """(I + B dt, beta dt, a dt); over one step the exact law differs by O(dt^2): a quarter at half the step."""
    B, beta, sigma = system(2)
    sde = LinearSDE(B, beta, sigma)
    step = sde.kernel(0.0, 0.1, euler=True)
    assert torch.allclose(step.A.value, torch.eye(D) + 0.1 * B) and torch.allclose(step.b, 0.1 * beta)
    assert torch.allclose(step.Q.value, 0.1 * sigma @ sigma.mT)
    gaps = []
    for dt in (1e-3, 5e-4):
        exact, euler = sde.kernel(0.0, dt), sde.kernel(0.0, dt, euler=True)
        pairs = ((exact.A.value, euler.A.value), (exact.b, euler.b), (exact.Q.value, euler.Q.value))
        gaps.append([float((p - q).abs().max()) for p, q in pairs])
    assert all(3.9 < coarse / fine < 4.1 for coarse, fine in zip(*gaps))
    moving = LinearSDE(lambda t: -t, lambda t: torch.tensor([1.0, t]), 0.3)
    batch = moving.kernel(torch.tensor([0.0, 2.0]), torch.tensor([0.1, 2.1]), euler=True)
    assert torch.allclose(batch.A.value[1], 0.8 * torch.eye(2).double()) and batch.b.shape == (2, 2)
    assert torch.allclose(batch.b[1], torch.tensor([0.1, 0.2]).double())


def test_gradients():
    def run(B, beta, sigma, t):
        kernel = LinearSDE(B, beta, sigma).kernel(0.0, t)
        return kernel.A.value, kernel.b, kernel.Q.value

    inputs = (*system(3), torch.tensor([0.3, 1.4]).double())
    assert torch.autograd.gradcheck(run, tuple(v.requires_grad_() for v in inputs))


def test_wrong_input_is_refused():
    with pytest.raises(InputError, match="times go back"):
        LinearSDE(-1.0).kernel(1.0, 0.5)
    with pytest.raises(InputError, match="one number of coordinates"):
        LinearSDE(torch.zeros(2, 2), torch.zeros(3)).kernel(0.0, 1.0)
    with pytest.raises(InputError, match="square"):
        LinearSDE(torch.zeros(2, 3)).kernel(0.0, 1.0)
    with pytest.raises(InputError, match="no closed transition"):
        LinearSDE(lambda t: t).kernel(0.0, 1.0)
    assert LinearSDE(-1.0, d=4).kernel(0.0, 1.0).A.value.shape == (4, 4)
