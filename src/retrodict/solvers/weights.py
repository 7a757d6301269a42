"""The one quadrature: integrator weights of every multistep, exponential and velocity solver.

A prediction type writes the probability-flow ODE (or the SDE of stochasticity kappa) so that the state, divided by
a scale, is an integral of a slowly varying prediction P:

==========  ================  =========================================  =======================
kind        P                 x_t                                        natural coordinate
==========  ================  =========================================  =======================
data        D                 (sigma_t/sigma_s) e^{-(k-1)h} x_s          lambda, kernel k e^{-k(lambda_t - lambda)}
                               + alpha_t int D k e^{-k(.)} dlambda
noise       (x - alpha D)     (alpha_t/alpha_s) x_s                      rho = sigma/alpha, kernel 1
             / sigma           + alpha_t int P drho
flow        eps - D           (c_t/c_s) x_s + c_t int P du,              u = sigma/(alpha+sigma), kernel 1
                               c = alpha + sigma
velocity    cos eps - sin D   (r_t/r_s) x_s + r_t int P dtheta,          theta = atan(sigma/alpha), kernel 1
                               r = sqrt(alpha^2 + sigma^2)
==========  ================  =========================================  =======================

P is interpolated by a Lagrange polynomial in a coordinate tau through the nodes of the step, and the weights are
Gauss-Legendre quadratures in float64.  No phi functions, no small-step special cases.  With P = D, P = eps or P = the
flow velocity a constant denoiser is integrated exactly.  Both ends of time are exact: sigma_t = 0 and alpha_s = 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from retrodict.core.errors import InputError, near

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(48)
_NODES, _WEIGHTS = (_NODES + 1) / 2, _WEIGHTS / 2  # on [0, 1]

KINDS = ("data", "noise", "flow", "velocity")
COORDINATES = ("lambda", "rho", "flow", "angle", "t")


@dataclass(frozen=True)
class Levels:
    """Noise levels of a grid as float64 arrays: everything that a row of a plan is made of.

    ``rho = sigma/alpha`` is infinite where alpha = 0; ``lam = -log rho`` is infinite at both ends.
    """

    t: np.ndarray
    alpha: np.ndarray
    sigma: np.ndarray
    lam: np.ndarray

    def __len__(self) -> int:
        return len(self.t)

    def coordinate(self, name: str) -> np.ndarray:
        """The interpolation coordinate ``name`` at every level."""
        if name == "lambda":
            return self.lam
        if name == "t":
            return self.t
        if name == "rho":
            with np.errstate(divide="ignore"):
                return self.sigma / self.alpha
        if name == "flow":
            return self.sigma / (self.alpha + self.sigma)
        if name == "angle":
            return np.arctan2(self.sigma, self.alpha)
        raise InputError(f"unknown coordinate {name!r}; known: {', '.join(COORDINATES)}.{near(name, COORDINATES)}")

    def scale(self, kind: str) -> np.ndarray:
        """What the state is divided by for a kind with kernel 1."""
        if kind == "noise":
            return self.alpha
        if kind == "flow":
            return self.alpha + self.sigma
        return np.hypot(self.alpha, self.sigma)

    def prediction(self, kind: str) -> tuple[np.ndarray, np.ndarray]:
        """``(p_x, p_D)`` with P = p_x x + p_D D at every level."""
        if kind == "data":
            return np.zeros_like(self.t), np.ones_like(self.t)
        with np.errstate(divide="ignore", invalid="ignore"):
            if kind == "noise":
                return 1 / self.sigma, -self.alpha / self.sigma
            if kind == "flow":
                return 1 / self.sigma, -(self.alpha + self.sigma) / self.sigma
            if kind == "velocity":  # (cos x/r - D)/sin with r the radius
                radius = np.hypot(self.alpha, self.sigma)
                return self.alpha / (radius * self.sigma), -radius / self.sigma
        raise InputError(f"unknown prediction kind {kind!r}; known: {', '.join(KINDS)}.{near(kind, KINDS)}")


NATURAL = {"data": "lambda", "noise": "rho", "flow": "flow", "velocity": "angle"}


def lagrange(nodes: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Lagrange basis: nodes ``(rows, m)``, points ``(rows, q)`` -> ``(rows, m, q)``."""
    m = nodes.shape[1]
    basis = np.ones((nodes.shape[0], m, at.shape[1]))
    for j in range(m):
        for k in range(m):
            if k != j:
                basis[:, j] *= (at - nodes[:, k, None]) / (nodes[:, j] - nodes[:, k])[:, None]
    return basis


def step_weights(
    levels: Levels, s: np.ndarray, t: np.ndarray, nodes: np.ndarray, kind: str, tau: str, kappa: float = 1.0,
    time_at: object = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients of ``x_t = a x_s + sum_j w_j P_j`` for many steps at once.

    Args:
        s, t: indices of source and target levels, ``(rows,)``; nodes: indices ``(rows, m)``.
        kind: prediction type; tau: interpolation coordinate.
        kappa: 1 for the ODE, 1 + eta^2 for the SDE (kinds data and noise).
        time_at: ``lambda array -> t array``, needed for tau = "t" only.

    Returns:
        a ``(rows,)`` and w ``(rows, m)``.
    """
    clean = levels.sigma[t] == 0
    if kind == "data":
        a, w = _data_weights(levels, s, t, nodes, tau, kappa, time_at, clean)
    else:
        a, w = _plain_weights(levels, s, t, nodes, kind, tau, kappa, time_at)
    return a, w


def _data_weights(
    levels: Levels, s: np.ndarray, t: np.ndarray, nodes: np.ndarray, tau: str, kappa: float, time_at: object, clean: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    axis = levels.coordinate(tau)
    # the kernel k e^{-k(lambda_t - lambda)} dlambda is dv with v = e^{-k(lambda_t - lambda)} in (v_s, 1]: that
    # variable stays finite for lambda_s = -inf and, with all its mass at the target, for lambda_t = +inf
    with np.errstate(invalid="ignore"):
        h = levels.lam[t] - levels.lam[s]
    h = np.where(clean, np.inf, h)
    decay = np.exp(-kappa * h)
    extra = np.exp(-(kappa - 1) * h) if kappa > 1 else 1.0  # 0 * infinity at the ends otherwise
    a = np.where(clean, 0.0, levels.sigma[t] / levels.sigma[s] * extra)
    if nodes.shape[1] == 1:
        return a, (levels.alpha[t] * (1 - decay))[:, None]
    if np.isinf(h[~clean]).any():
        raise InputError("a step that starts at alpha = 0 is of first order: leave that level out of the history")
    at_target = lagrange(axis[nodes], axis[t][:, None])[:, :, 0] if np.isfinite(axis[t]).all() else None
    u = np.where(clean, 1.0, h)[:, None] * _NODES
    points = _points(levels, tau, np.where(clean, 0.0, levels.lam[s])[:, None] + u, time_at)
    basis = lagrange(axis[nodes], points)
    mass = _WEIGHTS * np.where(clean, 1.0, h)[:, None] * kappa * np.exp(-kappa * (np.where(clean, 1.0, h)[:, None] - u))
    w = levels.alpha[t][:, None] * np.einsum("rmq,rq->rm", basis, mass)
    if clean.any():
        if at_target is None:
            raise InputError(f"the coordinate {tau!r} is infinite at the clean end: that step is of first order")
        w = np.where(clean[:, None], levels.alpha[t][:, None] * at_target, w)
    return a, w


def _points(levels: Levels, tau: str, lam: np.ndarray, time_at: object) -> np.ndarray:
    """The coordinate tau at given lambda."""
    if tau == "lambda":
        return lam
    if tau == "rho":
        return np.exp(-lam)
    if tau == "flow":
        return 1 / (1 + np.exp(lam))
    if tau == "angle":
        return np.arctan(np.exp(-lam))
    return time_at(lam)  # type: ignore[operator]


def _plain_weights(
    levels: Levels, s: np.ndarray, t: np.ndarray, nodes: np.ndarray, kind: str, tau: str, kappa: float, time_at: object
) -> tuple[np.ndarray, np.ndarray]:
    """Kinds whose kernel is 1 in their natural coordinate c: w_j = scale_t int ell_j(tau(c)) dc."""
    c = levels.coordinate(NATURAL[kind])
    scale = levels.scale(kind)
    if kind == "noise" and np.isinf(c[s]).any():
        raise InputError("noise prediction cannot start at alpha = 0; use kind 'data' or 'flow', or start earlier")
    width = c[t] - c[s]
    basis_axis = levels.coordinate(tau)
    if nodes.shape[1] == 1:
        w = width[:, None]
    else:
        points = c[s][:, None] + width[:, None] * _NODES
        if tau != NATURAL[kind]:
            points = _points(levels, tau, _lam_of(kind, points), time_at)
        w = width[:, None] * np.einsum("rmq,q->rm", lagrange(basis_axis[nodes], points), _WEIGHTS)
    return scale[t] / scale[s], kappa * scale[t][:, None] * w


def _lam_of(kind: str, c: np.ndarray) -> np.ndarray:
    """lambda from the natural coordinate of a kind."""
    if kind == "noise":
        return -np.log(c)
    if kind == "flow":
        return np.log1p(-c) - np.log(c)
    return -np.log(np.tan(c))


def noise_std(levels: Levels, s: np.ndarray, t: np.ndarray, kind: str, kappa: float) -> np.ndarray:
    """Standard deviation of the fresh noise of an SDE step: data and noise forms of stochasticity kappa."""
    with np.errstate(invalid="ignore"):
        h = np.where(levels.sigma[t] == 0, np.inf, levels.lam[t] - levels.lam[s])
    if kind == "noise":
        return levels.sigma[t] * np.sqrt((kappa - 1) * np.expm1(2 * h))
    return levels.sigma[t] * np.sqrt(-np.expm1(-2 * (kappa - 1) * h))
