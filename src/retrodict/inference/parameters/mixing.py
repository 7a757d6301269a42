"""How well chains have mixed: split R-hat and effective sample size (Gelman and others 2013, section 11.4).

Both compare the spread within half-chains with the spread over all of them,

    var+ = (n - 1)/n W + B/n,     R-hat = sqrt(var+ / W),     ESS = m n / (-1 + 2 sum_t P_t),

P_t being sums of neighbouring autocorrelations, cut where they turn negative and made monotone (Geyer 1992).
"""

from __future__ import annotations

import torch
from torch import Tensor

_FEWEST = 4  # draws a chain: two a half


def r_hat(draws: Tensor) -> Tensor:
    """Split R-hat ``(...)`` of ``draws (chains, draws, ...)``; NaN with fewer than four draws."""
    halves = _halves(draws)
    if halves is None:
        return torch.full(draws.shape[2:], torch.nan, dtype=torch.float64)
    within, total, _ = _variances(halves)
    return (total / within).sqrt()


def effective_size(draws: Tensor) -> Tensor:
    """Effective number of independent draws ``(...)`` for the mean, of ``draws (chains, draws, ...)``."""
    halves = _halves(draws)
    if halves is None:
        return torch.full(draws.shape[2:], torch.nan, dtype=torch.float64)
    m, n = halves.shape[:2]
    centred = halves - halves.mean(1, keepdim=True)
    power = torch.fft.rfft(centred, 2 * n, dim=1).abs().square()
    covariance = torch.fft.irfft(power, 2 * n, dim=1)[:, :n] / n
    within, total, _ = _variances(halves)
    rho = 1 - (within - covariance.mean(0)) / total
    rho[0] = 1
    pairs = rho[: n - n % 2].unflatten(0, (-1, 2)).sum(1)
    positive = (pairs > 0).cumprod(0).bool()
    pairs = torch.where(positive, pairs, 0.0).cummin(0).values
    time = (2 * pairs.sum(0) - 1).clamp_min(1 / torch.tensor(m * n, dtype=torch.float64).log10())
    return torch.where(total > 0, m * n / time, torch.nan)


def mean_error(draws: Tensor) -> Tensor:
    """Monte Carlo standard error ``(...)`` of the mean of ``draws (chains, draws, ...)``."""
    return draws.double().flatten(0, 1).std(0) / effective_size(draws).sqrt()


def _halves(draws: Tensor) -> Tensor | None:
    n = draws.shape[1] // 2
    if draws.shape[1] < _FEWEST:
        return None
    values = draws.double()
    return torch.cat([values[:, :n], values[:, -n:]])


def _variances(halves: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Within-chain variance, the pooled estimate, and between-chain variance."""
    n = halves.shape[1]
    within = halves.var(1).mean(0)
    between = n * halves.mean(1).var(0)
    return within, (n - 1) / n * within + between / n, between
