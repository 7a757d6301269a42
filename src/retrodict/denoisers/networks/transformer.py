"""A transformer over patches of an image or series, or over tokens, modulated by time and conditions.

    h <- h + g1 * attention((1 + a1) * norm(h) + b1),
    h <- h + g2 * mlp((1 + a2) * norm(h) + b2),       (a1, b1, g1, a2, b2, g2) = linear(time + conditions)

This is the block "adaLN-Zero" of Peebles and Xie (2023), section 3.2: the linear map starts at zero, so every
block starts as the identity and the network as zero.  A *patch* is a block of neighbours, read and written by
one matrix; sizes that the patch does not divide are padded with zeros and cut again.  A patch of tokens is a
group of neighbours, with a table of embeddings for each place in the group.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from retrodict.core.errors import InputError, InputTypeError, require
from retrodict.denoisers.networks.attention import Attention
from retrodict.denoisers.networks.base import Network, check_count, check_share, look_up, networks, zero
from retrodict.denoisers.networks.embedding import Spec


@networks.register("transformer")
class Transformer(Network):
    """The diffusion transformer.

    Args:
        shape: ``(channel, height, width)``, ``(time, channel)``, or ``(length,)`` with ``vocabulary``.
        out_channels, conditions, time: as in `Network`; for tokens ``out_channels`` is the number of logits.
        vocabulary: number of token values of the input (a mask token included), None for real data.  Tokens
            are int64 ``(batch, length)``, or probabilities ``(batch, length, vocabulary)``; the output is
            ``(batch, length, out_channels)``, by default ``vocabulary`` logits.
        patch: edge of a patch; None for the smallest power of two that leaves at most 64 patches of an image
            or 256 of a series.  For tokens it must divide the length; None for the largest divisor whose groups
            have at most 256 values, which is 1 for all but small vocabularies.
        hidden: width of a patch's vector, a multiple of ``heads``.
        depth, heads: number of blocks, and of attention heads in each.
        dropout: share dropped after attention and in the feed-forward part, in [0, 1).
        position: False leaves out the (fixed, sinusoidal) positions; the network then commutes with any
            permutation of the patches.
        near: odd number of neighbouring patches that a convolution adds to each at the entry, 0 for none; None is 3
            for tokens with positions, else 0.  A hidden token shows nothing of its own, and attention that still has
            to find the neighbours by their positions learns no more than frequencies for a long time.
    """

    name = "transformer"
    place: Tensor | None

    def __init__(
        self,
        shape: Sequence[int],
        *,
        out_channels: int | None = None,
        conditions: Mapping[str, Spec | list[int]] | None = None,
        time: bool = True,
        vocabulary: int | None = None,
        patch: int | None = None,
        hidden: int = 128,
        depth: int = 4,
        heads: int = 4,
        dropout: float = 0.0,
        position: bool = True,
        near: int | None = None,
    ) -> None:
        require(hidden >= 4 and hidden % 2 == 0, f"hidden={hidden}; accepted: an even number from 4")
        if vocabulary is not None:
            out_channels = check_count("vocabulary", vocabulary) if out_channels is None else out_channels
        super().__init__(shape, out_channels, conditions, time, width=hidden)
        check_layout(self.shape, vocabulary)
        for what, value in (("depth", depth), ("heads", heads)):
            check_count(what, value)
        require(hidden % heads == 0, f"hidden={hidden} is no multiple of heads={heads}")
        check_share("dropout", dropout)
        self.vocabulary = vocabulary
        self.space = self.shape[1:] if len(self.shape) == 3 else self.shape[:1]
        self.patch = default_patch(self.space, vocabulary) if patch is None else check_count("patch", patch)
        require(
            vocabulary is None or self.shape[0] % self.patch == 0,
            f"patch={self.patch} does not divide the {self.shape[0]} tokens; accepted: a divisor, or 1",
        )
        self.grid = tuple(-(-n // self.patch) for n in self.space)
        near = (3 if vocabulary is not None and position else 0) if near is None else near
        whole = isinstance(near, int) and (near == 0 or (near > 0 and near % 2 == 1))
        require(whole and (near == 0 or len(self.grid) == 1), f"near={near!r}; accepted: an odd number, or 0 (images)")
        self.config |= {
            "vocabulary": vocabulary,
            "patch": self.patch,
            "hidden": hidden,
            "depth": depth,
            "heads": heads,
            "dropout": dropout,
            "position": bool(position),
            "near": near,
        }
        cell = self.patch ** len(self.space)  # entries of one patch
        self.enter = nn.Linear(cell * (vocabulary or self.channels), hidden)
        self.register_buffer("place", positions(self.grid, hidden) if position else None, persistent=False)
        self.near = nn.Conv1d(hidden, hidden, near, padding=near // 2) if near else None
        self.blocks = nn.ModuleList(Block(hidden, heads, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(hidden, elementwise_affine=False)
        self.modulate = zero(nn.Linear(hidden, (6 * depth + 2) * hidden))
        self.leave = zero(nn.Linear(hidden, cell * self.out_channels))

    def run(self, x: Tensor, condition: Tensor) -> Tensor:
        h = self.embed(x)
        if self.near is not None:
            h = h + self.near(h.mT).mT
        if self.place is not None:
            h = h + self.place
        parts = self.modulate(condition)[:, None].chunk(6 * len(self.blocks) + 2, dim=-1)
        for i, block in enumerate(self.blocks):
            h = block(h, *parts[6 * i : 6 * i + 6])
        scale, shift = parts[-2:]
        return self.unpatch(self.leave(torch.addcmul(shift, self.norm(h), 1.0 + scale)))

    def embed(self, x: Tensor) -> Tensor:
        """The state to one vector per patch, ``(batch, patches, hidden)``."""
        if x.is_floating_point():
            return self.enter(self.to_patches(x.movedim(1, -1) if len(self.shape) == 3 else x))
        # A token picks the column of the same matrix that its one-hot vector would multiply.
        tables = self.enter.weight.T.unflatten(0, (self.patch, -1))
        groups = x.unflatten(1, (-1, self.patch)).unbind(2)
        return sum((look_up(tokens, table) for tokens, table in zip(groups, tables)), self.enter.bias)

    def to_patches(self, x: Tensor) -> Tensor:
        """``(batch, *space, channel)`` to ``(batch, patches, patch^dims * channel)``."""
        p, dims = self.patch, len(self.space)
        pads = [pair for n in reversed(self.space) for pair in (0, -n % p)]
        x = F.pad(x, (0, 0, *pads))
        split = x.reshape(len(x), *(m for n in self.grid for m in (n, p)), x.shape[-1])
        order = (0, *range(1, 2 * dims, 2), *range(2, 2 * dims + 1, 2), 2 * dims + 1)
        return split.permute(order).flatten(1, dims).flatten(2)

    def unpatch(self, h: Tensor) -> Tensor:
        """The inverse of `to_patches`, with ``out_channels`` channels where the layout has them."""
        p, dims = self.patch, len(self.space)
        split = h.reshape(len(h), *self.grid, *(p,) * dims, self.out_channels)
        order = (0, *(axis for i in range(dims) for axis in (1 + i, 1 + dims + i)), 2 * dims + 1)
        x = split.permute(order).reshape(len(h), *(n * p for n in self.grid), self.out_channels)
        for axis, n in enumerate(self.space, start=1):
            x = x.narrow(axis, 0, n)
        return x.movedim(-1, 1) if len(self.shape) == 3 else x

    def check_state(self, x: Tensor) -> Tensor:
        if self.vocabulary is None:
            return super().check_state(x)
        given = f"x has shape {tuple(x.shape)} and dtype {x.dtype}"
        accepted = (
            f"accepted: int64 tokens 0 to {self.vocabulary - 1} of shape {('batch', *self.shape)}, "
            f"or probabilities in {self.dtype} of shape {('batch', *self.shape, self.vocabulary)}"
        )
        shape = (*self.shape, self.vocabulary) if x.is_floating_point() else self.shape
        if tuple(x.shape[1:]) != shape:
            raise InputError(f"{given}; {accepted}")
        cast = x.is_floating_point() and torch.is_autocast_enabled(x.device.type)
        if x.dtype not in (torch.int64, self.dtype) and not cast:
            raise InputTypeError(f"{given}; {accepted}")
        return x


class Block(nn.Module):
    """Attention and a feed-forward part, each with scale, shift and gate from outside."""

    def __init__(self, hidden: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden, elementwise_affine=False)
        self.attention = Attention(hidden, heads)
        self.drop = nn.Dropout(dropout)
        self.feed = nn.Sequential(
            nn.Linear(hidden, 4 * hidden), nn.GELU("tanh"), nn.Dropout(dropout), nn.Linear(4 * hidden, hidden)
        )

    def forward(self, h: Tensor, a1: Tensor, b1: Tensor, g1: Tensor, a2: Tensor, b2: Tensor, g2: Tensor) -> Tensor:
        """``h (batch, patches, hidden)``, the rest ``(batch, 1, hidden)``."""
        h = torch.addcmul(h, g1, self.drop(self.attention(torch.addcmul(b1, self.norm(h), 1.0 + a1))))
        return torch.addcmul(h, g2, self.feed(torch.addcmul(b2, self.norm(h), 1.0 + a2)))


def positions(grid: Sequence[int], width: int) -> Tensor:
    """Fixed positions ``(patches, width)``: sines and cosines of each coordinate (Vaswani et al., 2017)."""
    part = width // (2 * len(grid))
    w = 10_000.0 ** -(torch.arange(part, dtype=torch.float64) / part)
    axes = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in grid), indexing="ij")
    waves = [wave(axis.flatten()[:, None] * w) for axis in axes for wave in (torch.sin, torch.cos)]
    place = torch.cat(waves, dim=1)
    return F.pad(place, (0, width - place.shape[1])).to(torch.get_default_dtype())


def default_patch(space: Sequence[int], vocabulary: int | None) -> int:
    if vocabulary is not None:
        length = space[0]
        return max(p for p in range(1, length + 1) if p == 1 or (length % p == 0 and vocabulary**p <= 256))
    most, patch = (64 if len(space) == 2 else 256), 1
    while math.prod(-(-n // patch) for n in space) > most:
        patch *= 2
    return patch


def check_layout(shape: tuple[int, ...], vocabulary: int | None) -> None:
    if vocabulary is not None:
        require(len(shape) == 1, f"shape {shape} with vocabulary={vocabulary}; accepted for tokens: (length,)")
    else:
        require(
            len(shape) in (2, 3),
            f"shape {shape}; accepted: (channel, height, width), (time, channel), (length,) with vocabulary=",
        )
