"""Forward and backward recursions in torch, one step after another, batched over series and differentiable.

Probabilities are divided by their sum every few steps and the logs of the divisors are kept, which costs two
operations a step where log-sum-exp costs seven.  What underflows nevertheless is found by `passes`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from retrodict.kernels.scans.finite.chain import FiniteChain

EVERY = 16  # steps between divisions


def forward(chain: FiniteChain) -> tuple[Tensor, Tensor]:
    """Filtered probabilities ``(S, n+1, K)`` and the log evidence ``(S,)``."""
    g, top = chain.scaled()
    a = chain.p0 * g[:, 0]
    offset = torch.zeros_like(top[:, 0])
    found = [a]
    for k in range(1, chain.n + 1):
        if k % EVERY == 0:
            total = a.sum(-1)
            a, offset = a / total.unsqueeze(-1), offset + total.log()
        a = (a.unsqueeze(-2) @ chain.step(k)).squeeze(-2) * g[:, k]
        found.append(a)
    alpha = torch.stack(found, 1)
    total = alpha.sum(-1)
    return alpha / total.unsqueeze(-1), total[:, -1].log() + offset + top.sum(1)


def backward(chain: FiniteChain) -> tuple[Tensor, Tensor]:
    """``beta (S, n+1, K)`` with largest entry one, and ``scale (S, n+1)``.

    ``log beta + scale`` is the log expectation of all potentials after node k, given ``x_k``.
    """
    g, top = chain.scaled()
    b = torch.ones_like(g[:, -1])
    offset = torch.zeros_like(top[:, 0])
    found, offsets = [b], [offset]
    for k in range(chain.n, 0, -1):
        if k % EVERY == 0:
            largest = b.amax(-1)
            b, offset = b / largest.unsqueeze(-1), offset + largest.log()
        b = (chain.step(k) @ (b * g[:, k]).unsqueeze(-1)).squeeze(-1)
        found.append(b)
        offsets.append(offset)
    beta, scale = torch.stack(found[::-1], 1), torch.stack(offsets[::-1], 1)
    largest = beta.amax(-1)
    after = top.flip(1).cumsum(1).flip(1) - top
    return beta / largest.unsqueeze(-1), largest.log() + scale + after


def viterbi(chain: FiniteChain) -> tuple[Tensor, Tensor]:
    """The most probable path ``(S, n+1)`` and its log joint probability ``(S,)``; ties go to the lower state."""
    log_P = chain.P.log()
    best = chain.p0.log() + chain.log_g[:, 0]
    origins = []
    for k in range(1, chain.n + 1):
        best, origin = (best.unsqueeze(-1) + log_P[:, min(k - 1, log_P.shape[1] - 1)]).max(-2)
        best = best + chain.log_g[:, k]
        origins.append(origin)
    log_prob, state = best.max(-1)
    path = [state]
    for origin in reversed(origins):
        state = origin.gather(-1, state.unsqueeze(-1)).squeeze(-1)
        path.append(state)
    return torch.stack(path[::-1], 1), log_prob


def draw(chain: FiniteChain, w: Tensor, u: Tensor) -> Tensor:
    """Posterior paths from uniforms ``(m, S, n+1)`` and ``w (S, n+1, K)``: potentials times backward messages."""
    state = invert(chain.p0 * w[:, 0], u[..., 0])
    path = [state]
    series = torch.arange(chain.series, device=u.device)
    for k in range(1, chain.n + 1):
        P = chain.step(k)
        rows = P[series if P.shape[0] > 1 else 0, state] * w[:, k]
        state = invert(rows, u[..., k])
        path.append(state)
    return torch.stack(path, -1)


def invert(weights: Tensor, u: Tensor) -> Tensor:
    """The state at which the cumulative sum of ``weights (..., K)`` passes the share u of its total."""
    cumulative = weights.cumsum(-1)
    # strictly above: a state of weight zero is never drawn, and rounding cannot pass the last positive one
    return (u.unsqueeze(-1) * cumulative[..., -1:] >= cumulative[..., :-1]).sum(-1)
