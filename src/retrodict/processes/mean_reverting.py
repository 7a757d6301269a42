"""The mean-reverting path: data decay to a known point mu, such as their own degraded version.

    dx = theta(t) (mu - x) dt + sqrt(2 theta(t)) s dW        x_t = mu + alpha (x0 - mu) + sigma z
    alpha = exp(-int theta)        sigma = s sqrt(1 - alpha^2)

As a Gaussian path it has the second end x1 = mu with coefficient 1 - alpha, so that every plan runs on it as it is: a
row carries ``x - (1 - alpha) x1``, and with solvers that integrate a constant denoiser exactly this is the shift to
x - mu.  Sampling starts from mu + s z, and needs no solver of its own: the published samplers of this process (Li et
al. 2025) are the exponential rows of the library, in every prediction type; their third order has half of its second
difference and is second (weights="official").

Time runs from 0 to 1 whatever the total rate.  Source: Luo et al. (2023), IR-SDE.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from retrodict.core.errors import InputError, near, require
from retrodict.core.lin import Lin
from retrodict.core.noise import Noise
from retrodict.kernels import LinearGaussian
from retrodict.processes.gaussian import GaussianPath, as_time, log1mexp
from retrodict.processes.process import processes

RATES = ("constant", "linear", "cosine")
_OFFSET = 0.008


@processes.register("mean-reverting")
class MeanReverting(GaussianPath):
    """Reversion to mu (module docstring).

    Args:
        mu: the point that data revert to: a number, or nested lists that broadcast against one sample; None where each
            sample has its own, passed as ``x1=`` wherever a path with two ends takes it.
        std: s, the standard deviation of the noise far from the data.
        signal: alpha(1), what is left of x0 - mu at t = 1; the total rate is -log of it.
        rate: how theta goes with time, "constant", "linear" or "cosine" (rising from zero, Nichol and Dhariwal's).

    >>> path = MeanReverting(std=0.2)
    >>> tuple(round(float(c(1.0)), 4) for c in (path.alpha, path.beta, path.sigma))
    (0.005, 0.995, 0.2)
    """

    def __init__(self, mu: Any = None, std: float = 50 / 255, signal: float = 0.005, rate: str = "cosine") -> None:
        require(std > 0, f"std is positive, got {std}")
        require(0 < signal < 1, f"signal is what is left of the data at t = 1, between 0 and 1; got {signal}")
        if rate not in RATES:
            raise InputError(f"unknown rate {rate!r}; known: {', '.join(RATES)}.{near(rate, RATES)}")
        self.mu = mu.tolist() if isinstance(mu, Tensor) else mu
        self.std, self.signal, self.rate = float(std), float(signal), rate
        self._total = -math.log(self.signal)
        alpha = lambda t: self.log_alpha(t).exp()  # noqa: E731
        super().__init__(alpha, lambda t: self.log_sigma(t).exp(), lambda t: -torch.expm1(self.log_alpha(t)))

    def log_alpha(self, t: Tensor) -> Tensor:
        return -self._total * self._elapsed(t)

    def log_sigma(self, t: Tensor) -> Tensor:
        return math.log(self.std) + 0.5 * log1mexp(2 * self.log_alpha(t))

    def time_at(self, log_snr: float | Tensor) -> Tensor:
        if self.rate == "cosine":
            return super().time_at(log_snr)
        # alpha/sigma = e^lambda gives log alpha = -log(1 + s^-2 e^-2lambda')/2 with lambda' = lambda + log s
        shifted = torch.as_tensor(log_snr, dtype=torch.float64) + math.log(self.std)
        elapsed = 0.5 * torch.nn.functional.softplus(-2 * shifted) / self._total
        return (elapsed if self.rate == "constant" else elapsed.sqrt()).clamp(0, 1)

    def _elapsed(self, t: Tensor) -> Tensor:
        """The share of the total rate that is spent by time t."""
        if self.rate == "constant":
            return t
        if self.rate == "linear":
            return t**2
        return _cosine_spent(t) / _cosine_spent(torch.ones((), dtype=torch.float64, device=t.device))

    def corrupt(self, x0: Tensor, t: float | Tensor, noise: Noise | Tensor, x1: Tensor | None = None) -> Tensor:
        return super().corrupt(x0, t, noise, self.point(x1, x0))

    def prior(self, shape: tuple[int, ...], noise: Noise, x1: Tensor | None = None) -> Tensor:
        """mu + s z: the share ``signal`` of x0 that is left at t = 1 is not known, and taken for mu."""
        z = noise.normal(shape)
        return self.std * z + self.point(x1, z)

    def kernel(self, s: float | Tensor, t: float | Tensor, x1: Tensor | None = None) -> LinearGaussian:
        """x_s -> x_t: this path has transitions between any two times, since it is one SDE given mu."""
        s, t = as_time(s), as_time(t)
        gain = (self.log_alpha(t) - self.log_alpha(s)).exp()
        spread = self.std**2 * -torch.expm1(2 * (self.log_alpha(t) - self.log_alpha(s)))
        offset = (1 - gain) * self.point(x1, None).double()
        return LinearGaussian(Lin.scalar(gain), offset, Lin.scalar(spread))

    def _second_end(self, x1: Tensor | None) -> Tensor:
        return self.point(x1, None)

    def point(self, x1: Tensor | None, like: Tensor | None) -> Tensor:
        """mu: the sample's own, or the fixed one, in the shape and dtype of ``like``."""
        if x1 is not None:
            return x1
        if self.mu is None:
            raise InputError("each sample reverts to its own point: pass it as x1=, or give the process mu=")
        mu = torch.as_tensor(self.mu, dtype=torch.float64)
        return mu if like is None else mu.to(like).expand_as(like)

    def config(self) -> dict[str, Any]:
        options = {"name": "mean-reverting", "std": self.std, "signal": self.signal, "rate": self.rate}
        return options if self.mu is None else options | {"mu": self.mu}


def _cosine_spent(t: Tensor) -> Tensor:
    """int_0^t 1 - cos^2(phi)/cos^2(phi_0), phi = (u + o)/(1 + o) pi/2, in closed form."""
    speed = math.pi / 2 / (1 + _OFFSET)
    start = _OFFSET * speed
    phi = start + t * speed
    swept = t / 2 + (torch.sin(2 * phi) - math.sin(2 * start)) / (4 * speed)
    return t - swept / math.cos(start) ** 2
