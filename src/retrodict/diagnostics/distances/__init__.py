"""Distances between two samples, each a `Measure` with an interval, and the report that gathers them.

>>> import torch
>>> g = torch.Generator().manual_seed(0)
>>> real, fake = torch.randn(200, 2, generator=g), torch.randn(200, 2, generator=g) + 0.5
>>> energy_distance(real, fake).p_value < 0.01
True
"""

from __future__ import annotations

from retrodict.diagnostics.distances.classify import c2st, class_histogram
from retrodict.diagnostics.distances.gaussian import frechet, frechet_bias
from retrodict.diagnostics.distances.kernels import energy_distance, kernel_distances, kid, mmd
from retrodict.diagnostics.distances.measure import Measure, proportion, wilson
from retrodict.diagnostics.distances.neighbours import prdc
from retrodict.diagnostics.distances.report import QualityReport, floor, quality
from retrodict.diagnostics.distances.transport import sliced_wasserstein, wasserstein

__all__ = [
    "Measure",
    "QualityReport",
    "c2st",
    "class_histogram",
    "energy_distance",
    "floor",
    "frechet",
    "frechet_bias",
    "kernel_distances",
    "kid",
    "mmd",
    "prdc",
    "proportion",
    "quality",
    "sliced_wasserstein",
    "wasserstein",
    "wilson",
]
