"""Operators that mix coordinates: the identity, colours to grey, random projections."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from retrodict.core.errors import InputError
from retrodict.steering.operators.operator import Function, Linear, Matrix, NonLinear, Operator
from retrodict.steering.operators.singular import Singular


class Identity(Linear):
    """The state itself."""

    def __call__(self, x: Tensor) -> Tensor:
        return x

    def adjoint(self, y: Tensor, shape: tuple[int, ...]) -> Tensor:
        return y

    def gram(self, shape: tuple[int, ...]) -> Tensor:
        return torch.ones(shape, dtype=torch.float64)

    def singular(self, shape: tuple[int, ...]) -> Singular:
        flat, unflat = lambda x: x.flatten(1), lambda c: c.reshape(len(c), *shape)
        return Singular(torch.ones(math.prod(shape), dtype=torch.float64), flat, unflat, flat, unflat)


class Channels(Linear):
    """A matrix ``(out, in)`` on the channels of images ``(in, H, W)``; made by `colour` and `grayscale`."""

    def __init__(self, mix: Tensor) -> None:
        self.mix = mix

    def __call__(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1] != self.mix.shape[1]:
            raise InputError(
                f"this mixes {self.mix.shape[1]} channels of images (channels, height, width), got states of shape "
                f"{tuple(x.shape[1:])}"
            )
        return _channels(self.mix, x)

    def adjoint(self, y: Tensor, shape: tuple[int, ...]) -> Tensor:
        return _channels(self.mix.T, y)

    def gram(self, shape: tuple[int, ...]) -> Tensor | None:
        square = self.mix @ self.mix.T
        diagonal = square.diagonal()
        if not torch.allclose(square, torch.diag(diagonal), atol=1e-12 * float(diagonal.max())):
            return None
        return diagonal[:, None, None].expand(self.output_shape(shape)).clone()

    def singular(self, shape: tuple[int, ...]) -> Singular:
        U, s, Vt = torch.linalg.svd(self.mix, full_matrices=False)
        keep = s > 1e-12 * s.max()
        U, s, Vt = U[:, keep], s[keep], Vt[keep]
        size = shape[-2:]
        unflat = lambda c: c.reshape(len(c), len(s), *size)  # noqa: E731
        return Singular(
            s.repeat_interleave(math.prod(size)),
            inwards=lambda x: _channels(Vt, x).flatten(1),
            outwards=lambda c: _channels(Vt.T, unflat(c)),
            measured=lambda y: _channels(U.T, y).flatten(1),
            measurement=lambda c: _channels(U, unflat(c)),
        )


class Projections(Linear):
    """Random orthonormal rows; made by `random_projections`."""

    def __init__(self, m: int, seed: int) -> None:
        self.m, self.seed = m, seed
        self._rows: dict[int, Tensor] = {}

    def rows(self, d: int) -> Tensor:
        """``(m, d)`` float64, orthonormal, uniformly distributed."""
        if d not in self._rows:
            if self.m > d:
                raise InputError(f"{self.m} orthonormal projections do not fit states of {d} numbers")
            normal = torch.randn(d, self.m, generator=torch.Generator().manual_seed(self.seed), dtype=torch.float64)
            Q, R = torch.linalg.qr(normal)
            self._rows[d] = (Q * R.diagonal().sign()).T
        return self._rows[d]

    def __call__(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.rows(math.prod(x.shape[1:])).to(x).T

    def adjoint(self, y: Tensor, shape: tuple[int, ...]) -> Tensor:
        return (y @ self.rows(math.prod(shape)).to(y)).reshape(len(y), *shape)

    def gram(self, shape: tuple[int, ...]) -> Tensor:
        return torch.ones(self.m, dtype=torch.float64)

    def singular(self, shape: tuple[int, ...]) -> Singular:
        same = lambda y: y  # noqa: E731
        return Singular(self.gram(shape), self, lambda c: self.adjoint(c, shape), same, same)


def identity() -> Identity:
    """The state itself: denoising."""
    return Identity()


def matrix(value: Any) -> Matrix:
    """``y = M x`` on flattened states; M ``(m, d)``."""
    return Matrix(value)


def colour(mix: Any) -> Channels:
    """A matrix ``(out, in)`` on the channels of images."""
    value = torch.as_tensor(mix, dtype=torch.float64)
    if value.ndim != 2:
        raise InputError(f"a colour matrix has shape (channels out, channels in), got {tuple(value.shape)}")
    return Channels(value)


def grayscale(weights: Sequence[float] = (0.299, 0.587, 0.114)) -> Channels:
    """One grey channel from colours, by default with the weights of ITU-R BT.601."""
    return colour([list(weights)])


def random_projections(m: int, seed: int = 0) -> Projections:
    """m random orthonormal projections of the flattened state: compressed sensing."""
    if isinstance(m, bool) or not isinstance(m, int) or m < 1:
        raise InputError(f"m is a number of projections of at least 1, got {m!r}")
    return Projections(m, seed)


def function(f: Callable[[Tensor], Tensor], linear: bool = False) -> Operator:
    """A callable ``(batch, *shape) -> (batch, *output)``; ``linear=True`` is checked, and gives it an adjoint."""
    return Function(f) if linear else NonLinear(f)


def _channels(mix: Tensor, x: Tensor) -> Tensor:
    return torch.einsum("oi,bihw->bohw", mix.to(x), x)
