"""Linear systems known by their products alone: GMRES for a batch (Saad and Schultz 1986, algorithm 4).

GMRES and not conjugate gradients: a trained network's derivative is symmetric only as far as it was learned.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def gmres(product: Callable[[Tensor], Tensor], b: Tensor, iterations: int, tolerance: float = 1e-6) -> Tensor:
    """The x in the span of ``b, M b, M^2 b, ...`` with the least ``|M x - b|``, for each row of ``b (batch, m)``.

    Args:
        product: ``v (batch, m) -> M v``, one M for each row of the batch.
        iterations: products at most; it stops earlier where all residuals are below ``tolerance |b|``.
    """
    b = b.double()
    size = b.norm(dim=1, keepdim=True).clamp_min(1e-300)
    basis, columns, y = [b / size], [], b.new_zeros(len(b), 1)
    for k in range(min(iterations, b.shape[1])):
        w = product(basis[-1]).double()
        heads = []
        for q in basis:
            h = (w * q).sum(1, keepdim=True)
            heads.append(h)
            w = w - h * q
        length = w.norm(dim=1, keepdim=True)
        columns.append(torch.cat([*heads, length], 1))
        y, residual = _least_squares(columns, size)
        if float((residual / size.squeeze(1)).max()) < tolerance or k + 1 == min(iterations, b.shape[1]):
            break
        basis.append(torch.where(length > 1e-14 * size, w / length.clamp_min(1e-300), torch.zeros_like(w)))
    return (torch.stack(basis, 2) * y.unsqueeze(1)).sum(2)


def _least_squares(columns: list[Tensor], size: Tensor) -> tuple[Tensor, Tensor]:
    """Coefficients and residual of ``min |size e_1 - H y|``, H the upper Hessenberg matrix of the columns."""
    k = len(columns)
    H = size.new_zeros(len(size), k + 1, k)
    for j, column in enumerate(columns):
        H[:, : column.shape[1], j] = column
    target = size.new_zeros(len(size), k + 1)
    target[:, 0] = size.squeeze(1)
    y = (torch.linalg.pinv(H) @ target.unsqueeze(2)).squeeze(2)
    return y, (target - (H @ y.unsqueeze(2)).squeeze(2)).norm(dim=1)
