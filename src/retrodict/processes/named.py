"""The Gaussian paths that users know by name.

===================  ==========================================  ====================================
`VP`                 alpha^2 + sigma^2 = 1                       linear, scaled-linear, cosine, table
`SubVP`              sigma = 1 - alpha^2                         Song et al. (2021), eq. (29)
`VE`                 alpha = 1, sigma geometric                  Song et al. (2021), eq. (9)
`EDM`                alpha = 1, sigma the rho = 7 curve          Karras et al. (2022), eq. (5)
`RectifiedFlow`      alpha = 1 - t, sigma = t                    Liu et al. (2023); Lipman et al. (2023)
`DDPM`               VP on a table of discrete betas             Ho et al. (2020)
`Interpolant`        A x0 + B x1 + gamma z                       Albergo et al. (2023)
===================  ==========================================  ====================================
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from retrodict.core.errors import InputError, near
from retrodict.processes.gaussian import GaussianPath, as_time, log1mexp
from retrodict.processes.process import processes

_OFFSET = 0.008 / 1.008 * math.pi / 2  # angle at which the cosine schedule begins


class _LogPath(GaussianPath):
    """A scalar path with one end, given by accurate logarithms."""

    def __init__(self) -> None:
        self.ends, self.scalar, self._beta = ("x0",), True, None
        self._alpha = lambda t: self.log_alpha(t).exp()
        self._sigma = lambda t: self.log_sigma(t).exp()


@processes.register("vp")
class VP(_LogPath):
    """Variance-preserving path, ``alpha^2 + sigma^2 = 1``.

    Args:
        schedule: "linear" (beta from ``beta_min`` to ``beta_max``), "scaled-linear" (sqrt beta linear, as
            latent models use) or "cosine" (Nichol and Dhariwal 2021, eq. (17)); or a sequence of discrete
            betas, then level n sits at t = (n + 1)/N and log alpha is interpolated linearly.
        beta_min, beta_max: rates of the continuous schedules (defaults .1 and 20).
    """

    SCHEDULES = ("linear", "scaled-linear", "cosine")

    def __init__(
        self, schedule: str | Sequence[float] | Tensor = "linear", beta_min: float = 0.1, beta_max: float = 20.0
    ) -> None:
        super().__init__()
        self.schedule_name, self.beta_min, self.beta_max = schedule, float(beta_min), float(beta_max)
        if isinstance(schedule, str):
            if schedule not in self.SCHEDULES:
                known = ", ".join(self.SCHEDULES)
                raise InputError(f"unknown schedule {schedule!r}; known: {known}.{near(schedule, self.SCHEDULES)}")
            if not 0 < beta_min <= beta_max:
                raise InputError(f"0 < beta_min <= beta_max is needed, got {beta_min} and {beta_max}")
        else:
            self._set_table(torch.as_tensor(schedule, dtype=torch.float64))

    def _set_table(self, betas: Tensor) -> None:
        if betas.ndim != 1 or len(betas) < 2 or not bool(((betas > 0) & (betas < 1)).all()):
            raise InputError(f"a table of betas has two or more numbers in (0, 1), got shape {tuple(betas.shape)}")
        self.schedule_name = betas.tolist()
        self._table = torch.cat([torch.zeros(1, dtype=torch.float64), torch.log1p(-betas).cumsum(0) / 2])
        self.t_min = 1.0 / len(betas)

    @property
    def levels(self) -> int | None:
        """Number of discrete levels of a table, else None."""
        return None if isinstance(self.schedule_name, str) else len(self._table) - 1

    def log_alpha(self, t: Tensor) -> Tensor:
        b0, b1 = self.beta_min, self.beta_max
        if self.schedule_name == "linear":
            return -0.5 * t * (b0 + 0.5 * t * (b1 - b0))
        if self.schedule_name == "scaled-linear":
            r0, dr = math.sqrt(b0), math.sqrt(b1) - math.sqrt(b0)
            return -0.5 * t * (b0 + t * (r0 * dr + t * dr**2 / 3))
        if self.schedule_name == "cosine":
            # cos(o + swept) / cos(o) = sin(angle left) / cos(o), without cancellation at t = 1
            left = (1 - t) * (math.pi / 2 - _OFFSET)
            return torch.log((torch.sin(left) / math.cos(_OFFSET)).clamp(0, 1))
        return self._interpolate(t)

    def _interpolate(self, t: Tensor) -> Tensor:
        table = self._table.to(t.device)
        position = (t * (len(table) - 1)).clamp(0, len(table) - 1)
        left = position.detach().floor().long().clamp(max=len(table) - 2)
        share = position - left
        return table[left] * (1 - share) + table[left + 1] * share

    def log_sigma(self, t: Tensor) -> Tensor:
        if self.schedule_name == "cosine":
            # 1 - cos^2(x)/cos^2(o) = sin(x - o) sin(x + o) / cos^2(o), without cancellation at t = 0
            swept = t * (math.pi / 2 - _OFFSET)
            product = torch.sin(swept) * torch.sin(swept + 2 * _OFFSET)
            return 0.5 * torch.log(product) - math.log(math.cos(_OFFSET))
        return 0.5 * log1mexp(2 * self.log_alpha(t))

    def time_at(self, log_snr: float | Tensor) -> Tensor:
        """Closed forms: quadratic for "linear", a table look-up for discrete betas; bisection otherwise."""
        lam = torch.as_tensor(log_snr, dtype=torch.float64)
        minus_log_alpha = 0.5 * torch.nn.functional.softplus(-2 * lam)
        if self.schedule_name == "linear":
            b0, db = self.beta_min, self.beta_max - self.beta_min
            t = 4 * minus_log_alpha / (b0 + torch.sqrt(b0**2 + 4 * db * minus_log_alpha))
        elif self.schedule_name == "cosine":
            t = self._invert_cosine(torch.sigmoid(2 * lam), torch.sigmoid(-2 * lam))
        elif isinstance(self.schedule_name, str):
            return super().time_at(lam)
        else:
            t = self._invert_table(minus_log_alpha)
        return t.clamp(0, 1)

    @staticmethod
    def _invert_cosine(alpha2: Tensor, sigma2: Tensor) -> Tensor:
        """t, through the angle left at the noisy end and through the angle swept at the clean end."""
        o, shrink = _OFFSET, math.cos(_OFFSET)
        left = torch.asin(alpha2.sqrt() * shrink)
        reached = torch.asin((math.sin(o) ** 2 + sigma2 * shrink**2).clamp(max=1).sqrt())
        swept = torch.asin((sigma2 * shrink**2 / torch.sin(reached + o)).clamp(max=1))
        return torch.where(alpha2 < 0.5, 1 - left / (math.pi / 2 - o), swept / (math.pi / 2 - o))

    def _invert_table(self, minus_log_alpha: Tensor) -> Tensor:
        table = -self._table.to(minus_log_alpha.device)
        right = torch.searchsorted(table, minus_log_alpha.contiguous()).clamp(1, len(table) - 1)
        low, high = table[right - 1], table[right]
        return (right - 1 + (minus_log_alpha - low) / (high - low)) / (len(table) - 1)

    def config(self) -> dict[str, Any]:
        config = {"name": "vp", "schedule": self.schedule_name}
        if self.schedule_name in ("linear", "scaled-linear"):
            config |= {"beta_min": self.beta_min, "beta_max": self.beta_max}
        return config


def DDPM(levels: int = 1000, schedule: str = "linear", beta_start: float = 1e-4, beta_end: float = 0.02) -> VP:
    """The discrete chain of Ho et al. (2020) as a `VP` table: level n at t = (n + 1)/levels.

    Args:
        schedule: "linear", "scaled-linear" or "cosine" (betas capped at .999) in the discrete betas.
    """
    if levels < 2:
        raise InputError(f"a chain has at least 2 levels, got {levels}")
    if schedule == "linear":
        betas = torch.linspace(beta_start, beta_end, levels, dtype=torch.float64)
    elif schedule == "scaled-linear":
        betas = torch.linspace(beta_start**0.5, beta_end**0.5, levels, dtype=torch.float64) ** 2
    elif schedule == "cosine":
        edges = torch.arange(levels + 1, dtype=torch.float64) / levels
        bar = torch.cos((edges + 0.008) / 1.008 * math.pi / 2) ** 2
        betas = (1 - bar[1:] / bar[:-1]).clamp(max=0.999)
    else:
        raise InputError(
            f"unknown schedule {schedule!r}; known: {', '.join(VP.SCHEDULES)}.{near(schedule, VP.SCHEDULES)}"
        )
    return VP(betas)


@processes.register("subvp")
class SubVP(VP):
    """Sub-VP path: the alpha of `VP`, and ``sigma = 1 - alpha^2`` as a standard deviation."""

    def log_sigma(self, t: Tensor) -> Tensor:
        return log1mexp(2 * self.log_alpha(t))

    def time_at(self, log_snr: float | Tensor) -> Tensor:
        return GaussianPath.time_at(self, log_snr)

    def config(self) -> dict[str, Any]:
        return super().config() | {"name": "subvp"}


@processes.register("ve")
class VE(_LogPath):
    """Variance-exploding path: alpha = 1, ``sigma = sigma_min (sigma_max / sigma_min)^t``."""

    t_min = 0.0

    def __init__(self, sigma_min: float = 0.01, sigma_max: float = 50.0) -> None:
        super().__init__()
        _check_sigmas(sigma_min, sigma_max)
        self.sigma_min, self.sigma_max = float(sigma_min), float(sigma_max)

    def log_alpha(self, t: Tensor) -> Tensor:
        return t * 0.0

    def log_sigma(self, t: Tensor) -> Tensor:
        return math.log(self.sigma_min) + t * math.log(self.sigma_max / self.sigma_min)

    def time_at(self, log_snr: float | Tensor) -> Tensor:
        lam = torch.as_tensor(log_snr, dtype=torch.float64)
        return ((-lam - math.log(self.sigma_min)) / math.log(self.sigma_max / self.sigma_min)).clamp(0, 1)

    def config(self) -> dict[str, Any]:
        return {"name": "ve", "sigma_min": self.sigma_min, "sigma_max": self.sigma_max}


@processes.register("edm")
class EDM(_LogPath):
    """alpha = 1, ``sigma = (s_min^(1/rho) + t (s_max^(1/rho) - s_min^(1/rho)))^rho``; grids are uniform in t."""

    t_min = 0.0

    def __init__(self, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> None:
        super().__init__()
        _check_sigmas(sigma_min, sigma_max)
        self.sigma_min, self.sigma_max, self.rho = float(sigma_min), float(sigma_max), float(rho)
        self._low, self._high = self.sigma_min ** (1 / rho), self.sigma_max ** (1 / rho)

    def log_alpha(self, t: Tensor) -> Tensor:
        return t * 0.0

    def log_sigma(self, t: Tensor) -> Tensor:
        return self.rho * torch.log(self._low + t * (self._high - self._low))

    def time_at(self, log_snr: float | Tensor) -> Tensor:
        lam = torch.as_tensor(log_snr, dtype=torch.float64)
        return ((torch.exp(-lam / self.rho) - self._low) / (self._high - self._low)).clamp(0, 1)

    def config(self) -> dict[str, Any]:
        return {"name": "edm", "sigma_min": self.sigma_min, "sigma_max": self.sigma_max, "rho": self.rho}


@processes.register("rectified-flow")
class RectifiedFlow(_LogPath):
    """The straight path ``x_t = (1 - t) x0 + t z``."""

    def log_alpha(self, t: Tensor) -> Tensor:
        return torch.log1p(-t)

    def log_sigma(self, t: Tensor) -> Tensor:
        return torch.log(t)

    def alpha(self, t: float | Tensor) -> Tensor:
        return 1 - as_time(t)

    def sigma(self, t: float | Tensor) -> Tensor:
        return as_time(t)

    def time_at(self, log_snr: float | Tensor) -> Tensor:
        return torch.sigmoid(-torch.as_tensor(log_snr, dtype=torch.float64))

    def config(self) -> dict[str, Any]:
        return {"name": "rectified-flow"}


def _check_sigmas(sigma_min: float, sigma_max: float) -> None:
    if not 0 < sigma_min < sigma_max:
        raise InputError(f"0 < sigma_min < sigma_max is needed, got {sigma_min} and {sigma_max}")
