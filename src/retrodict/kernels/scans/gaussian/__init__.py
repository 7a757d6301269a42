"""Inference in a linear-Gaussian chain: filter, smooth, evidence, draws and messages.

Every function takes a `GaussianChain` (batched over series, float64) and ``route=``, the name of the algorithm, or
"auto"; what comes back names the route that ran.  All routes give the same numbers; see `routes` for the table.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from retrodict.core.errors import InputError, InputTypeError
from retrodict.core.noise import Noise, as_noise
from retrodict.kernels.scans.gaussian import parallel, passes
from retrodict.kernels.scans.gaussian.algebra import Message
from retrodict.kernels.scans.gaussian.banded import IllConditioned
from retrodict.kernels.scans.gaussian.chain import Filtered, GaussianChain, Smoothed
from retrodict.kernels.scans.gaussian.observe import observe
from retrodict.kernels.scans.gaussian.routes import ROUTES, Route, candidates
from retrodict.kernels.scans.gradient import with_gradient

__all__ = [
    "ROUTES",
    "Filtered",
    "GaussianChain",
    "Smoothed",
    "candidates",
    "draw",
    "evidence",
    "filter",
    "means",
    "messages",
    "observe",
    "smooth",
]

T = TypeVar("T")


def filter(chain: GaussianChain, route: str = "auto") -> Filtered:
    """Laws of ``x_k`` given the potentials at 0..k, and the log evidence."""
    found, name = _run(chain, "filter", route, lambda r: r.filter(chain))
    return Filtered(*found, route=name)


def smooth(chain: GaussianChain, route: str = "auto", cross: bool = False) -> Smoothed:
    """Laws of ``x_k`` given all potentials, the log evidence, and with ``cross`` the covariances of neighbours."""
    found, name = _run(chain, "smooth", route, lambda r: r.smooth(chain, cross))
    mean, cov, log_evidence, neighbours = found
    return Smoothed(mean, cov, log_evidence, name, neighbours)


def means(chain: GaussianChain, route: str = "auto") -> tuple[Tensor, Tensor]:
    """Smoothed means ``(S, n+1, d)`` and the log evidence ``(S,)``; cheaper than `smooth` where covariances cost."""
    return _run(chain, "means", route, lambda r: r.means(chain))[0]


def evidence(chain: GaussianChain, route: str = "auto") -> Tensor:
    """Log evidence ``(S,)``: the log integral of prior times potentials.

    Differentiable in every tensor of the chain on every route: the gradient is computed from the smoother (Fisher's
    identity) and not by retracing the recursion.
    """
    return _run(chain, "evidence", route, lambda r: with_gradient(r, chain, _traced_score))[0]


def draw(chain: GaussianChain, n: int, noise: int | torch.Generator | Noise | Tensor, route: str = "auto") -> Tensor:
    """Paths from the posterior, ``(n, S, n_nodes, d)``.

    Args:
        noise: a seed or a `Noise` with n slots (draw i then depends on slot i alone), a `torch.Generator` (the
            fastest), or the standard normals themselves, ``(n, S, n_nodes, d)``.  A draw is an affine map of its
            normals; which map depends on the route.
    """
    z = _normals(chain, n, noise)
    return _run(chain, "draw", route, lambda r: r.draw(chain, z))[0]


def messages(chain: GaussianChain, route: str = "auto") -> Message:
    """Backward messages ``H (S|1, n+1, d, d), F (S, n+1, d), c (S, n+1)``.

    ``log h_k(x) = c_k + F_k.x - x.H_k x/2`` is the log expectation of the product of the potentials at k, k+1, ..., n
    given ``x_k = x``.
    """
    return _run(chain, "messages", route, lambda r: r.messages(chain))[0]


def _traced_score(chain: GaussianChain) -> tuple[Tensor, ...]:
    """The derivatives of the log evidence by the chain's tensors, as autograd can follow them."""
    return passes.score(parallel, chain)[1]


def _run(chain: GaussianChain, verb: str, route: str, call: Callable[[Route], T]) -> tuple[T, str]:
    """The answer and the name of the route that gave it; "auto" goes on to the next route after a singular matrix."""
    for found in candidates(chain, verb, route):
        try:
            return call(found), found.name
        except IllConditioned:
            if route != "auto":
                raise
    raise AssertionError("the last candidate takes every chain")


def _normals(chain: GaussianChain, n: int, noise: int | torch.Generator | Noise | Tensor) -> Tensor:
    shape = (chain.series, chain.n + 1, chain.d)
    if isinstance(noise, torch.Generator) and noise.device.type == chain.F.device.type == "cpu":
        # NumPy's normals in double precision take a fraction of torch's time; the generator seeds them
        words = torch.randint(2**32, (4,), generator=noise).tolist()
        return torch.from_numpy(np.random.Generator(np.random.SFC64(words)).standard_normal((n, *shape)))
    if not isinstance(noise, Tensor):
        source = as_noise(noise, n, dtype=torch.float64, device=chain.F.device)
        if source.batch != n:
            raise InputError(f"noise has {source.batch} slots for {n} draws; give one slot a draw")
        return source.normal(shape).to(chain.F)
    if noise.shape != (n, *shape):
        raise InputError(f"normals have shape {tuple(noise.shape)}; {(n, *shape)} is needed: (draw, series, node, d)")
    if noise.dtype != torch.float64:
        raise InputTypeError(f"normals are float64, got {noise.dtype}")
    return noise
