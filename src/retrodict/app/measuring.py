"""Measurements of a trained image model, kept in the run folder so that a second run reads them.

Each measurement is a small dict of plain values under a key in ``measures.json``; `Ledger.get` computes what is
missing.  A ledger belongs to one set of weights: another model in the same folder starts a new one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import retrodict as rd
from retrodict.data import Data
from retrodict.denoisers import Denoiser
from retrodict.diagnostics.classifier import FeatureClassifier, feature_classifier
from retrodict.diagnostics.distances import floor, frechet, quality
from retrodict.diagnostics.likelihood import bits_per_dim, log_likelihood
from retrodict.training.files import read_json, write_json


class Ledger:
    """Measurements by key, written after each one."""

    def __init__(self, path: Path, weights: Path) -> None:
        self.path = path
        digest = hashlib.blake2b(weights.read_bytes(), digest_size=8).hexdigest()
        content = read_json(path, "ledger of measurements") if path.is_file() else {}
        fresh = content.get("weights") != digest
        self.content: dict[str, Any] = {"weights": digest, "measures": {}} if fresh else content

    def get(self, key: str, compute: Callable[[], Any]) -> Any:
        """The measurement ``key``, computed now if it is not there."""
        measures = self.content["measures"]
        if key not in measures:
            measures[key] = json.loads(json.dumps(compute()))
            write_json(self.path, self.content)
        return measures[key]


def classifier_of(folder: Path, data: Data, seed: int = 0) -> FeatureClassifier:
    """The fixed classifier of a data set, trained once on its training split."""
    path = folder / "classifier"
    if path.is_dir():
        return FeatureClassifier.load(path)
    classifier = feature_classifier(data.x, data.conditions["label"], seed=seed)
    classifier.save(path)
    return classifier


def draw(denoiser: Denoiser, n: int, classes: int, guidance: float, seed: int, **words: Any) -> tuple[Tensor, Tensor]:
    """``(samples, their labels)``, labels in turn."""
    label = torch.arange(n) % classes
    samples = rd.sample(denoiser, n, label=label, guidance=guidance, seed=seed, progress=False, batch_size=500, **words)
    return samples.x, label


def cell(
    denoiser: Denoiser,
    data: Data,
    classifier: FeatureClassifier,
    words: dict[str, Any],
    *,
    n: int,
    guidance: float,
    seed: int,
    reference: Tensor,
) -> dict[str, Any]:
    """Quality of one solver at one budget, and its error against a long run from the same starts."""
    assert data.heldout is not None
    x, label = draw(denoiser, n, data.classes["label"], guidance, seed, **words)
    distance = frechet(classifier.features(data.heldout.x), classifier.features(x))
    accuracy = classifier.accuracy(x, label)
    gap = denoiser.scale(x[: len(reference)]) - denoiser.scale(reference)
    error = gap.flatten(1).pow(2).mean(1).sqrt()
    return {
        "frechet": distance.to_dict(),
        "accuracy": accuracy.to_dict(),
        "error": float(error.mean()),
        "error_se": float(error.std() / len(error) ** 0.5),
    }


def full_quality(data: Data, classifier: FeatureClassifier, x: Tensor, label: Tensor, seed: int = 0) -> dict[str, Any]:
    """The whole panel of distances to the held-out data, beside the floor that the training set earns."""
    assert data.heldout is not None
    least = floor(data.x, data.heldout.x, classifier, data.conditions["label"], n=min(len(x), len(data.x)), seed=seed)
    return quality(data.heldout.x, x, classifier, label, floor=least, seed=seed).to_dict()


def likelihood(denoiser: Denoiser, data: Data, n: int, seed: int = 0) -> dict[str, Any]:
    """Bits per dimension of held-out data by the probability-flow ODE; grey levels fill unit bins."""
    assert data.heldout is not None and data.levels is not None
    held = data.heldout
    pick = torch.randperm(len(held.x), generator=torch.Generator().manual_seed(seed))[:n]
    x, label = held.x[pick], held.conditions["label"][pick]
    noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(seed + 1))
    dims = x[0].numel()
    result = log_likelihood(denoiser, x + noise - 0.5, divergence="hutchinson", probes=1, seed=seed, label=label)
    bits = bits_per_dim(result.log_prob, dims)  # grey levels are one apart in the user's units
    return {"bits": float(bits.mean()), "se": float(bits.std() / len(bits) ** 0.5), "n": n, "nfe": int(result.nfe)}
