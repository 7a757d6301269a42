"""Wasserstein distances between two samples: exact, and averaged over one-dimensional projections.

    W_p = ( min over couplings of E|x - y|^p )^(1/p),
    SW_p = ( mean over directions u of W_p(u'x, u'y)^p )^(1/p)

In one dimension the best coupling pairs quantiles, so sorting is exact.  In higher dimension a linear program
finds it (the POT package, up to a few thousand points).  Both are biased upwards from finite samples, exact
W_p in d >= 4 hugely so (n^(-1/d)): compare at equal n with the same reference, and read them beside a
two-sample floor.  Sliced (Bonneel et al., 2015) is biased as n^(-1/2) in any dimension.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from retrodict.core.errors import InputError, optional_import, require
from retrodict.diagnostics.distances.measure import (
    Measure,
    Samples,
    check_samples,
    measure,
    permutation_p,
    spread,
)

EXACT_LIMIT = 5000  #: points on one side that the linear program accepts


def wasserstein(real: Samples, fake: Samples, p: float = 2.0, *, resamples: int = 20, seed: int = 0) -> Measure:
    """Exact Wasserstein distance of order ``p`` >= 1: by sorting in one dimension, else by POT.

    Raises:
        MissingExtraError: POT is needed (d > 1) and not installed.
        InputError: more than `EXACT_LIMIT` samples in d > 1; use `sliced_wasserstein`.
    """
    x, y = check_samples(real, fake)
    check_order(p)
    if x.shape[1] == 1:
        exact = one_dimensional
    else:
        if max(len(x), len(y)) > EXACT_LIMIT:
            raise InputError(
                f"{max(len(x), len(y))} samples; exact transport in {x.shape[1]} dimensions accepts "
                f"{EXACT_LIMIT}: give it fewer, or use sliced_wasserstein"
            )
        exact = linear_program
    value = exact(x, y, p)
    error = spread(lambda i, j: exact(x[i], y[j], p), len(x), len(y), resamples, seed)
    note = f"order {p:g}; biased upwards by finite samples; {resamples} random halves"
    return measure("wasserstein", value, error, (len(x), len(y)), None, note)


def check_order(p: float) -> None:
    require(p >= 1.0, f"order p={p}; accepted: 1 or more")


def one_dimensional(x: Tensor, y: Tensor, p: float) -> float:
    return float(quantile_cost(x.T.sort().values, y.T.sort().values, p).mean() ** (1.0 / p))


def linear_program(x: Tensor, y: Tensor, p: float) -> float:
    ot: Any = optional_import("ot", "ot")
    cost = torch.cdist(x, y) ** p
    uniform = [torch.full((len(z),), 1.0 / len(z), dtype=torch.float64).numpy() for z in (x, y)]
    return float(ot.emd2(*uniform, cost.numpy(), numItermax=2_000_000)) ** (1.0 / p)


def quantile_cost(x: Tensor, y: Tensor, p: float) -> Tensor:
    """``W_p^p`` of each row of sorted ``x (rows, m)`` and ``y (rows, n)``: the integral over quantiles."""
    m, n = x.shape[1], y.shape[1]
    if m == n:
        return (x - y).abs().pow(p).mean(dim=1)
    # Quantile functions are steps; between two neighbouring jumps of either both are constant.
    jumps = torch.cat([torch.arange(m + 1).double() / m, torch.arange(1, n).double() / n]).sort().values
    middle, weight = (jumps[1:] + jumps[:-1]) / 2, jumps.diff()
    i, j = (middle * m).long().clamp_max(m - 1), (middle * n).long().clamp_max(n - 1)
    return ((x[:, i] - y[:, j]).abs().pow(p) * weight).sum(dim=1)


def sliced_wasserstein(
    real: Samples,
    fake: Samples,
    p: float = 2.0,
    *,
    projections: int = 128,
    permutations: int = 100,
    resamples: int = 50,
    seed: int = 0,
) -> Measure:
    """Sliced Wasserstein distance of order ``p`` >= 1 over ``projections`` random directions.

    The pooled projections are sorted once; permutations (p-value) and random halves (interval) only pick from
    the order.
    """
    x, y = check_samples(real, fake)
    check_order(p)
    require(projections >= 1, f"projections={projections}; accepted: 1 or more")
    m, n = len(x), len(y)
    g = torch.Generator().manual_seed(seed)
    directions = torch.randn(x.shape[1], projections, dtype=torch.float64, generator=g)
    directions /= directions.norm(dim=0)
    values, order = (torch.cat([x, y]) @ directions).T.contiguous().sort()

    def statistic(i: Tensor, j: Tensor) -> float:
        return float(quantile_cost(pick(values, order, i), pick(values, order, j), p).mean() ** (1.0 / p))

    value = statistic(torch.arange(m), torch.arange(m, m + n))
    error = spread(lambda i, j: statistic(i, j + m), m, n, resamples, seed + 1)
    pvalue = None
    if permutations:
        orders = [torch.randperm(m + n, generator=g) for _ in range(permutations)]
        pvalue = permutation_p(value, torch.tensor([statistic(o[:m], o[m:]) for o in orders]))
    note = f"order {p:g}, {projections} projections; biased upwards; interval by {resamples} random halves"
    return measure("sliced_wasserstein", value, error, (m, n), pvalue, note)


def pick(values: Tensor, order: Tensor, indices: Tensor) -> Tensor:
    """Of each sorted row the values whose pooled index is in ``indices``, in order: ``(rows, chosen)``."""
    chosen = torch.zeros(order.shape[1], dtype=torch.bool)
    chosen[indices] = True
    return values[chosen[order]].reshape(len(values), -1)
