"""From arrays to `Data`: layouts, labels and levels, inferred where they are clear and refused where they are
not.

| given | read as |
|---|---|
| real (n,), (n, d) | vector |
| real (n, a, b) | series: time first, then channels (``layout="image"`` makes it grey images) |
| bytes (n, h, w) | grey images |
| real or integer, four axes | images; channels last are moved first where that is clear |
| integers or booleans (n, L) | tokens |
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from retrodict.core.errors import InputError, InputTypeError, near, require
from retrodict.data.types import LAYOUTS, Data, Layout

logger = logging.getLogger(__name__)
Channels = Literal["auto", "first", "last"]
_CHANNEL_COUNTS = (1, 3, 4)


def as_tensor(value: Any, what: str) -> Tensor:
    """A tensor from a tensor, an array, or nested lists of numbers.

    Raises:
        InputTypeError: strings or objects (ragged lists, mixed kinds, pickled arrays).
    """
    if isinstance(value, Tensor):
        return value.detach().to("cpu").clone()
    try:
        array = np.asarray(value)
    except ValueError as error:  # ragged lists
        raise InputTypeError(f"{what} cannot be made one array ({error}); all samples need one shape") from error
    if array.dtype.kind not in "biuf":
        raise InputTypeError(
            f"{what} has the dtype {array.dtype}; accepted: numbers (floats, integers, booleans); an "
            "object array often means samples of unequal shape: bring them to one shape, or turn text "
            "into numbers"
        )
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:
        array = array.astype(np.int64)
    return torch.from_numpy(np.array(array, order="C"))  # a copy, so that the user's array is never shared


def build(
    x: Any,
    conditions: Mapping[str, Any],
    *,
    name: str,
    layout: str | None = None,
    channels: Channels = "auto",
    classes: Mapping[str, int] | None = None,
    levels: int | None = None,
    dtype: torch.dtype = torch.float32,
    x1: Any = None,
) -> Data:
    """Samples and conditions as `Data`, not yet checked for finiteness and ranges."""
    if layout is not None and layout not in LAYOUTS:
        raise InputError(f"layout={layout!r}; accepted: {', '.join(LAYOUTS)}.{near(layout, LAYOUTS)}")
    samples, kind, found = arrange(as_tensor(x, f"{name!r}"), name, layout, channels, dtype)
    if levels is not None and found is not None and kind == "image" and found > levels:
        raise InputError(f"{name!r} has the grey level {found - 1}, out of range for levels={levels}")
    data = Data(samples, name=name, layout=kind, levels=levels or found)
    for key, value in conditions.items():
        _add_condition(data, key, value, (classes or {}).get(key))
    unknown = set(classes or {}) - set(data.conditions)
    require(
        not unknown,
        f"classes names {sorted(unknown)}, which are no conditions; conditions: {sorted(conditions)}",
    )
    if x1 is not None:
        data.x1, other, _ = arrange(as_tensor(x1, "x1"), "x1", kind, channels, dtype)
        require(other == kind and len(data.x1) > 0, f"x1 is read as {other}, the samples as {kind}")
    return data


def arrange(
    x: Tensor, name: str, layout: str | None, channels: Channels, dtype: torch.dtype
) -> tuple[Tensor, Layout, int | None]:
    """Bring samples into one of the layouts: the tensor, the layout, and the number of levels if known."""
    require(x.ndim >= 1, f"{name!r} is a single number; give an array with the samples along the first axis")
    whole = not x.is_floating_point()
    kind: Any = layout or _infer(x, name, whole)
    if kind == "tokens":
        require(
            whole or bool((x == x.round()).all()),
            f"{name!r} is to be tokens but holds fractions; tokens are whole numbers from 0 up",
        )
        require(x.ndim == 2, _misfit(x, name, kind))
        return x.long(), "tokens", int(x.max()) + 1 if x.numel() else None
    levels = _levels(x) if whole and kind == "image" else None
    x = x.to(dtype)
    if kind == "vector":
        require(x.ndim in (1, 2), _misfit(x, name, kind))
        return (x[:, None] if x.ndim == 1 else x), "vector", None
    if kind == "series":
        require(x.ndim in (2, 3), _misfit(x, name, kind))
        return (x[:, :, None] if x.ndim == 2 else x), "series", None
    require(x.ndim in (3, 4), _misfit(x, name, kind))
    return (x[:, None] if x.ndim == 3 else _channels_first(x, name, channels)), "image", levels


def _infer(x: Tensor, name: str, whole: bool) -> Layout:
    if x.ndim <= 2:
        return "tokens" if whole and x.ndim == 2 and x.dtype != torch.uint8 else "vector"
    if x.ndim == 4:
        return "image"
    if x.ndim == 3 and x.dtype == torch.uint8:
        return "image"
    if x.ndim == 3 and not whole:
        if x.shape[1] == x.shape[2]:
            logger.info("%r is read as series; layout='image' reads %s as grey images", name, tuple(x.shape))
        return "series"
    shapes = "; ".join(f"{kind} {shape}" for kind, shape in LAYOUTS.items())
    raise InputError(
        f"{name!r} has shape {tuple(x.shape)} and dtype {str(x.dtype).removeprefix('torch.')}, which is no "
        f"layout that can be told apart; accepted: {shapes}; reshape it, or name one with layout="
    )


def _misfit(x: Tensor, name: str, kind: str) -> str:
    return f"{name!r} has shape {tuple(x.shape)}, but layout {kind!r} is {LAYOUTS[kind]}; reshape it or change layout="


def _levels(x: Tensor) -> int | None:
    """Grey levels of whole-numbered images: 256 for bytes, else as many as the largest value shows."""
    if x.dtype == torch.uint8:
        return 256
    return int(x.max()) + 1 if x.numel() and int(x.min()) >= 0 else None


def _channels_first(x: Tensor, name: str, channels: Channels) -> Tensor:
    """(n, channels, height, width) from images whose channels may come last."""
    if channels not in ("auto", "first", "last"):
        raise InputError(f"channels={channels!r}; accepted: 'auto', 'first', 'last'")
    first, last = x.shape[1] in _CHANNEL_COUNTS, x.shape[3] in _CHANNEL_COUNTS
    if channels == "first" or (channels == "auto" and not last):
        return x
    if channels == "auto" and first:
        square_first, square_last = x.shape[2] == x.shape[3], x.shape[1] == x.shape[2]
        if square_first:
            return x
        require(
            not square_last,
            f"{name!r} has shape {tuple(x.shape)}: the channels may be the second axis ({x.shape[1]}) or "
            f"the last ({x.shape[3]}); say which with channels='first' or channels='last'; images are (n, "
            "channels, height, width)",
        )
        return x
    logger.info("%r has its channels last, %s; they are moved first", name, tuple(x.shape))
    return x.permute(0, 3, 1, 2).contiguous()


def _add_condition(data: Data, name: str, value: Any, count: int | None) -> None:
    """Add class numbers (from integers, booleans or text) or real values as the condition ``name``."""
    require(
        name.isidentifier() and name not in ("x", "x1"),
        f"{name!r} cannot name a condition; give a plain word",
    )
    names: list[str] | None = None
    if not isinstance(value, Tensor):
        if isinstance(value, str | bytes) or (
            not isinstance(value, Sequence | np.ndarray) and not hasattr(value, "__array__")
        ):
            raise InputTypeError(f"condition {name!r} is a {type(value).__name__}; give one entry for each sample")
        array = np.asarray(value)
        if array.dtype.kind in "US" or (array.dtype.kind == "O" and all(isinstance(v, str) for v in array.flat)):
            found, value = np.unique(array.astype(str), return_inverse=True)
            names = [str(v) for v in found]
    tensor = as_tensor(value, f"condition {name!r}")
    require(tensor.ndim >= 1, f"condition {name!r} is one value; give one for each sample")
    if tensor.is_floating_point():
        require(
            count is None,
            f"condition {name!r} is real-valued, but classes gives it {count} classes; give integers",
        )
        data.conditions[name] = tensor.float()
        return
    if tensor.ndim == 2 and tensor.shape[1] == 1:
        tensor = tensor[:, 0]
    require(
        tensor.ndim == 1,
        f"condition {name!r} has shape {tuple(tensor.shape)}; class numbers are one whole number a sample; "
        "give floats for a condition of several values",
    )
    data.conditions[name] = tensor.long()
    data.classes[name] = count or (len(names) if names else int(tensor.max()) + 1 if len(tensor) else 0)
    if names:
        data.class_names[name] = names
