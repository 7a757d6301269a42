"""Momentum: multistep solvers whose predictions pass a filter, for wider stability (Wizadwongsa et al. 2023).

In y = x/alpha with rho = sigma/alpha and the noise predictions e_i, a velocity that is never evaluated is carried:

    heavy ball    v_i = (1 - beta) v_{i-1} + beta sum_j c_j e_{i-j}        y_{i+1} = y_i + (rho_{i+1} - rho_i) v_i
    generalised   v_i = (1 - beta) v_{i-1} + beta e_i                      y_{i+1} = y_i + sum_j w_j v_{i-j}

and v_0 = e_0.  The heavy ball is first order for every beta < 1: its velocity lags.  The generalised form chooses the
w_j so that on polynomials of degree p - 1, whose filtered values are known, the step is exact; the published weights do
so for equal steps, and stop at order two on others.  beta = 1 is the solver without momentum.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from retrodict.core.errors import InputError, near, require
from retrodict.solvers.builder import Builder
from retrodict.solvers.generators.multistep import usable
from retrodict.solvers.registry import solver
from retrodict.solvers.weights import GAUSS_NODES, GAUSS_WEIGHTS, Rule, exact, midpoint, uniform

_RULES: dict[str, Rule] = {"uniform": uniform, "exact": exact, "midpoint": midpoint}
_TAU = {"noise": "rho", "data": "lambda"}


def _hb_order(options: Mapping[str, Any]) -> float:
    """One, but for beta = 1."""
    if options["beta"] < 1:
        return 1.0
    return float(min(options["order"], 2) if options["weights"] == "uniform" else options["order"])


def _ghvb_order(options: Mapping[str, Any]) -> float:
    """Weights of equal steps stop at two."""
    return float(min(options["order"], 2) if options["weights"] == "uniform" else options["order"])


@solver("hb", "heavy-ball", order=_hb_order, grid="uniform")
def hb(b: Builder, order: int = 4, beta: float = 0.8, kind: str = "noise", weights: str = "uniform") -> int:
    """Heavy-ball momentum (Wizadwongsa et al. 2023) around multistep weights.

    Args:
        order: nodes of the combination that is filtered, 1 to 6; beta: share of the newest one, in (0, 1].
        kind: "noise" (PLMS as published) or "data" (DPM-Solver++ as published, with weights="midpoint").
        weights: "uniform" (of equal steps), "exact" or "midpoint".

    The interval of stability grows by (2 - beta)/beta; the order falls to one.  The official wrapper starts velocities
    from the raw output of networks that predict v, before its conversion to noise; here it is always the prediction.
    """
    _check(order, beta, kind, weights, _RULES)
    rule, tau = _RULES[weights], _TAU[kind]
    x, ks, velocity = 0, [], None
    for i in range(b.n):
        k = b.eval(x, i)
        if not _steps(b, i, tau):
            x = b.frozen(x, k, i, i + 1)
            continue
        ks = [(k, i), *ks][:order]
        ((a, w),) = b.weights([(i, i + 1, [level for _, level in ks])], kind, tau, 1.0, rule)
        mass = float(w.sum())
        share = 1.0 if velocity is None else beta
        combined = {q: share * c / mass for (q, _), c in zip(ks, w)}
        velocity = b.row(
            i, {} if velocity is None else {velocity: 1 - beta}, predictions=combined, kind=kind, velocity=True
        )
        x = b.row(i + 1, {x: a, velocity: mass})
    return x


@solver("ghvb", order=_ghvb_order, grid="uniform")
def ghvb(b: Builder, order: int = 4, beta: float = 0.8, weights: str = "uniform", tau: str = "lambda") -> int:
    """Generalised heavy ball (Wizadwongsa et al. 2023): momentum that keeps the order.

    Args:
        order: velocities combined, 1 to 5; beta: share of the newest prediction in the velocity, in (0, 1].
        weights: "uniform", as published, which stop at order two where steps are not equal in sigma/alpha; or "exact",
            of the true order on any grid, which need about three times the steps to pay and are less stable.
        tau: "lambda" or "rho", in which the polynomials of exact weights are laid; rho for a step to sigma = 0.

    A fractional order p - 1 + beta of the published code is ``order=p`` with that beta.
    """
    _check(order, beta, "noise", weights, {"exact": exact, "uniform": uniform})
    require(tau in ("lambda", "rho"), f"tau is 'lambda' or 'rho', got {tau!r}")
    x, velocities = 0, []
    nodes: list[int] = []  # levels of the predictions so far
    shares: list[np.ndarray] = []  # of the predictions in each velocity, newest velocity first
    for i in range(b.n):
        k = b.eval(x, i)
        if not _steps(b, i, "rho"):
            x = b.frozen(x, k, i, i + 1)
            continue
        rho, alpha = b.levels.coordinate("rho"), b.levels.alpha
        share = beta if velocities else 1.0
        velocity = b.row(i, {v: 1 - beta for v in velocities[:1]}, predictions={k: share}, kind="noise", velocity=True)
        velocities = [velocity, *velocities][:order]
        nodes.append(i)
        old = (1 - beta) * shares[0] if shares else np.zeros(0)
        shares = [np.append(old, share), *(np.append(s, 0.0) for s in shares)][:order]
        width = float(rho[i + 1] - rho[i])
        if weights == "uniform":
            w = _equal_steps(beta, len(velocities))
        else:
            w = _on_nodes(b, nodes, shares, "rho" if b.levels.sigma[i + 1] == 0 else tau)
        x = b.row(i + 1, {x: alpha[i + 1] / alpha[i]} | {v: alpha[i + 1] * width * c for v, c in zip(velocities, w)})
    return x


def _on_nodes(b: Builder, nodes: list[int], shares: list[np.ndarray], tau: str) -> np.ndarray:
    """Weights of the velocities, per unit of rho, with which the step from the last node is exact on polynomials of a
    coordinate."""
    axis, rho, i = b.levels.coordinate(tau), b.levels.coordinate("rho"), nodes[-1]
    points = rho[i] + (rho[i + 1] - rho[i]) * GAUSS_NODES
    points = -np.log(points) if tau == "lambda" else points
    powers, width = np.arange(len(shares)), axis[i + 1] - axis[i]
    moments = GAUSS_WEIGHTS @ ((points - axis[i]) / width)[:, None] ** powers
    place = (axis[nodes] - axis[i]) / width
    filtered = np.stack([s @ place[:, None] ** powers for s in shares], 1)  # (powers, velocities)
    return np.linalg.solve(filtered, moments)


def _equal_steps(beta: float, count: int) -> np.ndarray:
    """The published weights c_j/beta: the same conditions for equal steps and an endless past."""
    age = np.arange(int(np.ceil(45 / -np.log1p(-beta))) if beta < 1 else 1)
    decay, powers = beta * (1 - beta) ** age, np.arange(count)
    filtered = np.stack([decay @ (-(age + j))[:, None].astype(float) ** powers for j in range(count)], 1)
    return np.linalg.solve(filtered, 1 / (powers + 1))


def _steps(b: Builder, i: int, tau: str) -> bool:
    """Whether step i has predictions at its source, and a coordinate that is finite at both its ends."""
    return usable(b, i, tau) and not (tau == "lambda" and b.levels.sigma[i + 1] == 0)


def _check(order: Any, beta: float, kind: str, weights: str, rules: Mapping[str, Rule]) -> None:
    most = 6 if len(rules) > 2 else 5
    require(isinstance(order, int) and 1 <= order <= most, f"order is an integer from 1 to {most}, got {order!r}")
    require(0 < beta <= 1, f"beta is above 0 and at most 1, got {beta}")
    for name, value, known in (("kind", kind, _TAU), ("weights", weights, rules)):
        if value not in known:
            raise InputError(f"{name} is one of {', '.join(known)}; got {value!r}.{near(value, known)}")
