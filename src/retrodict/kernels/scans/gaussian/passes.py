"""What every pair of passes (`loop`, `parallel`) shares: smooth, draw and score from messages and guided steps.

Backward the messages are pulled; the chain guided by them is again a linear-Gaussian chain, whose push is the
smoother and whose simulation is a posterior draw.  With the innovations fixed a draw is an affine map of them.
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from retrodict.kernels.scans.gaussian.algebra import (
    Message,
    Step,
    bayes,
    guided_root,
    mv,
    outer,
    outer_over_time,
    second_moments,
)
from retrodict.kernels.scans.gaussian.chain import GaussianChain


def _start(chain: GaussianChain, h: Message) -> tuple[Tensor, Tensor, Tensor]:
    """The law at node 0 given everything, and the log evidence."""
    return bayes(chain.m0, chain.P0, (h[0][:, 0], h[1][:, 0], h[2][:, 0]))


def smooth(passes: ModuleType, chain: GaussianChain, cross: bool) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Means, covariances, log evidence, and the covariances of neighbours if ``cross``."""
    mean, cov, log_evidence, neighbours = _smooth(passes, chain, *passes.guided(chain), cross=cross)
    return mean, _full(cov, chain), log_evidence, None if neighbours is None else _full(neighbours, chain)


def _full(x: Tensor, chain: GaussianChain) -> Tensor:
    """Series that share their matrices share their covariances: one copy, S views."""
    return x.expand(chain.series, *x.shape[1:])


def _smooth(
    passes: ModuleType, chain: GaussianChain, h: Message, steps: Step, cross: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    m, P, log_evidence = _start(chain, h)
    mean, cov = passes.push(m, P, steps)
    return mean, cov, log_evidence, steps[0] @ cov[:, :-1] if cross else None


def means(passes: ModuleType, chain: GaussianChain) -> tuple[Tensor, Tensor]:
    """Means and log evidence, without the covariances that the data do not enter."""
    h, (E, g, _) = passes.guided(chain)
    m, _, log_evidence = _start(chain, h)
    return passes.follow(m, E, g), log_evidence


def draw(passes: ModuleType, chain: GaussianChain, z: Tensor) -> Tensor:
    """Posterior paths ``(..., S, n+1, d)`` from standard normals of the same shape."""
    h, steps = passes.guided(chain)
    m, _, _ = _start(chain, h)
    E, g, _ = steps
    start = m + mv(guided_root(chain.P0, h[0][:, 0]), z[..., 0, :])
    return passes.follow(start, E, g + mv(passes.roots(chain, h, steps), z[..., 1:, :]))


def score(passes: ModuleType, chain: GaussianChain) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Log evidence and its derivatives by ``(m0, P0, A, b, Q, H, F, c)``, all with leading axis S."""
    h, steps = passes.guided(chain)
    mean, cov, log_evidence, cross = _smooth(passes, chain, h, steps, True)
    assert cross is not None
    return log_evidence, derivatives(chain, h[0], h[1], mean, cov, cross)


def derivatives(
    chain: GaussianChain, H: Tensor, F: Tensor, mean: Tensor, cov: Tensor, cross: Tensor
) -> tuple[Tensor, ...]:
    """Derivatives of the log evidence from fused messages and the smoother.

    Fisher's identity: the derivative is a posterior expectation of derivatives of log messages.  With
    ``r_k = F_k - H_k E[x_k]`` for the fused message h_k: d/db = r, d/dQ = (rr' + H V H - H)/2,
    d/dA = r E[x_{k-1}]' - H Cov(x_k, x_{k-1}); no inverse of Q.
    """
    r = F - mv(H, mean)
    spread, drag = H @ cov @ H - H, H[:, 1:] @ cross
    by_P0 = (outer(r[:, 0], r[:, 0]) + spread[:, 0]) / 2
    # what the steps share is summed over the steps before it meets the series
    shared_A, shared_Q = (chain.n > 1 and x.shape[1] == 1 for x in (chain.A, chain.Q))
    spread, drag = spread[:, 1:].sum(1, True) if shared_Q else spread[:, 1:], drag.sum(1, True) if shared_A else drag
    by_A = outer_over_time(r[:, 1:], mean[:, :-1], shared_A) - drag
    by_Q = (outer_over_time(r[:, 1:], r[:, 1:], shared_Q) + spread) / 2
    by_H = second_moments(chain.H, mean, cov) / -2
    return r[:, 0], by_P0, by_A, r[:, 1:], by_Q, by_H, mean, torch.ones_like(chain.c)
