"""How a network hears the time and the conditions: each becomes a vector, and the vectors add up.

Time ``t`` is any real of magnitude up to about 6 (a clock in [0, 1], or a log signal-to-noise ratio over 4).
Its features are sines and cosines at angular frequencies in geometric progression,

    phi(t) = sqrt(2) * [cos(w_k t), sin(w_k t)],   w_k = 1/4, ..., 32   radians per unit,

The slowest wave is injective over [-6, 6] and the fastest resolves 1/30 of the unit clock; in float32, below
which the waves are never computed, their phase (at most 200) is right to 1e-5.  The form is that of Vaswani
et al. (2017), section 3.5, and Tancik et al. (2020), equation 5; the range is ours.

A condition is a class index or a real vector, and each kind has a learned *null* that means "not given", as
classifier-free guidance needs (Ho and Salimans, 2022): the index ``K`` for ``K`` classes, a row of NaN for a
vector.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from retrodict.core.errors import InputError, InputTypeError, near

#: What a condition may be: a number of classes, or the shape of a real vector.
Spec = int | tuple[int, ...]


class FourierTime(nn.Module):
    """Features of the time, ``t (batch,) -> (batch, width)``.

    ``width`` is even.  The waves are computed in float32, or float64 for float64 ``t``.
    """

    def __init__(self, width: int, slowest: float = 0.25, fastest: float = 32.0) -> None:
        super().__init__()
        # Rebuilt from plain numbers at each call: a buffer would follow .to(bfloat16) and lose its digits.
        self.count = width // 2
        self.log_slowest, self.log_fastest = math.log(slowest), math.log(fastest)

    def forward(self, t: Tensor, dtype: torch.dtype) -> Tensor:
        precise = torch.float64 if t.dtype == torch.float64 else torch.float32
        log_w = torch.linspace(self.log_slowest, self.log_fastest, self.count, dtype=precise, device=t.device)
        angle = t.to(precise)[:, None] * log_w.exp()
        return (math.sqrt(2.0) * torch.cat([angle.cos(), angle.sin()], dim=1)).to(dtype)


class ClassCondition(nn.Module):
    """One learned vector per class and one for the null: int64 ``labels (batch,) -> (batch, width)``."""

    def __init__(self, name: str, classes: int, width: int) -> None:
        super().__init__()
        self.name, self.classes = name, classes
        self.table = nn.Embedding(classes + 1, width)

    def forward(self, labels: Tensor) -> Tensor:
        if labels.dtype != torch.int64 or labels.ndim != 1:
            raise InputTypeError(
                f"condition {self.name!r} has shape {tuple(labels.shape)}, dtype {labels.dtype}; accepted: "
                f"int64 class labels (batch,), 0 to {self.classes - 1}, or {self.classes} for 'not given'"
            )
        if torch.compiler.is_compiling():
            return self.table(labels)
        try:  # The CPU look-up checks its range; reading labels here would stall an accelerator.
            return self.table(labels)
        except IndexError as error:
            raise InputError(
                f"condition {self.name!r} has labels out of range; accepted: 0 to {self.classes - 1}, "
                f"or {self.classes} for 'not given'"
            ) from error


class VectorCondition(nn.Module):
    """A linear map of a real vector; a row that is all NaN is the null and gets a learned vector of its own.

    ``value (batch, *shape) -> (batch, width)``.  A row that is NaN only in part stays NaN.
    """

    def __init__(self, name: str, shape: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.name, self.shape = name, shape
        self.linear = nn.Linear(math.prod(shape), width)
        self.null = nn.Parameter(torch.randn(width))

    def forward(self, value: Tensor) -> Tensor:
        if tuple(value.shape[1:]) != self.shape or not value.is_floating_point():
            raise InputTypeError(
                f"condition {self.name!r} has shape {tuple(value.shape)} and dtype {value.dtype}; accepted: "
                f"reals of shape {('batch', *self.shape)}, a row of NaN for 'not given'"
            )
        flat = value.flatten(1).to(self.linear.weight.dtype)
        absent = flat.isnan().all(dim=1, keepdim=True)
        return torch.where(absent, self.null.to(flat.dtype), self.linear(flat.masked_fill(absent, 0.0)))


class Conditioning(nn.Module):
    """Time and conditions to the one vector that modulates a network: ``(batch, width)``, after a SiLU.

    Args:
        width: of the result.
        conditions: name -> number of classes, or shape of a real vector.
        time: whether there is a time input at all.
    """

    def __init__(self, width: int, conditions: Mapping[str, Spec], time: bool) -> None:
        super().__init__()
        self.width, self.names = width, tuple(conditions)
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width)) if time else None
        self.waves = FourierTime(width)
        self.conditions = nn.ModuleList(
            ClassCondition(name, spec, width) if isinstance(spec, int) else VectorCondition(name, spec, width)
            for name, spec in conditions.items()
        )

    def forward(self, t: Tensor | None, given: Mapping[str, Tensor], batch: int, like: Tensor) -> Tensor:
        """``t (batch,)``, or None without a time input; the result has the dtype and device of ``like``."""
        self.check_names(given)
        if self.time is not None and t is not None:
            total = self.time(self.waves(t, like.dtype))
        else:
            total = like.new_zeros(batch, self.width)
        for name, condition in zip(self.names, self.conditions):
            total = total + condition(given[name])
        return nn.functional.silu(total)

    def check_names(self, given: Mapping[str, Tensor]) -> None:
        for name in given:
            if name not in self.names:
                known = ", ".join(self.names) or "none"
                raise InputError(f"unknown condition {name!r}; this network has: {known}.{near(name, self.names)}")
        for name in self.names:
            if name not in given:
                raise InputError(f"condition {name!r} is missing; pass it, or its null value for 'not given'")
