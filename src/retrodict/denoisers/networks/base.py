"""What every network shares: the call ``network(x, t, **conditions)``, its checks, a config to rebuild it.

A network maps a noisy state, a network time and conditions to one real array per head; it knows nothing of
processes.  ``network.config`` holds plain values only, and ``networks[network.name](**network.config)`` makes
the same architecture again: that is all that a saved model needs beside its weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from retrodict.core.errors import InputError, InputTypeError, require
from retrodict.core.registry import Registry
from retrodict.denoisers.networks.embedding import Conditioning, Spec

#: Every network by name; a saved model may name nothing else.
networks: Registry[type[Network]] = Registry("network")


class Network(nn.Module):
    """Base class.  A subclass builds its layers and writes ``run(x, condition)``.

    Args:
        shape: of one sample, without the batch: ``(d,)``, ``(time, channel)``, ``(channel, height, width)``.
        out_channels: channels of the output; None for those of the input.
        conditions: name -> ``K`` for class labels int64 ``(batch,)`` in 0..K-1, with K for "not given"; or
            name -> shape of a real vector ``(batch, *shape)``, a row of NaN for "not given".
        time: False for a network without a time input, called as ``network(x, None, **conditions)``.
        width: of the vector that carries time and conditions.

    Attributes:
        name: in the registry `networks`.
        config: plain values (JSON) that rebuild it.
        conditions: name -> null value, ``K`` or NaN.
    """

    name: ClassVar[str]

    def __init__(
        self,
        shape: Sequence[int],
        out_channels: int | None,
        conditions: Mapping[str, Spec | list[int]] | None,
        time: bool,
        width: int,
    ) -> None:
        super().__init__()
        self.shape = check_shape(shape)
        self.channels = self.shape[channel_axis(self.shape) - 1]
        self.out_channels = self.channels if out_channels is None else check_count("out_channels", out_channels)
        self.has_time = bool(time)
        require(
            width >= 4 and width % 2 == 0,
            f"width {width} of the conditioning; accepted: an even number from 4",
        )
        specs = check_specs(conditions or {})
        self.conditions = {name: spec if isinstance(spec, int) else math.nan for name, spec in specs.items()}
        self.conditioning = Conditioning(width, specs, self.has_time)
        self.config: dict[str, Any] = {
            "shape": list(self.shape),
            "out_channels": self.out_channels,
            "conditions": {name: spec if isinstance(spec, int) else list(spec) for name, spec in specs.items()},
            "time": self.has_time,
        }

    def forward(self, x: Tensor, t: Tensor | None = None, **conditions: Tensor) -> Tensor:
        """``x (batch, *shape)``, ``t (batch,)`` -> ``(batch, *shape)`` with ``out_channels`` channels."""
        x = self.check_state(x)
        self.check_time(t, len(x))
        return self.run(x, self.conditioning(t, conditions, len(x), next(self.parameters())))

    def run(self, x: Tensor, condition: Tensor) -> Tensor:
        """The layers: a checked state, and the vector ``(batch, width)`` of time and conditions."""
        raise NotImplementedError

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def check_state(self, x: Tensor) -> Tensor:
        """``x`` as ``run`` wants it, or an error."""
        if tuple(x.shape[1:]) != self.shape:
            raise InputError(
                f"x has shape {tuple(x.shape)}; this network was built for {('batch', *self.shape)}: "
                "build another with shape= of the data, or reshape x"
            )
        if x.dtype != self.dtype and not (x.is_floating_point() and torch.is_autocast_enabled(x.device.type)):
            raise InputTypeError(
                f"x has dtype {x.dtype} and the network's weights {self.dtype}; cast one of them: "
                "x.to(network.dtype), or network.to(x.dtype)"
            )
        return x

    def check_time(self, t: Tensor | None, batch: int) -> None:
        if not self.has_time:
            require(t is None, "this network was built with time=False; call it with t=None")
        elif t is None or t.ndim != 1 or len(t) != batch or not t.is_floating_point():
            given = "None" if t is None else f"shape {tuple(t.shape)}, dtype {t.dtype}"
            raise InputError(f"t is {given}; accepted: reals of shape ({batch},), one time per sample")


def channel_axis(shape: Sequence[int]) -> int:
    """Where the channels are in ``(batch, *shape)``: first in images, last in vectors and series."""
    return 1 if len(shape) == 3 else len(shape)


def check_shape(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(check_count("shape", n) for n in shape)


def check_count(what: str, n: object) -> int:
    """``n`` if it is a positive integer, else an error that names ``what``."""
    if isinstance(n, bool) or not isinstance(n, int):
        raise InputTypeError(f"{what} has {n!r}; accepted: positive integers")
    require(n > 0, f"{what} has {n}; accepted: positive integers")
    return n


def check_share(what: str, value: float) -> None:
    require(0.0 <= value < 1.0, f"{what}={value}; accepted: a share in [0, 1)")


def check_specs(conditions: Mapping[str, Spec | list[int]]) -> dict[str, Spec]:
    specs: dict[str, Spec] = {}
    for name, spec in conditions.items():
        require(
            name.isidentifier() and name not in ("x", "t"),
            f"condition {name!r}; accepted: a name but x and t",
        )
        what = f"conditions[{name!r}]"
        is_shape = isinstance(spec, (tuple, list))
        specs[name] = tuple(check_count(what, n) for n in spec) if is_shape else check_count(what, spec)
    return specs


def look_up(tokens: Tensor, table: Tensor) -> Tensor:
    """Rows of ``table (vocabulary, width)`` for int64 tokens, whose range the look-up itself checks on the CPU."""
    try:
        return nn.functional.embedding(tokens, table)
    except IndexError as error:  # an accelerator would have to stall to tell
        raise InputError(f"x has tokens out of range; accepted: 0 to {len(table) - 1}") from error


def check_whole(x: Tensor, shape: tuple[int, ...], vocabulary: int) -> Tensor:
    """``x`` if it holds int64 values of that shape, else an error."""
    if tuple(x.shape[1:]) != shape or x.dtype != torch.int64:
        raise InputTypeError(
            f"x has shape {tuple(x.shape)} and dtype {x.dtype}; accepted: int64 values 0 to {vocabulary - 1} of "
            f"shape {('batch', *shape)}"
        )
    return x


def zero(layer: nn.Module) -> nn.Module:
    """The same layer with all parameters zero: a network, or a residual block, that starts at zero."""
    for parameter in layer.parameters():
        torch.nn.init.zeros_(parameter)
    return layer
