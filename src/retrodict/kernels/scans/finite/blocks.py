"""Forward and backward recursions in about 4 sqrt(n) batched steps: blocks of steps side by side.

The matrices of all blocks are multiplied up together, one short loop carries a vector from block to block, and the
nodes inside the blocks are filled in together.  The products cost n K^3, so this is for few states.  In torch:
every device, differentiable.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from retrodict.kernels.scans.finite.chain import FiniteChain
from retrodict.kernels.scans.finite.loop import EVERY
from retrodict.kernels.scans.finite.parallel import normalised_rows, weighted
from retrodict.kernels.scans.scan import Element

_LEVELS = 4  # of a tree of products between divisions: EVERY steps
_SAFE = 1e-100


class _Blocks:
    """Steps 1..n cut into blocks of ``length``; the last one is filled up with steps that change nothing."""

    def __init__(self, chain: FiniteChain) -> None:
        self.states, n = chain.states, chain.n
        self.length = max(1, math.isqrt(n))
        self.blocks = -(-n // self.length)
        self.padding = self.blocks * self.length - n
        self.g, self.top = chain.scaled()
        self.steps_g = self._cut(self.g[:, 1:], 1.0)
        self.P = chain.P.unsqueeze(1) if chain.P.shape[1] == 1 else self._cut(chain.P, 0.0)
        self.eye = torch.eye(self.states, dtype=torch.float64, device=chain.P.device)

    def _cut(self, x: Tensor, fill: float) -> Tensor:
        rest = torch.full((x.shape[0], self.padding, *x.shape[2:]), fill, dtype=x.dtype, device=x.device)
        return torch.cat((x, rest), 1).unflatten(1, (self.blocks, self.length))

    def join(self, xs: list[Tensor]) -> Tensor:
        """Values ``(S, blocks, K)`` of steps 1..length of every block, as ``(S, n, K)``."""
        whole = torch.stack(xs, 2).flatten(1, 2)
        return whole[:, : whole.shape[1] - self.padding]

    def step(self, t: int) -> Tensor:
        """Transition times potential of step t of every block, ``(S, blocks, K, K)``."""
        P = self.P[:, :, min(t, self.P.shape[2] - 1)]
        M = P * self.steps_g[:, :, t].unsqueeze(-2)
        if t < self.length - self.padding:
            return M
        return torch.cat((M[:, :-1], self.eye.expand(M.shape[0], 1, -1, -1)), 1)

    def products(self) -> Element:
        """The matrix of every block with rows of sum one ``(S, blocks, K, K)``, and the logs of the row sums."""
        M = self.step(0)
        scale = torch.zeros_like(M[..., 0])
        for t in range(1, self.length):
            if t % EVERY == 0:
                M, scale = normalised_rows(M, scale)
            M = M @ self.step(t)
        return normalised_rows(M, scale)


def forward(chain: FiniteChain) -> tuple[Tensor, Tensor]:
    """Filtered probabilities ``(S, n+1, K)`` and the log evidence ``(S,)``."""
    cut = _Blocks(chain)
    first = chain.p0 * cut.g[:, 0]
    total = first.sum(-1)
    a, log_evidence = first / total.unsqueeze(-1), total.log() + cut.top.sum(1)
    alpha = [a.unsqueeze(1)]
    if chain.n:
        M, scale = cut.products()
        starts = []
        for i in range(cut.blocks):
            starts.append(a)
            rows, largest = weighted(a, scale[:, i])
            a = (rows.unsqueeze(-2) @ M[:, i]).squeeze(-2)
            total = a.sum(-1)
            a, log_evidence = a / total.unsqueeze(-1), log_evidence + total.log() + largest
        inside, found = torch.stack(starts, 1), []
        for t in range(cut.length):
            if t and t % EVERY == 0:
                inside = inside / inside.sum(-1, keepdim=True)
            inside = (inside.unsqueeze(-2) @ cut.step(t)).squeeze(-2)
            found.append(inside)
        alpha.append(cut.join(found))
    whole = torch.cat(alpha, 1)
    return whole / whole.sum(-1, keepdim=True), log_evidence


def evidence(chain: FiniteChain) -> Tensor:
    """The log evidence ``(S,)`` alone: matrices of neighbouring steps multiplied in a tree, and no node filled in.

    -inf or NaN where something may have been lost to underflow.
    """
    g, top = chain.scaled()
    M, total, level = chain.P * g[:, 1:].unsqueeze(-2), top.sum(1), 0
    while M.shape[1]:
        last = M.shape[1] == 1
        if last or level % _LEVELS == _LEVELS - 1:
            scale = M.amax((-2, -1))
            # what underflowed beside an entry of this size is far below its rounding
            scale = torch.where(scale > _SAFE, scale, torch.zeros_like(scale))
            M, total = M / scale[..., None, None], total + scale.log().sum(1)
        if last:
            break
        even, odd = M[:, 0 : M.shape[1] // 2 * 2 : 2], M[:, 1::2]
        pairs, rest = even @ odd, M[:, 2 * odd.shape[1] :]
        M, level = torch.cat((pairs, rest), 1) if rest.shape[1] else pairs, level + 1
    a = chain.p0 * g[:, 0]
    if M.shape[1]:
        a = (a.unsqueeze(-2) @ M[:, 0]).squeeze(-2)
    a = a.sum(-1)
    return total + torch.where(a > _SAFE, a, torch.zeros_like(a)).log()


def backward(chain: FiniteChain) -> tuple[Tensor, Tensor]:
    """``beta (S, n+1, K)`` with largest entry one, and ``scale (S, n+1)``."""
    cut = _Blocks(chain)
    b = torch.ones_like(cut.g[:, -1])
    log_b = torch.zeros_like(cut.top[:, -1])
    if not chain.n:
        return b.unsqueeze(1), log_b.unsqueeze(1)
    M, scale = cut.products()
    ends, logs = [], []
    for i in range(cut.blocks - 1, -1, -1):
        ends.append(b)
        logs.append(log_b)
        rows, largest = weighted((M[:, i] @ b.unsqueeze(-1)).squeeze(-1), scale[:, i])
        most = rows.amax(-1)
        b, log_b = rows / most.unsqueeze(-1), log_b + largest + most.log()
    inside, offset = torch.stack(ends[::-1], 1), torch.stack(logs[::-1], 1)
    found, offsets = [], []
    for t in range(cut.length - 1, -1, -1):
        if t % EVERY == 0:
            most = inside.amax(-1)
            inside, offset = inside / most.unsqueeze(-1), offset + most.log()
        inside = (cut.step(t) @ inside.unsqueeze(-1)).squeeze(-1)
        found.append(inside)
        offsets.append(offset.unsqueeze(-1))
    # before step t of a block stands the node after step t - 1: nodes 0..n-1
    beta = torch.cat((cut.join(found[::-1]), torch.ones_like(b).unsqueeze(1)), 1)
    scales = torch.cat((cut.join(offsets[::-1]), torch.zeros_like(log_b)[:, None, None]), 1).squeeze(-1)
    most = beta.amax(-1)
    after = cut.top.flip(1).cumsum(1).flip(1) - cut.top
    return beta / most.unsqueeze(-1), scales + most.log() + after
