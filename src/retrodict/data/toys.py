"""Small data sets made by a formula: points of the plane, coloured shapes, sine waves.

Each maker takes ``n`` samples and a `torch.Generator` and returns `Data`; `retrodict.data.load_data` gives
them by name.  Planar sets have about unit to four units of spread and carry a label where the shape has
parts.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor

from retrodict.core.errors import require
from retrodict.core.registry import Registry
from retrodict.data.types import Data

Maker = Callable[..., Data]
TOYS: Registry[Maker] = Registry("toy data set")
TAU = 2 * math.pi


def _label(n: int, count: int, generator: Generator) -> Tensor:
    return torch.randint(count, (n,), generator=generator)


def _polar(radius: Tensor, angle: Tensor) -> Tensor:
    return torch.stack([radius * angle.cos(), radius * angle.sin()], 1)


def _plane(x: Tensor, label: Tensor | None, count: int, noise: float, generator: Generator) -> Data:
    x = x + noise * torch.randn(x.shape, generator=generator)
    if label is None:
        return Data(x)
    return Data(x, {"label": label}, {"label": count})


@TOYS.register("moons")
def moons(n: int, generator: Generator, noise: float = 0.05) -> Data:
    """Two interleaved half circles of radius 1: one about (0, 0), upper; one about (1, 1/2), lower."""
    label, angle = _label(n, 2, generator), math.pi * torch.rand(n, generator=generator)
    side = 1.0 - 2.0 * label
    x = torch.stack([label + side * angle.cos(), 0.5 * label + side * angle.sin()], 1)
    return _plane(x, label, 2, noise, generator)


@TOYS.register("circles", "rings")
def rings(n: int, generator: Generator, noise: float = 0.05) -> Data:
    """Three circles about the origin of radius 1, 2 and 3."""
    label = _label(n, 3, generator)
    return _plane(_polar(label + 1.0, TAU * torch.rand(n, generator=generator)), label, 3, noise, generator)


@TOYS.register("eight-gaussians")
def eight_gaussians(n: int, generator: Generator, noise: float = 0.2) -> Data:
    """Eight normal distributions of standard deviation ``noise``, evenly on the circle of radius 2."""
    label = _label(n, 8, generator)
    return _plane(_polar(torch.full((n,), 2.0), label * TAU / 8), label, 8, noise, generator)


@TOYS.register("pinwheel")
def pinwheel(n: int, generator: Generator, noise: float = 0.0) -> Data:
    """Five arms: normal with deviations 0.3 along and 0.1 across at distance 1, turned by exp(radius) / 4."""
    label = _label(n, 5, generator)
    arm = torch.randn(n, 2, generator=generator) * torch.tensor([0.3, 0.1]) + torch.tensor([1.0, 0.0])
    angle = label * TAU / 5 + 0.25 * arm[:, 0].exp()
    turned = torch.stack(
        [
            arm[:, 0] * angle.cos() - arm[:, 1] * angle.sin(),
            arm[:, 0] * angle.sin() + arm[:, 1] * angle.cos(),
        ],
        1,
    )
    return _plane(2.0 * turned, label, 5, noise, generator)


@TOYS.register("spirals")
def spirals(n: int, generator: Generator, noise: float = 0.05) -> Data:
    """Two spiral arms, half a turn apart; the radius grows to 3 over one and a half turns."""
    label, along = _label(n, 2, generator), torch.rand(n, generator=generator).sqrt()
    return _plane(_polar(3.0 * along, 1.5 * TAU * along + math.pi * label), label, 2, noise, generator)


@TOYS.register("swissroll")
def swissroll(n: int, generator: Generator, noise: float = 0.05) -> Data:
    """One spiral t (cos t, sin t) / 5 for t from 3 pi/2 to 9 pi/2, uniform in t; no label."""
    t = 1.5 * math.pi * (1 + 2 * torch.rand(n, generator=generator))
    return _plane(_polar(t / 5.0, t), None, 0, noise, generator)


@TOYS.register("checkerboard")
def checkerboard(n: int, generator: Generator, noise: float = 0.0) -> Data:
    """Uniform on the eight dark squares of a 4 x 4 board on [-2, 2]^2: those with an even sum of indices."""
    column = torch.randint(4, (n,), generator=generator)
    row = 2 * torch.randint(2, (n,), generator=generator) + column % 2
    corner = torch.stack([column, row], 1) - 2.0
    return _plane(corner + torch.rand(n, 2, generator=generator), None, 0, noise, generator)


@TOYS.register("shapes")
def shapes(n: int, generator: Generator, size: int = 32) -> Data:
    """Colour images of one filled shape: disc, square, triangle, cross, ring or diamond (the label, 0 to 5).

    Position, size, colour and background vary; edges are smoothed over a pixel; bytes, 0 to 255.
    """
    require(size >= 8, f"size={size}; shapes need at least 8 pixels")
    label = _label(n, len(_SHAPES), generator)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand((n, *shape), generator=generator)

    radius, centre = uniform(0.35, 0.6, 1, 1), uniform(-0.3, 0.3, 2, 1, 1)
    axis = (torch.arange(size) + 0.5) * 2 / size - 1
    y, x = (axis[:, None] - centre[:, 0]) / radius, (axis[None, :] - centre[:, 1]) / radius
    outside = torch.zeros(n, size, size)
    for number, shape in enumerate(_SHAPES):
        chosen = label == number
        outside[chosen] = shape(x[chosen], y[chosen])
    inside = (0.5 - outside * radius * size / 2).clamp(0, 1)[:, None]
    colour, ground = uniform(0.5, 1.0, 3, 1, 1), uniform(0.0, 0.25, 3, 1, 1)
    image = (255 * (inside * colour + (1 - inside) * ground)).round()
    return Data(image, {"label": label}, {"label": len(_SHAPES)}, layout="image", levels=256, class_names=_NAMES)


# Signed distance to the edge (negative inside), up to a factor, of shapes of unit radius.
_SHAPES: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
    lambda x, y: torch.hypot(x, y) - 1,
    lambda x, y: torch.maximum(x.abs(), y.abs()) - 0.85,
    lambda x, y: torch.maximum(0.866 * x.abs() - 0.5 * y, y) - 0.5,
    lambda x, y: torch.maximum(torch.minimum(x.abs(), y.abs()) - 0.3, torch.maximum(x.abs(), y.abs()) - 1),
    lambda x, y: (torch.hypot(x, y) - 0.75).abs() - 0.25,
    lambda x, y: (x.abs() + y.abs() - 1) / math.sqrt(2),
)
_NAMES = {"label": ["disc", "square", "triangle", "cross", "ring", "diamond"]}


@TOYS.register("sines")
def sines(n: int, generator: Generator, length: int = 64, channels: int = 2, noise: float = 0.05) -> Data:
    """Series a sin(2 pi k time + phase + channel pi/2) + noise; a in [0.5, 1.5], k = 1..4 (label k - 1)."""
    label = _label(n, 4, generator)
    time = torch.arange(length) / length
    phase, size = TAU * torch.rand(n, generator=generator), 0.5 + torch.rand(n, generator=generator)
    angle = (label[:, None] + 1) * TAU * time + phase[:, None]
    wave = torch.stack([(angle + c * math.pi / 2).sin() for c in range(channels)], 2) * size[:, None, None]
    x = wave + noise * torch.randn(wave.shape, generator=generator)
    return Data(x, {"label": label}, {"label": 4}, layout="series")
