"""A small problem that every test of the training room uses: denoise points of the plane."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def network(seed: int = 0, dropout: float = 0.0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(2, 16), nn.SiLU(), nn.Dropout(dropout), nn.Linear(16, 2))


def points(n: int = 200) -> Tensor:
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(1))


def denoising(module: nn.Module, batch: dict[str, Tensor], generator: torch.Generator) -> Tensor:
    noise = torch.randn(batch["x"].shape, generator=generator)
    return (module(batch["x"] + noise) - batch["x"]).square().mean()


def same_state(a: nn.Module, b: nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)
