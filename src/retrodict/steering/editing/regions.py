"""Where an edit may change a datum: the entries on which source and target disagree most.

    m = mean over noises of |D(x_t | target) - D(x_t | source)|,        the largest share of its entries

at one time t halfway (after Couairon et al. 2023, "DiffEdit", section 3.2, who threshold the noise estimates).
"""

from __future__ import annotations

import torch
from torch import Tensor

from retrodict.core.noise import Noise
from retrodict.processes import GaussianPath
from retrodict.steering.editing.delta import Terms

TIME, NOISES = 0.5, 4


def disagreement(x0: Tensor, terms: Terms, process: GaussianPath, noise: Noise) -> Tensor:
    """m above, shaped as x0; the channels of an image ``(batch, channel, height, width)`` share their mean."""
    total = torch.zeros_like(x0)
    for _ in range(NOISES):
        x = process.corrupt(x0, TIME, noise)
        total = total + (terms.target(x, TIME) - terms.source(x, TIME)).abs()
    return total.mean(1, keepdim=True).expand_as(x0) if x0.ndim == 4 else total


def region(x0: Tensor, terms: Terms, process: GaussianPath, noise: Noise, share: float) -> Tensor:
    """The mask, ``(batch, *shape)``: 1 on the ``share`` of each sample's entries where m is largest, else 0."""
    m = disagreement(x0, terms, process, noise).flatten(1)
    kept = max(1, round(share * m.shape[1]))
    least = m.topk(kept, dim=1).values[:, -1:]
    return (m >= least).to(x0).reshape(x0.shape)
