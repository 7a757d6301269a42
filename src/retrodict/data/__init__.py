"""The data room: data sets by name or from the user's own arrays, files and folders, checked and scaled; texts,
tables of categories and graphs as tokens."""

from __future__ import annotations

from retrodict.data.codecs import BytePairs, Categories, Characters, Codec, codecs, make_codec
from retrodict.data.graph import Graphs, graphs, node_count
from retrodict.data.load import load_data
from retrodict.data.named import DATASETS
from retrodict.data.scaling import SCALES, Scale, make_scale
from retrodict.data.texts import text
from retrodict.data.types import LAYOUTS, Data, Layout, checked

__all__ = [
    "DATASETS",
    "LAYOUTS",
    "SCALES",
    "BytePairs",
    "Categories",
    "Characters",
    "Codec",
    "Data",
    "Graphs",
    "Layout",
    "Scale",
    "checked",
    "codecs",
    "graphs",
    "load_data",
    "make_codec",
    "make_scale",
    "node_count",
    "text",
]
