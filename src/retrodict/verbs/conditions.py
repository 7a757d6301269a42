"""Conditions as users give them, one value for all or one each, as tensors over the samples."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from retrodict.core.errors import require
from retrodict.denoisers import Denoiser
from retrodict.verbs.sample import check_labels


def over_samples(denoiser: Denoiser, key: str, value: Any, n: int, what: str) -> Any:
    """The condition ``key`` once for each of n samples, on the denoiser's device, from one value or n; what is no
    number is passed on.  ``what`` is who asks, for the error."""
    if isinstance(value, (int, float, list, tuple)):
        value = torch.as_tensor(value)
    if not isinstance(value, Tensor):
        return value
    null = denoiser.conditions.get(key)
    event = null.ndim if isinstance(null, Tensor) else 0
    if value.ndim == event:  # one value for all
        value = value.expand(n, *value.shape)
    if len(value) == 1:
        value = value.expand(n, *value.shape[1:])
    require(len(value) == n, f"{what} has {len(value)} values of {key!r} for {n} data; pass one, or one each")
    return check_labels(denoiser, key, value.to(denoiser.device))
