"""Transport between two data sets: handwritten threes become eights along a learned two-sided interpolant."""

from __future__ import annotations

import pytest
import torch

import retrodict as rd
from retrodict.diagnostics.classifier import feature_classifier


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["flow-ab", "flow-sde"])
def test_threes_become_eights(solver):
    """Held-out threes, carried by ODE and by SDE.  A classifier of real digits sees an eight in at least 90% of 40.

    A transport that moved nothing would score 0, one that ignored its input would not be paired with it; the share
    of distinct outputs is checked too.
    """
    data = rd.load_data("digits")
    x, label = data.x, data.conditions["label"]
    three, eight = x[label == 3], x[label == 8]
    path = rd.Interpolant("linear")
    denoiser = rd.fit(path, eight, x1=three[:-40], steps=500, batch_size=64, seed=0, progress=False)
    start = denoiser.scale(three[-40:]) if denoiser.scale is not None else three[-40:]
    out = rd.sample(denoiser, 40, solver=solver, steps=20, init=start, seed=0, progress=False).x
    judge = feature_classifier(x, label, seed=0)
    assert (judge.predict(out) == 8).double().mean() >= 0.9
    assert torch.pdist(out.flatten(1)).min() > 0
