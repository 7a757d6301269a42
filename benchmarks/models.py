"""The trained networks that the benchmarks share: the demonstration's digits, a small one's, shapes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import retrodict as rd
from retrodict.app.demo import RECIPE

SMALL: dict[str, Any] = {
    "network": "mlp",
    "network_options": {"hidden": 128, "depth": 2},
    "steps": 3000,
    "batch_size": 128,
    "lr": 2e-3,
}
SHAPES: dict[str, Any] = {
    "network_options": {"channels": [16, 32, 48, 64], "blocks": 1, "attention": [3], "dropout": 0.0},
    "steps": 4000,
    "batch_size": 64,
    "lr": 1e-3,
}


def digits_model(folder: str | Path = "runs/demo") -> rd.Denoiser:
    """The network that the demonstration trains; trained first if its folder does not exist."""
    return _model(folder, "digits", RECIPE)


def small_digits_model(folder: str | Path = "runs/digits-small") -> rd.Denoiser:
    """A network of full connections on the same digits; trained first (a minute) if there is none."""
    return _model(folder, "digits", SMALL)


def shapes_model(folder: str | Path = "runs/shapes") -> rd.Denoiser:
    """A class-conditional U-Net on procedurally drawn shapes; trained first (half an hour) if there is none."""
    return _model(folder, "shapes", SHAPES)


def _model(folder: str | Path, data: str, recipe: dict[str, Any]) -> rd.Denoiser:
    if (Path(folder) / "model.safetensors").is_file():
        return rd.load(folder)
    return rd.fit(rd.VP("cosine"), data, out=folder, seed=0, **recipe)
