"""BDIA: a sampler that can be run backward exactly (Zhang, Lewis and Kleijn 2024).

With T_{i->j} the transfer of state i to level j, noisier or cleaner, by a one-step method, the step undoes with weight
g what the step before did:

    x_{i+1} = T_{i->i+1} + g (x_{i-1} - T_{i->i-1})

Both transfers are made at x_i, so that x_{i-1} follows from the pair (x_{i+1}, x_i) by solving the same row for it:
`retrodict.solvers.inversion` does, for any plan of this structure.  With g = 1 this is the leapfrog, of second order;
with g < 1 the parasitic root -g is damped and the order is that of the transfer; g = 0 is the one-step method itself.
The "edm" form is the same step on y = x/alpha with sigma/alpha as clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from retrodict.core.errors import InputError, near, require
from retrodict.solvers.builder import Builder
from retrodict.solvers.generators.runge_kutta import TABLEAUX, rk_step
from retrodict.solvers.registry import solver

FORMS = ("path", "edm")
TRANSFERS = ("ddim", "heun")


def _order(options: Mapping[str, Any]) -> float:
    """Two for the leapfrog and for Heun's transfers."""
    return 2.0 if options["gamma"] == 1 or options["transfer"] == "heun" else 1.0


@solver("bdia", order=_order)
def bdia(b: Builder, gamma: float = 1.0, form: str = "path", transfer: str = "ddim") -> int:
    """Bi-directional integration approximation (Zhang, Lewis and Kleijn 2024): exactly invertible.

    Args:
        gamma: weight g in [0, 1] of the step back.  1 is second order and inverts to rounding; below 1 the inverse
            multiplies rounding errors by 1/g a step, and sampling is calmer under strong guidance; 0 is DDIM.
        form: "path" steps in x as published, "edm" in x/alpha.
        transfer: "ddim" (one evaluation a step) or "heun" (three, with the stages ahead and behind).

    The step to sigma = 0 is the denoiser's answer, which nothing inverts: `retrodict.invert` ends its plans above it.
    The released editing code also mixes two latents in the generative direction, which is no part of the method.
    """
    require(0 <= gamma <= 1, f"gamma lies between 0 and 1, got {gamma}")
    for name, value, known in (("form", form, FORMS), ("transfer", transfer, TRANSFERS)):
        if value not in known:
            raise InputError(f"{name} is one of {', '.join(known)}; got {value!r}.{near(value, known)}")
    before, x, alpha = None, 0, b.levels.alpha
    for i in range(b.n):
        k = b.eval(x, i)
        ahead = _transfer(b, x, k, i, i + 1, transfer)
        if before is None or gamma == 0 or b.levels.sigma[i + 1] == 0:
            before, x = x, ahead
            continue
        # where alpha vanishes x/alpha does not exist: that one step is taken in x
        g = gamma * (alpha[i + 1] / alpha[i - 1] if form == "edm" and alpha[i - 1] > 0 else 1.0)
        back = _transfer(b, x, k, i, i - 1, transfer)
        before, x = x, b.row(i + 1, {ahead: 1.0, before: g, back: -g})
    return x


def _transfer(b: Builder, x: int, k: int, source: int, target: int, method: str) -> int:
    """T_{source -> target} of state x, whose evaluation is k."""
    if method == "ddim" or b.levels.sigma[target] == 0:
        return b.frozen(x, k, source, target)
    return rk_step(b, x, source, target, TABLEAUX["heun2"], "flow", [], known=k)[0]
