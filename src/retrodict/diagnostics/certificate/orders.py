"""Orders of convergence, measured.

`convergence_order` compares a deterministic sampler with an independent solution of the probability-flow ODE
(scipy's DOP853); `weak_order` compares the variance of a stochastic plan on Gaussian data with the closed form,
propagated exactly, so that no Monte Carlo error hides the order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from retrodict.core.noise import KeyedNoise
from retrodict.denoisers import Denoiser
from retrodict.diagnostics.certificate.finding import Finding
from retrodict.diagnostics.certificate.identities import moments
from retrodict.diagnostics.certificate.runs import execute
from retrodict.processes import GaussianPath
from retrodict.solvers.plan import Plan

STEPS = (80, 160, 320)


def flow_map(denoiser: Denoiser, x: Tensor, start: float, end: float, rtol: float = 1e-11) -> Tensor:
    """The probability-flow end point of each state, by an adaptive method of order 8 that shares nothing with plans.

    The clock is lambda on a path with one end, ``dy/dlambda = D - y`` with y = x/alpha; with two it is
    phi = arcsin sqrt(t), ``dx/dt = A' D + B' D1 + S' Z``.  Both times need noise and (with one end) signal.
    """
    path: GaussianPath = denoiser.process  # type: ignore[assignment]
    if len(path.ends) == 1:
        clock = tuple(float(path.log_snr(t)) for t in (start, end))

        def one_end(lam: float, y: np.ndarray) -> np.ndarray:
            t = float(path.time_at(lam))
            alpha = float(path.alpha(t))
            state = torch.from_numpy(y).reshape(x.shape)
            return (denoiser(state * alpha, t) - state).numpy().ravel()

        slope_of_path, scale = one_end, [float(path.alpha(t)) for t in (start, end)]
    else:
        clock, scale = tuple(float(np.arcsin(np.sqrt(t))) for t in (start, end)), [1.0, 1.0]

        def two_ends(phi: float, y: np.ndarray) -> np.ndarray:
            t = float(np.sin(phi) ** 2)
            state = torch.from_numpy(y).reshape(x.shape)
            belief: Any = denoiser.belief(state, t)
            a, b, s = (float(c(t)) for c in (path.alpha, path.beta, path.sigma))
            da, db, ds = (float(r) for r in path.rates(t))
            Z = (state - a * belief.mean - b * belief.x1) / s
            return (np.sin(2 * phi) * (da * belief.mean + db * belief.x1 + ds * Z)).numpy().ravel()

        slope_of_path = two_ends

    y0 = (x / scale[0]).double().numpy().ravel()
    with torch.no_grad():
        solved = solve_ivp(slope_of_path, clock, y0, method="DOP853", rtol=rtol, atol=rtol)
    return torch.from_numpy(solved.y[:, -1]).reshape(x.shape) * scale[1]


def slope(steps: Sequence[int], errors: Sequence[float]) -> float:
    """Order of convergence: minus the slope of log error against log steps, over the last three entries."""
    return float(np.log(errors[-3] / errors[-1]) / np.log(steps[-1] / steps[-3]))


def convergence_order(
    run: Callable[[int], Tensor] | Callable[[int], Plan],
    reference: Tensor,
    *,
    expected: float | None = None,
    tol: float = 0.15,
    steps: Sequence[int] = STEPS,
    denoiser: Denoiser | None = None,
    x: Tensor | None = None,
) -> Finding:
    """Pathwise order of a deterministic sampler.

    Args:
        run: ``number of steps -> final states (batch, *shape)`` of any sampler, or ``-> Plan``, which is then run on
            ``denoiser`` from ``x``.
        reference: the exact final states (`flow_map`).
        expected: the declared order; None reports only.
        steps: three numbers of steps or more, doubling.

    The error is the mean over the batch of the Euclidean norm; ``details`` holds it for each number of steps.
    """
    errors = []
    for n in steps:
        out = run(n)
        if isinstance(out, Plan):
            if denoiser is None or x is None:
                raise TypeError("convergence_order needs denoiser= and x= to run plans")
            with torch.no_grad():
                out = execute(out, denoiser, x, KeyedNoise(0, len(x), dtype=x.dtype))
        errors.append(float((out - reference).flatten(1).norm(dim=1).mean()))
    return _verdict("order of convergence", slope(steps, errors), expected, tol, errors, steps)


def weak_order(
    make: Callable[[int], Plan],
    *,
    expected: float | None = None,
    tol: float = 0.15,
    steps: Sequence[int] = STEPS,
    mean: float = 0.7,
    variance: float = 0.25,
) -> Finding:
    """Order of the output variance on Gaussian data, by exact moments; for plans with noise or without."""
    errors = [moments(make(n), mean, variance).variance_error for n in steps]
    return _verdict("weak order", slope(steps, errors), expected, tol, errors, steps)


def _verdict(
    name: str, value: float, expected: float | None, tol: float, errors: Sequence[float], steps: Sequence[int]
) -> Finding:
    shown = ", ".join(f"{e:.2e}" for e in errors)
    ok = bool(np.isfinite(value)) if expected is None else bool(abs(value - expected) <= tol)
    declared = "" if expected is None else f" (declared {expected:g})"
    text = f"{value:.2f}{declared}; errors {shown} at {', '.join(map(str, steps))} steps"
    return Finding(name, value, float("nan") if expected is None else expected, ok, text, tuple(errors))
