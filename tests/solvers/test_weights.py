"""The one quadrature, against scipy's adaptive integration and against its own limits at both ends of time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from retrodict.core.errors import InputError
from retrodict.solvers.weights import KINDS, Levels, exact, lagrange, noise_std, step_weights
from solvers.solver_cases import ONE_ENDED

VP = ONE_ENDED["vp-linear"]


def _levels(process, times) -> Levels:
    times = np.asarray(times, dtype=float)
    return Levels(times, *process.schedule(times))


def _one(levels, kind, tau, nodes, kappa=1.0, process=VP, s=2, t=3):
    time_at = lambda lam: process.time_at(torch.from_numpy(lam)).numpy()  # noqa: E731
    a, w = step_weights(levels, np.array([s]), np.array([t]), np.array([nodes]), kind, tau, kappa, time_at, exact)
    return a[0], w[0]


@pytest.mark.parametrize("tau", ["lambda", "rho", "flow", "angle"])
@pytest.mark.parametrize("kappa", [1.0, 1.5, 2.0])
def test_data_weights_against_adaptive_quadrature(tau, kappa):
    L = _levels(VP, [0.95, 0.7, 0.5, 0.2])
    a, w = _one(L, "data", tau, [2, 1, 0], kappa)
    axis = L.coordinate(tau)
    change = {"lambda": lambda v: v, "rho": lambda v: np.exp(-v), "flow": lambda v: 1 / (1 + np.exp(v)),
              "angle": lambda v: np.arctan(np.exp(-v))}[tau]  # fmt: skip
    for j, node in enumerate([2, 1, 0]):

        def integrand(lam, j=j):
            basis = lagrange(axis[None, [2, 1, 0]], np.array([[change(lam)]]))[0, j, 0]
            return kappa * np.exp(-kappa * (L.lam[3] - lam)) * basis

        expected = L.alpha[3] * quad(integrand, L.lam[2], L.lam[3], epsabs=1e-13, epsrel=1e-13)[0]
        assert np.isclose(w[j], expected, atol=1e-12), node
    assert np.isclose(a, L.sigma[3] / L.sigma[2] * np.exp(-(kappa - 1) * (L.lam[3] - L.lam[2])))


@pytest.mark.parametrize("kind", ["noise", "flow", "velocity"])
def test_plain_weights_against_adaptive_quadrature(kind):
    L = _levels(VP, [0.95, 0.7, 0.5, 0.2])
    name = {"noise": "rho", "flow": "flow", "velocity": "angle"}[kind]
    c, scale = L.coordinate(name), L.scale(kind)
    a, w = _one(L, kind, "lambda", [2, 1, 0])
    back = {
        "noise": lambda v: -np.log(v),
        "flow": lambda v: np.log((1 - v) / v),
        "velocity": lambda v: -np.log(np.tan(v)),
    }[kind]
    for j in range(3):
        basis = lambda v, j=j: lagrange(L.lam[None, [2, 1, 0]], np.array([[back(v)]]))[0, j, 0]  # noqa: E731
        expected = scale[3] * quad(basis, c[2], c[3], epsabs=1e-13, epsrel=1e-13)[0]
        assert np.isclose(w[j], expected, atol=1e-12)
    assert np.isclose(a, scale[3] / scale[2])


@pytest.mark.parametrize("h", [1e-6, 1e-3, 0.5, 3.0, 12.0])
def test_sums_are_exact_for_steps_of_any_length(h):
    """sum_j w_j = alpha_t (1 - e^{-k h}), for tiny and for huge steps alike."""
    lam = np.array([0.3 - 2 * h, 0.3 - h, 0.3, 0.3 + h])
    L = Levels(np.linspace(1, 0, 4), np.ones(4), np.exp(-lam), lam)
    for kappa in (1.0, 2.0):
        for nodes in ([2], [2, 1], [2, 1, 0], [3, 2, 1, 0]):
            _, w = _one(L, "data", "lambda", nodes, kappa)
            assert np.isclose(w.sum(), -np.expm1(-kappa * h), rtol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tau", ["rho", "flow", "angle"])
def test_the_clean_end_is_the_limit_of_small_noise(kind, tau):
    """To sigma = 0 the weights are finite in every coordinate that is, and equal those of a target at sigma = 1e-9."""
    L = _levels(VP, [0.95, 0.7, 0.5, 0.2])
    tiny = Levels(L.t, L.alpha.copy(), L.sigma.copy(), L.lam.copy())
    clean = Levels(L.t, L.alpha.copy(), L.sigma.copy(), L.lam.copy())
    tiny.sigma[3], tiny.lam[3] = 1e-9, np.log(L.alpha[3] / 1e-9)
    clean.sigma[3], clean.lam[3] = 0.0, np.inf
    near, at = _one(tiny, kind, tau, [2, 1, 0]), _one(clean, kind, tau, [2, 1, 0])
    assert np.allclose(near[0], at[0], atol=1e-7) and np.allclose(near[1], at[1], atol=2e-6)


@pytest.mark.parametrize("tau", ["flow", "angle"])
def test_a_source_without_signal_is_the_limit_of_little_signal(tau):
    L = _levels(VP, [0.95, 0.7, 0.5, 0.2])
    little = Levels(L.t, L.alpha.copy(), L.sigma.copy(), L.lam.copy())
    none = Levels(L.t, L.alpha.copy(), L.sigma.copy(), L.lam.copy())
    little.alpha[1], little.lam[1] = 1e-8, np.log(1e-8 / L.sigma[1])
    none.alpha[1], none.lam[1] = 0.0, -np.inf
    for kind in ("data", "flow", "velocity"):
        near, at = (_one(levels, kind, tau, [1, 0], s=1, t=2) for levels in (little, none))
        assert np.allclose(near[0], at[0], atol=1e-6) and np.allclose(near[1], at[1], atol=1e-5), kind


def test_infinite_coordinates_are_refused():
    L = _levels(VP, [0.95, 0.7, 0.5, 0.2])
    L.alpha[2], L.lam[2] = 0.0, -np.inf
    with pytest.raises(InputError, match="cannot start at alpha = 0"):
        _one(L, "noise", "rho", [2, 1])
    with pytest.raises(InputError, match="infinite at an end"):
        _one(L, "data", "lambda", [2, 1])


def test_noise_of_the_sde_keeps_the_marginal_variance():
    """Data form: (e^{-(k-1)h} sigma_t/sigma_s)^2 sigma_s^2 + c^2 = sigma_t^2."""
    L = _levels(VP, [0.95, 0.7, 0.5, 0.2])
    for kappa in (1.2, 2.0):
        a, _ = _one(L, "data", "lambda", [2], kappa)
        c = noise_std(L, np.array([2]), np.array([3]), "data", kappa)[0]
        assert np.isclose(a**2 * L.sigma[2] ** 2 + c**2, L.sigma[3] ** 2, rtol=1e-13)
