"""A measured number, and how its interval is made.

Every distance of this package is a function of two samples ``real (m, ...)`` and ``fake (n, ...)`` and
returns one `Measure`.  Its interval is ``value -+ 1.96 se`` with the standard error by *random halves*,

    se = standard deviation over h of the statistic on half of each sample, drawn without replacement,

the half-sample bootstrap or delete-half jackknife (Shao and Wu, 1989): for a mean over n, a half has the
variance ``s^2 (2/n - 1/n)``, which is that of the whole.  Unlike the usual bootstrap it never repeats a
point, so U-statistics stay unbiased and nearest neighbours stay neighbours.  Near zero the kernel distances
are quadratic in the empirical laws and the same rule is too wide by sqrt(3): the intervals err on the safe
side there, and the p-values, from permutations of the pooled sample, decide.

For the bias-free distances (energy, MMD, KID, corrected Frechet) the interval is for the distance between the
laws; for the others (Wasserstein, sliced Wasserstein, nearest neighbours) it is for what two samples of these
sizes show, to be read beside a two-sample floor (`retrodict.diagnostics.distances.floor`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from retrodict.core.errors import InputError, InputTypeError, require

#: Anything that holds samples, batch first.
Samples = Tensor | np.ndarray


@dataclass(frozen=True)
class Measure:
    """One number about two samples, with its 95% interval.

    Attributes:
        name: of the measure.
        value, low, high: the estimate and its interval.
        p_value: of the hypothesis that both samples have one law; None where there is no test.
        n: sizes of the two samples that entered.
        note: how the number and its interval were made.
    """

    name: str
    value: float
    low: float
    high: float
    p_value: float | None = None
    n: tuple[int, int] = (0, 0)
    note: str = ""

    def __str__(self) -> str:
        p = "" if self.p_value is None else f"  p={self.p_value:.3g}"
        return f"{self.name} {self.value:.4g} [{self.low:.4g}, {self.high:.4g}]{p}"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"n": list(self.n)}


def check_samples(real: Samples, fake: Samples, least: int = 2) -> tuple[Tensor, Tensor]:
    """Both samples as float64 matrices ``(n, d)`` on the CPU, or an error that says what is wrong."""
    x, y = check_sample("real", real, least), check_sample("fake", fake, least)
    if x.shape[1] != y.shape[1]:
        raise InputError(
            f"real has shape {tuple(real.shape)} and fake {tuple(fake.shape)}; accepted: the same shape "
            "but for the number of samples"
        )
    return x, y


def check_sample(what: str, x: Samples, least: int) -> Tensor:
    if not isinstance(x, (Tensor, np.ndarray)):
        raise InputTypeError(f"{what} is a {type(x).__name__}; accepted: a tensor or array of shape (n, ...)")
    x = torch.as_tensor(x).detach()
    require(
        x.ndim >= 1 and len(x) >= least,
        f"{what} has shape {tuple(x.shape)}; accepted: at least {least} samples",
    )
    require(not x.is_complex(), f"{what} is complex; accepted: real samples")
    x = x.to("cpu", torch.float64).reshape(len(x), -1)
    require(x.shape[1] > 0, f"{what} has samples of no entries")
    bad = int((~x.isfinite()).any(dim=1).sum())
    require(bad == 0, f"{what} has {bad} samples with NaN or infinity; remove them, and ask why they are there")
    return x


def halves(m: int, n: int, count: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """``count`` pairs of index sets, a random half of each of two samples."""
    g = torch.Generator().manual_seed(seed)
    return [(torch.randperm(m, generator=g)[: m // 2], torch.randperm(n, generator=g)[: n // 2]) for _ in range(count)]


def spread(statistic: Callable[[Tensor, Tensor], float], m: int, n: int, count: int, seed: int) -> float:
    """Standard error by random halves of ``statistic(indices of real, indices of fake)``."""
    return float(np.std([statistic(i, j) for i, j in halves(m, n, count, seed)], ddof=1))


def measure(
    name: str, value: float, error: float, n: tuple[int, int], p: float | None = None, note: str = ""
) -> Measure:
    """A `Measure` with the normal interval of a standard error."""
    return Measure(name, float(value), float(value - 1.96 * error), float(value + 1.96 * error), p, n, note)


def permutation_p(observed: float, permuted: Tensor) -> float:
    """Share of permutations at least as large, the observed one among them: valid at any number of them."""
    return (1 + int((permuted >= observed).sum())) / (1 + len(permuted))


def wilson(successes: int, n: int) -> tuple[float, float]:
    """95% interval of a proportion (Wilson, 1927)."""
    z, p = 1.96, successes / n
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)


def proportion(name: str, successes: int, n: int, note: str = "") -> Measure:
    low, high = wilson(successes, n)
    return Measure(name, successes / n, low, high, None, (n, n), note)
