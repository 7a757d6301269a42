"""The data room: data sets by name or from the user's own arrays, files and folders, checked and scaled."""

from __future__ import annotations

from retrodict.data.load import load_data
from retrodict.data.named import DATASETS
from retrodict.data.scaling import SCALES, Scale, make_scale
from retrodict.data.types import LAYOUTS, Data, Layout, checked

__all__ = ["DATASETS", "LAYOUTS", "SCALES", "Data", "Layout", "Scale", "checked", "load_data", "make_scale"]
