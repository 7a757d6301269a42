"""The moving average of the weights, which is what a trained model should be used with.

    shadow <- shadow + (1 - d_k) (weights - shadow),      d_k = min(decay, (1 + k) / (10 + k)),

so early steps are forgotten quickly and the average is useful from the first hundred steps on.  One fused
call a step updates all tensors.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from retrodict.core.errors import require


class EMA:
    """A second copy of ``module`` whose weights follow it slowly.

    Args:
        module: the module that is trained; buffers are copied, not averaged.
        decay: in [0, 1); 0.999 averages over about the last thousand steps.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        require(0.0 <= decay < 1.0, f"ema={decay}; accepted: None, or a decay in [0, 1) such as 0.999")
        self.decay = decay
        self.source = module
        self.module = copy.deepcopy(module).requires_grad_(False)
        self._weights: list[Tensor] = [p.detach() for p in module.parameters() if p.requires_grad]
        self._shadow: list[Tensor] = [
            s.detach() for s, p in zip(self.module.parameters(), module.parameters()) if p.requires_grad
        ]

    def update(self, step: int) -> None:
        """Follow the weights after update number ``step`` (counted from 0); both lists are detached."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._shadow, self._weights, 1.0 - decay)  # pyright: ignore[reportPrivateImportUsage]

    @torch.no_grad()
    def ready(self) -> nn.Module:
        """The averaged module with the current buffers, in evaluation mode."""
        for ours, theirs in zip(self.module.buffers(), self.source.buffers()):
            ours.copy_(theirs)
        return self.module.eval()
