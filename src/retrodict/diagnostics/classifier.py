"""A small classifier of real data that gives sample quality its features and recognises classes.

It is trained on the training split of the same data in a few seconds, with a fixed seed, and then held fixed:
a Frechet or kernel distance between features means something only where the features are the same.  The
feature layer

    f(x) = (tanh(W h(x)) - mean) / std,      logits = V tanh(W h(x)),

is bounded, because distances that fit Gaussians are weak on heavy tails, and standardised on the training
split.  A penalty on (W h)^2 keeps tanh from saturating: saturated features are a code of the class and see
nothing else.  Images go through convolutions and are shifted, turned and scaled a little in training; vectors
through full connections.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from retrodict.core.errors import InputError, InputTypeError, require
from retrodict.diagnostics.distances.measure import Measure, Samples, proportion

FORMAT = 1  #: of the saved folder
UNSATURATED = 0.1  #: weight of the penalty on the feature layer before its tanh


class FeatureClassifier(nn.Module):
    """Standardise, convolve (images) or connect (vectors), a bounded feature layer, logits.

    Args:
        shape: of one sample, ``(channel, height, width)`` or ``(d,)``.
        classes: number of classes.
        width: channels of the first convolution, or a quarter of the hidden units.
        size: of the feature layer.
    """

    centre: Tensor
    scale: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, shape: tuple[int, ...], classes: int, width: int = 32, size: int = 32) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.config = {"shape": list(shape), "classes": classes, "width": width, "size": size}
        self.register_buffer("centre", torch.zeros(()))
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("std", torch.ones(size))
        self.body = convolutions(self.shape, width) if len(shape) == 3 else connections(self.shape, 4 * width)
        self.layer = nn.LazyLinear(size)
        self.drop = nn.Dropout(0.1)
        self.head = nn.Linear(size, classes)
        self.layer(self.body(torch.zeros(1, *self.shape)))  # settles the lazy size

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(n, classes)`` of ``x (n, *shape)``."""
        return self.read(self.lift(x))

    def lift(self, x: Tensor) -> Tensor:
        """``W h(x)``, before the tanh."""
        return self.layer(self.body((x - self.centre) / self.scale))

    def read(self, lifted: Tensor) -> Tensor:
        return self.head(self.drop(lifted.tanh()))

    @torch.no_grad()
    def features(self, x: Samples) -> Tensor:
        """Standardised features ``(n, size)`` of ``x (n, *shape)``."""
        return torch.cat([(self.lift(part).tanh() - self.mean) / self.std for part in self.check(x).split(1000)])

    @torch.no_grad()
    def predict(self, x: Samples) -> Tensor:
        """Most likely class, int64 ``(n,)``."""
        return torch.cat([self(part).argmax(dim=1) for part in self.check(x).split(1000)])

    def accuracy(self, x: Samples, labels: Samples) -> Measure:
        """Share of ``x (n, *shape)`` recognised as ``labels (n,)``, with its 95% Wilson interval."""
        truth, seen = torch.as_tensor(labels).cpu(), self.predict(x).cpu()
        require(
            truth.shape == seen.shape,
            f"{tuple(truth.shape)} labels for {len(seen)} samples; accepted: one each",
        )
        return proportion("accuracy", int(torch.eq(seen, truth).sum()), len(truth), "Wilson interval")

    def check(self, x: Samples) -> Tensor:
        if not isinstance(x, (Tensor, np.ndarray)):
            raise InputTypeError(f"x is a {type(x).__name__}; accepted: a tensor or array of shape (n, ...)")
        images = torch.as_tensor(x).to(self.mean)
        require(
            tuple(images.shape[1:]) == self.shape and len(images) > 0,
            f"x has shape {tuple(images.shape)}; this classifier was trained on {('n', *self.shape)}",
        )
        require(bool(images.isfinite().all()), "x has NaN or infinity")
        return images

    def save(self, folder: str | Path) -> None:
        """Write ``classifier.json`` and ``classifier.safetensors`` into ``folder``, made if need be."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.state_dict(), folder / "classifier.safetensors")
        text = json.dumps({"format": FORMAT, "kind": "feature classifier", "config": self.config}, indent=1)
        (folder / "classifier.json").write_text(text)

    @classmethod
    def load(cls, folder: str | Path) -> FeatureClassifier:
        """Read what `save` wrote; raises InputError for a missing, foreign or mismatched file."""
        folder = Path(folder)
        try:
            saved: dict[str, Any] = json.loads((folder / "classifier.json").read_text())
            require(
                saved["format"] == FORMAT,
                f"{folder} has format {saved['format']}; this version reads {FORMAT}",
            )
            config = saved["config"]
            model = cls(tuple(config["shape"]), config["classes"], config["width"], config["size"])
            model.load_state_dict(load_file(folder / "classifier.safetensors"))
        except InputError:
            raise
        except Exception as error:
            raise InputError(f"{folder} holds no classifier that can be read: {error}") from error
        return model.eval().requires_grad_(False)


def convolutions(shape: tuple[int, ...], width: int) -> nn.Sequential:
    """Two convolutions at full size, then two at each half size down to about 4, twice as wide each time."""
    levels = max(1, round(math.log2(max(shape[1:]) / 4)))
    layers: list[nn.Module] = [nn.Conv2d(shape[0], width, 3, padding=1), nn.SiLU()]
    layers += [nn.Conv2d(width, width, 3, padding=1), nn.SiLU()]
    for _ in range(levels):
        layers += [nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), nn.SiLU()]
        layers += [nn.Conv2d(2 * width, 2 * width, 3, padding=1), nn.SiLU()]
        width *= 2
    return nn.Sequential(*layers, nn.Flatten())


def connections(shape: tuple[int, ...], hidden: int) -> nn.Sequential:
    size = math.prod(shape)
    return nn.Sequential(nn.Flatten(), nn.Linear(size, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU())


def feature_classifier(
    x: Samples,
    labels: Samples,
    seed: int = 0,
    *,
    epochs: int = 30,
    batch: int = 64,
    rate: float = 3e-3,
    augment: bool = True,
) -> FeatureClassifier:
    """Train a `FeatureClassifier` on ``x (n, *shape)`` and int64 ``labels (n,)``; the seed decides all.

    Args:
        epochs, batch, rate: passes over the data, samples a step, peak learning rate (AdamW, one cycle).
        augment: shift (up to 0.7 pixels in 8), turn (0.15 rad) and scale (10%) images at random.
    """
    images, targets = check_training(x, labels)
    count = int(targets.max()) + 1
    with torch.random.fork_rng(devices=[]):  # dropout and initialisation draw from the global generator
        torch.manual_seed(seed)
        model = FeatureClassifier(tuple(images.shape[1:]), count)
        model.centre, model.scale = images.mean(), images.std().clamp_min(1e-6)
        train(model, images, targets, epochs, batch, rate, augment and images.ndim == 4)
    model.eval().requires_grad_(False)
    raw = torch.cat([model.lift(part).tanh() for part in images.split(1000)])
    model.mean, model.std = raw.mean(0), raw.std(0).clamp_min(1e-3)
    return model


def check_training(x: Samples, labels: Samples) -> tuple[Tensor, Tensor]:
    images, targets = torch.as_tensor(x).detach().to("cpu", torch.float32), torch.as_tensor(labels).cpu()
    require(
        images.ndim in (2, 4),
        f"x has shape {tuple(images.shape)}; accepted: (n, d) or (n, channel, height, width)",
    )
    if targets.is_floating_point() or targets.shape != (len(images),):
        raise InputTypeError(
            f"labels have shape {tuple(targets.shape)} and dtype {targets.dtype}; accepted: integers ({len(images)},)"
        )
    require(bool(images.isfinite().all()), "x has NaN or infinity")
    require(
        int(targets.min()) >= 0 and int(targets.max()) >= 1,
        "labels must be 0, 1, ... with at least two classes",
    )
    return images, targets.long()


def train(model: FeatureClassifier, x: Tensor, y: Tensor, epochs: int, batch: int, rate: float, augment: bool) -> None:
    per_epoch = -(-len(x) // batch)
    optimiser = torch.optim.AdamW(model.parameters(), rate, weight_decay=0.05)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=epochs * per_epoch)
    model.train()
    for _ in range(epochs):
        for chosen in torch.randperm(len(x)).split(batch):
            seen = jitter(x[chosen]) if augment else x[chosen]
            lifted = model.lift(seen)
            loss = F.cross_entropy(model.read(lifted), y[chosen], label_smoothing=0.05)
            loss = loss + UNSATURATED * lifted.square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            cycle.step()


def jitter(x: Tensor) -> Tensor:
    """Each image shifted, turned and scaled at random; what comes in has the image's least value."""
    n = len(x)

    def within(most: float) -> Tensor:
        return (2 * torch.rand(n) - 1) * most

    angle, scale = within(0.15), 1 + within(0.1)
    rows = [
        scale * angle.cos(),
        -scale * angle.sin(),
        within(0.175),
        scale * angle.sin(),
        scale * angle.cos(),
        within(0.175),
    ]
    grid = F.affine_grid(torch.stack(rows, dim=1).reshape(n, 2, 3), list(x.shape), align_corners=False)
    least = x.amin(dim=(1, 2, 3), keepdim=True)
    return F.grid_sample(x - least, grid, align_corners=False) + least
