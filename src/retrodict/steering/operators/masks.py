"""Masks: some coordinates are seen, the others are not.  The measurement is the seen values, ``(batch, m)``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from retrodict.core.errors import InputError, InputTypeError, near
from retrodict.steering.operators.operator import Linear
from retrodict.steering.operators.singular import Singular

Shape = tuple[int, ...]


class Mask(Linear):
    """The seen coordinates of a state, in row-major order.

    Args:
        seen: ``shape -> bool tensor`` that broadcasts to it, True where a state of that shape is seen.
    """

    def __init__(self, seen: Callable[[Shape], Tensor]) -> None:
        self._make = seen
        self._index: dict[Shape, Tensor] = {}

    def seen(self, shape: Shape) -> Tensor:
        """Where a state of the given shape is seen, a bool tensor of that shape."""
        made = self._make(shape)
        try:
            return made.expand(shape)
        except RuntimeError:
            raise InputError(
                f"the mask has shape {tuple(made.shape)} and states have shape {tuple(shape)}; "
                "it has to be that shape, or to broadcast to it"
            ) from None

    def index(self, shape: Shape) -> Tensor:
        """Positions of the seen coordinates in the flattened state ``(m,)``."""
        if shape not in self._index:
            found = self.seen(shape).flatten().nonzero().squeeze(1)
            if not len(found):
                raise InputError(f"the mask hides everything of a state of shape {tuple(shape)}")
            self._index[shape] = found
        return self._index[shape]

    def __call__(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, self.index(tuple(x.shape[1:])).to(x.device)]

    def adjoint(self, y: Tensor, shape: Shape) -> Tensor:
        return self.place(y, shape, 0.0)

    def place(self, y: Tensor, shape: Shape, hidden: float) -> Tensor:
        """The seen values at their places ``(batch, *shape)``, and a number at all others."""
        flat = y.new_full((len(y), self.seen(shape).numel()), hidden)
        return flat.index_copy(1, self.index(shape).to(y.device), y).reshape(len(y), *shape)

    def gram(self, shape: Shape) -> Tensor:
        return torch.ones(len(self.index(shape)), dtype=torch.float64)

    def singular(self, shape: Shape) -> Singular:
        same = lambda y: y  # noqa: E731
        return Singular(self.gram(shape), self, lambda c: self.adjoint(c, shape), same, same)


def inpaint(mask: Any) -> Mask:
    """What a mask lets through.

    Args:
        mask: booleans or zeros and ones, of a state's shape or broadcasting to it; true where a state is seen.
    """
    value = torch.as_tensor(mask)
    if value.dtype != torch.bool:
        if not bool(((value == 0) | (value == 1)).all()):
            raise InputError("a mask has true or 1 where a state is seen and false or 0 elsewhere, got other values")
        value = value.bool()
    return Mask(lambda shape: value)


def half(hidden: str = "bottom") -> Mask:
    """All but one half of an image: ``hidden`` is "bottom", "top", "left" or "right"."""
    axis = {"top": -2, "bottom": -2, "left": -1, "right": -1}
    if hidden not in axis:
        raise InputError(f"the hidden half is top, bottom, left or right, got {hidden!r}.{near(str(hidden), axis)}")

    def seen(shape: Shape) -> Tensor:
        _needs_image(shape, f"half({hidden!r})")
        size = shape[axis[hidden]]
        first = torch.arange(size) < size // 2
        keep = ~first if hidden in ("top", "left") else first
        return keep.unsqueeze(-1) if axis[hidden] == -2 else keep

    return Mask(seen)


def box(top: int, left: int, height: int, width: int) -> Mask:
    """All of an image but a box; numbers are pixels."""
    if min(top, left) < 0 or min(height, width) < 1:
        raise InputError(f"a box has corners from 0 and sides from 1, got {(top, left, height, width)}")

    def seen(shape: Shape) -> Tensor:
        _needs_image(shape, "box")
        if top + height > shape[-2] or left + width > shape[-1]:
            raise InputError(
                f"the box from ({top}, {left}) of {height} x {width} pixels leaves images of shape {tuple(shape)}"
            )
        keep = torch.ones(shape[-2:], dtype=torch.bool)
        keep[top : top + height, left : left + width] = False
        return keep

    return Mask(seen)


def random_mask(hidden: float = 0.5, seed: int = 0) -> Mask:
    """A random part of the pixels (of images, the same in all channels) or coordinates; ``hidden`` is its share."""
    if isinstance(hidden, bool) or not isinstance(hidden, (int, float)):
        raise InputTypeError(f"hidden is a share between 0 and 1, got {type(hidden).__name__}")
    if not 0 <= hidden < 1:
        raise InputError(f"hidden is a share of at least 0 and below 1, got {hidden}")

    def seen(shape: Shape) -> Tensor:
        places = shape[-2:] if len(shape) >= 3 else shape
        order = torch.rand(places, generator=torch.Generator().manual_seed(seed)).flatten().argsort()
        keep = torch.ones(order.shape, dtype=torch.bool)
        keep[order[: round(hidden * len(order))]] = False
        return keep.reshape(places)

    return Mask(seen)


def _needs_image(shape: Shape, what: str) -> None:
    if len(shape) < 2:
        raise InputError(f"{what} acts on images (..., height, width), got states of shape {tuple(shape)}")
