"""Frechet distance: the squared 2-Wasserstein distance of the Gaussians fitted to two samples.

    FD = |m_1 - m_2|^2 + tr( S + T - 2 (S^{1/2} T S^{1/2})^{1/2} )

(Dowson and Landau, 1982; on features, Heusel et al., 2017).  It sees means and covariances only: a Gaussian
fit to the data scores zero.  From finite samples it is biased upwards.  With l the eigenvalues of the
covariance and normal data,

    bias = (1/m + 1/n)/2 * [ 2 sum_i l_i + sum_ij l_i l_j (1 + delta_ij) / (l_i + l_j) ],

the first term from the means, the second from the covariances (second order of the Bures distance);
subtracted by default, so the value can be negative and sizes can differ.  It needs about five samples per
dimension.
"""

from __future__ import annotations

import torch
from torch import Tensor

from retrodict.diagnostics.distances.measure import (
    Measure,
    Samples,
    check_samples,
    measure,
    permutation_p,
    spread,
)


def frechet(
    real: Samples,
    fake: Samples,
    correct_bias: bool = True,
    *,
    permutations: int = 200,
    resamples: int = 50,
    seed: int = 0,
    name: str = "frechet",
) -> Measure:
    """Frechet distance of ``real (m, ...)`` and ``fake (n, ...)``, flattened to d numbers each.

    Args:
        correct_bias: subtract the null bias, with l from the mean of both covariances.
        permutations: of the pooled sample, for the p-value; 0 for none.
        resamples: random halves for the interval.

    Without the correction the interval is for the biased value at these sizes.
    """
    x, y = check_samples(real, fake, least=4)
    m, n = len(x), len(y)
    pool = torch.cat([x, y]) - x.mean(0)  # one shift for both changes nothing, and saves digits

    def statistic(i: Tensor, j: Tensor) -> float:
        return frechet_value(pool[i], pool[j], correct_bias)

    value = statistic(torch.arange(m), torch.arange(m, m + n))
    error = spread(lambda i, j: statistic(i, j + m), m, n, resamples, seed)
    p = None
    if permutations:
        g = torch.Generator().manual_seed(seed + 1)
        orders = [torch.randperm(m + n, generator=g) for _ in range(permutations)]
        p = permutation_p(value, torch.tensor([statistic(o[:m], o[m:]) for o in orders]))
    note = "bias of finite samples subtracted" if correct_bias else "biased upwards by finite samples"
    return measure(name, value, error, (m, n), p, f"{note}; {permutations} permutations; {resamples} random halves")


def frechet_value(x: Tensor, y: Tensor, correct_bias: bool) -> float:
    """The distance itself, of float64 matrices."""
    s, t = torch.cov(x.T).reshape(x.shape[1], -1), torch.cov(y.T).reshape(x.shape[1], -1)
    value = (x.mean(0) - y.mean(0)).square().sum() + bures(s, t)
    return (value - frechet_bias((s + t) / 2, len(x), len(y)) if correct_bias else value).item()


def bures(s: Tensor, t: Tensor) -> Tensor:
    """``tr(S + T - 2 (S^{1/2} T S^{1/2})^{1/2})`` by symmetric eigenvalues, which stay real."""
    w, v = torch.linalg.eigh(s)
    root = (v * w.clamp_min(0.0).sqrt()) @ v.T
    inner = torch.linalg.eigvalsh(root @ t @ root).clamp_min(0.0)
    return s.trace() + t.trace() - 2.0 * inner.sqrt().sum()


def frechet_bias(covariance: Tensor, m: int, n: int) -> Tensor:
    """Expected value between samples of size m and n of one Gaussian, to first order in 1/m and 1/n."""
    w = torch.linalg.eigvalsh(covariance).clamp_min(0.0)
    pair = w[:, None] * w / (w[:, None] + w).clamp_min(torch.finfo(w.dtype).tiny)
    return (1.0 / m + 1.0 / n) / 2.0 * (2.0 * w.sum() + pair.sum() + pair.diagonal().sum())
