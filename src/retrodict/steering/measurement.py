"""A measurement ``y = A(x0) + noise``: the Gaussian data potential, one formula for many published methods.

With ``p(x0 | x_t)`` taken as ``N(D, C)``, ``e = y - A D`` and ``M = A C A^T + R``,

    log h_t = -1/2 e^T M^-1 e - 1/2 log det (2 pi M),            D_y = D + C A^T M^-1 e

and the methods differ in the C inside M and in the C of the gain (Rozet et al. 2024; Song et al. 2023; Chung et al.
2023).  This file holds the potential; `retrodict.steering.covariances` the choices of C.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from retrodict.core.errors import InputError
from retrodict.processes import Process
from retrodict.steering.covariances import Covariance, covariances
from retrodict.steering.operators import Operator, as_operator
from retrodict.steering.potential import Node, Potential, Tilt


class Measurement(Potential):
    """What was measured of a state.

    Args:
        y: the measurement ``(*output)`` or ``(1, *output)``, in the user's units.
        operator: anything that `as_operator` takes; None measures the state itself.
        noise: standard deviation of independent Gaussian noise.
        covariance: the C inside M: a name from `retrodict.steering.covariances`.
    """

    def __init__(self, y: Any, operator: Any = None, noise: float = 0.0, *, covariance: str = "exact") -> None:
        self.y = torch.as_tensor(y)
        self.operator: Operator = as_operator((lambda x: x) if operator is None else operator)
        if not (isinstance(noise, (int, float)) and math.isfinite(noise) and noise >= 0):
            raise InputError(f"noise is a standard deviation of at least 0, got {noise!r}")
        self.noise = float(noise)
        self.covariance: Covariance = covariances[covariance](self)

    @property
    def graph(self) -> bool:  # type: ignore[override]
        return self.covariance.graph

    def check(self, shape: tuple[int, ...] | None, process: Process) -> None:
        if shape is None:
            return
        out = self.operator.output_shape(shape)
        if tuple(self.y.shape) not in (out, (1, *out)):
            raise InputError(
                f"the operator maps states of shape {shape} to measurements of shape {out}, "
                f"and y has shape {tuple(self.y.shape)}"
            )

    def residual(self, x0: Tensor) -> Tensor:
        """``y - A(x0)``, ``(batch, m)``."""
        seen = self.operator(x0).flatten(1)
        return self.y.to(seen).reshape(1, -1) - seen

    def likelihood(self, x0: Tensor) -> Tensor:
        e = self.residual(x0).double()
        variance = max(self.noise, 1e-3) ** 2
        return -0.5 * (e**2).sum(1) / variance - 0.5 * e.shape[1] * math.log(2 * math.pi * variance)

    def at(self, node: Node) -> Tilt:
        return self.covariance.tilt(node)
