"""Forward and backward recursions as associative scans: O(log n) batched calls, every device, differentiable.

An element is the matrix of a stretch of steps, ``M[x, y] = P(y, potentials of the stretch | x)``, kept with rows that
sum to one and the logs of the row sums.  About 2n products of K by K matrices: for small K.
"""

from __future__ import annotations

import torch
from torch import Tensor

from retrodict.kernels.scans.finite.chain import FiniteChain
from retrodict.kernels.scans.scan import Element, prefix, suffix


def normalised_rows(M: Tensor, log_scale: Tensor) -> Element:
    """The matrix with rows of sum one, and the logs of its row sums added to ``log_scale``."""
    total = M.sum(-1)
    safe = torch.where(total > 0, total, torch.ones_like(total))
    return M / safe.unsqueeze(-1), log_scale + total.log()


def weighted(a: Tensor, log_scale: Tensor) -> tuple[Tensor, Tensor]:
    """``a exp(log_scale)`` over its largest factor, and the log of that; for vectors or rows ``a (..., K)``."""
    largest = log_scale.detach().amax(-1)
    largest = torch.where(largest.isinf(), torch.zeros_like(largest), largest)
    return a * (log_scale - largest.unsqueeze(-1)).exp(), largest


def _then(first: Element, second: Element) -> Element:
    (M1, s1), (M2, s2) = first, second
    rows, largest = weighted(M1, s2.unsqueeze(-2))
    return normalised_rows(rows @ M2, s1 + largest)


def _elements(chain: FiniteChain, g: Tensor) -> Element:
    M = chain.P * g[:, 1:].unsqueeze(-2)
    return normalised_rows(M, torch.zeros_like(M[..., 0]))


def forward(chain: FiniteChain) -> tuple[Tensor, Tensor]:
    """Filtered probabilities ``(S, n+1, K)`` and the log evidence ``(S,)``."""
    g, top = chain.scaled()
    a = (chain.p0 * g[:, 0]).unsqueeze(1)
    largest = torch.zeros_like(top[:, :1])
    if chain.n:
        M, s = prefix(_then, _elements(chain, g))
        starts, more = weighted(a, s)
        a = torch.cat((a, (starts.unsqueeze(-2) @ M).squeeze(-2)), 1)
        largest = more
    total = a.sum(-1)
    return a / total.unsqueeze(-1), total[:, -1].log() + largest[:, -1] + top.sum(1)


def backward(chain: FiniteChain) -> tuple[Tensor, Tensor]:
    """``beta (S, n+1, K)`` with largest entry one, and ``scale (S, n+1)``."""
    g, top = chain.scaled()
    log_beta = torch.zeros_like(g[:, -1:])
    if chain.n:
        log_beta = torch.cat((suffix(_then, _elements(chain, g))[1], log_beta), 1)
    beta, largest = weighted(torch.ones_like(log_beta), log_beta)
    return beta, largest + top.flip(1).cumsum(1).flip(1) - top
