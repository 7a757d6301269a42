"""Inference in a finite-state chain: filter, smooth, evidence, most probable path, draws and messages.

Every function takes a `FiniteChain` (batched over series, float64) and ``route=``, the name of the algorithm, or
"auto"; what comes back names the route that ran.  Routes on scaled probabilities that lose a state to underflow hand
over to "log".  Potentials of total probability zero raise, naming series and time index.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from retrodict.core.errors import InputError
from retrodict.core.noise import Noise, as_noise
from retrodict.kernels.scans.finite.chain import Filtered, FiniteChain, Smoothed
from retrodict.kernels.scans.finite.passes import Route, Underflow, traced_score
from retrodict.kernels.scans.finite.routes import ROUTES, choose
from retrodict.kernels.scans.gradient import with_gradient

__all__ = [
    "ROUTES",
    "Filtered",
    "FiniteChain",
    "Smoothed",
    "choose",
    "draw",
    "evidence",
    "filter",
    "messages",
    "smooth",
    "viterbi",
]

T = TypeVar("T")


def filter(chain: FiniteChain, route: str = "auto") -> Filtered:
    """Probabilities of ``x_k`` given the potentials at 0..k, and the log evidence."""
    (probabilities, log_evidence), name = _run(chain, "filter", route, lambda r: r.filter(chain))
    return Filtered(probabilities, log_evidence, name)


def smooth(chain: FiniteChain, route: str = "auto", pairs: str | None = None) -> Smoothed:
    """Probabilities of ``x_k`` given all potentials, and the log evidence.

    Args:
        pairs: "each" adds the joint probabilities of neighbours at every step, "sum" their sum over steps (what
            expectation maximisation needs).
    """
    if pairs not in (None, "each", "sum"):
        raise InputError(f"pairs is None, 'each' or 'sum', got {pairs!r}")
    found, name = _run(chain, "smooth", route, lambda r: r.smooth(chain, pairs))
    probabilities, log_evidence, joint = found
    return Smoothed(probabilities, log_evidence, name, joint)


def evidence(chain: FiniteChain, route: str = "auto") -> Tensor:
    """Log evidence ``(S,)``: the log of the expected product of all potentials.

    Differentiable in ``p0``, ``P`` (each entry by itself) and ``log_g`` on every route: the gradient is computed from
    the smoother (Fisher's identity) and not by retracing the recursion.
    """
    return _run(chain, "evidence", route, lambda r: with_gradient(r, chain, traced_score))[0]


def viterbi(chain: FiniteChain, route: str = "auto") -> tuple[Tensor, Tensor]:
    """The most probable path ``(S, n+1)`` and its log probability jointly with the potentials ``(S,)``."""
    (path, log_prob), _ = _run(chain, "viterbi", route, lambda r: r.viterbi(chain))
    if not bool(log_prob.isfinite().all()):
        ROUTES["log"].filter(chain)  # names the series and the time index
    return path, log_prob


def draw(chain: FiniteChain, n: int, noise: int | torch.Generator | Noise | Tensor, route: str = "auto") -> Tensor:
    """Paths from the posterior, integers ``(n, S, n_nodes)``.

    Args:
        noise: a seed, a `torch.Generator`, a `Noise` with n slots (draw i then depends on slot i alone), or the
            uniforms themselves, float64 ``(n, S, n_nodes)``.  Every route turns equal uniforms into equal paths.
    """
    shape = (chain.series, chain.n + 1)
    if not isinstance(noise, Tensor):
        source = as_noise(noise, n, device=chain.log_g.device)
        if source.batch != n:
            raise InputError(f"noise has {source.batch} slots for {n} draws; give one slot a draw")
        u = source.uniform(shape)
    elif noise.shape == (n, *shape):
        u = noise
    else:
        raise InputError(f"uniforms have shape {tuple(noise.shape)}; {(n, *shape)} is needed: (draw, series, node)")
    return _run(chain, "draw", route, lambda r: r.draw(chain, u))[0]


def messages(chain: FiniteChain, route: str = "auto") -> Tensor:
    """Backward messages ``log h (S, n+1, K)``: log expected product of the potentials at k..n given ``x_k``."""
    return _run(chain, "messages", route, lambda r: r.messages(chain))[0]


def _run(chain: FiniteChain, verb: str, route: str, call: Callable[[Route], T]) -> tuple[T, str]:
    """The answer and the name of the route that gave it."""
    found = choose(chain, verb, route)
    try:
        return call(found), found.name
    except Underflow:
        return call(ROUTES["log"]), "log"
