"""One door for data: a name, an array, a file, a folder, a frame or a `datasets` object becomes `Data`."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from retrodict.core.errors import InputError, InputTypeError, near, optional_import, require
from retrodict.data.arrays import Channels, build
from retrodict.data.named import DATASETS, load_named
from retrodict.data.sources import (
    READERS,
    Raw,
    Wanted,
    from_columns,
    from_dataset,
    from_frame,
    is_dataset,
    read_path,
)
from retrodict.data.texts import TEXTS, text
from retrodict.data.types import Data, checked


def load_data(
    what: Any,
    *,
    conditions: Mapping[str, Any] | list[str] | str | None = None,
    heldout: int | float | None = None,
    seed: int = 0,
    column: str | None = None,
    layout: str | None = None,
    channels: Channels = "auto",
    classes: Mapping[str, int] | None = None,
    levels: int | None = None,
    size: int | None = None,
    split: str = "train",
    x1: Any = None,
    name: str | None = None,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> Data:
    """Load a data set.

    Args:
        what: one of
            - a name, as "digits", "moons" or "digits:3,8" (those classes only); see `DATASETS`;
            - a tensor, an array or nested lists, with the samples along the first axis;
            - a mapping with the samples under "x" and conditions under their own names;
            - a pandas frame, a `datasets` object, or the id of a data set on the Hub, as "ylecun/mnist";
            - the path of a ``.npy``, ``.npz``, ``.parquet`` or ``.csv`` file, or of a folder of images, with
              one subfolder for each class where there are classes;
            - the path of a text, ``.txt`` or ``.md``, with the options of `retrodict.data.text`: ``length``,
              ``vocabulary``, ``stride``;
            - `Data`, which is returned with a held-out part if one is asked for.
        conditions: arrays by name, one entry a sample: whole numbers and text are classes, floats are real
            values. For a table the names of its columns; by default those called "label" and the like.
        heldout: how many samples (or which share, below 1) to keep aside, drawn evenly from the classes of
            the first class condition; by default the data set's own held-out part, if it has one.
        seed: of the held-out draw, and of a toy's samples.
        column: which column or entry holds the samples.
        layout: "vector", "image", "series" or "tokens", where it should not be inferred from shape and dtype; "tokens"
            reads columns of text in a table as categories.
        channels: "first" or "last" axis of images that hold the channels, where it cannot be told.
        classes: number of classes by condition, where not all of them occur.
        levels: number of grey levels of images, or size of the vocabulary of tokens, where not all occur.
        size: side of the square that image files are cut and resized to.
        split: which part of a `datasets.DatasetDict` or of a Hub data set; its "test" part is held out where
            ``heldout`` is not given.
        x1: samples of the other end, for a process between two data sets.
        name: what to call it.
        dtype: of real samples.
        options: of a data set by name: ``n`` samples of a toy, its ``noise``, ...; or of a text.

    Returns:
        `Data`: finite, in one of the four layouts, with at least two samples.

    Raises:
        InputError, InputTypeError: anything that cannot be used, with its place and what to do.
        MissingExtraError: pandas, pyarrow or datasets is needed and not installed.

    >>> load_data("digits")
    Data('digits', image, (1497, 1, 8, 8), label: 10, levels=17, heldout=300)
    >>> load_data(torch.randn(100, 2), conditions={"label": torch.arange(100) % 3}, heldout=10)
    Data('array', vector, (90, 2), label: 3, heldout=10)
    """
    if isinstance(what, str) and what.partition(":")[0] in DATASETS and not Path(what).exists():
        _refuse(what, conditions=conditions, column=column, layout=layout, classes=classes, levels=levels)
        toy = {"seed": seed} if what.partition(":")[0] not in ("digits", "binary-digits") else {}
        data = load_named(what, {**toy, **options})
        data = replace(data, x=data.x if data.layout == "tokens" else data.x.to(dtype), name=name or data.name)
        return _with_heldout(checked(data), heldout, seed)
    if isinstance(what, str | os.PathLike) and Path(what).suffix.lower() in TEXTS and Path(what).is_file():
        _refuse(what, conditions=conditions, column=column, levels=levels, x1=x1)
        return _text(Path(what), {"heldout": heldout, "name": name, **options})
    require(
        not options,
        f"unknown options {sorted(options)}; options belong to texts and to data sets by name: {', '.join(DATASETS)}",
    )
    if isinstance(what, Data):
        return _with_heldout(checked(what), heldout, seed)

    names, given = _conditions(conditions)
    wanted = Wanted(column, names, size, layout)
    raw, test, found = _read(what, wanted, split, heldout is None)

    def make(raw: Raw, called: str) -> Data:
        counts = {key: len(value) for key, value in raw.class_names.items()} | dict(classes or {})
        data = build(
            raw.x, {**raw.conditions, **given}, name=called, layout=layout, channels=channels, classes=counts,
            levels=raw.codec.size if raw.codec else levels, dtype=dtype, x1=raw.x1 if x1 is None else x1,
        )  # fmt: skip
        data.class_names |= raw.class_names
        data.codec = raw.codec
        return checked(data)

    data = make(raw, name or found)
    if test is not None:
        data.heldout = make(test, f"{data.name} held out")
        _require_alike(data, data.heldout)
    return _with_heldout(data, heldout, seed)


def _text(path: Path, options: dict[str, Any]) -> Data:
    known = list(inspect.signature(text).parameters)[1:]
    for option in options:
        require(option in known, f"a text has no option {option!r}; known: {', '.join(known)}.{near(option, known)}")
    return text(path, **options)


def _read(what: Any, wanted: Wanted, split: str, use_test: bool) -> tuple[Raw, Raw | None, str]:
    """The raw samples, those of a test split, and a name."""
    if isinstance(what, str | os.PathLike):
        path = Path(what)
        if path.exists():
            return read_path(path, wanted), None, path.name
        what = _from_hub(str(what), path)
    if is_dataset(what):
        parts = what if isinstance(what, Mapping) else {split: what}
        require(split in parts, f"the data set has the parts {list(parts)}, not {split!r}; choose one with split=")
        test = parts.get("test") if use_test and split != "test" else None
        return (
            from_dataset(parts[split], wanted),
            from_dataset(test, wanted) if test is not None else None,
            "dataset",
        )
    if isinstance(what, Mapping):
        return from_columns(what, wanted, "the mapping"), None, "mapping"
    if type(what).__module__.split(".")[0] == "pandas" and hasattr(what, "columns"):
        return from_frame(what, wanted), None, "frame"
    if isinstance(what, Tensor | np.ndarray | list | tuple):
        require(
            wanted.column is None and not wanted.conditions,
            "an array has no columns; give a mapping or a frame",
        )
        return Raw(what), None, "array"
    raise InputTypeError(
        f"data is a {type(what).__name__}; accepted: a name ({', '.join(DATASETS)}), a tensor or array, a "
        "mapping with 'x', a pandas frame, a datasets object, or the path of a file or of a folder of "
        "images"
    )


def _from_hub(text: str, path: Path) -> Any:
    """A data set of the Hub by its id ``owner/name``; anything else is a name or path that is not there."""
    hub = text.count("/") == 1 and not path.suffix and not text.startswith((".", "/", "~"))
    if not hub:
        if path.suffix.lower() in READERS or os.sep in text:
            raise InputError(f"{text} does not exist; give the path of a file or of a folder of images")
        DATASETS[text]  # raises, with the nearest name
    datasets: Any = optional_import("datasets", "data")
    try:
        return datasets.load_dataset(text)
    except Exception as error:
        raise InputError(
            f"{text!r} is neither a path nor a data set that the Hub gives ({type(error).__name__}: "
            f"{error}); names that ship with retrodict: {', '.join(DATASETS)}"
        ) from error


def _conditions(conditions: Any) -> tuple[list[str] | None, dict[str, Any]]:
    """Column names, or arrays by name."""
    if conditions is None:
        return None, {}
    if isinstance(conditions, str):
        return [conditions], {}
    if isinstance(conditions, Mapping):
        return None, dict(conditions)
    if isinstance(conditions, list | tuple) and all(isinstance(name, str) for name in conditions):
        return list(conditions), {}
    raise InputTypeError(
        f"conditions is a {type(conditions).__name__}; accepted: arrays by name, as {{'label': y}}, or names of columns"
    )


def _refuse(what: Any, **given: Any) -> None:
    wrong = [name for name, value in given.items() if value is not None]
    kind = "text" if Path(what).suffix.lower() in TEXTS else "data set by name"
    require(not wrong, f"{', '.join(wrong)} cannot be given for a {kind}; it brings its own")


def _require_alike(data: Data, other: Data) -> None:
    require(
        data.shape == other.shape and data.layout == other.layout,
        f"the held-out part has samples of shape {other.shape}, the training part {data.shape}",
    )
    require(data.codec == other.codec, "the test part has other categories; join the parts and give heldout=")
    for name in set(data.classes) & set(other.classes):
        data.classes[name] = other.classes[name] = max(data.classes[name], other.classes[name])


def _with_heldout(data: Data, heldout: int | float | None, seed: int) -> Data:
    """Keep samples aside, evenly from the classes of the first class condition."""
    if heldout is None:
        return data
    n = len(data)
    count = round(heldout * n) if isinstance(heldout, float) and heldout < 1 else int(heldout)
    if heldout < 0 or (count != heldout and heldout >= 1) or n - count < 2:
        raise InputError(f"heldout={heldout} of {n} samples; accepted: 0 to {n - 2} samples, or a share below 1")
    if count == 0:
        return replace(data, heldout=None)
    aside = _even_draw(data, count, torch.Generator().manual_seed(seed))
    keep = torch.ones(n, dtype=torch.bool)
    keep[aside] = False
    part = replace(data.take(aside), name=f"{data.name} held out")
    return replace(data.take(keep.nonzero()[:, 0]), heldout=part)


def _even_draw(data: Data, count: int, generator: torch.Generator) -> Tensor:
    """``count`` indices, from each class in proportion to its size (largest remainders first), in order."""
    order = torch.randperm(len(data), generator=generator)
    if not data.classes:
        return order[:count].sort().values
    name = next(iter(data.classes))
    label = data.conditions[name][order]
    sizes = torch.bincount(label, minlength=data.classes[name])
    exact = sizes.double() * count / len(data)
    shares = exact.floor().long()
    rest = (exact - shares).argsort(descending=True, stable=True)[: count - int(shares.sum())]
    shares[rest] += 1
    chosen = [order[label == c][: int(share)] for c, share in enumerate(shares)]
    return torch.cat(chosen).sort().values
