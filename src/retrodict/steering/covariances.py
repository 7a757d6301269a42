"""Choices of C in the Gaussian data potential (`retrodict.steering.measurement`).

===========  ==================================  ==================================  ===========================
name         C inside M                          C of the gain                       source
===========  ==================================  ==================================  ===========================
exact        Cov(x0 | x_t)                       the same                            Rozet et al. 2024 (MMPS)
isotropic    r^2 I, r^2 = v rho^2/(v + rho^2)    Cov(x0 | x_t)                       Song et al. 2023 (PiGDM)
none         0                                   Cov(x0 | x_t)                       Chung et al. 2023 (DPS)
===========  ==================================  ==================================  ===========================

with rho = sigma/alpha and v the variance of the data.  With a linear operator and ``p(x0 | x_t)`` Gaussian, "exact" is
exact.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from retrodict.core.registry import Registry
from retrodict.kernels.laws import event_sum
from retrodict.steering.potential import Node, Tilt

if TYPE_CHECKING:
    from retrodict.steering.measurement import Measurement


class Covariance:
    """One way to fill M and the gain."""

    graph: bool = True

    def __init__(self, goal: Measurement) -> None:
        self.goal = goal

    def tilt(self, node: Node) -> Tilt:
        """The potential at a node."""
        goal = self.goal
        e = goal.residual(node.mean)
        solved, log_det = self.solve(node, e)
        log_h = -0.5 * event_sum(e * solved).double() - 0.5 * log_det - 0.5 * e.shape[1] * math.log(2 * math.pi)
        return Tilt(log_h, node.covariance_times(self.pull_back(node, solved)))

    def pull_back(self, node: Node, v: Tensor) -> Tensor:
        """``A^T v`` at the node's mean, for any operator: the transposed derivative of A there."""
        with torch.enable_grad():
            mean = node.mean.detach().requires_grad_(True)
            (out,) = torch.autograd.grad(self.goal.operator(mean).flatten(1), mean, v.detach().to(mean))
        return out

    def solve(self, node: Node, e: Tensor) -> tuple[Tensor, Tensor]:
        """``M^-1 e`` and ``log det M``."""
        raise NotImplementedError


covariances: Registry[type[Covariance]] = Registry("covariance")


@covariances.register("exact")
class Exact(Covariance):
    """The denoiser's own covariance, as a matrix in measurement space."""

    def solve(self, node: Node, e: Tensor) -> tuple[Tensor, Tensor]:
        M = self.measured(node, e).double()
        M = (M + M.mT) / 2 + self.goal.noise**2 * torch.eye(e.shape[1], dtype=M.dtype, device=M.device)
        root = torch.linalg.cholesky(M)
        solved = torch.cholesky_solve(e.double().unsqueeze(-1), root).squeeze(-1)
        return solved.to(e), 2 * root.diagonal(dim1=-2, dim2=-1).log().sum(-1)

    def measured(self, node: Node, e: Tensor) -> Tensor:
        """``A C A^T``, ``(batch, m, m)``: one product with C a row of A."""
        rows = []
        for i in range(e.shape[1]):
            v = torch.zeros_like(e)
            v[:, i] = 1
            rows.append(self.push(node, node.covariance_times(self.pull_back(node, v))))
        return torch.stack(rows, 1)

    def push(self, node: Node, v: Tensor) -> Tensor:
        """``A' v``, the derivative of A at the node's mean times v."""
        operator = self.goal.operator
        if operator.linear:
            return operator(v).flatten(1)
        _, out = torch.func.jvp(operator, (node.mean.detach(),), (v,))
        return out.flatten(1)


@covariances.register("isotropic")
class Isotropic(Covariance):
    """``r^2 A A^T``, for linear operators."""

    def solve(self, node: Node, e: Tensor) -> tuple[Tensor, Tensor]:
        rho2 = (node.sigma / node.alpha) ** 2
        v = 1.0
        shape = tuple(node.mean.shape[1:])
        A = self.goal.operator.matrix(shape).to(e.device)  # type: ignore[attr-defined]
        M = v * rho2 / (v + rho2) * A @ A.T + self.goal.noise**2 * torch.eye(len(A), dtype=A.dtype)
        root = torch.linalg.cholesky(M)
        solved = torch.cholesky_solve(e.double().T, root).T
        return solved.to(e), (2 * root.diagonal().log().sum()).expand(len(e))
