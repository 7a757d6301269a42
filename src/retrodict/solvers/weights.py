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
flow velocity a constant denoiser is integrated exactly; with the angle's velocity, standard normal data are.  Both
ends of time are exact: sigma_t = 0 and alpha_s = 0.

The published solvers that are not exact interpolations differ only in the `Rule` that turns nodes into weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from retrodict.core.errors import InputError, near

GAUSS_NODES, GAUSS_WEIGHTS = np.polynomial.legendre.leggauss(48)
GAUSS_NODES, GAUSS_WEIGHTS = (GAUSS_NODES + 1) / 2, GAUSS_WEIGHTS / 2  # on [0, 1]

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


#: The coordinate in which the kernel of a kind is simplest, and in which grids of inner nodes are laid.
NATURAL = {"data": "lambda", "noise": "rho", "flow": "flow", "velocity": "angle"}

#: The coordinate in which a kind is interpolated unless another is asked for.
INTERPOLATION = {"data": "lambda", "noise": "lambda", "flow": "flow", "velocity": "angle"}


def lagrange(nodes: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Lagrange basis: nodes ``(rows, m)``, points ``(rows, q)`` -> ``(rows, m, q)``."""
    m = nodes.shape[1]
    basis = np.ones((nodes.shape[0], m, at.shape[1]))
    for j in range(m):
        for k in range(m):
            if k != j:
                basis[:, j] *= (at - nodes[:, k, None]) / (nodes[:, j] - nodes[:, k])[:, None]
    return basis


@dataclass(frozen=True)
class Quadrature:
    """One batch of steps, ready to be turned into weights: arrays have one row a step.

    Attributes:
        nodes: tau at the nodes ``(rows, m)``.
        points, mass: tau at the quadrature points and the kernel's mass there ``(rows, q)``.
        start, h: lambda at the source and its change ``(rows,)``; lam: lambda at the points.
        kind: prediction type.
    """

    nodes: np.ndarray
    points: np.ndarray
    mass: np.ndarray
    start: np.ndarray
    h: np.ndarray
    lam: np.ndarray
    kind: str


Rule = Callable[[Quadrature], np.ndarray]


def exact(q: Quadrature) -> np.ndarray:
    """Integrate the interpolating polynomial against the kernel."""
    return np.einsum("rmq,rq->rm", lagrange(q.nodes, q.points), q.mass)


def midpoint(q: Quadrature) -> np.ndarray:
    """Two nodes: the interpolant's value in the middle of the step, times the whole mass (DPM-Solver "midpoint",
    Lu et al. 2022; the B(h) = e^hh - 1 of UniPC, Zhao et al. 2023)."""
    if q.nodes.shape[1] != 2:
        return exact(q)
    return _in_the_middle(q) * q.mass.sum(-1)[:, None]


def bh1(q: Quadrature) -> np.ndarray:
    """Two nodes: as `midpoint`, with the mass of the difference replaced by h (UniPC's B(h) = hh)."""
    if q.nodes.shape[1] != 2:
        return exact(q)
    total = q.mass.sum(-1)
    share = q.h / np.abs(np.expm1(-q.h if q.kind == "data" else q.h))
    at_middle = _in_the_middle(q)
    # the node at the source carries whatever the other one leaves
    source = np.argmin(np.abs(q.nodes - q.start[:, None]), axis=1)
    rows = np.arange(len(total))
    w = at_middle * (total * share)[:, None]
    w[rows, source] = total - w[rows, 1 - source]
    return w


def official(q: Quadrature) -> np.ndarray:
    """The published multistep weights of DPM-Solver and DPM-Solver++ (Lu et al. 2022): "midpoint" for two nodes, and
    for three nodes half of the exact coefficient of the second difference, which makes them second order."""
    if q.nodes.shape[1] != 3:
        return midpoint(q)
    second = ((q.lam - q.start[:, None]) ** 2 * q.mass).sum(-1)
    gaps = q.nodes[:, :, None] - q.nodes[:, None, :] + np.eye(3)
    return exact(q) - 0.5 * second[:, None] / gaps.prod(-1)


def uniform(q: Quadrature) -> np.ndarray:
    """Adams-Bashforth weights of equal steps whatever the steps are (PLMS and iPNDM, Liu et al. 2022)."""
    m = q.nodes.shape[1]
    shares = lagrange(-np.arange(m, dtype=np.float64)[None], GAUSS_NODES[None])[0] @ GAUSS_WEIGHTS
    return q.mass.sum(-1)[:, None] * shares


def _in_the_middle(q: Quadrature) -> np.ndarray:
    return lagrange(q.nodes, (q.start + q.h / 2)[:, None])[:, :, 0]


def step_weights(
    levels: Levels,
    s: np.ndarray,
    t: np.ndarray,
    nodes: np.ndarray,
    kind: str,
    tau: str,
    kappa: float = 1.0,
    time_at: Callable[[np.ndarray], np.ndarray] | None = None,
    rule: Rule = exact,
) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients of ``x_t = a x_s + sum_j w_j P_j`` for many steps at once.

    Args:
        s, t: indices of source and target levels, ``(rows,)``; nodes: indices ``(rows, m)``.
        kind: prediction type; tau: interpolation coordinate.
        kappa: 1 for the ODE, 1 + eta^2 for the SDE (kinds data and noise).
        time_at: ``lambda array -> t array``, needed for tau = "t" only.
        rule: how nodes become weights; all but `exact` and `uniform` are meant for tau = "lambda".

    Returns:
        a ``(rows,)`` and w ``(rows, m)``.

    Raises:
        InputError: a step that starts at alpha = 0 or ends at sigma = 0 in a coordinate that is infinite there.
    """
    a, natural, mass = (_data_kernel if kind == "data" else _plain_kernel)(levels, s, t, kind, kappa)
    if nodes.shape[1] == 1:
        return a, mass.sum(-1)[:, None]
    axis = levels.coordinate(tau)
    if tau == NATURAL[kind]:
        points = natural
    else:
        points = _convert(levels, natural if kind == "data" else lambda_of(kind, natural), tau, time_at)
    clean = levels.sigma[t] == 0
    if kind == "data" and clean.any():  # all of the mass sits at the target
        points = np.where(clean[:, None], axis[t][:, None], points)
    if not (np.isfinite(points).all() and np.isfinite(axis[nodes]).all()):
        raise InputError(f"the coordinate {tau!r} is infinite at an end of time: a step there is of first order")
    lam = natural if kind == "data" else lambda_of(kind, natural)
    with np.errstate(invalid="ignore"):
        h = levels.lam[t] - levels.lam[s]
    return a, rule(Quadrature(axis[nodes], points, mass, levels.lam[s], h, lam, kind))


def _data_kernel(
    levels: Levels, s: np.ndarray, t: np.ndarray, kind: str, kappa: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``(a, lambda at the points, mass)`` for data prediction: mass alpha_t k e^{-k(lambda_t - lambda)} dlambda."""
    clean, blank = levels.sigma[t] == 0, levels.alpha[s] == 0
    with np.errstate(invalid="ignore"):
        h = np.where(clean | blank, np.inf, levels.lam[t] - levels.lam[s])
    extra = np.exp(-(kappa - 1) * h) if kappa > 1 else 1.0  # 0 * infinity at the ends otherwise
    a = np.where(clean, 0.0, levels.sigma[t] / levels.sigma[s] * extra)
    finite = np.where(clean | blank, 0.0, h)[:, None]
    points = np.where(blank, 0.0, levels.lam[s])[:, None] + finite * GAUSS_NODES
    mass = GAUSS_WEIGHTS * finite * kappa * np.exp(-kappa * finite * (1 - GAUSS_NODES))
    if blank.any():  # from lambda = -inf the kernel is uniform in v = e^{-k(lambda_t - lambda)}
        points = np.where(
            blank[:, None], np.where(clean, 0.0, levels.lam[t])[:, None] + np.log(GAUSS_NODES) / kappa, points
        )
    mass = np.where((clean | blank)[:, None], GAUSS_WEIGHTS, mass)
    # the sum is known in closed form, and the constant-denoiser identity should hold to the last bit
    mass *= (-np.expm1(-kappa * h) / mass.sum(-1))[:, None]
    return a, points, levels.alpha[t][:, None] * mass


def _plain_kernel(
    levels: Levels, s: np.ndarray, t: np.ndarray, kind: str, kappa: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``(a, natural coordinate at the points, mass)`` for kinds whose kernel is 1 in their natural coordinate."""
    c, scale = levels.coordinate(NATURAL[kind]), levels.scale(kind)
    if kind == "noise" and np.isinf(c[s]).any():
        raise InputError("noise prediction cannot start at alpha = 0; use kind 'data' or 'flow', or start earlier")
    width = (c[t] - c[s])[:, None]
    mass = kappa * scale[t][:, None] * width * GAUSS_WEIGHTS
    return scale[t] / scale[s], c[s][:, None] + width * GAUSS_NODES, mass


def _convert(
    levels: Levels, lam: np.ndarray, tau: str, time_at: Callable[[np.ndarray], np.ndarray] | None
) -> np.ndarray:
    """The coordinate tau at given lambda."""
    if tau == "lambda":
        return lam
    if tau == "rho":
        return np.exp(-lam)
    if tau == "flow":
        return 1 / (1 + np.exp(lam))
    if tau == "angle":
        return np.arctan(np.exp(-lam))
    if time_at is None:
        raise InputError("the coordinate 't' needs the process' time_at")
    return time_at(lam)


def lambda_of(kind: str, c: np.ndarray) -> np.ndarray:
    """lambda from the natural coordinate of a kind other than data."""
    if kind == "noise":
        return -np.log(c)
    if kind == "flow":
        return np.log1p(-c) - np.log(c)
    return -np.log(np.tan(c))


def noise_std(levels: Levels, s: np.ndarray, t: np.ndarray, kind: str, kappa: float) -> np.ndarray:
    """Standard deviation of the fresh noise of an SDE step: data and noise forms of stochasticity kappa."""
    clean = levels.sigma[t] == 0
    with np.errstate(invalid="ignore"):
        h = np.where(clean, 0.0, levels.lam[t] - levels.lam[s])
    if kind == "noise":
        return levels.sigma[t] * np.sqrt((kappa - 1) * np.expm1(2 * h))
    return levels.sigma[t] * np.sqrt(-np.expm1(-2 * (kappa - 1) * h))
