"""A linear diffusion ``dx = (B x + beta) dt + sigma dW``: its exact transitions, and its Euler steps.

Over a time dt the state is ``N(A x + b, Q)`` with (Van Loan 1978, here on a short time and then doubled)

    A = exp(B dt)        b = int exp(B u) beta du        Q = int exp(B u) a exp(B' u) du,   a = sigma sigma',

    exp([[-B, a], [0, B']] h) = [[., F], [0, G]]    Q_h = G' F
    A_2h = A_h A_h    b_2h = A_h b_h + b_h    Q_2h = A_h Q_h A_h' + Q_h.

Doubling adds covariances, so that Q stays positive semi-definite and stiff systems keep their slow parts, which one
exponential of ``-B dt`` would drown.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from retrodict.core.errors import InputError
from retrodict.core.lin import Lin
from retrodict.kernels.checks import real_tensor
from retrodict.kernels.linear_gaussian import LinearGaussian


@dataclass(frozen=True)
class LinearSDE:
    """``dx = (B x + beta) dt + sigma dW``.

    Args:
        B: matrix ``(d, d)`` or a number, a unit of time.
        beta: ``(d,)`` or a number.
        sigma: matrix ``(d, r)``, ``(d,)`` (a diagonal) or a number.
        d: number of coordinates, where no argument says it.

    Each may also be a callable of time that returns one of these; then only Euler steps are to be had.
    """

    B: Any
    beta: Any = 0.0
    sigma: Any = 1.0
    d: int | None = None

    def __post_init__(self) -> None:
        for name in ("B", "beta", "sigma"):
            value = getattr(self, name)
            if not callable(value):
                object.__setattr__(self, name, real_tensor(value, name))

    def coefficients(self, t: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
        """``(B (d, d), beta (d,), a (d, d))`` at time t."""
        B, beta, sigma = (
            real_tensor(v(t) if callable(v) else v, "coefficient") for v in (self.B, self.beta, self.sigma)
        )
        sizes = {self.d, *(v.shape[0] for v in (B, beta, sigma) if v.ndim)} - {None}
        if len(sizes) > 1:
            raise InputError(
                f"B {tuple(B.shape)}, beta {tuple(beta.shape)} and sigma {tuple(sigma.shape)} are of one number of"
                f" coordinates{f' (d={self.d})' if self.d else ''}"
            )
        d = sizes.pop() if sizes else 1
        dtype = torch.promote_types(torch.promote_types(B.dtype, beta.dtype), sigma.dtype)
        eye = torch.eye(d, dtype=dtype)
        B = B * eye if B.ndim == 0 else B.to(dtype)
        root = sigma * eye if sigma.ndim == 0 else torch.diag(sigma) if sigma.ndim == 1 else sigma
        if B.shape != (d, d):
            raise InputError(f"B is a square matrix; got {tuple(B.shape)}")
        return B, beta.to(dtype).expand(d), (root @ root.mT).to(dtype)

    def kernel(self, s: float | Tensor, t: float | Tensor, euler: bool = False) -> LinearGaussian:
        """The transition from time s to time t, each a number or ``(n,)``: then a batch of n kernels.

        Args:
            euler: one Euler step ``(I + B dt, beta dt, a dt)`` instead of the exact law; the auxiliary of an
                Euler scheme, whose guided weights then vanish for a linear model.
        """
        s, t = torch.as_tensor(s, dtype=torch.float64), torch.as_tensor(t, dtype=torch.float64)
        dt = t - s
        if bool((dt < 0).any()):
            raise InputError(f"times go back: a transition runs from s to t >= s, got {float(dt.min()):g} between them")
        if euler:
            return self._euler(s, dt)
        if any(callable(v) for v in (self.B, self.beta, self.sigma)):
            raise InputError(
                "coefficients that change in time have no closed transition; use euler=True on short steps"
            )
        A, b, Q = transition(*self.coefficients(), dt)
        return LinearGaussian(Lin.dense(A), b, Lin.dense(Q))

    def _euler(self, s: Tensor, dt: Tensor) -> LinearGaussian:
        parts = [self.coefficients(float(time)) for time in s.expand(dt.shape).reshape(-1)]
        B, beta, a = (torch.stack(part).reshape(*dt.shape, *part[0].shape) for part in zip(*parts))
        step = dt.to(B.dtype)
        eye = torch.eye(B.shape[-1], dtype=B.dtype)
        return LinearGaussian(
            Lin.dense(eye + B * step[..., None, None]), beta * step[..., None], Lin.dense(a * step[..., None, None])
        )


def transition(B: Tensor, beta: Tensor, a: Tensor, dt: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``(A, b, Q)`` of ``B (d, d)``, ``beta (d,)``, ``a (d, d)`` over times ``dt (...)``; differentiable in all."""
    d, dt = B.shape[-1], dt.to(B.dtype)
    reach = float(torch.linalg.matrix_norm(B.detach(), ord=1)) * float(dt.detach().max()) if dt.numel() else 0.0
    doublings = max(0, math.ceil(math.log2(2 * reach))) if reach > 0 else 0
    h = (dt / 2**doublings)[..., None, None]
    zero = B.new_zeros(d, d)
    block = torch.cat([torch.cat([-B, a], 1), torch.cat([zero, B.mT], 1)], 0)
    E = torch.matrix_exp(block * h)
    A, Q = E[..., d:, d:].mT, E[..., d:, d:].mT @ E[..., :d, d:]
    drift = torch.cat([torch.cat([B, beta.unsqueeze(-1)], 1), B.new_zeros(1, d + 1)], 0)
    b = torch.matrix_exp(drift * h)[..., :d, d]
    for _ in range(doublings):
        Q = A @ Q @ A.mT + Q
        b = (A @ b.unsqueeze(-1)).squeeze(-1) + b
        A = A @ A
    return A, b, (Q + Q.mT) / 2
