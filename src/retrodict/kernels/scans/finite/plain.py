"""The recursions and walks of `loop` in NumPy: no autograd, CPU only, and a third of the overhead a step."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from retrodict.kernels.scans.finite.chain import FiniteChain
from retrodict.kernels.scans.finite.loop import EVERY
from retrodict.kernels.scans.native import array


def _product(P: np.ndarray) -> Callable[[np.ndarray, int, np.ndarray], None]:
    """``(a, k, out)``: row vectors ``a (S, K)`` times the k-th of the matrices ``(S|1, n|1, K, K)``."""
    last = P.shape[1] - 1
    if P.shape[0] == 1:
        matrices = list(P[0])
        return lambda a, k, out: np.dot(a, matrices[min(k, last)], out=out)  # type: ignore[return-value]
    return lambda a, k, out: np.matmul(a[:, None], P[:, min(k, last)], out=out[:, None])  # type: ignore[return-value]


def forward(chain: FiniteChain) -> tuple[Tensor, Tensor]:
    """Filtered probabilities ``(S, n+1, K)`` and the log evidence ``(S,)``."""
    scaled, top = chain.scaled()
    g = np.ascontiguousarray(array(scaled).swapaxes(0, 1))
    product = _product(array(chain.P))
    alpha = np.empty_like(g)
    np.multiply(array(chain.p0), g[0], out=alpha[0])
    log_evidence = array(top).sum(1)
    with np.errstate(divide="ignore", invalid="ignore"):  # sums of zero are found by the caller
        for k in range(1, len(g)):
            if k % EVERY == 0:
                total = alpha[k - 1].sum(-1)
                alpha[k - 1] /= total[:, None]
                log_evidence += np.log(total)
            a = alpha[k]
            product(alpha[k - 1], k - 1, a)
            np.multiply(a, g[k], out=a)
        total = alpha.sum(-1)
        alpha /= total[..., None]
        log_evidence += np.log(total[-1])
    return torch.from_numpy(alpha).transpose(0, 1), torch.from_numpy(log_evidence)


def backward(chain: FiniteChain) -> tuple[Tensor, Tensor]:
    """``beta (S, n+1, K)`` with largest entry one, and ``scale (S, n+1)``."""
    scaled, top = chain.scaled()
    g = np.ascontiguousarray(array(scaled).swapaxes(0, 1))
    product = _product(array(chain.P.mT))
    beta, offsets = np.empty_like(g), np.zeros(g.shape[:2])
    beta[-1] = 1.0
    w = np.empty_like(g[0])
    offset = np.zeros(len(w))
    with np.errstate(divide="ignore", invalid="ignore"):
        for k in range(len(g) - 1, 0, -1):
            if k % EVERY == 0:
                most = beta[k].max(-1)
                beta[k] /= most[:, None]
                offset = offset + np.log(most)
                offsets[k] = offset
            np.multiply(beta[k], g[k], out=w)
            product(w, k - 1, beta[k - 1])
            offsets[k - 1] = offset
        most = beta.max(-1)
        beta /= most[..., None]
        offsets += np.log(most)
    after = top.flip(1).cumsum(1).flip(1) - top
    return torch.from_numpy(beta).transpose(0, 1), torch.from_numpy(offsets).T + after


def viterbi(chain: FiniteChain) -> tuple[Tensor, Tensor]:
    """The most probable path ``(S, n+1)`` and its log joint probability ``(S,)``; ties go to the lower state."""
    log_g = np.ascontiguousarray(array(chain.log_g).swapaxes(0, 1))
    log_P = array(chain.P.log())
    # origins in front: the maximum over them then runs along rows, several times faster than along short columns
    ahead, back = (np.ascontiguousarray(log_P.transpose(axes)) for axes in ((1, 2, 0, 3), (1, 0, 3, 2)))
    last, series = len(ahead) - 1, np.arange(log_g.shape[1])
    best = np.empty_like(log_g)
    np.add(array(chain.p0.log()), log_g[0], out=best[0])
    sums = np.empty((log_g.shape[2], *log_g.shape[1:]))
    for k in range(1, len(log_g)):
        np.add(best[k - 1].T[:, :, None], ahead[min(k - 1, last)], out=sums)
        np.maximum.reduce(sums, axis=0, out=best[k])
        best[k] += log_g[k]
    state = best[-1].argmax(-1)
    log_prob = best[-1][series, state]
    path = np.empty(log_g.shape[:2], dtype=np.int64)
    path[-1] = state
    shared = len(log_P) == 1
    for k in range(len(log_g) - 1, 0, -1):  # which origin was best is asked for along the path alone
        into = back[min(k - 1, last)]
        state = (best[k - 1] + (into[0].take(state, 0) if shared else into[series, state])).argmax(-1)
        path[k - 1] = state
    return torch.from_numpy(path).T, torch.from_numpy(log_prob)


def draw(chain: FiniteChain, w: Tensor, u: Tensor) -> Tensor:
    """Posterior paths from uniforms ``(m, S, n+1)`` and ``w (S, n+1, K)``: potentials times backward messages."""
    weights, uniforms = array(w), array(u.permute(2, 0, 1))
    P = array(chain.P)
    last, own = P.shape[1] - 1, np.arange(len(weights)) if len(P) > 1 else 0
    path = np.empty(uniforms.shape, dtype=np.int64)
    rows = np.broadcast_to(array(chain.p0), weights[:, 0].shape)
    for k in range(len(path)):
        if k:
            rows = P[own, min(k - 1, last), path[k - 1]]
        cumulative = (rows * weights[:, k]).cumsum(-1)
        limit = uniforms[k][..., None] * cumulative[..., -1:]
        path[k] = (limit >= cumulative[..., :-1]).sum(-1)
    return torch.from_numpy(path).permute(1, 2, 0)
