"""Precision, recall, density and coverage: quality and variety told apart by nearest neighbours.

With r_k(x) the distance of x to its k-th nearest neighbour in its own sample and B(x) the ball of that
radius,

    precision = share of fake in the union of the real balls      (Kynkaanniemi et al., 2019)
    recall    = share of real in the union of the fake balls
    density   = mean over fake of (number of real balls it is in) / k      (Naeem et al., 2020)
    coverage  = share of real balls with a fake sample in them.

Density can exceed 1.  Two samples of one law score near 0.97, not 1, and all four depend on the sample sizes:
use equal ones and read them beside a two-sample floor.  Recall alone misleads, for it rises when the fake are
too wide.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from retrodict.core.errors import require
from retrodict.diagnostics.distances.measure import Measure, Samples, check_samples, halves, measure

NAMES = ("precision", "recall", "density", "coverage")


def prdc(real: Samples, fake: Samples, k: int = 5, *, resamples: int = 20, seed: int = 0) -> dict[str, Measure]:
    """The four numbers by name, for ``real (m, ...)`` and ``fake (n, ...)``; best with m = n.

    Args:
        k: which neighbour sets the radius; each half of a sample must have more than k points.
        resamples: random halves for the intervals.
    """
    require(isinstance(k, int) and k >= 1, f"k={k}; accepted: 1 or more")
    x, y = check_samples(real, fake, least=2 * k + 2)
    xx, yy, xy = torch.cdist(x, x), torch.cdist(y, y), torch.cdist(x, y)
    values = four(xx, yy, xy, k)
    resampled = [four(xx[i][:, i], yy[j][:, j], xy[i][:, j], k) for i, j in halves(len(x), len(y), resamples, seed)]
    errors = np.std(resampled, axis=0, ddof=1)
    note = f"k={k}; {resamples} random halves"
    sizes = (len(x), len(y))
    return {name: measure(name, v, e, sizes, None, note) for name, v, e in zip(NAMES, values, errors)}


def four(xx: Tensor, yy: Tensor, xy: Tensor, k: int) -> tuple[float, float, float, float]:
    """All four from the distances real-real, fake-fake and real-fake."""
    real_radius, fake_radius = radii(xx, k), radii(yy, k)
    in_real = xy < real_radius[:, None]
    precision = in_real.any(dim=0).double().mean()
    recall = (xy < fake_radius).any(dim=1).double().mean()
    density = in_real.double().sum(dim=0).mean() / k
    coverage = in_real.any(dim=1).double().mean()
    return precision.item(), recall.item(), density.item(), coverage.item()


def radii(distance: Tensor, k: int) -> Tensor:
    """Distance of each point to its k-th nearest other point."""
    others = distance.clone().fill_diagonal_(torch.inf)
    return others.topk(k, dim=1, largest=False).values[:, -1]
