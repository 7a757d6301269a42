"""The numbers that decide how a run goes, checked before it starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from retrodict.core.errors import InputError, require
from retrodict.training.curves import DECAYS
from retrodict.training.devices import PRECISIONS
from retrodict.training.optimizers import OPTIMIZERS

Batch = dict[str, Tensor]
Loss = Callable[[nn.Module, Batch, torch.Generator], Tensor | Mapping[str, Tensor]]
"""``loss(module, batch, generator)``: a scalar to minimise, or a mapping with it under "loss"."""
OptimizerLike = str | Callable[[Any], torch.optim.Optimizer]


@dataclass(frozen=True)
class Settings:
    """Everything that decides the trajectory of the weights, besides module, loss and data.

    A checkpoint remembers it, and a run is resumed only with the same.
    """

    steps: int
    batch_size: int
    lr: float
    weight_decay: float
    betas: tuple[float, float]
    optimizer: str
    warmup: int | None
    decay: str
    ema: float | None
    clip: float | None
    precision: str
    accumulate: int
    seed: int

    def __post_init__(self) -> None:
        _whole("steps", self.steps, 1)
        _whole("batch_size", self.batch_size, 1)
        _whole("accumulate", self.accumulate, 1)
        _whole("seed", self.seed, None)
        require(self.lr > 0, f"lr={self.lr}; accepted: a positive learning rate such as 1e-3")
        require(self.weight_decay >= 0, f"weight_decay={self.weight_decay}; accepted: 0 or more")
        require(
            all(0 <= b < 1 for b in self.betas),
            f"betas={self.betas}; accepted: two numbers in [0, 1)",
        )
        require(self.clip is None or self.clip > 0, f"clip={self.clip}; accepted: a positive norm, or None")
        _ = DECAYS[self.decay], PRECISIONS[self.precision]

    def describe(self) -> dict[str, Any]:
        """As plain values, for a checkpoint."""
        return asdict(self) | {"betas": list(self.betas)}


def optimizer_name(what: OptimizerLike) -> str:
    """The registered name of an optimiser, or the name of the callable that makes it."""
    if isinstance(what, str):
        _ = OPTIMIZERS[what]
        return what
    return getattr(what, "__qualname__", type(what).__name__)


def every(name: str, given: int | None, default: int) -> int:
    """A positive interval in steps, or its default."""
    if given is None:
        return max(1, default)
    _whole(name, given, 1)
    return given


def _whole(name: str, value: Any, least: int | None) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or (least is not None and value < least):
        raise InputError(
            f"{name}={value!r}; accepted: a whole number{'' if least is None else f' of at least {least}'}"
        )
