"""The same passes as in `loop`, each as one associative scan: O(log n) batched calls, every device, differentiable.

The suffix products of the segments "step k, then potential k" carry the pulled messages; the prefix products, with
the prior as first segment, carry the filter and the running evidence.
"""

from __future__ import annotations

import torch
from torch import Tensor

from retrodict.kernels.scans.gaussian.algebra import (
    Message,
    Segment,
    Step,
    bayes,
    combine,
    element,
    fuse,
    guided_root,
    sym,
)
from retrodict.kernels.scans.gaussian.chain import GaussianChain, guided_steps
from retrodict.kernels.scans.scan import Element, affine, prefix, suffix


def _segments(chain: GaussianChain) -> Segment:
    H, F, c = chain.potentials()
    return element(chain.steps(), (H[:, 1:], F[:, 1:], c[:, 1:]))


def _join(head: Tensor, tail: Tensor) -> Tensor:
    """Concatenate along time; a series axis of one is shared."""
    series = max(head.shape[0], tail.shape[0])
    return torch.cat((head.expand(series, *head.shape[1:]), tail.expand(series, *tail.shape[1:])), 1)


def messages(chain: GaussianChain) -> Message:
    """Fused messages: ``h_k`` is the potential at node k and everything after it; H as ``(S|1, n+1, d, d)``."""
    H, F, c = chain.potentials()
    if not chain.n:
        return H, F, c
    _, _, _, eta, J, l = suffix(combine, _segments(chain))
    fused = fuse((H[:, :-1], F[:, :-1], c[:, :-1]), (J, eta, l))
    H, F, c = (_join(x, y) for x, y in zip(fused, (H[:, -1:], F[:, -1:], c[:, -1:])))
    return H, F, c


def guided(chain: GaussianChain) -> tuple[Message, Step]:
    """Fused messages and guided steps."""
    h = messages(chain)
    return h, guided_steps(chain, h)


def filter(chain: GaussianChain) -> tuple[Tensor, Tensor, Tensor]:
    """Filtered means, covariances, and the log evidence."""
    m, P, log_evidence = bayes(chain.m0, chain.P0, chain.potential(0))
    first = (torch.zeros_like(P), m, P, torch.zeros_like(m), torch.zeros_like(P), log_evidence)
    elements = tuple(x.unsqueeze(1) for x in first)
    if chain.n:
        elements = tuple(_join(x, y) for x, y in zip(elements, _segments(chain)))
    _, mean, cov, _, _, l = prefix(combine, elements)
    return mean, cov.expand(chain.series, -1, -1, -1), l[:, -1]


def push(m: Tensor, P: Tensor, steps: Step) -> tuple[Tensor, Tensor]:
    """Means and covariances of all nodes from the law at node 0 and the steps ``(S, n, ...)``."""
    A, b, Q = steps
    if not A.shape[1]:
        return m.unsqueeze(1), P.unsqueeze(1)
    maps, means, covs = prefix(_push_then, (A, b.unsqueeze(-1), Q))
    m, P = m.unsqueeze(1), P.unsqueeze(1)
    means = (maps @ m.unsqueeze(-1) + means).squeeze(-1)
    return _join(m, means), _join(P, sym(maps @ P @ maps.mT + covs))


def _push_then(first: Element, second: Element) -> Element:
    (A1, b1, Q1), (A2, b2, Q2) = first, second
    return A2 @ A1, A2 @ b1 + b2, A2 @ Q1 @ A2.mT + Q2


def follow(x: Tensor, E: Tensor, g: Tensor) -> Tensor:
    """All nodes ``(..., S, n+1, d)`` of ``x_k = E_k x_{k-1} + g_k`` from ``x (..., S, d)`` and ``g (..., S, n, d)``."""
    return torch.cat((x.unsqueeze(-2), affine(E, g, x)), -2) if E.shape[1] else x.unsqueeze(-2)


def roots(chain: GaussianChain, h: Message, steps: Step) -> Tensor:
    """Factors of the covariances of the guided steps."""
    return guided_root(chain.steps()[2], h[0][:, 1:])
