"""The algebra of linear-Gaussian steps and quadratic messages, on plain tensors with any leading axes.

A message is ``(H, F, c)``: ``log h(x) = c + F.x - x.Hx/2``.  A step is ``(A, b, Q)``: ``y ~ N(A x + b, Q)``.  With
``G = (I + Q H)^-1`` and ``V = G Q`` and ``u = F - H b``:

    guided   y ~ N(G A x + b + V u, V)
    pulled   H' = A'G'HA    F' = A'G'u    c' = c - logdet(I + QH)/2 + F.b - b.Hb/2 + u.Vu/2

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


def fuse(g: Message, h: Message) -> Message:
    """The product of two messages."""
    return g[0] + h[0], g[1] + h[1], g[2] + h[2]


def absorb(step: Step, h: Message) -> tuple[Step, Message]:
    """The step conditioned on the message at its end, and the message pulled to its start."""
    A, b, Q = step
    d = Q.shape[-1]
    lead = torch.broadcast_shapes(A.shape[:-2], Q.shape[:-2])
    E, V, logdet = _solve(Q, h[0], torch.cat((A.expand(*lead, d, d), Q.expand(*lead, d, d)), -1))
    g, const = _absorbed(b, V, logdet, h)
    HA = h[0] @ A
    return (E, g, V), (sym(E.mT @ HA), mv(E.mT, h[1] - mv(h[0], b)), const)


def bayes(m: Tensor, P: Tensor, h: Message) -> tuple[Tensor, Tensor, Tensor]:
    """``N(m, P)`` times the message: posterior mean, covariance and log evidence."""
    _, V, logdet = _solve(P, h[0], P)
    mean, log_evidence = _absorbed(m, V, logdet, h)
    return mean, V, log_evidence


def _solve(Q: Tensor, H: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``G`` times the columns of ``right``, of which the last d are Q, as ``(rest, sym(G Q))``, and logdet(I + Q H)."""
    d = Q.shape[-1]
    inner = Q @ H + torch.eye(d, dtype=Q.dtype, device=Q.device)
    factors = torch.linalg.lu_factor_ex(inner)
    logdet = factors.LU.diagonal(dim1=-2, dim2=-1).abs().log().sum(-1)
    solved = torch.linalg.lu_solve(factors.LU, factors.pivots, right.expand(*inner.shape[:-1], right.shape[-1]))
    return solved[..., :-d], sym(solved[..., -d:]), logdet


def _absorbed(b: Tensor, V: Tensor, logdet: Tensor, h: Message) -> tuple[Tensor, Tensor]:
    """The conditioned mean ``y = b + V (F - H b)`` and ``log E[h]`` under ``N(b, Q)``, with ``V = G Q``.

    The constant is evaluated at y, where an error of y counts to second order: c + F.y - y.Hy/2 is the message there
    and ``(y - b).(F - H y) = (y - b).Q^-1 (y - b)``.
    """
    H, F, c = h
    shift = mv(V, F - mv(H, b))
    y = b + shift
    r = F - mv(H, y)
    return y, c + dot(F + r, y) / 2 - dot(shift, r) / 2 - logdet / 2


def element(step: Step, g: Message) -> Segment:
    """The segment "step, then potential g"."""
    guided, (J, eta, l) = absorb(step, g)
    return (*guided, eta, J, l)


def combine(first: Segment, second: Segment) -> Segment:
    """The segment "first, then second": the first absorbs the second's message and goes on by its step."""
    A1, b1, C1, eta1, J1, l1 = first
    A2, b2, C2, eta2, J2, l2 = second
    (E, g, V), (J, eta, l) = absorb((A1, b1, C1), (J2, eta2, l2))
    return A2 @ E, mv(A2, g) + b2, sym(A2 @ V @ A2.mT) + C2, eta + eta1, J + J1, l + l1


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
