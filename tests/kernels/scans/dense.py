"""Random chains that exercise every degenerate case, and the dense Gaussian that answers for them."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from retrodict.kernels.scans.gaussian import GaussianChain

F64 = torch.float64


def normals(seed: int):
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator, dtype=F64)


def spread(normal, *shape: int) -> Tensor:
    """Well-conditioned covariances ``(*shape, d, d)``; the last of ``shape`` is d."""
    a = normal(*shape, shape[-1])
    return a @ a.mT / shape[-1] + 0.3 * torch.eye(shape[-1], dtype=F64)


def chain(n: int, seed: int = 0, S: int = 2, d: int = 3, singular: bool = True, shared: bool = False) -> GaussianChain:
    """A chain of n steps.

    Potentials come from observations of one coordinate (rank-one H); every third node sees nothing and node 0 is
    seen.  ``singular``: P0 of rank d - 1, and Q cycles through full rank, rank one and zero.  ``shared``: one A, b,
    Q for all steps and series, one P0 and one H a node.
    """
    normal = normals(seed)
    L, N = (1, 1) if shared else (S, n)
    A, b, Q, P0 = normal(L, N, d, d), normal(L, N, d), spread(normal, L, N, d), spread(normal, L, d)
    A = 0.95 * A / torch.linalg.matrix_norm(A, ord=2)[..., None, None]  # stable: numbers stay of order one
    if singular:
        v, w = normal(L, N, d), normal(L, d, d - 1)
        P0 = w @ w.mT
        kind = torch.arange(N).reshape(1, N, 1, 1) % 3 if N > 1 else torch.ones(1, 1, 1, 1)
        Q = torch.where(kind == 0, Q, torch.where(kind == 1, v.unsqueeze(-1) * v.unsqueeze(-2), torch.zeros_like(Q)))
    row, R, y = normal(L, n + 1, 1, d), 0.2 + normal(L, n + 1).square(), normal(S, n + 1)
    seen = (torch.arange(n + 1) % 3 != 2).to(F64)
    H = row.mT @ row * (seen / R)[..., None, None]
    F = (seen / R * y)[..., None] * row.squeeze(-2)
    c = seen * (-0.5 * y.square() / R - 0.5 * torch.log(2 * math.pi * R))
    return GaussianChain(normal(S, d), P0, A, b, Q, H, F, c)


def joint(c: GaussianChain, i: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of ``(x_0, ..., x_n)`` of series i before any potential."""
    n, d = c.n, c.d
    m0, P0, A, b, Q = (x.expand(c.series, *x.shape[1:])[i].numpy() for x in (c.m0, c.P0, *c.steps()))
    size = (n + 1) * d
    # x = T (x_0, b_1 + w_1, ..., b_n + w_n) with T unit block lower triangular
    T = np.eye(size)
    for k in range(1, n + 1):
        T[k * d : (k + 1) * d] += A[k - 1] @ T[(k - 1) * d : k * d]
    noise = np.zeros((size, size))
    noise[:d, :d] = P0
    for k in range(1, n + 1):
        noise[k * d : (k + 1) * d, k * d : (k + 1) * d] = Q[k - 1]
    return T @ np.concatenate([m0, b.reshape(-1)]), T @ noise @ T.T


def condition(c: GaussianChain, i: int, nodes: int | None = None) -> tuple[np.ndarray, np.ndarray, float]:
    """Mean, covariance and log evidence of series i given the potentials at the first ``nodes`` nodes (all)."""
    mean, cov = joint(c, i)
    n, d = c.n, c.d
    nodes = n + 1 if nodes is None else nodes
    Hs, Fs, cs = (x.expand(c.series, *x.shape[1:])[i, :nodes].numpy() for x in c.potentials())
    H, F = np.zeros_like(cov), np.zeros_like(mean)
    for k in range(nodes):
        H[k * d : (k + 1) * d, k * d : (k + 1) * d] = Hs[k]
        F[k * d : (k + 1) * d] = Fs[k]
    inner = np.eye(len(mean)) + cov @ H
    u = F - H @ mean
    post = np.linalg.solve(inner, cov)
    log_evidence = cs.sum() - 0.5 * np.linalg.slogdet(inner)[1] + F @ mean - 0.5 * mean @ H @ mean + 0.5 * u @ post @ u
    return mean + post @ u, (post + post.T) / 2, float(log_evidence)


def blocks(cov: np.ndarray, d: int, lag: int = 0) -> np.ndarray:
    """``Cov(x_{k+lag}, x_k)`` for all k, ``(n+1-lag, d, d)``."""
    n = len(cov) // d
    return np.array([cov[(k + lag) * d : (k + lag + 1) * d, k * d : (k + 1) * d] for k in range(n - lag)])
