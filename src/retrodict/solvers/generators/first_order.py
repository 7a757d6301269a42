"""One evaluation a step: DDIM at any eta, and DDPM.

The family is ``x_s = alpha_s D + sigma_s (r eps + sqrt(1 - r^2) z)`` with r in [0, 1]:
r = 1 is DDIM, ``r^2 = 1 - eta^2 (1 - e^{-2h})`` its stochastic form, and eta = 1 the DDPM posterior.
"""

from __future__ import annotations

import numpy as np

from retrodict.core.errors import require
from retrodict.solvers.builder import Builder
from retrodict.solvers.registry import alias, solver


def retention(b: Builder, i: int, eta: float) -> float:
    """How much of the old noise direction step i keeps; all noise is fresh where sigma_t = 0."""
    L = b.levels
    if L.sigma[i] == 0:
        return 0.0
    forgotten = 1.0 if L.alpha[i] == 0 or L.sigma[i + 1] == 0 else -np.expm1(2 * (L.lam[i] - L.lam[i + 1]))
    return float(np.sqrt(max(0.0, 1 - eta**2 * min(max(forgotten, 0.0), 1.0))))


@solver("ddim", order=1, eta="share", claims=("constant", "variance", "order"), ends=2)
def ddim(b: Builder) -> int:
    """Denoising diffusion implicit models (Song, Meng and Ermon 2021, eq. (12)).

    First order; deterministic at eta = 0, the DDPM posterior at eta = 1.  It is also Euler's method for the noise
    in sigma/alpha, which k-diffusion and diffusers call "Euler".
    """
    x = 0
    for i in range(b.n):
        x = b.frozen(x, b.eval(x, i), i, i + 1, retention(b, i, b.eta))
    return x


@solver(
    "euler-ancestral",
    order=1,
    eta="share",
    default_eta=1.0,
    grid="karras",
    claims=("constant", "variance", "order"),
    ends=2,
)
def euler_ancestral(b: Builder) -> int:
    """Euler in sigma/alpha down to sigma_down, then fresh noise (k-diffusion): DDIM of the same eta, 1 by default."""
    return ddim(b)


alias("euler-a", "euler-ancestral")


@solver(
    "ddpm",
    order=1,
    eta="always",
    claims=("constant", "variance", "order"),
    without={"variance": "with variance='large' the forward variance is added, which is more than the marginal has"},
)
def ddpm(b: Builder, variance: str = "small") -> int:
    """Ancestral sampling of Ho, Jain and Abbeel (2020, eq. (11)).

    ``variance="small"`` is the posterior variance; "large" the forward transition variance, with the same mean
    (it does not preserve the marginal variance).
    """
    require(variance in ("small", "large"), f"variance is 'small' or 'large', got {variance!r}")
    x, L = 0, b.levels
    for i in range(b.n):
        k = b.eval(x, i)
        r = retention(b, i, b.eta)
        if variance == "small" or L.sigma[i + 1] == 0 or L.alpha[i] == 0:
            x = b.frozen(x, k, i, i + 1, r)
            continue
        ratio = r * L.sigma[i + 1] / L.sigma[i]
        forward = L.sigma[i] ** 2 - (L.alpha[i] / L.alpha[i + 1]) ** 2 * L.sigma[i + 1] ** 2
        x = b.row(i + 1, {x: ratio}, {k: L.alpha[i + 1] - ratio * L.alpha[i]}, z=np.sqrt(forward))
    return x
