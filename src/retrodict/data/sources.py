"""Where samples come from: files, folders of images, data frames and `datasets` objects.

Each reader returns the raw samples, the raw conditions by name, and options that it learned on the way (class
counts and names); `retrodict.data.arrays.build` turns them into `Data`.  Nothing is unpickled.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from retrodict.core.errors import InputError, InputTypeError, near, optional_import, require
from retrodict.core.registry import Registry
from retrodict.data.codecs import Categories, Codec
from retrodict.data.texts import TEXTS

logger = logging.getLogger(__name__)

LABELS = ("label", "labels", "class", "target", "y")
"""Columns that are taken for class labels when nothing is said."""
IMAGES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}


@dataclass
class Raw:
    """Samples and conditions as they were found."""

    x: Any
    conditions: dict[str, Any] = field(default_factory=dict)
    class_names: dict[str, list[str]] = field(default_factory=dict)
    x1: Any = None
    codec: Codec | None = None


@dataclass(frozen=True)
class Wanted:
    """What the user asked of a source: which column, which conditions, which size, which layout."""

    column: str | None = None
    conditions: list[str] | None = None
    size: int | None = None
    layout: str | None = None


READERS: Registry[Callable[[Path, Wanted], Raw]] = Registry("data file ending")
_PICKLES = {".pt", ".pth", ".pkl", ".pickle", ".bin", ".ckpt"}


def read_path(path: Path, wanted: Wanted) -> Raw:
    """A file by its ending, or a folder of images."""
    if path.is_dir():
        return read_folder(path, wanted)
    suffix = path.suffix.lower()
    if suffix in _PICKLES:
        raise InputError(
            f"{path} is a pickle, which can run code when it is read; accepted: {_endings()}; if you trust "
            "it, load it yourself, and pass the array or save it with numpy.save"
        )
    if suffix not in READERS:
        raise InputError(
            f"{path} has the ending {suffix!r}; accepted: {_endings()}, or a folder of images.{near(suffix, READERS)}"
        )
    return READERS[suffix](path, wanted)


def _endings() -> str:
    return ", ".join(sorted([*READERS, *TEXTS]))


@READERS.register(".npy")
def _npy(path: Path, wanted: Wanted) -> Raw:
    return Raw(_numpy_load(path))


@READERS.register(".npz")
def _npz(path: Path, wanted: Wanted) -> Raw:
    with _numpy_load(path) as archive:
        try:
            columns = {name: archive[name] for name in archive.files}
        except ValueError as error:
            raise _object_array(path, error) from error
    return from_columns(columns, wanted, f"archive {path.name}")


@READERS.register(".csv")
def _csv(path: Path, wanted: Wanted) -> Raw:
    pandas: Any = optional_import("pandas", "data")
    return from_frame(pandas.read_csv(path), wanted, path.name)


@READERS.register(".parquet")
def _parquet(path: Path, wanted: Wanted) -> Raw:
    pandas: Any = optional_import("pandas", "data")
    optional_import("pyarrow", "data")
    return from_frame(pandas.read_parquet(path), wanted, path.name)


def _numpy_load(path: Path) -> Any:
    try:
        return np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise _object_array(path, error) from error


def _object_array(path: Path, error: Exception) -> InputError:
    return InputError(
        f"{path} cannot be read as a plain array ({error}); a file with Python objects or a pickle inside "
        "is never opened; save numbers with numpy.save or numpy.savez"
    )


# -- tables --------------------------------------------------------------------------------------------------


def from_columns(columns: Mapping[str, Any], wanted: Wanted, what: str) -> Raw:
    """Named arrays: ``x`` (or the named column, or the only one that is no label) and conditions."""
    names = list(columns)
    conditions = _chosen(names, wanted.conditions, what)
    if wanted.conditions is None:
        conditions = [name for name in names if name not in ("x", "x1", wanted.column)]
        if "x" not in names and wanted.column is None:
            conditions = [name for name in names if name in LABELS]
    rest = [name for name in names if name not in conditions and name != "x1"]
    column = wanted.column or ("x" if "x" in rest else rest[0] if len(rest) == 1 else None)
    if column is None or column not in names:
        given = f"column {wanted.column!r} is not in" if wanted.column else "no entry named 'x' in"
        raise InputError(
            f"{given} {what}; it has {names}; name the samples 'x', or say which with "
            f"column=.{near(wanted.column or 'x', names)}"
        )
    return Raw(columns[column], {name: columns[name] for name in conditions}, x1=columns.get("x1"))


def from_frame(frame: Any, wanted: Wanted, what: str = "data frame") -> Raw:
    """A pandas frame: one column of arrays or images, or all numeric columns side by side as vectors."""
    names = [str(name) for name in frame.columns]
    require(len(names) == len(set(names)), f"{what} has repeated column names: {names}")
    frame = frame.set_axis(names, axis=1)
    conditions = _chosen(names, wanted.conditions, what)
    if wanted.conditions is None:
        conditions = [name for name in names if name in LABELS and name != wanted.column]
    kept = {name: _values(frame[name]) for name in conditions}
    if wanted.column is not None:
        _chosen(names, [wanted.column], what)
        return Raw(_values(frame[wanted.column]), kept)
    rest = [name for name in names if name not in conditions]
    nested = [name for name in rest if len(frame) and isinstance(frame[name].iloc[0], list | tuple | np.ndarray)]
    if nested:
        column = "x" if "x" in nested else nested[0] if len(nested) == 1 else None
        require(column is not None, f"{what} has several columns of arrays, {nested}; choose one with column=")
        return Raw(_values(frame[column]), kept)
    numeric = [name for name in rest if frame[name].dtype.kind in "biuf"]
    others = [name for name in rest if name not in numeric]
    if others and wanted.layout == "tokens":
        return _categories(frame[rest], kept, what)
    require(
        bool(numeric) and not others,
        f"{what} has the columns {others or names} that hold no numbers; drop them, turn them into "
        "numbers, name them in conditions=, or give layout='tokens' for a table of categories",
    )
    return Raw(frame[numeric].to_numpy(dtype=np.float64), kept)


def _categories(frame: Any, conditions: dict[str, Any], what: str) -> Raw:
    """A table of categories: every distinct value of any column is a token."""
    columns = []
    for name in frame.columns:
        column = frame[name]
        require(column.dtype.kind != "f", f"column {name!r} of {what} holds real numbers, which are no categories")
        missing = column.isna().to_numpy().nonzero()[0]
        require(not len(missing), f"column {name!r} of {what} has no value in row {missing[:1]}; fill it in")
        columns.append(column.astype(str).to_list())
    codec = Categories(list(frame.columns), sorted({value for column in columns for value in column}))
    return Raw(codec.encode(list(zip(*columns))), conditions, codec=codec)


def _values(column: Any) -> Any:
    """A column as an array; entries that are arrays or lists are stacked, categories become text."""
    if hasattr(column, "cat"):
        column = column.astype(str)
    first = column.iloc[0] if len(column) else None
    if isinstance(first, list | tuple | np.ndarray):
        try:
            return np.stack([_stacked(value) for value in column])
        except ValueError as error:
            raise InputTypeError(f"column {column.name!r} holds arrays of unequal shape ({error})") from error
    return column.to_list() if column.dtype.kind not in "biuf" else column.to_numpy()


def _stacked(value: Any) -> np.ndarray:
    """A nested list as it comes out of a Parquet file: arrays of arrays."""
    array = np.asarray(value)
    return np.stack([_stacked(part) for part in array]) if array.dtype == object else array


def _chosen(names: list[str], wanted: list[str] | None, what: str) -> list[str]:
    for name in wanted or []:
        require(name in names, f"{what} has no column {name!r}; it has {names}.{near(name, names)}")
    return list(wanted or [])


# -- images --------------------------------------------------------------------------------------------------


def read_folder(folder: Path, wanted: Wanted) -> Raw:
    """Images in a folder, or in one subfolder for each class (its name is the class)."""
    classes = sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    groups = [(entry.name, _images(entry)) for entry in classes] or [("", _images(folder))]
    files = [path for _, found in groups for path in found]
    if not files:
        inside = f"its {len(classes)} subfolders" if classes else "it"
        raise InputError(f"folder {folder} holds no images: none of {sorted(IMAGES)} in {inside}")
    empty = [name for name, found in groups if not found]
    require(not empty, f"folder {folder} has classes without images: {empty}; remove them or fill them")
    images = open_images(((str(path), path) for path in files), wanted.size)
    if not classes:
        return Raw(images)
    names = [name for name, _ in groups]
    label = [number for number, (_, found) in enumerate(groups) for _ in found]
    return Raw(images, {"label": np.array(label)}, {"label": names})


def _images(folder: Path) -> list[Path]:
    entries = sorted(e for e in folder.iterdir() if e.is_file() and not e.name.startswith("."))
    other = [e.name for e in entries if e.suffix.lower() not in IMAGES]
    if other:
        logger.info("%s: %d files that are no images are left out (%s)", folder, len(other), ", ".join(other[:3]))
    return [e for e in entries if e.suffix.lower() in IMAGES]


def open_images(named: Iterable[tuple[str, Any]], size: int | None) -> np.ndarray:
    """Images (paths or PIL images) as bytes (n, channels, height, width); grey only if all of them are.

    Args:
        named: what to call each image in an error, and the image.
        size: side of the square that each is cut to (about its centre) and resized to; None leaves them.
    """
    from PIL import Image, UnidentifiedImageError

    arrays: list[np.ndarray] = []
    names: list[str] = []
    for name, source in named:
        try:
            image = source if isinstance(source, Image.Image) else Image.open(source)
            image = image.convert("L" if image.mode in ("1", "L", "I", "I;16") else "RGB")
        except (UnidentifiedImageError, OSError, SyntaxError) as error:
            raise InputError(f"image {name} cannot be read ({error}); remove or replace it") from error
        arrays.append(np.asarray(_squared(image, size)))
        names.append(name)
    first = arrays[0].shape[:2]
    for name, array in zip(names, arrays):
        require(
            array.shape[:2] == first,
            f"images differ in size: {names[0]} is {first[1]}x{first[0]}, {name} is "
            f"{array.shape[1]}x{array.shape[0]} (width x height); give size= to cut and resize all of "
            f"them, as size={min(first)}",
        )
    if any(array.ndim == 3 for array in arrays):
        arrays = [a if a.ndim == 3 else np.repeat(a[:, :, None], 3, 2) for a in arrays]
        return np.stack(arrays).transpose(0, 3, 1, 2)
    return np.stack(arrays)[:, None]


def _squared(image: Any, size: int | None) -> Any:
    if size is None:
        return image
    from PIL import ImageOps

    return ImageOps.fit(image, (size, size))


# -- datasets ------------------------------------------------------------------------------------------------


def is_dataset(what: Any) -> bool:
    """Whether an object comes from the `datasets` package (asked without importing it)."""
    return type(what).__module__.split(".")[0] == "datasets"


def from_dataset(dataset: Any, wanted: Wanted) -> Raw:
    """A `datasets.Dataset`: an image column, a column of arrays, or numeric columns, with its labels."""
    if not hasattr(dataset, "__len__"):
        raise InputTypeError(
            "a streamed data set has no length; load it without streaming, or take a part: "
            "datasets.Dataset.from_list(list(stream.take(10_000)))"
        )
    features, names = dataset.features, list(dataset.column_names)
    conditions = _chosen(names, wanted.conditions, "the data set")
    if wanted.conditions is None:
        conditions = [n for n in names if n != wanted.column and (_kind(features[n]) == "ClassLabel" or n in LABELS)]
    images = [name for name in names if _kind(features[name]) == "Image"]
    column = wanted.column or (images[0] if len(images) == 1 else None)
    require(
        column is not None or not images,
        f"the data set has several image columns, {images}; choose one with column=",
    )
    if column is None:
        return _dataset_conditions(dataset, conditions, from_frame(dataset.to_pandas(), wanted, "the data set"))
    _chosen(names, [column], "the data set")
    if column in images:
        x: Any = open_images(((f"{column}[{i}]", row[column]) for i, row in enumerate(dataset)), wanted.size)
    else:
        x = _values(dataset.to_pandas()[column])
    return _dataset_conditions(dataset, conditions, Raw(x))


def _dataset_conditions(dataset: Any, conditions: list[str], raw: Raw) -> Raw:
    for name in conditions:
        raw.conditions[name] = dataset[name][:]
        if _kind(dataset.features[name]) == "ClassLabel":
            raw.class_names[name] = list(dataset.features[name].names)
    return raw


def _kind(feature: Any) -> str:
    return type(feature).__name__
