"""The algebra of linear-Gaussian steps and quadratic messages, on plain tensors with any leading axes.

A message is ``(H, F, c)``: ``log h(x) = c + F.x - x.Hx/2``.  A step is ``(A, b, Q)``: ``y ~ N(A x + b, Q)``.  With
``G = (I + Q H)^-1`` and ``u = F - H b``:

    pull     H' = A'G'HA    F' = A'G'u    c' = c - logdet(I + QH)/2 + F.b - b.Hb/2 + u.QG'u/2
    guided   y ~ N(G (A x + b + Q F), G Q)

A segment of a chain is ``(A, b, C, eta, J, l)``: the unnormalised kernel ``N(y; A x + b, C) exp(l + eta.x - x.Jx/2)``
(Sarkka and Garcia-Fernandez, "Temporal parallelization of Bayesian smoothers", 2021, with the log constant added).
Nothing inverts Q, H or C: all may be singular.
"""

from __future__ import annotations

import torch
from torch import Tensor

Message = tuple[Tensor, Tensor, Tensor]
Step = tuple[Tensor, Tensor, Tensor]
Segment = tuple[Tensor, ...]


def mv(A: Tensor, x: Tensor) -> Tensor:
    """Matrix times vector on the last axes."""
    return (A @ x.unsqueeze(-1)).squeeze(-1)


def dot(x: Tensor, y: Tensor) -> Tensor:
    """Inner product on the last axis."""
    return (x * y).sum(-1)


def outer(x: Tensor, y: Tensor) -> Tensor:
    """``x y'`` on the last axis."""
    return x.unsqueeze(-1) * y.unsqueeze(-2)


def outer_over_time(x: Tensor, y: Tensor, shared: bool) -> Tensor:
    """``x_k y_k'`` for every k, ``(S, n, d, d)``; or their sum if steps share a parameter, ``(S, 1, d, d)``."""
    return (x.mT @ y).unsqueeze(1) if shared else outer(x, y)


def second_moments(H: Tensor, mean: Tensor, cov: Tensor) -> Tensor:
    """``E[x_k x_k']`` for every node, or their sum if the nodes share H."""
    shared = H.shape[1] == 1
    return outer_over_time(mean, mean, shared) + (cov.sum(1, keepdim=True) if shared else cov)


def sym(A: Tensor) -> Tensor:
    """The symmetric part; rounding would break symmetry over a long chain."""
    return (A + A.mT) / 2


def gain(Q: Tensor, H: Tensor) -> tuple[Tensor, Tensor]:
    """``G = (I + Q H)^-1`` and ``logdet(I + Q H)``; the determinant is at least one."""
    eye = torch.eye(Q.shape[-1], dtype=Q.dtype, device=Q.device)
    inner = Q @ H + eye
    factors = torch.linalg.lu_factor_ex(inner)
    logdet = factors.LU.diagonal(dim1=-2, dim2=-1).abs().log().sum(-1)
    return torch.linalg.lu_solve(factors.LU, factors.pivots, eye.expand_as(inner)), logdet


def fuse(g: Message, h: Message) -> Message:
    """The product of two messages."""
    return g[0] + h[0], g[1] + h[1], g[2] + h[2]


def integral(b: Tensor, Q: Tensor, G: Tensor, logdet: Tensor, h: Message) -> Tensor:
    """``log E[h(y)]`` for ``y ~ N(b, Q)``."""
    H, F, c = h
    Hb = mv(H, b)
    u = F - Hb
    return c - logdet / 2 + dot(F, b) - dot(b, Hb) / 2 + dot(u, mv(G @ Q, u)) / 2


def pull(step: Step, h: Message) -> Message:
    """The message one step earlier."""
    return _pulled(step, h, *gain(step[2], h[0]))


def _pulled(step: Step, h: Message, G: Tensor, logdet: Tensor) -> Message:
    A, b, Q = step
    H, F, _ = h
    AG = (G @ A).mT
    return sym(AG @ H @ A), mv(AG, F - mv(H, b)), integral(b, Q, G, logdet, h)


def guided(step: Step, h: Message) -> Step:
    """The step conditioned on the message at its end: again ``(A, b, Q)``."""
    A, b, Q = step
    G, _ = gain(Q, h[0])
    return G @ A, mv(G, b + mv(Q, h[1])), sym(G @ Q)


def bayes(m: Tensor, P: Tensor, h: Message) -> tuple[Tensor, Tensor, Tensor]:
    """``N(m, P)`` times the message: posterior mean, covariance and log evidence."""
    G, logdet = gain(P, h[0])
    return mv(G, m + mv(P, h[1])), sym(G @ P), integral(m, P, G, logdet, h)


def element(step: Step, g: Message) -> Segment:
    """The segment "step, then potential g"."""
    A, b, Q = step
    G, logdet = gain(Q, g[0])
    J, eta, l = _pulled(step, g, G, logdet)
    return G @ A, mv(G, b + mv(Q, g[1])), sym(G @ Q), eta, J, l


def combine(first: Segment, second: Segment) -> Segment:
    """The segment "first, then second"."""
    A1, b1, C1, eta1, J1, l1 = first
    A2, b2, C2, eta2, J2, l2 = second
    D, logdet = gain(C1, J2)
    A2D = A2 @ D
    A1D = (D @ A1).mT
    u = eta2 - mv(J2, b1)
    DC = D @ C1
    l = l1 + l2 - logdet / 2 + dot(eta2 + u, b1) / 2 + dot(u, mv(DC, u)) / 2
    return (
        A2D @ A1,
        mv(A2D, b1 + mv(C1, eta2)) + b2,
        sym(A2 @ DC @ A2.mT + C2),
        mv(A1D, u) + eta1,
        sym(A1D @ J2 @ A1 + J1),
        l,
    )


def root(C: Tensor) -> Tensor:
    """Lower-triangular S with ``S S' = C`` for a positive semi-definite, perhaps singular C; differentiable.

    A pivot that is nothing but rounding gives a zero column: its remaining entries are then rounding too.
    """
    S, info = torch.linalg.cholesky_ex(C)
    if not bool(info.any()):
        return S
    d = C.shape[-1]
    floor = 4 * d * torch.finfo(C.dtype).eps * C.diagonal(dim1=-2, dim2=-1)
    rest, columns = C, []
    for j in range(d):
        pivot = rest[..., j, j]
        keep = pivot > floor[..., j]
        scale = torch.where(keep, pivot, torch.ones_like(pivot)).rsqrt()
        column = torch.where(keep.unsqueeze(-1), rest[..., :, j] * scale.unsqueeze(-1), torch.zeros_like(rest[..., j]))
        column = torch.cat((torch.zeros_like(column[..., :j]), column[..., j:]), -1)
        rest = rest - column.unsqueeze(-1) * column.unsqueeze(-2)
        columns.append(column)
    return torch.stack(columns, -1)


def guided_root(Q: Tensor, H: Tensor) -> Tensor:
    """A factor of ``G Q = S (I + S'HS)^-1 S'`` with ``Q = S S'``; exact for singular Q (and zero)."""
    S = root(Q)
    eye = torch.eye(Q.shape[-1], dtype=Q.dtype, device=Q.device)
    inner = torch.linalg.cholesky(sym(S.mT @ H @ S) + eye)
    # S chol(inner)^-T: any factor will do, and this one costs a single triangular solve
    return torch.linalg.solve_triangular(inner, S.mT.expand(*inner.shape), upper=False).mT
