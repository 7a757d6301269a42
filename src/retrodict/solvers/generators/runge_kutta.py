"""Runge-Kutta methods on a straightened ODE: several evaluations a step, no history.

In its natural coordinate c the scaled state y = x/scale of a prediction type has slope P, dy/dc = P(y, c): noise in
rho = sigma/alpha (EDM's variables), flow in sigma/(alpha + sigma), velocity in the angle.  A tableau (A, b, c) then
gives the stage states and the step

    x_m = scale_m (x_s/scale_s + dc sum_q A_mq P_q)        x_t = scale_t (x_s/scale_s + dc sum_m b_m P_m)

and a constant denoiser, whose noise and flow are constant along the exact solution, is integrated exactly.  `edm` adds
churn: the state is noised up before each step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from retrodict.core.errors import InputError, near, require
from retrodict.solvers.builder import Builder
from retrodict.solvers.registry import alias, solver
from retrodict.solvers.weights import NATURAL, lambda_of


@dataclass(frozen=True)
class Tableau:
    """An explicit Runge-Kutta method: stage positions c, rows A below the diagonal, weights b, its order, and for an
    embedded pair the weights of the error, whose last entry is the next step's first stage."""

    order: int
    c: tuple[float, ...]
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    error: tuple[float, ...] = ()


TABLEAUX = {
    "euler": Tableau(1, (0,), ((),), (1,)),
    "heun2": Tableau(2, (0, 1), ((), (1,)), (1 / 2, 1 / 2)),
    "midpoint": Tableau(2, (0, 1 / 2), ((), (1 / 2,)), (0, 1)),
    "kutta3": Tableau(3, (0, 1 / 2, 1), ((), (1 / 2,), (-1, 2)), (1 / 6, 2 / 3, 1 / 6)),
    "heun3": Tableau(3, (0, 1 / 3, 2 / 3), ((), (1 / 3,), (0, 2 / 3)), (1 / 4, 0, 3 / 4)),
    "ralston3": Tableau(3, (0, 1 / 2, 3 / 4), ((), (1 / 2,), (0, 3 / 4)), (2 / 9, 1 / 3, 4 / 9)),
    "ssp3": Tableau(3, (0, 1, 1 / 2), ((), (1,), (1 / 4, 1 / 4)), (1 / 6, 1 / 6, 2 / 3)),
    "rk4": Tableau(4, (0, 1 / 2, 1 / 2, 1), ((), (1 / 2,), (0, 1 / 2), (0, 0, 1)), (1 / 6, 1 / 3, 1 / 3, 1 / 6)),
    # Bogacki and Shampine (1989): Ralston's third order with an embedded second order
    "bogacki-shampine": Tableau(
        3, (0, 1 / 2, 3 / 4), ((), (1 / 2,), (0, 3 / 4)), (2 / 9, 1 / 3, 4 / 9), (-5 / 72, 1 / 12, 1 / 9, -1 / 8)
    ),
}


def tableau_named(name: str) -> Tableau:
    """A tableau by name."""
    if name not in TABLEAUX:
        raise InputError(f"unknown tableau {name!r}; known: {', '.join(TABLEAUX)}.{near(name, TABLEAUX)}")
    return TABLEAUX[name]


def _order(options: Mapping[str, Any]) -> float:
    return float(tableau_named(options["tableau"]).order)


@solver(
    "rho-rk",
    "runge-kutta",
    order=_order,
    without={
        "constant": "with kind='velocity' the velocity of a constant denoiser turns with the angle",
    },
)
def runge_kutta(b: Builder, tableau: str = "heun2", kind: str = "noise") -> int:
    """An explicit Runge-Kutta method in the natural coordinate of a prediction type.

    Args:
        tableau: "euler", "heun2", "midpoint", "kutta3", "heun3", "ralston3", "ssp3", "rk4" or "bogacki-shampine".
        kind: "noise" (rhoRK of Zhang and Chen 2023), "flow" or "velocity".
    """
    method = tableau_named(tableau)
    require(kind in ("noise", "flow", "velocity"), f"kind is 'noise', 'flow' or 'velocity', got {kind!r}")
    steps = [(i, i + 1) for i in range(b.n)]
    inner = inner_levels(b, method, kind, steps)
    x = 0
    for source, target in steps:
        x = rk_step(b, x, source, target, method, kind, inner.get(source, []))[0]
    return x


def whole(b: Builder, method: Tableau, kind: str, source: int, target: int) -> bool:
    """Whether a step can be taken by the method: noise is unknown at alpha = 0, no stage can be at sigma = 0, and none
    inside the step from a path's smallest sigma to 0, where it has no times."""
    L = b.levels
    to_clean = L.sigma[target] == 0 and (1 in method.c or L.t[source] == 0)
    return not to_clean and not (L.alpha[source] == 0 and kind == "noise")


def inner_levels(b: Builder, method: Tableau, kind: str, steps: list[tuple[int, int]]) -> dict[int, list[int]]:
    """Levels of the stages strictly inside each step, by source level."""
    inside = [c for c in method.c if 0 < c < 1]
    steps = [step for step in steps if whole(b, method, kind, *step)]
    if not inside or not steps:
        return {}
    c = b.levels.coordinate(NATURAL[kind])
    source, target = (c[[step[side] for step in steps]] for side in (0, 1))
    where = source[:, None] + (target - source)[:, None] * np.array(inside)
    added = b.add_levels(lambda_of(kind, where))
    return {step[0]: list(row) for step, row in zip(steps, added)}


def rk_step(
    b: Builder, x: int, source: int, target: int, method: Tableau, kind: str, inner: list[int], known: int | None = None
) -> tuple[int, list[int]]:
    """One step; returns the new register and the evaluations of its stages (the first may be ``known``)."""
    if not whole(b, method, kind, source, target):
        k = b.eval(x, source) if known is None else known
        return b.frozen(x, k, source, target), [k]
    scale = b.levels.scale(kind)
    c = b.levels.coordinate(NATURAL[kind])
    width = c[target] - c[source]
    inside = iter(inner)
    ks: list[int] = []

    def state(level: int, shares: tuple[float, ...]) -> int:
        slopes = {k: scale[level] * width * share for k, share in zip(ks, shares) if share != 0}
        return b.row(level, {x: scale[level] / scale[source]}, predictions=slopes, kind=kind)

    for position, row in zip(method.c, method.a):
        if position == 0:
            ks.append(b.eval(x, source) if known is None else known)
            continue
        level = target if position == 1 else next(inside)
        ks.append(b.eval(state(level, row), level))
    return state(target, method.b), ks


@solver("heun", order=2, grid="karras")
def heun(b: Builder) -> int:
    """Heun's method in sigma/alpha, the deterministic sampler of EDM (Karras et al. 2022, algorithm 1): two
    evaluations a step, one for the step to sigma = 0."""
    return runge_kutta(b)


@solver(
    "edm",
    order=lambda options: 2.0 if options["s_churn"] == 0 or options["s_noise"] == 1 else None,
    grid="karras",
    claims=("constant", "variance", "order"),
    without={"variance": "with s_noise other than 1 more noise is added than the level asks for"},
)
def edm(b: Builder, s_churn: float = 40.0, s_min: float = 0.05, s_max: float = 50.0, s_noise: float = 1.0) -> int:
    """Heun's method with churn (Karras et al. 2022, algorithm 2), on any path through y = x/alpha.

    Args:
        s_churn: total amount of churn; each step raises the noise level by 1 + min(s_churn/steps, sqrt(2) - 1).
        s_min, s_max: levels sigma/alpha between which there is churn.
        s_noise: factor on the added noise; above 1 it makes up for networks that remove too much.

    The raised level stays inside the process: there is no churn at t = 1.
    """
    require(s_churn >= 0 and s_noise > 0, f"s_churn >= 0 and s_noise > 0 are needed, got {s_churn} and {s_noise}")
    method, L, n = TABLEAUX["heun2"], b.levels, b.n
    rho = L.coordinate("rho")[:n]
    ceiling = float(b.path.sigma(1.0) / b.path.alpha(1.0).clamp_min(1e-300))
    gamma = np.where((rho >= s_min) & (rho <= s_max), min(s_churn / n, np.sqrt(2) - 1), 0.0)
    raised = np.minimum(rho * (1 + gamma), ceiling)
    churned = np.nonzero(np.isfinite(rho) & (raised > rho * (1 + 1e-9)))[0]
    levels = dict(zip(churned.tolist(), b.add_levels(-np.log(raised[churned])).tolist())) if len(churned) else {}
    x = 0
    for i in range(n):
        source = levels.get(i, i)
        if source != i:
            up = b.levels.alpha[source] / b.levels.alpha[i]
            noise = b.levels.alpha[source] * s_noise * np.sqrt(raised[i] ** 2 - rho[i] ** 2)
            x = b.row(source, {x: up}, z=noise)
        x, _ = rk_step(b, x, source, i + 1, method, "noise", [])
    return x


alias("rk4", "rho-rk", tableau="rk4")
