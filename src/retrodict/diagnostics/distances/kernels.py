"""Distances between two samples through a kernel: energy distance, maximum mean discrepancy, kernel distance.

For a kernel k (positive definite, or conditionally so as -|x - y|) and samples x_1..x_m, y_1..y_n all are

    D = mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j),

the unbiased U-statistic of Gretton et al. (2012), lemma 6; it can be negative.  With s the 0/1 vector that
marks one group in the pooled sample, each sum is a product such as ``s' K s``.  All permutations (for the
p-value) and all random halves (for the interval) are therefore one product ``K S`` with a matrix S of 0/1
columns, made in chunks of rows: every kernel shares one matrix of distances, and none is held in memory
whole.

Energy distance: k = -|x - y| (Szekely and Rizzo, 2013).  MMD: the mean of Gaussians of widths 1/4, 1/2, 1
and 2 times the median distance.  KID: k = (x'y/d + 1)^3 (Binkowski et al., 2018), on standardised
coordinates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from retrodict.core.errors import InputError, near, require
from retrodict.diagnostics.distances.measure import (
    Measure,
    Samples,
    check_samples,
    halves,
    measure,
    permutation_p,
)

#: (distances, inner products of standardised coordinates / d, median distance) -> rows of the kernel matrix
Kernel = Callable[[Tensor, Tensor, float], Tensor]

WIDTHS = (0.25, 0.5, 1.0, 2.0)  #: of the Gaussians of `mmd`, in medians


def gaussians(distance: Tensor, product: Tensor, median: float) -> Tensor:
    square = distance.square()
    parts = [torch.exp(square / (-2.0 * (w * median) ** 2)) for w in WIDTHS]
    return torch.stack(parts).mean(dim=0)


KERNELS: dict[str, tuple[Kernel, str]] = {
    "energy": (lambda distance, product, median: -distance, "kernel -|x-y|"),
    "mmd": (gaussians, "squared; Gaussians of 1/4, 1/2, 1 and 2 times the median distance"),
    "kid": (lambda distance, product, median: (product + 1.0) ** 3, "cubic kernel, standardised coordinates"),
}


def kernel_distances(
    real: Samples,
    fake: Samples,
    names: Sequence[str] = ("energy", "mmd"),
    *,
    permutations: int = 200,
    resamples: int = 100,
    seed: int = 0,
    chunk: int = 1000,
) -> list[Measure]:
    """Several kernel distances from one pass over the distances.

    Args:
        real, fake: ``(m, ...)`` and ``(n, ...)``.
        names: of "energy", "mmd", "kid".
        permutations: for the p-values; their smallest value is 1 / (permutations + 1).
        resamples: random halves for the intervals.
        chunk: rows of the distance matrix held at once; ``8 chunk (m + n)`` bytes each.
    """
    x, y = check_samples(real, fake, least=4)
    for name in names:
        if name not in KERNELS:
            raise InputError(f"unknown kernel distance {name!r}; known: {', '.join(KERNELS)}.{near(name, KERNELS)}")
    require(permutations >= 1 and resamples >= 2, "permutations must be at least 1 and resamples at least 2")
    m, n = len(x), len(y)
    pool = torch.cat([x, y])
    groups = [(torch.arange(m), torch.arange(n)), *halves(m, n, resamples, seed)]
    left = indicators(m + n, [i for i, _ in groups] + permuted(m, n, permutations, seed + 1))
    right = indicators(m + n, [j + m for _, j in groups])
    right = torch.cat([right, 1.0 - left[:, len(groups) :]], dim=1)
    results = []
    for name, values in zip(names, u_statistics(pool, left, right, [KERNELS[k][0] for k in names], seed, chunk)):
        value, resampled, shuffled = values[0].item(), values[1 : len(groups)], values[len(groups) :]
        note = f"{KERNELS[name][1]}; {permutations} permutations; interval by {resamples} random halves"
        p = permutation_p(value, shuffled)
        results.append(measure(name, value, resampled.std().item(), (m, n), p, note))
    return results


def u_statistics(
    pool: Tensor, left: Tensor, right: Tensor, kernels: Sequence[Kernel], seed: int, chunk: int
) -> list[Tensor]:
    """The statistic D for every column: group one marked in ``left (N, columns)``, group two in ``right``."""
    standard = (pool - pool.mean(0)) / pool.std(0).clamp_min(1e-12) / pool.shape[1] ** 0.5
    median = median_distance(pool, seed)
    both = torch.cat([left, right], dim=1)
    columns = left.shape[1]
    within_l, within_r, across = (torch.zeros(len(kernels), columns, dtype=torch.float64) for _ in range(3))
    for start in range(0, len(pool), chunk):
        rows = slice(start, min(start + chunk, len(pool)))
        distance = torch.cdist(pool[rows], pool)
        product = standard[rows] @ standard.T
        for k, kernel in enumerate(kernels):
            matrix = kernel(distance, product, median)
            matrix[torch.arange(len(matrix)), torch.arange(rows.start, rows.stop)] = 0.0  # leaves out i = j
            sums = matrix @ both
            within_l[k] += (left[rows] * sums[:, :columns]).sum(0)
            within_r[k] += (right[rows] * sums[:, columns:]).sum(0)
            across[k] += (right[rows] * sums[:, :columns]).sum(0)
    m, n = left.sum(0), right.sum(0)
    return list(within_l / (m * (m - 1)) + within_r / (n * (n - 1)) - 2.0 * across / (m * n))


def median_distance(pool: Tensor, seed: int, most: int = 1000) -> float:
    """Median distance of the pooled sample (of at most ``most`` of its points), 1 if it is zero."""
    g = torch.Generator().manual_seed(seed)
    some = pool[torch.randperm(len(pool), generator=g)[:most]]
    return torch.nn.functional.pdist(some).median().item() or 1.0


def indicators(size: int, sets: Sequence[Tensor]) -> Tensor:
    """Columns of 0 and 1 that mark each index set."""
    marks = torch.zeros(len(sets), size, dtype=torch.float64)
    for row, indices in zip(marks, sets):
        row[indices] = 1.0
    return marks.T.contiguous()


def permuted(m: int, n: int, count: int, seed: int) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    return [torch.randperm(m + n, generator=g)[:m] for _ in range(count)]


def energy_distance(real: Samples, fake: Samples, **options: int) -> Measure:
    """``2 E|x - y| - E|x - x'| - E|y - y'|``, zero only between equal laws; see `kernel_distances`."""
    return kernel_distances(real, fake, ("energy",), **options)[0]


def mmd(real: Samples, fake: Samples, **options: int) -> Measure:
    """Squared maximum mean discrepancy, a mixture of Gaussian kernels, unbiased; see `kernel_distances`."""
    return kernel_distances(real, fake, ("mmd",), **options)[0]


def kid(real: Samples, fake: Samples, **options: int) -> Measure:
    """Kernel distance with the cubic kernel, unbiased; give it features.  See `kernel_distances`."""
    return kernel_distances(real, fake, ("kid",), **options)[0]
