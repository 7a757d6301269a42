"""What one estimate on a Gaussian path says about the others.

With posterior means D0, D1 of the ends given ``x_t = A x0 + B x1 + S z``:

    noise      E = (x - A D0 - B D1) / S                    = E[z | x]
    score      s = -E / S                                   = grad log p_t(x)
    velocity   b = A' D0 + B' D1 + S' E                     = E[dx_t/dt | x]
    drift      v = A' D0 + B' D1 = b + S S' s               = E[d(A x0 + B x1)/dt | x]

and back from (v, E) to the ends, with ``u = x - S E`` and ``det = A B' - A' B``:

    D0 = (B' u - B v) / det          D1 = (A v - A' u) / det

Scalar coefficients.  Where S = 0 the noise is not to be seen in x: E and s are zero there by convention.
Source: Albergo, Boffi and Vanden-Eijnden (2023), section 2.
"""

from __future__ import annotations

from torch import Tensor

from retrodict.core.errors import InputError
from retrodict.processes.gaussian import GaussianPath, as_time


def noise(path: GaussianPath, x: Tensor, t: float | Tensor, x0: Tensor, x1: Tensor | None = None) -> Tensor:
    """E[z | x] from the means of the ends, shaped as x ``(batch, *shape)``."""
    sigma = _at(path.sigma(as_time(t, x.device)), x)
    return _ratio(_remainder(path, x, t, x0, x1), sigma)


def score(path: GaussianPath, x: Tensor, t: float | Tensor, x0: Tensor, x1: Tensor | None = None) -> Tensor:
    """grad log p_t(x) from the means of the ends."""
    sigma = _at(path.sigma(as_time(t, x.device)), x)
    return -_ratio(_ratio(_remainder(path, x, t, x0, x1), sigma), sigma)


def velocity(path: GaussianPath, x: Tensor, t: float | Tensor, x0: Tensor, x1: Tensor | None = None) -> Tensor:
    """E[dx_t/dt | x], whose flow carries the law of x_t, from the means of the ends."""
    t = as_time(t, x.device)
    sigma, product = _at(path.sigma(t), x), _at(path.noise_rate(t), x)
    remainder = _remainder(path, x, t, x0, x1)
    return drift(path, x, t, x0, x1) + product * _ratio(_ratio(remainder, sigma), sigma)


def drift(path: GaussianPath, x: Tensor, t: float | Tensor, x0: Tensor, x1: Tensor | None = None) -> Tensor:
    """E[A' x0 + B' x1 | x]: the velocity of the noiseless interpolant."""
    da, db, _ = (_at(rate, x) for rate in path.rates(as_time(t, x.device)))
    return da * x0 if x1 is None else da * x0 + db * x1


def ends(path: GaussianPath, x: Tensor, t: float | Tensor, drift: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Means of both ends from the drift v and the noise E."""
    if len(path.ends) != 2:
        raise InputError("the ends follow from drift and noise on a path with two ends; this path has one")
    t = as_time(t, x.device)
    a, b, sigma = (_at(c(t), x) for c in (path.alpha, path.beta, path.sigma))
    da, db, _ = (_at(rate, x) for rate in path.rates(t))
    u, det = x - sigma * noise, a * db - da * b
    return (db * u - b * drift) / det, (a * drift - da * u) / det


def _remainder(path: GaussianPath, x: Tensor, t: float | Tensor, x0: Tensor, x1: Tensor | None) -> Tensor:
    """x - A x0 - B x1."""
    if (x1 is None) != (len(path.ends) == 1):
        raise InputError(f"this path has the ends {', '.join(path.ends)}: pass the mean of each and of no other")
    t = as_time(t, x.device)
    rest = x - _at(path.alpha(t), x) * x0
    return rest if x1 is None else rest - _at(path.beta(t), x) * x1


def _ratio(value: Tensor, scale: Tensor) -> Tensor:
    """value / scale, and 0 where the scale is."""
    zero = scale == 0
    return (value / scale.masked_fill(zero, 1)).masked_fill(zero, 0)


def _at(coefficient: Tensor, x: Tensor) -> Tensor:
    """A coefficient, one or one a batch element, against x."""
    return (
        coefficient.to(x).reshape(coefficient.shape + (1,) * (x.ndim - coefficient.ndim))
        if coefficient.ndim
        else (coefficient.to(x))
    )
