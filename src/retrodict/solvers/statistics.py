"""Empirical model statistics: what DPM-Solver-v3 knows of a model (Zheng et al. 2023).

With y = x/alpha and the half log-SNR lambda as clock the probability-flow ODE is ``dy/dlambda = -l y - f`` with
``f = (1 - l) y - D``, for any l(lambda).  Three functions of lambda make f slowly varying up to known factors:

    l   makes f least sensitive to the state:         l = 1 - alpha E[diag dD/dx]
    s   follows its growth along the ODE,             f' = s f + b + rest:      s = Cov(f, f')/Var(f)
    b   follows its drift:                            b = E f' - s E f

l = 1, s = b = 0 is data prediction, l = 0, s = -1, b = 0 is noise prediction: the statistics choose at every noise
level what lies between.  `measure` estimates them from data, as numbers or element by element.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from scipy.interpolate import CubicSpline
from torch import Tensor

from retrodict.core.errors import InputError, InputTypeError, require
from retrodict.core.noise import KeyedNoise
from retrodict.denoisers import Denoiser
from retrodict.processes import GaussianPath


@dataclass(frozen=True)
class Statistics:
    """l, s and b at increasing ``lam (n,)``: arrays ``(n,)``, or ``(n, *shape)`` element by element."""

    lam: np.ndarray
    l: np.ndarray
    s: np.ndarray
    b: np.ndarray

    def __post_init__(self) -> None:
        for name in ("lam", "l", "s", "b"):
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype=np.float64))
        n = len(self.lam)
        require(
            self.lam.ndim == 1 and n >= 4 and bool((np.diff(self.lam) > 0).all()), "lam increases, 4 or more values"
        )
        same = self.l.shape == self.s.shape == self.b.shape and len(self.l) == n
        require(same, f"l, s and b have one shape ({n}, ...), got {self.l.shape}, {self.s.shape}, {self.b.shape}")
        require(all(np.isfinite(v).all() for v in (self.l, self.s, self.b)), "statistics are finite")

    @property
    def elementwise(self) -> bool:
        """Whether every element of a sample has its own."""
        return self.l.ndim > 1

    def curves(self) -> tuple[CubicSpline, CubicSpline, CubicSpline]:
        """Splines of l, s and b."""
        return tuple(CubicSpline(self.lam, v) for v in (self.l, self.s, self.b))  # type: ignore[return-value]

    def config(self) -> dict[str, Any]:
        """Plain values, so that a plan made with them is data."""
        return {name: getattr(self, name).tolist() for name in ("lam", "l", "s", "b")}

    def save(self, path: str | Path) -> None:
        """Write a safetensors file; a folder, such as a model's, gets ``statistics.safetensors``."""
        path = _file(path)
        require(Path(path).suffix == ".safetensors", f"the file's name ends in .safetensors, got {Path(path).name!r}")
        save_file({name: np.ascontiguousarray(getattr(self, name)) for name in ("lam", "l", "s", "b")}, path)

    @staticmethod
    def load(path: str | Path) -> Statistics:
        """Read a file of `save`, or the one in a folder."""
        path = _file(path)
        try:
            with safe_open(path, framework="np") as file:
                return Statistics(*(file.get_tensor(name) for name in ("lam", "l", "s", "b")))
        except (OSError, SafetensorError) as error:
            raise InputError(f"{path} holds no statistics: {error}") from error


def _file(path: str | Path) -> Path:
    return Path(path) / "statistics.safetensors" if Path(path).is_dir() else Path(path)


def as_statistics(value: Any) -> Statistics | None:
    """`Statistics` from themselves, their plain values, a file or a folder."""
    if value is None or isinstance(value, Statistics):
        return value
    if isinstance(value, (str, Path)):
        return Statistics.load(value)
    if isinstance(value, Mapping) and {"lam", "l", "s", "b"} <= set(value):
        return Statistics(value["lam"], value["l"], value["s"], value["b"])
    raise InputError("statistics are Statistics, a file of them or its folder, or their plain values lam, l, s, b")


@torch.no_grad()
def measure(
    denoiser: Denoiser,
    data: Tensor,
    *,
    levels: int = 120,
    elementwise: bool = False,
    start: float = 1.0,
    end: float | None = None,
    seed: int = 0,
    batch_size: int = 1024,
    **condition: Any,
) -> Statistics:
    """Estimate the statistics of a model.

    Args:
        data: ``(n, *shape)`` in the model's units, real or the model's own samples; about 1,000 do.
        levels: at how many lambda, evenly from time ``start`` to ``end`` (None: the smallest the grids visit).
        elementwise: one value for each element instead of one for all.
        condition: tensors of length n are per sample.  Statistics belong to a model under its guidance.

    It takes six evaluations per datum and level; derivatives are central differences along the state and the ODE.
    """
    if not isinstance(denoiser, Denoiser):
        raise InputTypeError(f"statistics are measured of a Denoiser, got {type(denoiser).__name__}")
    path: Any = denoiser.process
    if not isinstance(path, GaussianPath) or not path.scalar or len(path.ends) == 2:
        raise InputError("statistics are measured on scalar Gaussian paths with one end")
    require(len(data) >= 2 and levels >= 4, f"two data and four levels are needed, got {len(data)} and {levels}")
    end = max(float(path.t_min), 0.0) if end is None else end
    lam = np.linspace(*path.log_snr_range(start, end), levels)
    probe = _Probe(denoiser, data, seed, batch_size, condition, elementwise)
    l = np.stack([probe.sensitivity(v) for v in lam])
    curve = CubicSpline(lam, l)
    s, b = (np.stack(v) for v in zip(*(probe.drift(v, curve) for v in lam)))
    return Statistics(lam, l, s, b)


class _Probe:
    """Evaluations of a model on noised data at given lambda."""

    def __init__(
        self,
        denoiser: Denoiser,
        data: Tensor,
        seed: int,
        batch_size: int,
        condition: Mapping[str, Any],
        elementwise: bool,
    ) -> None:
        self.denoiser, self.data, self.condition, self.batch = denoiser, data, condition, batch_size
        self.path: Any = denoiser.process
        noise = KeyedNoise(seed, len(data), dtype=data.dtype, device=data.device)
        self.z = noise.normal(tuple(data.shape[1:]))
        self.signs = noise.stream("probe").normal(tuple(data.shape[1:])).sign()
        self.step = float(torch.finfo(data.dtype).eps) ** (1 / 3)
        self.elementwise = elementwise

    def believe(self, y: Tensor, lam: float) -> Tensor:
        """D at the state alpha y."""
        t = float(self.path.time_at(lam))
        x, parts = y * float(self.path.alpha(t)), []
        for index in torch.arange(len(x), device=x.device).split(self.batch):
            own = {k: v[index] if _per_sample(v, len(x)) else v for k, v in self.condition.items()}
            parts.append(self.denoiser(x[index], t, **own))
        return torch.cat(parts)

    def state(self, lam: float) -> Tensor:
        """y = x0 + e^-lambda z."""
        return self.data + float(np.exp(-lam)) * self.z

    def sensitivity(self, lam: float) -> np.ndarray:
        """l = 1 - E[v (dD/dy v)], v random signs."""
        y, h = self.state(lam), self.step * float(np.exp(-lam))
        slope = (self.believe(y + h * self.signs, lam) - self.believe(y - h * self.signs, lam)) / (2 * h)
        return self._mean(1 - self.signs * slope)

    def drift(self, lam: float, l: Any) -> tuple[np.ndarray, np.ndarray]:
        """s and b, by regressing the derivative of f along the ODE on f."""
        y, low, high = self.state(lam), float(self._range()[0]), float(self._range()[1])
        D, h = self.believe(y, lam), self.step
        ahead, behind = min(lam + h, high), max(lam - h, low)
        f, f_ahead, f_behind = (
            (1 - torch.as_tensor(l(at)).to(y)) * v - self.believe(v, at)
            for at, v in ((lam, y), (ahead, y + (ahead - lam) * (D - y)), (behind, y + (behind - lam) * (D - y)))
        )
        rate = (f_ahead - f_behind) / (ahead - behind)
        mean_f, mean_rate = self._mean(f), self._mean(rate)
        shape = (1, *mean_f.shape) if self.elementwise else ()
        centred = f.double() - torch.as_tensor(mean_f).reshape(shape).to(f.device)
        variance = self._mean(centred**2)
        covariance = self._mean(centred * rate.double())
        known = variance > 0.01 * self.step**2 * (1 + mean_f**2)  # else f varies by the differences' rounding alone
        s = np.where(known, covariance / np.where(known, variance, 1.0), 0.0)
        return s, mean_rate - s * mean_f

    def _range(self) -> tuple[Tensor, Tensor]:
        """lambda at t = 1 and t = 0, between which there are times."""
        return self.path.log_snr(1.0), self.path.log_snr(0.0)

    def _mean(self, value: Tensor) -> np.ndarray:
        value = value.double().mean(0)
        return (value if self.elementwise else value.mean()).cpu().numpy()


def _per_sample(value: Any, n: int) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0 and len(value) == n


def exact_gaussian(lam: Sequence[float] | np.ndarray, mean: float, variance: float) -> Statistics:
    """The statistics of the exact denoiser of N(mean, variance): with them one step is exact.

    l = 1 - c(lambda), c = variance/(variance + e^-2lambda); s = 0; b = mean dc/dlambda.
    """
    at = np.asarray(lam, dtype=np.float64)
    share = variance / (variance + np.exp(-2 * at))
    return Statistics(at, 1 - share, np.zeros_like(at), mean * 2 * share * (1 - share))
