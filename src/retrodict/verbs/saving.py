"""Run folders as denoisers: ``load``, ``save``, and the one place that assembles a denoiser from plain values.

A configuration names registry entries only; nothing that a file names can run code, and weights are safetensors.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from retrodict.core.errors import InputError, first_line
from retrodict.data import Scale, make_codec
from retrodict.denoisers import CountDenoiser, Denoiser, EmbeddedDenoiser, TokenDenoiser, TwoEnded, Wrapped
from retrodict.denoisers.networks import Network, networks
from retrodict.processes import Discrete, from_config
from retrodict.training import load_weights, save_weights
from retrodict.training.files import read_json, write_json

#: The part of a run's configuration that rebuilds its denoiser.
MODEL_KEYS = ("process", "network", "denoiser", "scale", "classes")
#: Parts that only some have.
OPTIONAL_KEYS = ("codec", "embeddings")


def assemble(config: dict[str, Any]) -> Denoiser:
    """A denoiser with fresh weights from its configuration (`MODEL_KEYS`)."""
    missing = [key for key in MODEL_KEYS if key not in config]
    if missing:
        raise InputError(f"this configuration describes no denoiser: it lacks {', '.join(missing)}")
    process = from_config(config["process"])
    entry = config["network"]
    network: Network = networks[entry["name"]](**entry["config"])
    shape, conditions = tuple(config["denoiser"]["shape"]), null_conditions(network)
    if isinstance(process, Discrete):
        head = CountDenoiser if config["denoiser"]["predicts"] == "mean" else TokenDenoiser
        denoiser: Denoiser = head(network, process, shape=shape, conditions=conditions)
    elif "embeddings" in config:
        path: Any = process
        denoiser = EmbeddedDenoiser(network, path, config["embeddings"], length=shape[0], conditions=conditions)
    else:
        denoiser = _real(network, process, config["denoiser"], shape, conditions)
        denoiser.scale = Scale.from_config(config["scale"])
    denoiser.codec = make_codec(config.get("codec"))
    denoiser.recipe = {key: config[key] for key in (*MODEL_KEYS, *OPTIONAL_KEYS) if key in config}
    return denoiser


def _real(network: Network, process: Any, entry: dict[str, Any], shape: tuple[int, ...], conditions: Any) -> Denoiser:
    """A network on a Gaussian path; on one with two ends "predicts" names the pair of heads."""
    if len(process.ends) == 2:
        return TwoEnded(network, process, heads=entry["predicts"], shape=shape, conditions=conditions)
    predicts, std = entry["predicts"], entry["data_std"]
    return Wrapped(network, process, predicts, data_std=std, shape=shape, conditions=conditions)


def null_conditions(network: Network) -> dict[str, Any]:
    """Condition names with their null values: the index K for classes, a tensor of NaN for real vectors."""
    specs = network.config["conditions"]
    return {name: spec if isinstance(spec, int) else torch.full(tuple(spec), math.nan) for name, spec in specs.items()}


def save(denoiser: Denoiser, folder: str | Path) -> Path:
    """Write a denoiser made by `fit` or `load` to a folder that `load` reads."""
    recipe = getattr(denoiser, "recipe", None)
    if recipe is None:
        raise InputError("only denoisers made by fit or load can be saved: this one has no configuration")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", recipe)
    save_weights(denoiser, folder / "model.safetensors")
    return folder


def load(source: str | Path, device: str | torch.device | None = None) -> Denoiser:
    """Load a denoiser from a run folder or a Hugging Face Hub id.

    Args:
        source: a folder with ``config.json`` and ``model.safetensors``, or "owner/name" on the Hub.
        device: where to put it; None is the CPU.

    Raises:
        InputError: there is no such folder or repository, or the run is not finished.
    """
    folder = _folder(source)
    config = read_json(folder / "config.json", "run configuration")
    denoiser = assemble(config)
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise InputError(
            f"{folder} holds no model.safetensors: the run is not finished; call fit(out=...) again to resume it"
        )
    load_weights(denoiser, weights)
    return denoiser.to(device or "cpu").eval()


def _folder(source: str | Path) -> Path:
    folder = Path(source)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise InputError(f"{folder} is no run folder: it has no config.json")
        return folder
    text = str(source)
    if folder.exists() or text.count("/") != 1 or text.startswith((".", "/", "~")):
        raise InputError(f"{text!r} is neither a run folder nor a Hub id of the form owner/name")
    return _fetched(text)


def _fetched(name: str) -> Path:
    """A repository of the Hub as a folder here.

    Raises:
        InputError: it is not in the cache and cannot be fetched.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=["config.json", "model.safetensors", "plan.json"]))
    except (OSError, ValueError) as error:  # all that the hub raises, whatever its version
        raise InputError(
            f"there is no folder {name} under {Path.cwd()}, and no such repository could be fetched from the Hub: "
            f"{first_line(error)}; give the folder that fit(out=...) wrote, or owner/name of a repository of the Hub"
        ) from None


def plain(value: Any) -> Any:
    """A value as JSON has it, tensors as lists."""
    if isinstance(value, Tensor):
        return value.tolist()
    return json.loads(json.dumps(value))
