"""Linear stand-ins for non-linear laws at a Gaussian: what "extended" and "unscented" mean.

For ``y ~ N(f(x), C(x))`` at ``x ~ N(m, V)`` a rule returns the linear-Gaussian law ``N(A x + b, Q)``:

* `extended`: Taylor at the mean, ``A = f'(m)``, ``b = f(m) - A m``, ``Q = C(m)``;
* `unscented`: regression on sigma points ``m +- sqrt(d + kappa) S e_i`` with ``S S' = V``: A and b by least squares, Q
  the mean of C and what the line leaves over (Julier and Uhlmann 1997; Arasaratnam and Haykin 2009 for kappa = 0).

`taylor_potential` is the second-order expansion of any other log density.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from retrodict.core.errors import InputError
from retrodict.core.registry import Registry
from retrodict.kernels.euler import jacobian
from retrodict.kernels.roots import semidefinite_cholesky

#: ``x (S, P, d) -> (mean (S, P, m), covariance (S|1, P|1, m, m) or (m, m))``
Moments = Callable[[Tensor], tuple[Tensor, Tensor]]
Line = tuple[Tensor, Tensor, Tensor]
Rule = Callable[[Moments, Tensor, Tensor], Line]

#: How a non-linear law is replaced by a linear one: ``(moments, m (S, d), V (S, d, d)) -> (A, b, Q)``.
rules: Registry[Rule] = Registry("linearisation")


@rules.register("extended")
def extended(moments: Moments, m: Tensor, V: Tensor) -> Line:
    """Taylor's line at the mean."""
    value, A = jacobian(lambda x: moments(x.unsqueeze(1))[0].squeeze(1), m)
    Q = moments(m.unsqueeze(1))[1]
    return A, value - _mv(A, m), _each(Q, m)[:, 0]


def unscented(kappa: float | None = None) -> Rule:
    """The rule with a given ``kappa``; by default ``3 - d``, at least 0, which matches fourth moments."""

    def rule(moments: Moments, m: Tensor, V: Tensor) -> Line:
        d = m.shape[-1]
        k = max(0.0, 3.0 - d) if kappa is None else float(kappa)
        if k < 0:
            raise InputError(f"kappa is at least 0, so that no sigma point has a negative weight; got {kappa}")
        points, weights = _sigma_points(d, k)
        S = semidefinite_cholesky(V)
        f, C = moments(m.unsqueeze(1) + points @ S.mT)
        f, C = f.double(), _each(C, f).double()
        mean = (weights[:, None] * f).sum(1)
        apart = f - mean.unsqueeze(1)
        cross = torch.einsum("p,spi,pj->sij", weights, apart, points)  # with standard coordinates
        # a column of S that vanished has no sigma points and no slope
        eye = torch.diag_embed((S.diagonal(dim1=-2, dim2=-1) == 0).to(S))
        A = torch.linalg.solve_triangular(S + eye, cross, upper=False, left=False)
        over = torch.einsum("p,spi,spj->sij", weights, apart, apart) - cross @ cross.mT
        return A, mean - _mv(A, m), (weights[:, None, None] * C).sum(1) + over

    return rule


rules.add("unscented", value=unscented())


def taylor_potential(log_g: Callable[[Tensor], Tensor], m: Tensor) -> Line:
    """``(H, F, c)`` with ``log g(x) = c + F.x - x.Hx/2`` to second order at ``m (..., d)``; H is made semi-definite.

    Args:
        log_g: ``x (..., d) -> (...)``, each state by itself.
    """
    beyond = torch.is_grad_enabled() and log_g(m).requires_grad  # does it lead to parameters, and not only to x?
    with torch.enable_grad():
        x = m if m.requires_grad else m.detach().clone().requires_grad_()
        value = log_g(x)
        slope = torch.zeros_like(x)
        if value.requires_grad:
            (slope,) = torch.autograd.grad(value.sum(), x, create_graph=True)
        if slope.requires_grad:
            rows = [
                torch.autograd.grad(slope[..., i].sum(), x, create_graph=True, retain_graph=True, allow_unused=True)[0]
                for i in range(m.shape[-1])
            ]
            H = -torch.stack([torch.zeros_like(x) if row is None else row for row in rows], -2)
        else:
            H = torch.zeros(*x.shape, x.shape[-1], dtype=x.dtype)
    if not beyond:
        value, slope, H = value.detach(), slope.detach(), H.detach()
    H = (H + H.mT) / 2
    if H.shape[-1] == 1:
        H = H.clamp_min(0)
    elif bool((torch.linalg.eigvalsh(H.detach()) < 0).any()):  # not log-concave: keep what is
        spectrum, frame = torch.linalg.eigh(H.detach())
        H = (frame * spectrum.clamp_min(0).unsqueeze(-2)) @ frame.mT
    F = slope + _mv(H, m)
    return H, F, value - (slope * m).sum(-1) - 0.5 * (m * _mv(H, m)).sum(-1)


def _sigma_points(d: int, kappa: float) -> tuple[Tensor, Tensor]:
    """``(points (P, d), weights (P,))`` of the standard normal: mean and covariance are exact."""
    eye = torch.eye(d, dtype=torch.float64) * (d + kappa) ** 0.5
    points, weights = torch.cat([eye, -eye]), torch.full((2 * d,), 0.5 / (d + kappa), dtype=torch.float64)
    if kappa:
        points = torch.cat([points.new_zeros(1, d), points])
        weights = torch.cat([torch.tensor([kappa / (d + kappa)], dtype=torch.float64), weights])
    return points, weights


def _each(C: Tensor, like: Tensor) -> Tensor:
    """Covariances with axes ``(S, P, m, m)``; ``like`` has ``(S, P)`` in front, or is ``(S, d)`` with P = 1."""
    P = like.shape[1] if like.ndim == 3 else 1
    C = C.reshape((1,) * (4 - C.ndim) + C.shape)
    return C.expand(like.shape[0], P, *C.shape[-2:])


def _mv(A: Tensor, x: Tensor) -> Tensor:
    return (A @ x.unsqueeze(-1)).squeeze(-1)
