"""Several measurements as one, and noise of any covariance as unit noise.

With ``R_i = L_i L_i^T`` the measurements ``y_i = A_i x + N(0, R_i)`` are together one of unit noise,

    z = (L_1^-1 y_1, L_2^-1 y_2, ...) = (L_1^-1 A_1 x, L_2^-1 A_2 x, ...) + N(0, I)

so that the Gaussian data potential knows one number for its noise and one operator.  The density of y is that of z over
the product of the determinants of L_i.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from retrodict.steering.operators import Linear, Operator

#: A root of R: a standard deviation, one for each number of the measurement ``(m,)``, or a lower triangle ``(m, m)``.
Root = float | Tensor


def unroot(root: Root, v: Tensor) -> Tensor:
    """``L^-1 v`` for ``v (batch, m)``."""
    if isinstance(root, Tensor) and root.ndim == 2:
        return torch.linalg.solve_triangular(root.to(v), v.mT, upper=False).mT
    return v / (root.to(v) if isinstance(root, Tensor) else root)


def log_det(root: Root, m: int) -> float:
    """log det L of a measurement of m numbers."""
    if isinstance(root, Tensor):
        return float((root.diagonal() if root.ndim == 2 else root).log().sum())
    return m * math.log(root)


class Joined(Linear):
    """Operators side by side, each with the noise divided out: ``(batch, *shape) -> (batch, sum of sizes)``."""

    def __init__(self, parts: Sequence[tuple[Operator, Root]]) -> None:
        self.parts = list(parts)
        self.linear = all(operator.linear for operator, _ in self.parts)
        self._outputs: dict[tuple[int, ...], list[tuple[int, ...]]] = {}

    def __call__(self, x: Tensor) -> Tensor:
        return torch.cat([unroot(root, operator(x).flatten(1)) for operator, root in self.parts], 1)

    def adjoint(self, y: Tensor, shape: tuple[int, ...]) -> Tensor:
        total: Any = 0
        if shape not in self._outputs:
            self._outputs[shape] = [operator.output_shape(shape) for operator, _ in self.parts]
        for (operator, root), out in zip(self.parts, self._outputs[shape]):
            piece, y = y[:, : math.prod(out)], y[:, math.prod(out) :]
            if isinstance(root, Tensor) and root.ndim == 2:
                piece = torch.linalg.solve_triangular(root.to(piece).mT, piece.mT, upper=True).mT
            else:
                piece = unroot(root, piece)
            total = total + operator.adjoint(piece.reshape(len(piece), *out), shape)  # type: ignore[attr-defined]
        return total
