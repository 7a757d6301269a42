"""Identities of a plan, read off its normal form or propagated through its rows: nothing is sampled.

With a constant denoiser D = c every exponential integrator is exact.  In normal form, with a the coefficient of the
start and W_k those of the evaluations,

    a = sigma_0/sigma_T        sum_k W_k = alpha_0 - a alpha_T        (the second alone if the plan is stochastic)

and noise of coefficients Z_m keeps the variance if ``a^2 sigma_T^2 + sum Z_m^2 = sigma_0^2``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.integrate import solve_ivp

from retrodict.core.errors import InputError, require
from retrodict.diagnostics.certificate.finding import Finding, deviation
from retrodict.processes import GaussianPath
from retrodict.solvers.plan import Eval, Plan, Row
from retrodict.solvers.weights import INTERPOLATION, Levels


@dataclass(frozen=True)
class Point:
    """Coefficients of the path at one time."""

    alpha: float
    beta: float
    sigma: float


def ends(plan: Plan) -> tuple[Point, Point]:
    """The path where the plan starts and where it ends; sigma = 0 at the clean end."""
    path = _path(plan)
    start, end = (
        Point(*(float(c(t)) for c in (path.alpha, path.beta, path.sigma))) for t in (plan.times[0], plan.times[-1])
    )
    return start, Point(end.alpha, end.beta, 0.0) if plan.meta.get("end") is None else end


def constant_identity(plan: Plan, tol: float = 1e-11) -> Finding:
    """Whether constant ends are carried exactly (of a stochastic plan: their mean)."""
    start, end = ends(plan)
    form = plan.normal_form()
    a, W, W1 = form.start_weight, form.data_weights, form.output[1 + form.nfe : 1 + 2 * form.nfe]
    errors = [W.sum() - (end.alpha - a * start.alpha), W1.sum() - (end.beta - a * start.beta)]
    if not len(form.noise_weights):
        errors.append(a - end.sigma / start.sigma)
    return deviation("constant identity", float(np.abs(errors).max()), tol, "a constant denoiser")


def variance_identity(plan: Plan, tol: float = 1e-11) -> Finding:
    """Whether the variance at the end is the path's, under a constant denoiser; relative to it."""
    start, end = ends(plan)
    require(end.sigma > 0, "the variance identity says nothing at sigma = 0: give the plan an end above it")
    form = plan.normal_form()
    variance = form.start_weight**2 * start.sigma**2 + float((form.noise_weights**2).sum())
    return deviation("variance identity", abs(variance / end.sigma**2 - 1), tol, "variance under a constant denoiser")


@dataclass(frozen=True)
class Moments:
    """Mean and variance of a plan's output on Gaussian data, beside those of the exact law."""

    mean: float
    variance: float
    exact_mean: float
    exact_variance: float

    @property
    def mean_error(self) -> float:
        """Absolute error of the mean."""
        return abs(self.mean - self.exact_mean)

    @property
    def variance_error(self) -> float:
        """Relative error of the variance."""
        return abs(self.variance / self.exact_variance - 1)


def moments(
    plan: Plan, mean: float = 0.7, variance: float = 0.25, mean1: float = -0.4, variance1: float = 0.5
) -> Moments:
    """Propagate N(mean, variance) through a plan: all states are affine in independent normals, so this is exact.

    ``mean1``, ``variance1`` are the law of the other end, on a path with two.  The start is the path's exact law.
    """
    start, end = ends(plan)
    gauss = _Affine(mean, variance, mean1, variance1)
    form_size = 2 + plan.noises
    x0 = np.zeros(form_size)
    x0[0], x0[1] = gauss.marginal_mean(start), np.sqrt(gauss.marginal_variance(start))
    states, d, d1 = {0: x0}, {}, {}
    column = {m: 2 + i for i, m in enumerate(sorted(m for c in plan.code if isinstance(c, Row) for m in c.z))}
    path = _path(plan)
    for c in plan.code:
        if isinstance(c, Eval):
            point = Point(c.alpha, float(path.beta(c.t)), c.sigma)
            d[c.k], d1[c.k] = gauss.posterior(states[c.x], point)
        elif isinstance(c, Row):
            total = np.zeros(form_size)
            for source, terms in ((states, c.x), (d, c.d), (d1, c.d1)):
                for key, value in terms.items():
                    total = total + value * source[key]
            for m, value in c.z.items():
                total[column[m]] += value
            states[c.dst] = total
        else:
            raise InputError(f"a plan with data-dependent rows ({c.name}) has no closed moments")
    out = states[plan.out]
    return Moments(float(out[0]), float((out[1:] ** 2).sum()), gauss.marginal_mean(end), gauss.marginal_variance(end))


@dataclass(frozen=True)
class _Affine:
    """Posterior means of the two Gaussian ends, affine in the state."""

    mean: float
    variance: float
    mean1: float
    variance1: float

    def marginal_mean(self, p: Point) -> float:
        return p.alpha * self.mean + p.beta * self.mean1

    def marginal_variance(self, p: Point) -> float:
        return p.alpha**2 * self.variance + p.beta**2 * self.variance1 + p.sigma**2

    def posterior(self, x: np.ndarray, p: Point) -> tuple[np.ndarray, np.ndarray]:
        residual = x.copy()
        residual[0] -= self.marginal_mean(p)
        residual = residual / self.marginal_variance(p)
        both = [gain * v * residual for gain, v in ((p.alpha, self.variance), (p.beta, self.variance1))]
        both[0][0] += self.mean
        both[1][0] += self.mean1
        return both[0], both[1]


def polynomial_exactness(
    plan: Plan, degree: int, kind: str = "data", tau: str | None = None, tol: float = 1e-9
) -> Finding:
    """Whether a prediction ``kind`` that is a polynomial of ``degree`` in the coordinate tau is integrated exactly.

    Every row with more than ``degree`` nodes (start-up rows have fewer) is given exact states and predictions, and must
    return the exact state.  For deterministic multistep plans on one-ended paths.
    """
    tau = tau or INTERPOLATION[kind]
    path = _path(plan)
    known = _Manufactured(path, plan.times, degree, kind, tau)
    worst, rows = 0.0, 0
    where: dict[int, float] = {0: plan.times[0]}
    node: dict[int, float] = {}
    for c in plan.code:
        if isinstance(c, Eval):
            node[c.k] = c.t
        elif isinstance(c, Row):
            where[c.dst] = c.t
            if len(c.d) > degree:
                value = sum(a * known.state(where[r]) for r, a in c.x.items()) + sum(
                    w * known.data(node[k]) for k, w in c.d.items()
                )
                exact = known.state(c.t)
                worst, rows = max(worst, abs(value - exact) / max(1.0, abs(exact))), rows + 1
    if not rows:
        raise InputError(f"no row of the plan has more than {degree} nodes")
    return deviation("polynomial exactness", worst, tol, f"{kind} of degree {degree} in {tau}, {rows} rows")


class _Manufactured:
    """The exact solution of the flow whose prediction is a given polynomial, by an adaptive method of order 8."""

    def __init__(self, path: GaussianPath, times: tuple[float, ...], degree: int, kind: str, tau: str) -> None:
        self.path, self.kind, self.tau = path, kind, tau
        self.coefficients = np.array([0.8, -0.5, 0.3, -0.2, 0.1, -0.05])[: degree + 1]
        grid = self._levels(np.array(times))
        axis = grid.coordinate(tau)
        self.shift, self.width = float(axis.mean()), float(np.ptp(axis))
        clock = grid.lam
        solved = solve_ivp(self._slope, clock[[0, -1]], [1.3 / grid.alpha[0]], "DOP853", clock, rtol=1e-12, atol=1e-12)
        self.states = dict(zip(times, (solved.y[0] * grid.alpha).tolist()))

    def _slope(self, lam: float, y: np.ndarray) -> np.ndarray:
        """dy/dlambda = D - y."""
        t = float(self.path.time_at(float(lam)))
        return np.array([self._data(t, float(y[0] * self.path.alpha(t))) - y[0]])

    def _levels(self, times: np.ndarray) -> Levels:
        return Levels(times, *self.path.schedule(times))

    def _data(self, t: float, x: float) -> float:
        """The denoiser output at which the prediction is the polynomial."""
        levels = self._levels(np.array([t]))
        u = (levels.coordinate(self.tau)[0] - self.shift) / self.width
        p_x, p_d = (float(p[0]) for p in levels.prediction(self.kind))
        return (float(np.polynomial.polynomial.polyval(u, self.coefficients)) - p_x * x) / p_d

    def state(self, t: float) -> float:
        """The exact state at a time of the plan's grid."""
        return self.states[t]

    def data(self, t: float) -> float:
        """The denoiser output that belongs to the prediction at the exact state."""
        return self._data(t, self.states[t])


def _path(plan: Plan) -> Any:
    if not isinstance(plan.process, GaussianPath) or not plan.process.scalar:
        raise InputError(f"identities need a scalar Gaussian path, got {type(plan.process).__name__}")
    return plan.process
