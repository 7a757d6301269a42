"""Operators as words of the command line: ``inpaint:mask.png``, ``blur:5,1.0``, ``half:bottom | downsample:2``.

Each word is a function of `rd.operators` with its options in order; ``|`` puts one after another.  Black and white are
those of the model's images.
"""

from __future__ import annotations

from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch

import retrodict as rd
from retrodict.app.options import parse_call, parse_settings
from retrodict.core.errors import InputError, require
from retrodict.core.registry import Registry
from retrodict.steering.operators import Composed, Mask, Operator

OPERATORS: Registry[Any] = Registry("operator")
for _names, _make in (
    (("identity", "denoise"), rd.operators.identity),
    (("half",), rd.operators.half),
    (("box",), rd.operators.box),
    (("random", "random-mask"), rd.operators.random_mask),
    (("blur", "gaussian-blur"), rd.operators.gaussian_blur),
    (("motion-blur",), rd.operators.motion_blur),
    (("downsample",), rd.operators.downsample),
    (("super-resolution",), rd.operators.super_resolution),
    (("grayscale",), rd.operators.grayscale),
    (("projections",), rd.operators.random_projections),
):
    OPERATORS.add(*_names, value=_make)


@OPERATORS.register("inpaint", "mask")
def _inpaint(mask: str) -> Operator:
    """A mask from an image or a .npy file: bright or non-zero where a pixel is seen."""
    return rd.operators.inpaint(_array(mask) > 0.5)


@OPERATORS.register("convolve")
def _convolve(kernel: str, padding: str = "circular") -> Operator:
    """A kernel from an image or a .npy file, scaled so that it sums to one."""
    value = _array(kernel)
    require(
        value.ndim == 2 and float(value.sum()) > 0, f"the kernel {kernel} is no image of light; shape {value.shape}"
    )
    return rd.operators.convolve(value / value.sum(), padding)


@OPERATORS.register("matrix")
def _matrix(file: str) -> Operator:
    return rd.operators.matrix(_array(file))


@OPERATORS.register("phase-retrieval", "phase")
def _phase(oversample: float = 2.0, *, low: float, high: float) -> Operator:
    """Magnitudes of images between 0 and 1."""
    unit = rd.operators.affine(1 / (high - low), -low / (high - low))
    return unit | rd.operators.phase_retrieval(oversample)


@OPERATORS.register("jpeg", "quantise")
def _jpeg(quality: int = 50, *, low: float, high: float) -> Operator:
    return rd.operators.quantise(quality, low, high)


@OPERATORS.register("nonlinear-blur")
def _nonlinear_blur(kernel: int = 5, sigma: float | None = None, *, low: float, high: float) -> Operator:
    return rd.operators.nonlinear_blur(kernel, sigma, low=low, high=high)


@OPERATORS.register("clip", "hdr")
def _clip(scale: float = 2.0, *, low: float, high: float) -> Operator:
    """Brightness times ``scale``, cut at white."""
    to, back = rd.operators.affine(1.0, -low), rd.operators.affine(1.0, low)
    return to | rd.operators.clip(scale, 0.0, high - low) | back


def parse_operator(text: str, low: float, high: float) -> Operator:
    """The operator that ``text`` names, for images with the given black and white.

    >>> parse_operator("blur:3,1 | downsample:2", 0, 16).output_shape((1, 8, 8))
    (1, 4, 4)
    >>> parse_operator("blurr", 0, 16)
    Traceback (most recent call last):
    ...
    retrodict.core.errors.InputError: unknown operator 'blurr'; known: ... Did you mean 'blur'?
    """
    parts = [part.strip() for part in text.split("|")]
    require(all(parts), f"--operator {text!r} has an empty part; write it as blur:5,1.0 | downsample:2")
    made = [parse_call(part, OPERATORS, {"low": low, "high": high}) for part in parts]
    return reduce(lambda first, second: first | second, made)


def parse_method(text: str) -> tuple[str, dict[str, Any]]:
    """A method and its options, from ``NAME`` or ``NAME:OPTION=VALUE,...``.

    >>> parse_method("pigdm:gradient=false")
    ('pigdm', {'gradient': False})
    """
    name, _, rest = text.strip().partition(":")
    return name, parse_settings(filter(None, rest.split(",")), ())


def read_measurement(operator: Operator, image: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """The measurement in an image ``(1, ...)``: the image itself, or what the mask at the chain's end lets through."""
    given = tuple(image.shape[1:])
    if given == operator.output_shape(shape):
        return image
    last, before = (operator.second, operator.first) if isinstance(operator, Composed) else (operator, None)
    behind = shape if before is None else before.output_shape(shape)
    if isinstance(last, Mask) and given == behind:
        return last(image)
    raise InputError(
        f"an image has shape {given}, and this operator makes measurements of shape {operator.output_shape(shape)} "
        f"from states of shape {shape}; for clean images add --degrade"
    )


def as_picture(operator: Operator, y: torch.Tensor, shape: tuple[int, ...], hidden: float) -> torch.Tensor | None:
    """A measurement ``(n, *output)`` as images, ``hidden`` where a mask at the chain's end lets nothing through."""
    last, before = (operator.second, operator.first) if isinstance(operator, Composed) else (operator, None)
    if isinstance(last, Mask):
        behind = shape if before is None else before.output_shape(shape)
        return last.place(y, behind, hidden)
    return y if y.ndim == 4 and y.shape[1] in (1, 3) else None


def _array(name: str) -> torch.Tensor:
    """A .npy file as it is, an image as brightness between 0 and 1."""
    path = Path(name)
    require(
        path.is_file(), f"there is no file {name!r}; an operator's mask, kernel or matrix is an image or a .npy file"
    )
    if path.suffix.lower() == ".npy":
        return torch.from_numpy(np.load(path, allow_pickle=False)).double()
    from PIL import Image

    return torch.from_numpy(np.asarray(Image.open(path).convert("L"), dtype=np.float64) / 255)
