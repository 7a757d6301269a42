"""Gaussian observations as potentials: ``N(u; L x, R)`` as a quadratic in x.

With the whitened rows ``W = R^{-1/2} L`` and ``v = R^{-1/2} u``,

    H = W'W,    F = W'v,    c = -(v.v + log det(2 pi R)) / 2.

Series and times that share L and R are one matrix product, in NumPy unless autograd has to pass through.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from retrodict.kernels.scans.gaussian.algebra import Message

_LOG_2PI = math.log(2 * math.pi)


def observe(u: Tensor, L: Tensor, R: Tensor, seen: Tensor | None = None) -> Message:
    """The potentials ``(H, F, c)`` of Gaussian observations, as `GaussianChain` takes them.

    Args:
        u: ``(S, N, m)`` float64, what is seen; L: ``(S|1, N|1, m, d)``; R: ``(S|1, N|1, m, m)``, positive definite.
        seen: ``(S, N, m)``, which coordinates are; rows that are not are zero in u and L and rows of the identity in
            R.  None: all.

    Raises:
        torch.linalg.LinAlgError: R is not positive definite.
    """
    traced = torch.is_grad_enabled() and any(x.requires_grad for x in (u, L, R))
    if u.device.type != "cpu" or traced or L.shape[:2] != (1, 1) or R.shape[:2] != (1, 1):
        return _traced(u, L, R, seen)
    root = torch.linalg.cholesky(R[0, 0])
    S, N, m = u.shape
    white = np.linalg.inv(root.numpy())  # small
    rows = white @ L[0, 0].numpy()
    flat = u.detach().numpy().reshape(-1, m)
    v = flat @ white.T
    F = v @ rows
    v *= v
    c = v @ np.full(m, -0.5)
    c -= math.log(math.prod(root.diagonal().tolist()))
    c -= 0.5 * _LOG_2PI * (m if seen is None else seen.numpy().reshape(-1, m).sum(1))
    H = torch.from_numpy(rows.T @ rows)[None, None]
    return H, torch.from_numpy(F).view(S, N, -1), torch.from_numpy(c).view(S, N)


def _traced(u: Tensor, L: Tensor, R: Tensor, seen: Tensor | None) -> Message:
    """The same for every chain, in torch."""
    root = torch.linalg.cholesky(R)
    whiten = torch.linalg.inv(root)  # small
    rows = whiten @ L
    if whiten.shape[:2] == (1, 1) and rows.shape[:2] == (1, 1):
        v = u @ whiten[0, 0].mT
        F = v @ rows[0, 0]
    else:
        v = (whiten @ u.unsqueeze(-1)).squeeze(-1)
        F = (rows.mT @ v.unsqueeze(-1)).squeeze(-1)
    logdet = root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    count = u.shape[-1] if seen is None else seen.double().sum(-1)
    return rows.mT @ rows, F, -0.5 * v.square().sum(-1) - logdet - 0.5 * _LOG_2PI * count
