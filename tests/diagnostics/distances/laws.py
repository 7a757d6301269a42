"""Samples with known distances, and the two laws of the published table of null and alternative values."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import Tensor


def normal(n: int, d: int, seed: int, shift: float = 0.0, scale: float = 1.0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return shift + scale * torch.randn(n, d, generator=g, dtype=torch.float64)


def digits(n: int, seed: int, altered: bool = False) -> Tensor:
    """Kernel-density draws of the digits in [0, 1]: law P (bandwidth 0.1), or Q (0.14, class 3 halved)."""
    data = load_digits()
    weights = torch.ones(len(data.data), dtype=torch.float64)
    if altered:
        weights[torch.tensor(data.target) == 3] = 0.5
    g = torch.Generator().manual_seed(seed)
    chosen = torch.multinomial(weights, n, replacement=True, generator=g)
    noise = torch.randn(n, 64, generator=g, dtype=torch.float64)
    return torch.tensor(data.data)[chosen] / 16 + (0.14 if altered else 0.1) * noise
