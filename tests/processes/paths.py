"""Gaussian paths of every kind of coefficient, for the tests of this room."""

from __future__ import annotations

import math

import torch
from torch import Tensor

import retrodict as rd
from retrodict.core.lin import Lin
from retrodict.processes import Interpolant

D = 4

NAMED = {
    "vp-linear": rd.VP(),
    "vp-scaled-linear": rd.VP("scaled-linear"),
    "vp-cosine": rd.VP("cosine"),
    "ddpm": rd.DDPM(50),
    "sub-vp": rd.SubVP(),
    "ve": rd.VE(),
    "edm": rd.EDM(),
    "rectified-flow": rd.RectifiedFlow(),
    "by-functions": rd.GaussianPath(lambda t: torch.exp(-3 * t), lambda t: (1 - torch.exp(-6 * t)).sqrt()),
}

INTERPOLANTS = {
    kind: Interpolant(kind) for kind in ("linear", "trigonometric", "encoding-decoding", "mirror", "one-sided")
}


def rates() -> Tensor:
    return torch.tensor([0.5, 1.0, 2.0, 1.0], dtype=torch.float64)  # even in frequency, for the spectral path


def structured(kind: str, two_ends: bool = False) -> rd.GaussianPath:
    """A linear SDE with "diagonal", "spectral" or "dense" coefficients, perhaps with a second end."""
    beta = (lambda t: Lin(torch.sin(t) * rates(), kind, 1)) if kind != "dense" else (lambda t: Lin.scalar(torch.sin(t)))
    if kind == "dense":
        path = rd.GaussianPath(
            lambda t: Lin.dense(_carry(t)), lambda t: Lin.dense(_root(t)), beta if two_ends else None
        )
    else:
        decay = lambda t: torch.exp(-t * rates())  # noqa: E731
        path = rd.GaussianPath(
            lambda t: Lin(decay(t), kind, 1),
            lambda t: Lin((1 - decay(t) ** 2).sqrt(), kind, 1),
            beta if two_ends else None,
        )
    return path


_M = torch.tensor(
    [[1.0, 0.8, 0.0, 0.1], [-0.8, 0.7, 0.2, 0.0], [0.0, 0.3, 1.5, 0.0], [0.2, 0.0, -0.4, 0.5]], dtype=torch.float64
)
_G = torch.tensor(
    [[1.0, 0.0, 0.0, 0.0], [0.3, 0.8, 0.0, 0.0], [0.0, 0.2, 1.2, 0.0], [0.1, 0.0, 0.4, 0.6]], dtype=torch.float64
)


def _carry(t: Tensor) -> Tensor:
    """exp(-t M), one matrix a time: the mean of dx = -M x dt + G dW."""
    return torch.linalg.matrix_exp(-t[..., None, None] * _M)


def _root(t: Tensor) -> Tensor:
    """A root of the covariance of the same SDE from a point, by Van Loan's block exponential."""
    block = torch.zeros(2 * D, 2 * D, dtype=torch.float64)
    block[:D, :D], block[:D, D:], block[D:, D:] = _M, _G @ _G.T, -_M.T
    E = torch.linalg.matrix_exp(block * t[..., None, None])
    covariance = _carry(t) @ E[..., :D, D:]
    turn = torch.linalg.matrix_exp(math.pi * t[..., None, None] * (_M - _M.T))  # a root times a rotation is a root
    start = (t == 0)[..., None, None]
    root = torch.linalg.cholesky((covariance + covariance.mT) / 2 + start * torch.eye(D, dtype=torch.float64))
    return root @ turn * ~start


def ends(path: rd.GaussianPath, seed: int = 0) -> tuple[Tensor, Tensor | None]:
    g = torch.Generator().manual_seed(seed)
    x0, x1 = torch.randn(2, 1, D, generator=g, dtype=torch.float64)
    return x0, x1 if len(path.ends) == 2 else None


def matrix(a: Lin) -> Tensor:
    """The dense matrix of a map without batch axes."""
    return torch.stack([a.mv(e.unsqueeze(0))[0] for e in torch.eye(D, dtype=torch.float64)], -1)


def affine(kernel_of_x, x0: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``(gain, offset, Q)`` of ``x_s = gain x_t + offset + N(0, Q)`` from ``x_t -> kernel``, at one x0."""
    basis = torch.eye(D, dtype=torch.float64)
    offset = kernel_of_x(torch.zeros(1, D, dtype=torch.float64)).mean(x0)[0]
    gain = torch.stack([kernel_of_x(e.unsqueeze(0)).mean(x0)[0] - offset for e in basis], -1)
    return gain, offset, matrix(kernel_of_x(basis[:1]).Q)
