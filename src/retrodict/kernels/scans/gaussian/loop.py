"""Recursions over time in plain torch, one step after another, batched over series.

Slow for one long series, and the reference for the rest: it is differentiable, runs on every device and takes
every chain.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from retrodict.kernels.scans.gaussian.algebra import Message, Step, absorb, bayes, fuse, guided_root, mv, sym
from retrodict.kernels.scans.gaussian.chain import GaussianChain, guided_steps


def messages(chain: GaussianChain) -> Message:
    """Fused messages: ``h_k`` is the potential at node k and everything after it; H as ``(S|1, n+1, d, d)``."""
    h = chain.potential(chain.n)
    found = [h]
    for k in range(chain.n, 0, -1):
        h = fuse(chain.potential(k - 1), absorb(chain.step(k), h)[1])
        found.append(h)
    H, F, c = (_stack(xs[::-1]) for xs in zip(*found))
    return H, F, c


def _stack(xs: Sequence[Tensor]) -> Tensor:
    """Stack along a new time axis; a series axis of one is shared."""
    series = max(x.shape[0] for x in xs)
    return torch.stack([x.expand(series, *x.shape[1:]) for x in xs], 1)


def guided(chain: GaussianChain) -> tuple[Message, Step]:
    """Fused messages and guided steps."""
    h = messages(chain)
    return h, guided_steps(chain, h)


def filter(chain: GaussianChain) -> tuple[Tensor, Tensor, Tensor]:
    """Filtered means, covariances, and the log evidence."""
    m, P, log_evidence = bayes(chain.m0, chain.P0, chain.potential(0))
    means, covs = [m], [P]
    for k in range(1, chain.n + 1):
        A, b, Q = chain.step(k)
        m, P, more = bayes(mv(A, m) + b, sym(A @ P @ A.mT) + Q, chain.potential(k))
        means.append(m)
        covs.append(P)
        log_evidence = log_evidence + more
    return _stack(means), _stack(covs).expand(chain.series, -1, -1, -1), log_evidence


def push(m: Tensor, P: Tensor, steps: Step) -> tuple[Tensor, Tensor]:
    """Means and covariances of all nodes from the law at node 0 and the steps ``(S, n, ...)``."""
    means, covs = [m], [P]
    for A, b, Q in zip(*(x.unbind(1) for x in steps)):
        m, P = mv(A, m) + b, sym(A @ P @ A.mT) + Q
        means.append(m)
        covs.append(P)
    return _stack(means), _stack(covs)


def follow(x: Tensor, E: Tensor, g: Tensor) -> Tensor:
    """All nodes ``(..., S, n+1, d)`` of ``x_k = E_k x_{k-1} + g_k`` from ``x (..., S, d)`` and ``g (..., S, n, d)``."""
    path = [x]
    for A, b in zip(E.unbind(1), g.unbind(-2)):
        x = mv(A, x) + b
        path.append(x)
    return torch.stack(path, -2)


def roots(chain: GaussianChain, h: Message, steps: Step) -> Tensor:
    """Factors of the covariances of the guided steps."""
    return guided_root(chain.steps()[2], h[0][:, 1:])
