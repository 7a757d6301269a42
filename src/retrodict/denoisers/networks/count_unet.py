"""A U-Net for images of whole numbers, counts or masked: from values to logits over values, at every pixel.

Each value has a learned vector whose first entry starts as the scaled value, ``2 v/(vocabulary - 1) - 1``: the network
sees the order of counts, and may forget it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from retrodict.core.errors import require
from retrodict.denoisers.networks.base import check_count, check_whole, look_up, networks
from retrodict.denoisers.networks.embedding import Spec
from retrodict.denoisers.networks.unet import UNet


@networks.register("count-unet")
class CountUNet(UNet):
    """A `UNet` from int64 ``(batch, channel, height, width)`` to logits ``(batch, channel, height, width, out)``.

    Args:
        shape: ``(channel, height, width)``.
        vocabulary: number of values of the input, 0..vocabulary-1, a mask included.
        out_channels: number of logits; None is ``vocabulary``.
        features: length of the vector of a value.
        conditions, time: as in `Network`; ``options`` are those of `UNet`.
    """

    name = "count-unet"

    def __init__(
        self,
        shape: Sequence[int],
        *,
        vocabulary: int,
        out_channels: int | None = None,
        conditions: Mapping[str, Spec | list[int]] | None = None,
        time: bool = True,
        features: int = 8,
        channels: Sequence[int] | None = None,
        blocks: int | None = None,
        attention: Sequence[int] | None = None,
        head_width: int = 32,
        dropout: float = 0.1,
        width: int | None = None,
    ) -> None:
        self.vocabulary = check_count("vocabulary", vocabulary)
        logits = self.vocabulary if out_channels is None else check_count("out_channels", out_channels)
        options: dict[str, Any] = {"channels": channels, "blocks": blocks, "attention": attention}
        options |= {"head_width": head_width, "dropout": dropout, "width": width}
        require(len(shape) == 3, f"shape {tuple(shape)} for {self.name!r}; accepted: (channel, height, width)")
        super().__init__(shape, out_channels=shape[0] * logits, conditions=conditions, time=time, **options)
        require(self.vocabulary >= 2, f"vocabulary={vocabulary}; accepted: at least 2")
        self.config |= {"vocabulary": self.vocabulary, "out_channels": logits, "features": features}
        self.table = nn.Embedding(self.vocabulary, check_count("features", features))
        with torch.no_grad():
            self.table.weight[:, 0] = torch.linspace(-1, 1, self.vocabulary)
        self.enter = nn.Conv2d(self.channels * features, self.enter.out_channels, 3, padding=1)

    def run(self, x: Tensor, condition: Tensor) -> Tensor:
        seen = look_up(x, self.table.weight).movedim(-1, 2).flatten(1, 2)  # (batch, channel * features, height, width)
        return super().run(seen, condition).unflatten(1, (self.channels, -1)).movedim(2, -1)

    def check_state(self, x: Tensor) -> Tensor:
        return check_whole(x, self.shape, self.vocabulary)
