"""What every pair of passes (`loop`, `parallel`) shares: smooth, draw and score from messages and guided steps.

Backward the messages are pulled; the chain guided by them is again a linear-Gaussian chain, whose push is the
smoother and whose simulation is a posterior draw.  With the innovations fixed a draw is an affine map of them.
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from retrodict.kernels.scans.gaussian.algebra import Message, Step, bayes, guided, guided_root, mv, outer
from retrodict.kernels.scans.gaussian.chain import GaussianChain


def _guided(chain: GaussianChain, h: Message) -> tuple[Tensor, Tensor, Tensor, Step]:
    """The law at node 0, the log evidence, and the guided steps, all with leading axis S."""
    m, P, log_evidence = bayes(chain.m0, chain.P0, (h[0][:, 0], h[1][:, 0], h[2][:, 0]))
    A, b, Q = guided(chain.steps(), (h[0][:, 1:], h[1][:, 1:], h[2][:, 1:]))
    return m, P.expand(chain.series, -1, -1), log_evidence, (A, b, Q)


def smooth(passes: ModuleType, chain: GaussianChain, cross: bool) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Means, covariances, log evidence, and the covariances of neighbours if ``cross``."""
    return _smooth(passes, chain, passes.messages(chain), cross)


def _smooth(
    passes: ModuleType, chain: GaussianChain, h: Message, cross: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    m, P, log_evidence, steps = _guided(chain, h)
    means, covs = passes.push(m, P, steps)
    return means, covs, log_evidence, steps[0] @ covs[:, :-1] if cross else None


def draw(passes: ModuleType, chain: GaussianChain, z: Tensor) -> Tensor:
    """Posterior paths ``(..., S, n+1, d)`` from standard normals of the same shape."""
    h = passes.messages(chain)
    m, _, _, (E, g, _) = _guided(chain, h)
    start = m + mv(guided_root(chain.P0, h[0][:, 0]), z[..., 0, :])
    roots = guided_root(chain.Q.expand(-1, chain.n, -1, -1), h[0][:, 1:])
    return passes.follow(start, E, g + mv(roots, z[..., 1:, :]))


def score(passes: ModuleType, chain: GaussianChain) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Log evidence and its derivatives by ``(m0, P0, A, b, Q, H, F, c)``, all with leading axis S.

    Fisher's identity: the derivative is a posterior expectation of derivatives of log messages.  With
    ``r_k = F_k - H_k E[x_k]`` for the fused message h_k: d/db = r, d/dQ = (rr' + H V H - H)/2,
    d/dA = r E[x_{k-1}]' - H Cov(x_k, x_{k-1}); no inverse of Q.
    """
    h = passes.messages(chain)
    mean, cov, log_evidence, cross = _smooth(passes, chain, h, True)
    assert cross is not None
    H, F, _ = h
    r = F - mv(H, mean)
    spread = (outer(r, r) + H @ cov @ H - H) / 2
    by_A = outer(r[:, 1:], mean[:, :-1]) - H[:, 1:] @ cross
    by_H = (cov + outer(mean, mean)) / -2
    by_c = torch.ones_like(chain.c)
    return log_evidence, (r[:, 0], spread[:, 0], by_A, r[:, 1:], spread[:, 1:], by_H, mean, by_c)
