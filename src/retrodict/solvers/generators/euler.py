"""Euler's method in time: the textbook baseline that shows what exponential integration buys.

The probability-flow ODE of a Gaussian path, written without a division by alpha, and its SDE of stochasticity eta:

    dx/dt = A' D + B' x1 + (S'/S) (x - A D - B x1)
    dx = [dx/dt - eta^2 (g^2/2) (A D + B x1 - x)/S^2] dt + eta g dW        backward in time, g^2 = -2 S^2 lambda'

Neither keeps a constant denoiser's solution, except on straight paths.  A step to sigma = 0 is the denoiser's
answer, and a step from a level without signal is deterministic, since g is infinite there.
"""

from __future__ import annotations

import numpy as np

from retrodict.solvers.builder import Builder
from retrodict.solvers.registry import solver

_REASON = "the drift is frozen over a step, so that the scale of the state is not followed exactly"


@solver("euler", order=1, grid="uniform", claims=("order",), without={"constant": _REASON})
def euler(b: Builder) -> int:
    """Euler's method in t on the probability-flow ODE.  A teaching baseline: 'ddim' is better at the same cost."""
    return euler_maruyama(b)


@solver(
    "euler-maruyama",
    order=1,
    eta="always",
    grid="uniform",
    claims=("order",),
    without={
        "constant": _REASON,
        "variance": "noise of the source level is added, not of the step",
    },
)
def euler_maruyama(b: Builder) -> int:
    """Euler-Maruyama in t on the reverse SDE (Song et al. 2021, eq. (6)) of any stochasticity."""
    L, (alpha_rate, _, sigma_rate) = b.levels, b.rates()
    x = 0
    for i in range(b.n):
        k = b.eval(x, i)
        if L.sigma[i + 1] == 0:
            x = b.frozen(x, k, i, i + 1)
            continue
        dt, stretch = L.t[i + 1] - L.t[i], sigma_rate[i] / L.sigma[i]
        eta = b.eta if L.alpha[i] > 0 else 0.0
        # half of g^2 / sigma^2, the rate of -lambda
        churn = stretch - alpha_rate[i] / L.alpha[i] if eta > 0 else 0.0
        pull = stretch + eta**2 * churn
        noise = eta * L.sigma[i] * np.sqrt(-2 * churn * dt)
        x = b.row(i + 1, {x: 1 + dt * pull}, {k: dt * (alpha_rate[i] - pull * L.alpha[i])}, z=noise)
    return x
