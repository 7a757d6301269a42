"""The two trained networks that the benchmarks share: the demonstration's digits, and shapes of 32 by 32 in colour."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import retrodict as rd
from retrodict.app.demo import RECIPE

SHAPES: dict[str, Any] = {
    "network_options": {"channels": [16, 32, 48, 64], "blocks": 1, "attention": [3], "dropout": 0.0},
    "steps": 4000,
    "batch_size": 64,
    "lr": 1e-3,
}


def digits_model(folder: str | Path = "runs/demo") -> rd.Denoiser:
    """The network that the demonstration trains; trained first if its folder does not exist."""
    return _model(folder, "digits", RECIPE)


def shapes_model(folder: str | Path = "runs/shapes") -> rd.Denoiser:
    """A class-conditional U-Net on procedurally drawn shapes; trained first (half an hour) if there is none."""
    return _model(folder, "shapes", SHAPES)


def _model(folder: str | Path, data: str, recipe: dict[str, Any]) -> rd.Denoiser:
    if (Path(folder) / "model.safetensors").is_file():
        return rd.load(folder)
    return rd.fit(rd.VP("cosine"), data, out=folder, seed=0, **recipe)
