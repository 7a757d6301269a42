"""Predictor-corrector sampling (Song et al. 2021, algorithms 2 to 5): Langevin steps at a level, then a step down.

    corrector   x <- x + e score + sqrt(2 e) z,     score = (alpha D - x)/sigma^2,   at the same t
    predictor   ancestral, reverse diffusion, Euler-Maruyama's exponential form ("ddim" of eta), or none

The published step size is ``e = 2 a (snr |z|/|score|)^2``; at equilibrium the norms are sqrt(d) and sqrt(d)/sigma, so
that ``e = 2 a snr^2 sigma^2`` is a coefficient, and the solver an ordinary plan (``step="fixed"``).  ``step="norm"``
measures the norms as it runs.
"""

from __future__ import annotations

import numpy as np

from retrodict.core.errors import InputError, near, require
from retrodict.solvers.builder import Builder
from retrodict.solvers.generators.first_order import retention
from retrodict.solvers.registry import solver

PREDICTORS = ("ancestral", "reverse-diffusion", "ddim", "none")


@solver(
    "pc",
    order=None,
    eta="always",
    claims=("constant",),
    without={
        "order": "every Langevin step leaves a bias of order snr^2, which more steps do not remove",
        "variance": "a Langevin step is Euler-Maruyama's: its stationary variance is off by a share e/(2 sigma^2)",
        "constant": "the predictor 'reverse-diffusion' follows the scale of the state to first order only",
    },
)
def pc(
    b: Builder,
    snr: float = 0.16,
    corrections: int = 1,
    predictor: str = "ancestral",
    step: str = "fixed",
    average: str = "sample",
) -> int:
    """Predictor-corrector with Langevin dynamics.

    Args:
        snr: signal-to-noise ratio of a corrector step (.16 for VE images, .01 to .16 for VP as published).
        corrections: Langevin steps, of one evaluation each, before every predictor step.
        predictor: "ancestral" (the posterior of the forward chain), "reverse-diffusion", "ddim" (of the plan's eta) or
            "none" (corrector only: the state is rescaled from level to level).
        step: "fixed" (a plan of rows) or "norm" (step sizes from the norms of noise and score, as published).
        average: of the norms: "sample" each for itself, or "batch" as published (samples then depend on each other).
    """
    require(snr > 0, f"snr is positive, got {snr}")
    require(
        isinstance(corrections, int) and corrections >= 0,
        f"corrections is an integer of at least 0, got {corrections!r}",
    )
    for name, value, known in (
        ("predictor", predictor, PREDICTORS),
        ("step", step, ("fixed", "norm")),
        ("average", average, ("sample", "batch")),
    ):
        if value not in known:
            raise InputError(f"{name} is one of {', '.join(known)}; got {value!r}.{near(value, known)}")
    x = 0
    for i in range(b.n):
        for _ in range(corrections if b.levels.alpha[i] > 0 else 0):
            k = b.eval(x, i)
            if step == "fixed":
                x = _langevin(b, x, k, i, 2 * _damping(b, i) * snr**2 * b.levels.sigma[i] ** 2)
            else:
                x = b.call("langevin", x, k, i, i, snr=snr, damping=_damping(b, i), average=average)
        x = _predict(b, x, i, predictor)
    return x


def _langevin(b: Builder, x: int, k: int, i: int, e: float) -> int:
    """One Langevin step of size e at level i."""
    pull = e / b.levels.sigma[i] ** 2
    return b.row(i, {x: 1 - pull}, {k: pull * b.levels.alpha[i]}, z=np.sqrt(2 * e))


def _damping(b: Builder, i: int) -> float:
    """a = 1 - beta_i of the process' discrete chain (1,000 levels where it is continuous)."""
    t, dt = float(b.levels.t[i]), 1.0 / (getattr(b.process, "levels", None) or 1000)
    ratio = b.levels.alpha[i] / float(b.path.alpha(max(t - dt, 0.0)))
    return float(min(1.0, ratio**2))


def _predict(b: Builder, x: int, i: int, predictor: str) -> int:
    """The step from level i to the next; to sigma = 0 it is the denoiser's answer, without noise."""
    L = b.levels
    k = b.eval(x, i)
    if L.sigma[i + 1] == 0 or L.alpha[i] == 0 or predictor == "ancestral":
        return b.frozen(x, k, i, i + 1, retention(b, i, 1.0))
    if predictor == "ddim":
        return b.frozen(x, k, i, i + 1, retention(b, i, b.eta))
    if predictor == "none":
        return b.frozen(x, k, i, i + 1)
    carry = L.alpha[i] / L.alpha[i + 1]  # the forward step x_i = carry x_{i+1} + G z
    G2 = L.sigma[i] ** 2 - carry**2 * L.sigma[i + 1] ** 2
    pull = G2 / L.sigma[i] ** 2
    return b.row(i + 1, {x: 2 - carry - pull}, {k: pull * L.alpha[i]}, z=np.sqrt(G2))
