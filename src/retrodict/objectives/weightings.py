"""How much an error counts at each noise level.

A weighting is a function ``w(lambda)`` on the squared error of the posterior mean, ``w |D - x0|^2``, with
``lambda = log(alpha/sigma)`` and ``SNR = e^(2 lambda)``.  A network that predicts something else has
``D - x0 = c_out (F - F*)``, so its error is weighted by ``w c_out^2``: one weighting gives the same
gradients in every parameterisation.

============  =======================================  =================================================
uniform       1 / c_out^2                              every error of the network's own output alike
min-snr       min(SNR, gamma)                          Hang et al. (2023), gamma = 5
edm           SNR + 1 / data_std^2                     Karras et al. (2022), table 1
elbo          -1/2 dSNR/dt                             the likelihood bound, in nats
sigmoid       sigmoid(bias - 2 lambda) (-1/2 dSNR/dt)  Kingma and Gao (2023): a bound on noised data
============  =======================================  =================================================

The last two are integrals over time: they are divided by the density of the law of times, so that their value
does not depend on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from retrodict.core.errors import require
from retrodict.core.registry import Registry
from retrodict.denoisers.wrapped import coefficients
from retrodict.objectives.times import log_snr_rate
from retrodict.processes import GaussianPath

_LOG_SNR_CLIP = 20.0  # weights are finite at sigma = 0 and alpha = 0, where t may land


@dataclass(frozen=True)
class Level:
    """A noise level: the time, the path there, and what the network predicts.

    Attributes:
        path, t: where; t ``(n,)`` in float64.
        predicts: the parameterisation, one of `retrodict.denoisers.wrapped.PREDICTS`.
        data_std: of the data, for "edm".
    """

    path: GaussianPath
    t: Tensor
    predicts: str = "data"
    data_std: float = 1.0

    @cached_property
    def log_snr(self) -> Tensor:
        """lambda, clipped to [-20, 20]."""
        return self.path.log_snr(self.t).clamp(-_LOG_SNR_CLIP, _LOG_SNR_CLIP)

    @cached_property
    def log_snr_rate(self) -> Tensor:
        """d lambda / dt."""
        return log_snr_rate(self.path, self.t)

    @cached_property
    def c_out2(self) -> Tensor:
        """Squared error of the posterior mean per squared error of the residual that is regressed.

        For "score" the residual is ``sigma (F - F*)``, which is finite where the score is not.
        """
        if self.predicts == "score":
            return torch.exp(-2 * self.log_snr)
        lam = self.log_snr
        scale = (self.path.alpha(self.t) ** 2 + self.path.sigma(self.t) ** 2).sqrt()
        alpha, sigma = scale * torch.sigmoid(2 * lam).sqrt(), scale * torch.sigmoid(-2 * lam).sqrt()
        c_out = coefficients(self.predicts, alpha, sigma, self.data_std)[2]
        return torch.as_tensor(c_out, dtype=torch.float64, device=lam.device) ** 2


class Weighting:
    """Every error of the network's own output counts alike; the base of the others."""

    #: Whether the loss is an integral over time, to be divided by the density of the law of times.
    integral = False

    def __call__(self, level: Level) -> Tensor | None:
        """Weight of the squared residual of the network's output ``(n,)`` in float64; None for 1."""
        return None


class _DataWeighting(Weighting):
    """A weighting of the error of the posterior mean."""

    def data_weight(self, level: Level) -> Tensor:
        raise NotImplementedError

    def __call__(self, level: Level) -> Tensor:
        return self.data_weight(level) * level.c_out2


class MinSNR(_DataWeighting):
    """``min(SNR, gamma)``."""

    def __init__(self, gamma: float = 5.0) -> None:
        require(gamma > 0, f"gamma of the min-snr weighting is positive, got {gamma}")
        self.gamma = float(gamma)

    def data_weight(self, level: Level) -> Tensor:
        return torch.exp(2 * level.log_snr).clamp(max=self.gamma)


class EDMWeighting(_DataWeighting):
    """``SNR + 1 / data_std^2``: with EDM's preconditioning every output error counts alike."""

    def __init__(self, data_std: float | None = None) -> None:
        self.data_std = data_std

    def data_weight(self, level: Level) -> Tensor:
        data_std = level.data_std if self.data_std is None else self.data_std
        return torch.exp(2 * level.log_snr) + data_std**-2


class ELBO(_DataWeighting):
    """``-1/2 dSNR/dt``: the loss is the diffusion term of the evidence bound, in nats an element."""

    integral = True

    def data_weight(self, level: Level) -> Tensor:
        return -level.log_snr_rate * torch.exp(2 * level.log_snr)


class Sigmoid(ELBO):
    """The ELBO with low noise levels faded out."""

    def __init__(self, bias: float = 2.0) -> None:
        self.bias = float(bias)

    def data_weight(self, level: Level) -> Tensor:
        return torch.sigmoid(self.bias - 2 * level.log_snr) * super().data_weight(level)


#: Weightings by name.
weightings: Registry[Any] = Registry("weighting")
weightings.add("uniform", value=Weighting)
weightings.add("min-snr", value=MinSNR)
weightings.add("edm", value=EDMWeighting)
weightings.add("elbo", "likelihood", value=ELBO)
weightings.add("sigmoid", value=Sigmoid)
