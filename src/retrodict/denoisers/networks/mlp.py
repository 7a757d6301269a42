"""A residual network of full connections, for vectors and anything small enough to be flattened.

    h <- h + linear(drop(silu((1 + a) * norm(linear(h)) + b))),      (a, b) = linear(time + conditions)

The same block as the U-Net's with matrices for convolutions (Gorishniy et al., 2021, section 3.2, with the
time and conditions as modulation).  The last matrix of every block and of the network starts at zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from retrodict.core.errors import require
from retrodict.denoisers.networks.base import Network, channel_axis, check_count, check_share, networks, zero
from retrodict.denoisers.networks.embedding import Spec


@networks.register("mlp")
class MLP(Network):
    """The residual multilayer perceptron.

    Args:
        shape, out_channels, conditions, time: as in `Network`; a shape of several axes is flattened.
        hidden: width of the state; None for 128 up to 16 numbers a sample, 256 up to 256, else 512.
        depth: number of residual blocks.
        dropout: share of hidden units dropped in training, in [0, 1).
    """

    name = "mlp"

    def __init__(
        self,
        shape: Sequence[int],
        *,
        out_channels: int | None = None,
        conditions: Mapping[str, Spec | list[int]] | None = None,
        time: bool = True,
        hidden: int | None = None,
        depth: int = 3,
        dropout: float = 0.0,
    ) -> None:
        size = math.prod(shape)
        hidden = (128 if size <= 16 else 256 if size <= 256 else 512) if hidden is None else hidden
        require(hidden >= 4 and hidden % 2 == 0, f"hidden={hidden}; accepted: an even number from 4")
        super().__init__(shape, out_channels, conditions, time, width=hidden)
        check_count("depth", depth)
        check_share("dropout", dropout)
        self.config |= {"hidden": hidden, "depth": depth, "dropout": dropout}
        self.enter = nn.Linear(size, hidden)
        self.first = nn.ModuleList(nn.Sequential(nn.Linear(hidden, hidden), nn.LayerNorm(hidden)) for _ in range(depth))
        self.second = nn.ModuleList(
            nn.Sequential(nn.SiLU(), nn.Dropout(dropout), zero(nn.Linear(hidden, hidden))) for _ in range(depth)
        )
        self.modulate = nn.Linear(hidden, 2 * hidden * depth)
        out = list(self.shape)
        out[channel_axis(self.shape) - 1] = self.out_channels
        self.out_shape = tuple(out)
        self.leave = nn.Sequential(nn.LayerNorm(hidden), nn.SiLU(), zero(nn.Linear(hidden, math.prod(out))))

    def run(self, x: Tensor, condition: Tensor) -> Tensor:
        h = self.enter(x.flatten(1))
        parts = self.modulate(condition).chunk(2 * len(self.first), dim=1)
        for first, second, scale, shift in zip(self.first, self.second, parts[::2], parts[1::2]):
            h = h + second(torch.addcmul(shift, first(h), 1.0 + scale))
        return self.leave(h).reshape(len(x), *self.out_shape)
