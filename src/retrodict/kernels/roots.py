"""Roots of covariances that may be singular: ``S S' = Q``, triangular and differentiable."""

from __future__ import annotations

import torch
from torch import Tensor

from retrodict.core.lin import Lin


def covariance_root(Q: Lin) -> Lin:
    """S with ``Q = S S'``: Cholesky's triangle of a matrix, the element-wise root of everything else."""
    return Lin.dense(semidefinite_cholesky(Q.value)) if Q.kind == "dense" else Q.sqrt()


def semidefinite_cholesky(matrix: Tensor) -> Tensor:
    """A lower triangular S with ``S S' = matrix`` for symmetric positive semi-definite matrices ``(..., d, d)``.

    Where all are positive definite it is Cholesky's factor.  A pivot that vanishes (below 1e-13 of the largest
    entry) closes its column, so that singular matrices factor too and gradients with respect to the others stay
    finite.
    """
    factor, info = torch.linalg.cholesky_ex(matrix)
    if not bool((info > 0).any()):
        return factor
    size = matrix.shape[-1]
    tiny = 1e-13 * matrix.detach().diagonal(dim1=-2, dim2=-1).amax(-1)
    columns: list[Tensor] = []
    rest = matrix
    for j in range(size):
        pivot = rest[..., j, j]
        alive = pivot.detach() > tiny
        scale = torch.where(alive, pivot, torch.ones_like(pivot)).sqrt()
        below = torch.where((alive.unsqueeze(-1)) & (torch.arange(size) >= j).to(matrix.device), rest[..., :, j], 0.0)
        column = below / scale.unsqueeze(-1)
        columns.append(column)
        rest = rest - column.unsqueeze(-1) * column.unsqueeze(-2)
    return torch.stack(columns, -1)
