"""The map between the user's units and those that a network sees.

    z = (x - shift) / scale,     log p(x) = log p(z) + d * log_det_per_dim,     log_det_per_dim = -mean log scale

Images with grey levels 0..L-1 go to [-1, 1]; other real data are standardised, per coordinate of a vector and
per channel of an image or a series; tokens pass through.  Samples, likelihoods and measurements are always
given back in the user's units.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from retrodict.core.errors import InputError, InputTypeError, require
from retrodict.core.registry import Registry
from retrodict.data.types import Data

logger = logging.getLogger(__name__)


class Scale(nn.Module):
    """An affine map, coordinate by coordinate; the identity by default.

    Args:
        shift, scale: numbers, nested lists or tensors that broadcast against one sample; scale is positive.

    Attributes:
        shift, scale: float32 buffers, cast to the dtype of what is mapped.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, shift: Any = 0.0, scale: Any = 1.0) -> None:
        super().__init__()
        shift, scale = (
            torch.as_tensor(shift, dtype=torch.float32),
            torch.as_tensor(scale, dtype=torch.float32),
        )
        good = bool(torch.isfinite(shift).all() and torch.isfinite(scale).all() and (scale > 0).all())
        require(good, f"shift={shift.tolist()}, scale={scale.tolist()}; accepted: finite numbers, scale above 0")
        shift, scale = torch.broadcast_tensors(shift, scale)
        self.register_buffer("shift", shift.clone())
        self.register_buffer("scale", scale.clone())

    @property
    def is_identity(self) -> bool:
        """Whether the map changes nothing."""
        return bool((self.shift == 0).all() and (self.scale == 1).all())

    def forward(self, x: Tensor) -> Tensor:
        """From the user's units to the model's, (n, *shape) to (n, *shape); the identity returns x itself."""
        if self.is_identity:
            return x
        x = x if x.is_floating_point() else x.float()
        return (x - self.shift.to(x)) / self.scale.to(x)

    def inverse(self, z: Tensor) -> Tensor:
        """From the model's units to the user's."""
        return z if self.is_identity else z * self.scale.to(z) + self.shift.to(z)

    def log_det_per_dim(self) -> float:
        """The mean over coordinates of log |dz/dx|: add d times this to log p(z) to get log p(x)."""
        return -float(self.scale.double().log().mean())

    def config(self) -> dict[str, Any]:
        """Plain values that `from_config` rebuilds the map from, exactly."""
        return {"shift": self.shift.tolist(), "scale": self.scale.tolist()}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Scale:
        """The map that ``config()`` described."""
        return cls(config["shift"], config["scale"])

    def extra_repr(self) -> str:
        return f"shift={_brief(self.shift)}, scale={_brief(self.scale)}"


def stretch(scale: Scale | None, v: Tensor) -> Tensor:
    """A difference of samples from the model's units to the user's; None is the identity."""
    return v if scale is None else v * scale.scale.to(v)


def shrink(scale: Scale | None, v: Tensor) -> Tensor:
    """A difference of samples from the user's units to the model's; None is the identity."""
    return v if scale is None else v / scale.scale.to(v)


SCALES: Registry[Callable[[Data], Scale]] = Registry("scale")


@SCALES.register("auto")
def _auto(data: Data) -> Scale:
    if data.layout == "tokens":
        return Scale()
    return _unit(data) if data.layout == "image" and data.levels else _standard(data)


@SCALES.register("none")
def _none(data: Data) -> Scale:
    return Scale()


@SCALES.register("unit")
def _unit(data: Data) -> Scale:
    """To [-1, 1]: from 0..levels-1, or from the smallest to the largest value."""
    _refuse_tokens(data, "unit")
    low, high = (0.0, data.levels - 1.0) if data.levels else (float(data.x.min()), float(data.x.max()))
    if high == low:
        logger.warning("%r has one value only, %g; it is shifted to 0", data.name, low)
        return Scale(low, 1.0)
    return Scale((low + high) / 2, (high - low) / 2)


@SCALES.register("standard")
def _standard(data: Data) -> Scale:
    """To mean 0 and standard deviation 1, per coordinate of a vector, per channel of an image or series."""
    _refuse_tokens(data, "standard")
    over = {"vector": (0,), "image": (0, 2, 3), "series": (0, 1)}[data.layout]
    x = data.x.double()
    mean, deviation = x.mean(over, keepdim=True)[0], x.std(over, keepdim=True, correction=0)[0]
    constant = deviation <= 1e-12 * mean.abs()
    if bool(constant.any()):
        logger.warning("%r does not vary in %d of %d coordinates", data.name, int(constant.sum()), mean.numel())
    return Scale(mean, torch.where(constant, 1.0, deviation))


def make_scale(data: Data, how: str | Scale = "auto") -> Scale:
    """The map for a data set.

    Args:
        how: "auto" (grey levels to [-1, 1], other real data standardised, tokens as they are), "standard",
            "unit", "none", or a `Scale`.
    """
    if isinstance(how, Scale):
        require(
            data.layout != "tokens" or how.is_identity,
            "tokens cannot be scaled; use scale='none' or scale='auto'",
        )
        try:
            fits = torch.broadcast_shapes(how.shift.shape, data.shape) == data.shape
        except RuntimeError:
            fits = False
        require(
            fits,
            f"the scale has shape {tuple(how.shift.shape)}, which does not fit samples of shape {data.shape}",
        )
        return how
    if not isinstance(how, str):
        raise InputTypeError(f"scale is a {type(how).__name__}; accepted: {', '.join(SCALES)}, or a Scale")
    return SCALES[how](data)


def _refuse_tokens(data: Data, how: str) -> None:
    if data.layout == "tokens":
        raise InputError(f"scale={how!r} for tokens, which are names and no amounts; use 'auto' or 'none'")


def _brief(value: Tensor) -> str:
    return f"{value.item():.4g}" if value.numel() == 1 else f"tensor{tuple(value.shape)}"
