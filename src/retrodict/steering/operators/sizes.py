"""Operators that change the size or the layout: block means, resizing, reshaping."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from retrodict.core.errors import InputError
from retrodict.steering.operators.operator import Linear, image_axes
from retrodict.steering.operators.singular import Singular


class BlockMean(Linear):
    """Means of blocks of ``factor`` x ``factor`` pixels; made by `downsample`."""

    def __init__(self, factor: int) -> None:
        self.factor = _factor(factor)

    def __call__(self, x: Tensor) -> Tensor:
        H, W = image_axes(x, "downsampling")
        if H % self.factor or W % self.factor:
            raise InputError(
                f"downsampling by {self.factor} needs sides that are multiples of it, got states of shape "
                f"{tuple(x.shape[1:])}"
            )
        blocks = x.reshape(*x.shape[:-2], H // self.factor, self.factor, W // self.factor, self.factor)
        return blocks.mean((-3, -1))

    def adjoint(self, y: Tensor, shape: tuple[int, ...]) -> Tensor:
        f = self.factor
        return y.repeat_interleave(f, -2).repeat_interleave(f, -1) / f**2

    def gram(self, shape: tuple[int, ...]) -> Tensor:
        return torch.full(self.output_shape(shape), self.factor**-2.0, dtype=torch.float64)

    def singular(self, shape: tuple[int, ...]) -> Singular:
        f, output = self.factor, self.output_shape(shape)
        return Singular(
            torch.full((math.prod(output),), 1 / f, dtype=torch.float64),
            inwards=lambda x: f * self(x).flatten(1),
            outwards=lambda c: f * self.adjoint(c.reshape(len(c), *output), shape),
            measured=lambda y: y.flatten(1),
            measurement=lambda c: c.reshape(len(c), *output),
        )


class Resized(Linear):
    """Images made smaller by a filter of `torch.nn.functional.interpolate`; made by `super_resolution`."""

    def __init__(self, factor: int, mode: str) -> None:
        self.factor, self.mode = _factor(factor), mode
        if mode not in ("bicubic", "bilinear"):
            raise InputError(f"mode is 'bicubic' or 'bilinear', got {mode!r}")

    def __call__(self, x: Tensor) -> Tensor:
        H, W = image_axes(x, "super-resolution")
        if H % self.factor or W % self.factor:
            raise InputError(
                f"super-resolution by {self.factor} needs sides that are multiples of it, got states of shape "
                f"{tuple(x.shape[1:])}"
            )
        small = (H // self.factor, W // self.factor)
        out = functional.interpolate(x.reshape(-1, 1, H, W), size=small, mode=self.mode, antialias=True)
        return out.reshape(*x.shape[:-2], *small)


class Reshaped(Linear):
    """The same numbers in another shape; made by `reshape`."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def __call__(self, x: Tensor) -> Tensor:
        if math.prod(x.shape[1:]) != math.prod(self.shape):
            raise InputError(f"states of shape {tuple(x.shape[1:])} cannot be reshaped to {self.shape}")
        return x.reshape(len(x), *self.shape)

    def adjoint(self, y: Tensor, shape: tuple[int, ...]) -> Tensor:
        return y.reshape(len(y), *shape)

    def gram(self, shape: tuple[int, ...]) -> Tensor:
        return torch.ones(self.output_shape(shape), dtype=torch.float64)


def downsample(factor: int = 2) -> BlockMean:
    """Means of blocks of ``factor`` x ``factor`` pixels."""
    return BlockMean(factor)


def super_resolution(factor: int = 2, mode: str = "bicubic") -> Resized:
    """Images made smaller by ``factor`` with an antialiased "bicubic" or "bilinear" filter, as photographs are."""
    return Resized(factor, mode)


def reshape(*shape: int) -> Reshaped:
    """States as another shape: ``reshape(1, 8, 8) | gaussian_blur()`` blurs vectors of 64 numbers."""
    if not shape or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in shape):
        raise InputError(f"a shape is whole numbers of at least 1, got {shape}")
    return Reshaped(shape)


def _factor(factor: int) -> int:
    if isinstance(factor, bool) or not isinstance(factor, int) or factor < 1:
        raise InputError(f"factor is a whole number of at least 1, got {factor!r}")
    return factor
