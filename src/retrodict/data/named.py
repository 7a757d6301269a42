"""Data sets by name: the digits that ship with scikit-learn, and the toys.

The digits are real scans (Alpaydin and Kaynak 1998; the test part of the UCI set): 1,797 images of 8 x 8 pixels
with values 0 to 16.  Their held-out part is fixed: 30 of each digit, evenly spaced through the file (of the m
samples of a digit, number floor((k + 1/2) m / 30) for k = 0..29).  No random draw is involved, so it is the same
for every seed, machine and release, and numbers measured on it can be compared.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from retrodict.core.errors import InputError, require
from retrodict.core.registry import Registry
from retrodict.data.toys import TOYS, Maker
from retrodict.data.types import Data, Layout

HELDOUT_PER_CLASS = 30
DATASETS: Registry[Maker] = Registry("data set")


@DATASETS.register("digits")
def digits() -> Data:
    """1,797 scans of handwritten digits, (n, 1, 8, 8), values 0..16, with 300 of them held out."""
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    x = torch.tensor(bunch.images, dtype=torch.float32)[:, None]
    return _with_fixed_heldout(x, torch.tensor(bunch.target, dtype=torch.int64), "image", 17)


@DATASETS.register("binary-digits")
def binary_digits() -> Data:
    """The digits as 64 tokens: 1 where the ink is at least 8 of 16, else 0; the same samples held out."""
    whole = digits()
    return replace(_binarised(whole), heldout=_binarised(whole.heldout) if whole.heldout else None)


def _binarised(data: Data) -> Data:
    return replace(data, x=(data.x.flatten(1) >= 8).long(), layout="tokens", levels=2, heldout=None)


def _with_fixed_heldout(x: Tensor, label: Tensor, layout: Layout, levels: int) -> Data:
    middles = 2 * torch.arange(HELDOUT_PER_CLASS) + 1
    each = [(label == c).nonzero()[:, 0] for c in range(10)]
    aside = torch.cat([mine[middles * len(mine) // (2 * HELDOUT_PER_CLASS)] for mine in each]).sort().values
    keep = torch.ones(len(x), dtype=torch.bool)
    keep[aside] = False
    whole = Data(x, {"label": label}, {"label": 10}, layout=layout, levels=levels)
    return replace(whole.take(keep.nonzero()[:, 0]), heldout=whole.take(aside))


def _toy(maker: Maker) -> Maker:
    """A toy as an entry of the table: so many samples from a seed."""

    def make(n: int = 10_000, seed: int = 0, **options: Any) -> Data:
        require(n >= 2, f"n={n}; accepted: at least 2 samples")
        return maker(n, torch.Generator().manual_seed(seed), **options)

    make.__doc__ = maker.__doc__
    return make


for _name, _maker in TOYS.items():
    DATASETS.add(_name, value=_toy(_maker))


def load_named(text: str, options: dict[str, Any]) -> Data:
    """The data set ``"name"``, or the classes ``"name:3,8"`` of it.

    Raises:
        InputError: an unknown name (with the nearest), classes that are no numbers or out of range, or
            options that this data set does not have.
    """
    name, _, chosen = text.partition(":")
    make = DATASETS[name]
    try:
        data = make(**options)
    except TypeError as error:
        raise InputError(f"data set {name!r} cannot be made with {options}: {error}") from error
    data.name = name
    if data.heldout is not None:
        data.heldout.name = f"{name} held out"
    if not chosen:
        return data
    try:
        classes = [int(c) for c in chosen.split(",")]
    except ValueError as error:
        raise InputError(f"data set {text!r}; classes are written as numbers, as in '{name}:3,8'") from error
    return data.select(classes)
