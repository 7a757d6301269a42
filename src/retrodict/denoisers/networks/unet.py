"""U-Nets for images and series: residual blocks at several resolutions, with skips between equal ones.

    h <- h + conv(drop(silu((1 + a) * norm(conv(silu(norm(h)))) + b))),     (a, b) = linear(time + conditions)

The modulation ``(a, b)`` is the adaptive group norm of Dhariwal and Nichol (2021), section 3; the shape is
that of Ronneberger et al. (2015) and Ho et al. (2020), appendix B.  Going down halves a size by averaging
(rounding up), going up repeats entries and cuts to the size of the skip, so every size works.  All
modulations are one matrix product.  The last convolution of every block and of the network starts at zero: a
new network is the zero function.

Sizes are chosen for the data: see `default_channels`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from retrodict.core.errors import require
from retrodict.denoisers.networks.attention import Attention
from retrodict.denoisers.networks.base import Network, check_count, check_share, networks, zero
from retrodict.denoisers.networks.embedding import Spec


class _UNet(Network):
    """The U-Net in ``dims`` = 1 or 2 space dimensions; works on ``(batch, channel, *space)``.

    Args:
        shape: ``(channel, height, width)`` for `UNet`, ``(time, channel)`` for `UNet1d`; any size.
        out_channels, conditions, time: as in `Network`.
        channels: one number per resolution, finest first; None for `default_channels`.
        blocks: residual blocks per resolution, on the way down and again on the way up; None for 1 up to
            size 8, else 2.
        attention: levels (0 is the finest) whose blocks have self-attention; the middle always has.  None for
            `default_attention`.
        head_width: channels of one attention head.
        dropout: share of channels dropped inside each block in training, in [0, 1).
        width: of the vector of time and conditions; None for twice the largest of ``channels``.
    """

    dims: ClassVar[int]
    layout: ClassVar[str]  #: for messages

    def __init__(
        self,
        shape: Sequence[int],
        *,
        out_channels: int | None = None,
        conditions: Mapping[str, Spec | list[int]] | None = None,
        time: bool = True,
        channels: Sequence[int] | None = None,
        blocks: int | None = None,
        attention: Sequence[int] | None = None,
        head_width: int = 32,
        dropout: float = 0.1,
        width: int | None = None,
    ) -> None:
        require(len(shape) == self.dims + 1, f"shape {tuple(shape)} for {self.name!r}; accepted: {self.layout}")
        space = list(shape[1:] if self.dims == 2 else shape[:1])
        channels = list(default_channels(space) if channels is None else channels)
        attention = list(default_attention(space, len(channels)) if attention is None else attention)
        blocks = (1 if max(space) <= 8 else 2) if blocks is None else blocks
        width = 2 * max(channels) if width is None else width
        super().__init__(shape, out_channels, conditions, time, width)
        counts = {"blocks": blocks, "head_width": head_width} | {f"channels[{i}]": c for i, c in enumerate(channels)}
        for what, value in counts.items():
            check_count(what, value)
        levels = range(len(channels))
        require(set(attention) <= set(levels), f"attention={attention}; accepted: levels 0 to {levels[-1]}")
        check_share("dropout", dropout)
        self.config |= {
            "channels": channels,
            "blocks": blocks,
            "attention": attention,
            "head_width": head_width,
            "dropout": dropout,
            "width": width,
        }
        conv = (nn.Conv1d, nn.Conv2d)[self.dims - 1]

        def row(c_in: int, c_out: int, count: int, attend: bool) -> nn.ModuleList:
            heads = max(1, c_out // head_width) if attend else 0
            sizes = [c_in] + [c_out] * count
            return nn.ModuleList(Block(conv, a, b, dropout, heads) for a, b in pairwise(sizes))

        finer, coarser = [channels[0], *channels[:-1]], [*channels[1:], channels[-1]]
        self.enter = conv(self.channels, channels[0], 3, padding=1)
        self.down = nn.ModuleList(row(finer[i], channels[i], blocks, i in attention) for i in levels)
        self.middle = row(channels[-1], channels[-1], 1, True)
        self.up = nn.ModuleList(
            row(coarser[i] + channels[i], channels[i], blocks, i in attention) for i in reversed(levels)
        )
        self.leave = nn.Sequential(
            group_norm(channels[0]), nn.SiLU(), zero(conv(channels[0], self.out_channels, 3, padding=1))
        )
        self.modulated = [2 * m.c_out for m in self.modules() if isinstance(m, Block)]
        self.modulate = nn.Linear(width, sum(self.modulated))

    def run(self, x: Tensor, condition: Tensor) -> Tensor:
        modulation = self.modulate(condition).reshape(len(x), -1, *(1,) * self.dims)
        parts = iter(modulation.split(self.modulated, dim=1))  # in the order of the blocks below
        h = self.enter(x)
        skips = []
        for level, row in enumerate(self.down):
            h = halve(h) if level else h
            for block in row.children():
                h = block(h, next(parts))
            skips.append(h)
        for block in self.middle:
            h = block(h, next(parts))
        for row in self.up:
            skip = skips.pop()
            h = h if h.shape[2:] == skip.shape[2:] else F.interpolate(h, size=skip.shape[2:])
            h = torch.cat([h, skip], dim=1)
            for block in row.children():
                h = block(h, next(parts))
        return self.leave(h)


class Block(nn.Module):
    """The residual block of the module's equation, followed by self-attention where ``heads`` is positive."""

    def __init__(self, conv: type[nn.Module], c_in: int, c_out: int, dropout: float, heads: int) -> None:
        super().__init__()
        self.c_out = c_out
        self.first = nn.Sequential(group_norm(c_in), nn.SiLU(), conv(c_in, c_out, 3, padding=1))
        self.norm = group_norm(c_out)
        self.second = nn.Sequential(
            nn.SiLU(),
            (nn.Dropout2d if conv is nn.Conv2d else nn.Dropout1d)(dropout),
            zero(conv(c_out, c_out, 3, padding=1)),
        )
        self.straight = nn.Identity() if c_in == c_out else conv(c_in, c_out, 1)
        self.attend = SpaceAttention(c_out, heads) if heads else nn.Identity()

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        scale, shift = modulation.chunk(2, dim=1)
        h = torch.addcmul(shift, self.norm(self.first(x)), 1.0 + scale)
        return self.attend(self.straight(x) + self.second(h))


class SpaceAttention(nn.Module):
    """``h + attention(norm(h))`` over all positions of ``h (batch, channel, *space)``."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.attention = Attention(channels, heads)

    def forward(self, h: Tensor) -> Tensor:
        tokens = self.norm(h).flatten(2).transpose(1, 2)
        return h + self.attention(tokens).transpose(1, 2).reshape(h.shape)


@networks.register("unet")
class UNet(_UNet):
    """For images ``(batch, channel, height, width)``."""

    name, dims, layout = "unet", 2, "(channel, height, width)"


@networks.register("unet1d")
class UNet1d(_UNet):
    """For series ``(batch, time, channel)``."""

    name, dims, layout = "unet1d", 1, "(time, channel)"

    def run(self, x: Tensor, condition: Tensor) -> Tensor:
        return super().run(x.transpose(1, 2), condition).transpose(1, 2)


def group_norm(channels: int) -> nn.GroupNorm:
    """Groups of at least 8 channels, at most 32 groups."""
    groups = max(g for g in range(1, 33) if channels % g == 0 and (channels // g >= 8 or g == 1))
    return nn.GroupNorm(groups, channels)


def halve(h: Tensor) -> Tensor:
    """Average pairs of neighbours on each space axis; an odd last one stays alone."""
    pool = F.avg_pool2d if h.ndim == 4 else F.avg_pool1d
    return pool(h, 2, ceil_mode=True)


def default_channels(space: Sequence[int]) -> list[int]:
    """Channels per level for a size; small for small data, so that two cores train 8 x 8 in minutes."""
    most = {8: [32, 64, 64], 16: [32, 64, 128], 32: [64, 128, 192]}
    return next((channels for size, channels in most.items() if max(space) <= size), [64, 128, 192, 256])


def default_attention(space: Sequence[int], levels: int) -> list[int]:
    """The levels between finest and coarsest with at most 256 positions."""
    return [i for i in range(1, levels - 1) if math.prod(-(-n // 2**i) for n in space) <= 256]
