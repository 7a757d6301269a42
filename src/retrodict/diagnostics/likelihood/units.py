"""What the likelihoods share: units of the user, checks of data, conditions by parts of a batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from retrodict.core.errors import InputError, InputTypeError
from retrodict.denoisers import Denoiser


def to_model_units(denoiser: Denoiser, x: Tensor, scale: Any) -> tuple[Tensor, float]:
    """Data in the model's units, and log |d model / d user| of one datum."""
    scale = denoiser.scale if scale is None else scale
    if scale is None:
        return x, 0.0
    return scale(x), float(scale.log_det_per_dim()) * x[0].numel()


def check_data(denoiser: Denoiser, x: Tensor, condition: dict[str, Any]) -> None:
    """Raise unless x is a batch of finite data of the denoiser's shape and the conditions are its own."""
    if not isinstance(x, Tensor):
        raise InputTypeError(f"data are a tensor (n, *shape), got {type(x).__name__}")
    if x.ndim < 2 or len(x) == 0:
        raise InputError(f"data have shape (n, *shape) with n at least 1, got {tuple(x.shape)}")
    if denoiser.shape is not None and tuple(x.shape[1:]) != tuple(denoiser.shape):
        raise InputError(
            f"this denoiser takes data of shape (n, {', '.join(map(str, denoiser.shape))}), got {tuple(x.shape)}"
        )
    if not bool(torch.isfinite(x).all()):
        raise InputError("data are finite; got NaN or infinity")
    denoiser.check_condition(condition)


def parts(n: int, batch_size: int | None) -> Iterator[slice]:
    """Slices of at most ``batch_size`` of n."""
    size = n if batch_size is None else batch_size
    if size < 1:
        raise InputError(f"batch_size is at least 1, got {batch_size}")
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def of_part(condition: dict[str, Any], part: slice, n: int, repeats: int = 1) -> dict[str, Any]:
    """The conditions of a part: those given one a datum are cut, and repeated for each draw of a datum."""
    cut = {}
    for name, value in condition.items():
        per_datum = isinstance(value, Tensor) and value.ndim > 0 and len(value) == n
        cut[name] = value[part].repeat_interleave(repeats, 0) if per_datum else value
    return cut
