"""The recursions of `loop`, compiled: over time, and over a thread's share of the series; also draws and best paths."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from retrodict.kernels.scans.finite.chain import FiniteChain
from retrodict.kernels.scans.native import array, compiled, each, shared

_MODEST = 100.0  # log potentials within this need no scale of their own
_UNROLLED = 8  # chains of up to this many states get loops of their own
KERNELS = (
    "forward_one",
    "backward_one",
    "smooth_one",
    "viterbi_one",
    "draw_one",
    "forward_share",
    "backward_share",
    "smooth_share",
    "viterbi_share",
)


def forward_one(dims, p0, P, g, alpha, total):  # type: ignore[no-untyped-def]
    """Filtered probabilities, where ``alpha`` has room for them, and the log of their divisors in ``total[0]``.

    Indices instead of views, which numba counts references of; one log for many divisors.
    """
    nodes, K = g.shape[0], len(dims) if len(dims) > 0 else g.shape[1]
    last, logs, product = P.shape[0] - 1, 0.0, 1.0
    now, new = np.empty(K), np.empty(K)
    for k in range(nodes):
        if k:
            t = min(k - 1, last)
            for j in range(K):
                new[j] = 0.0
            for i in range(K):
                x = now[i]
                for j in range(K):
                    new[j] += x * P[t, i, j]
        else:
            for j in range(K):
                new[j] = p0[j]
        s = 0.0
        for j in range(K):
            new[j] *= g[k, j]
            s += new[j]
        if not s > 0.0:
            logs = -math.inf
        elif not 1e-100 < product * s < 1e100:
            logs += math.log(product) + math.log(s)
            product = 1.0
        else:
            product *= s
        s = 1.0 / s
        for j in range(K):
            now[j] = new[j] * s
        if len(alpha):
            for j in range(K):
                alpha[k, j] = now[j]
    total[0] = logs + math.log(product)


def backward_one(dims, P, g, top, beta, logs):  # type: ignore[no-untyped-def]
    """Backward messages with largest entry one, and the logs of their factors; P holds transposed matrices."""
    nodes, K = g.shape[0], len(dims) if len(dims) > 0 else g.shape[1]
    last = P.shape[0] - 1
    new = np.empty(K)
    for j in range(K):
        beta[nodes - 1, j] = 1.0
    logs[nodes - 1] = 0.0
    for k in range(nodes - 1, 0, -1):
        t = min(k - 1, last)
        for i in range(K):
            new[i] = 0.0
        for j in range(K):
            x = beta[k, j] * g[k, j]
            for i in range(K):
                new[i] += x * P[t, j, i]
        most = 0.0
        for i in range(K):
            most = max(most, new[i])
        logs[k - 1] = logs[k] + top[k] + (math.log(most) if most > 0.0 else -math.inf)
        most = 1.0 / most
        for i in range(K):
            beta[k - 1, i] = new[i] * most


def smooth_one(dims, p0, P, turned, g, found, total):  # type: ignore[no-untyped-def]
    """Smoothed probabilities: filtered ones, on the way back times messages whose scale makes the product sum to one.

    ``turned`` holds the transposed matrices.  ``total`` gets the log of the divisors and the smallest sum met.
    """
    forward_one(dims, p0, P, g, found, total)
    nodes, K = g.shape[0], len(dims) if len(dims) > 0 else g.shape[1]
    last, least = P.shape[0] - 1, 1.0
    beta, new, both = np.ones(K), np.empty(K), np.empty(K)
    for k in range(nodes - 2, -1, -1):
        t = min(k, last)
        for i in range(K):
            new[i] = 0.0
        for j in range(K):
            x = beta[j] * g[k + 1, j]
            for i in range(K):
                new[i] += x * turned[t, j, i]
        s = 0.0
        for i in range(K):
            both[i] = found[k, i] * new[i]
            s += both[i]
        if not s >= least:  # NaN too
            least = s
        s = 1.0 / s
        for i in range(K):
            beta[i] = new[i] * s
        for i in range(K):
            found[k, i] = both[i] * s
    total[1] = least


def viterbi_one(dims, log_p0, log_P, log_g, path, log_prob):  # type: ignore[no-untyped-def]
    """The most probable path and its log probability."""
    nodes, K = log_g.shape[0], len(dims) if len(dims) > 0 else log_g.shape[1]
    origin = np.zeros((nodes, K), dtype=np.int64)
    best, new = np.empty(K), np.empty(K)
    for j in range(K):
        best[j] = log_p0[j] + log_g[0, j]
    for k in range(1, nodes):
        Pk, came = log_P[min(k - 1, log_P.shape[0] - 1)], origin[k]
        for j in range(K):
            new[j] = -math.inf
        for i in range(K):
            x = best[i]
            for j in range(K):
                y = x + Pk[i, j]
                if y > new[j]:
                    new[j] = y
                    came[j] = i
        for j in range(K):
            best[j] = new[j] + log_g[k, j]
    state = 0
    for j in range(1, K):
        if best[j] > best[state]:
            state = j
    log_prob[0] = best[state]
    path[nodes - 1] = state
    for k in range(nodes - 1, 0, -1):
        state = origin[k, state]
        path[k - 1] = state


def draw_one(p0, P, w, u, path):  # type: ignore[no-untyped-def]
    """Paths from uniforms ``(nodes, draws)`` by inversion of the guided rows; path is ``(nodes, draws)``."""
    nodes, K = w.shape
    cumulative = np.empty(K)
    for m in range(u.shape[1]):
        state = 0
        for k in range(nodes):
            row = P[min(k - 1, P.shape[0] - 1), state] if k else p0
            total = 0.0
            for j in range(K):
                total += row[j] * w[k, j]
                cumulative[j] = total
            limit = u[k, m] * total
            state = 0
            while state < K - 1 and limit >= cumulative[state]:
                state += 1
            path[k, m] = state


def forward_share(first, step, dims, p0, P, g, alpha, total):  # type: ignore[no-untyped-def]
    """`forward_one` for series first, first + step, ...; what has one row is shared by all."""
    for i in range(first, len(g), step):
        forward_one(dims, p0[i % len(p0)], P[i % len(P)], g[i], alpha[i % len(alpha)], total[i])


def backward_share(first, step, dims, P, g, top, beta, logs):  # type: ignore[no-untyped-def]
    """`backward_one` likewise."""
    for i in range(first, len(g), step):
        backward_one(dims, P[i % len(P)], g[i], top[i], beta[i], logs[i])


def smooth_share(first, step, dims, p0, P, turned, g, found, total):  # type: ignore[no-untyped-def]
    """`smooth_one` likewise."""
    for i in range(first, len(g), step):
        smooth_one(dims, p0[i % len(p0)], P[i % len(P)], turned[i % len(turned)], g[i], found[i], total[i])


def viterbi_share(first, step, dims, log_p0, log_P, log_g, path, log_prob):  # type: ignore[no-untyped-def]
    """`viterbi_one` likewise."""
    for i in range(first, len(log_g), step):
        viterbi_one(dims, log_p0[i % len(log_p0)], log_P[i % len(log_P)], log_g[i], path[i], log_prob[i])


def _ready(chain: FiniteChain) -> tuple[int, ...]:
    """Compile; the ``dims`` of chains of this size (see `gaussian.loops`)."""
    compiled(globals(), KERNELS)
    return (0,) * chain.states if chain.states <= _UNROLLED else ()


def _scaled(chain: FiniteChain) -> tuple[np.ndarray, np.ndarray]:
    """Potentials and the logs of their largest values, by NumPy: it takes exponentials several at once, a loop one by
    one, and torch's threads would still spin on the cores that the loops want."""
    log_g = array(chain.log_g)
    if -_MODEST < log_g.min() and log_g.max() < _MODEST:  # as they are: two passes over memory less
        return np.exp(log_g), np.zeros(log_g.shape[:2])
    top = log_g.max(-1)
    top[np.isinf(top)] = 0.0
    return np.exp(log_g - top[..., None]), top


def forward(chain: FiniteChain) -> tuple[Tensor, Tensor]:
    """Filtered probabilities ``(S, n+1, K)`` and the log evidence ``(S,)``."""
    return _forward(chain, np.empty(chain.log_g.shape))


def evidence(chain: FiniteChain) -> Tensor:
    """The log evidence alone."""
    return _forward(chain, np.empty((1, 0, chain.states)))[1]


def _forward(chain: FiniteChain, alpha: np.ndarray) -> tuple[Tensor, Tensor]:
    dims, (g, top) = _ready(chain), _scaled(chain)
    total = np.empty((len(g), 1))
    shared(forward_share, len(g), dims, array(chain.p0), array(chain.P), g, alpha, total)
    return torch.from_numpy(alpha), torch.from_numpy(total[:, 0] + top.sum(1))


def backward(chain: FiniteChain) -> tuple[Tensor, Tensor]:
    """``beta (S, n+1, K)`` with largest entry one, and ``scale (S, n+1)``."""
    dims, (g, top) = _ready(chain), _scaled(chain)
    beta, logs = np.empty_like(g), np.empty_like(top)
    shared(backward_share, len(g), dims, array(chain.P.mT), g, top, beta, logs)
    return torch.from_numpy(beta), torch.from_numpy(logs)


def smooth(chain: FiniteChain) -> tuple[Tensor, Tensor, Tensor]:
    """Smoothed probabilities ``(S, n+1, K)``, log evidence ``(S,)``, smallest sum before normalisation ``(S,)``."""
    dims, (g, top) = _ready(chain), _scaled(chain)
    found, total = np.empty_like(g), np.empty((len(g), 2))
    shared(smooth_share, len(g), dims, array(chain.p0), array(chain.P), array(chain.P.mT), g, found, total)
    return torch.from_numpy(found), torch.from_numpy(total[:, 0] + top.sum(1)), torch.from_numpy(total[:, 1])


def viterbi(chain: FiniteChain) -> tuple[Tensor, Tensor]:
    """The most probable path ``(S, n+1)`` and its log joint probability ``(S,)``; ties go to the lower state."""
    dims, log_g = _ready(chain), array(chain.log_g)
    path, log_prob = np.empty(log_g.shape[:2], dtype=np.int64), np.empty((len(log_g), 1))
    shared(viterbi_share, len(log_g), dims, array(chain.p0.log()), array(chain.P.log()), log_g, path, log_prob)
    return torch.from_numpy(path), torch.from_numpy(log_prob[:, 0])


def draw(chain: FiniteChain, w: Tensor, u: Tensor) -> Tensor:
    """Posterior paths from uniforms ``(m, S, n+1)`` and ``w (S, n+1, K)``: potentials times backward messages."""
    compiled(globals(), KERNELS)
    uniforms = array(u.permute(1, 2, 0))
    path = np.empty(uniforms.shape, dtype=np.int64)
    each(draw_one, len(path), array(chain.p0), array(chain.P), array(w), uniforms, path)
    return torch.from_numpy(path).permute(2, 0, 1)
