"""Log-likelihood by the probability flow.

Sampling without noise is a flow, and along a flow densities change by its divergence.  In the variable
``u = x / s`` with ``s^2 = alpha^2 + sigma^2``, and with lambda = log(alpha/sigma) as time, the flow of a Gaussian
path with posterior mean D is

    du/dlambda = c (D - c u),        c = alpha/s,        c^2 = sigmoid(2 lambda)

which stands still where x is all noise and where it is all data.  From a datum, which sits at u = c x, to noise:

    log p(x) = log N(u_1; 0, sigma_1^2/s_1^2) + int_{lambda_0}^{lambda_1} c (tr dD/du - c d) dlambda + d log c_0

(Song et al. 2021, appendix D, in these variables).  The trace is exact, or estimated by probes v with one
backward pass each, ``v . J v`` (Hutchinson 1990); a probe is kept for the whole solve, so that the integrand is
smooth.  The density is that of the sampler's law just before its last step, at noise level ``end``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchdiffeq import odeint

from retrodict.core.errors import InputError, near, require
from retrodict.core.noise import KeyedNoise
from retrodict.denoisers import Denoiser
from retrodict.diagnostics.likelihood.bits import bits_per_dim
from retrodict.diagnostics.likelihood.units import check_data, of_part, parts, to_model_units
from retrodict.processes import GaussianPath

_EXACT_UP_TO = 64  # dimensions in which "auto" takes the exact trace
_DIRECTIONS = 16  # pulled back together
_LOG_SNR_FLOOR = -20.0  # a path that ends in alpha = 0 is followed down to here: alpha/sigma = 2e-9
METHODS = ("dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun")
DIVERGENCES = ("auto", "exact", "hutchinson")


@dataclass(frozen=True)
class Likelihood:
    """Log-likelihoods of a batch.

    Attributes:
        log_prob: natural log densities in the units of the data, ``(n,)`` float64.
        std_error: of the estimate of the divergence ``(n,)``: zero if exact, NaN for a single probe.
        nfe: evaluations of the denoiser.
        divergence: "exact" or "hutchinson".
        dims: coordinates of a datum.
    """

    log_prob: Tensor
    std_error: Tensor
    nfe: int
    divergence: str
    dims: int

    def bits_per_dim(self, width: float = 1.0) -> Tensor:
        """In bits, for grey levels that are ``width`` apart; see `bits_per_dim`."""
        return bits_per_dim(self.log_prob, self.dims, width)


def log_likelihood(
    denoiser: Denoiser,
    x: Tensor,
    *,
    divergence: str = "auto",
    probes: int = 1,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    seed: int = 0,
    method: str = "dopri5",
    end: float | None = None,
    scale: Any = None,
    batch_size: int | None = None,
    **condition: Any,
) -> Likelihood:
    """Log-likelihood of data by the probability-flow ODE of a Gaussian path with one end.

    Args:
        denoiser: of a scalar Gaussian path.
        x: data ``(n, *shape)`` in the user's units.
        divergence: "exact" (one backward pass a dimension), "hutchinson", or "auto": exact up to 64 dimensions.
        probes: of Hutchinson's estimate; two or more give a standard error.
        rtol, atol: tolerances of the adaptive solver, for the worst sample of a batch.
        seed: of the probes; the probe of datum i is the same whatever the batch.
        method: an adaptive method of torchdiffeq.
        end: time of the least noise, where the density is taken; None is the process' ``t_min``.
        scale: a map to the model's units with ``log_det_per_dim``; None takes the denoiser's own.
        batch_size: data of one solve; None is all.
        condition: of the denoiser, one value or one a datum.

    Raises:
        InputError: a process without log-SNR, data of the wrong shape, an unknown method.
    """
    if not isinstance(denoiser.process, GaussianPath) or not denoiser.process.scalar or len(denoiser.process.ends) == 2:
        raise InputError(
            f"the flow's likelihood needs a scalar Gaussian path with one end, got {denoiser.process!r}; "
            "use elbo for tokens and interpolant_log_likelihood for two ends"
        )
    _check_choices(divergence, method, probes)
    check_data(denoiser, x, condition)
    z, log_det = to_model_units(denoiser, x, scale)
    dims = z[0].numel()
    exact = divergence == "exact" or (divergence == "auto" and dims <= _EXACT_UP_TO)
    found, errors, nfe = [], [], 0
    for part in parts(len(z), batch_size):
        index = range(part.start, part.stop)
        probe = None if exact else _probes(KeyedNoise(seed, index, device=z.device), probes, dims)
        flow = _Flow(denoiser, z[part], probe, of_part(condition, part, len(z)))
        log_prob = flow.solve(_end(denoiser.process, end), rtol, atol, method)
        found.append(log_prob.mean(1))
        spread = log_prob.std(1) / probes**0.5 if log_prob.shape[1] > 1 else torch.full_like(log_prob[:, 0], math.nan)
        errors.append(torch.zeros_like(spread) if exact else spread)
        nfe += flow.nfe
    name = "exact" if exact else "hutchinson"
    return Likelihood(torch.cat(found) + log_det, torch.cat(errors), nfe, name, dims)


class _Flow:
    """The flow of one batch with its log-determinants; state ``(n, d + probes)`` in float64."""

    def __init__(self, denoiser: Denoiser, x: Tensor, probes: Tensor | None, condition: dict[str, Any]) -> None:
        self.denoiser, self.probes, self.condition = denoiser, probes, condition
        self.path: GaussianPath = denoiser.process  # type: ignore[assignment]
        self.x, self.d, self.nfe = x, x[0].numel(), 0
        self.columns = 1 if probes is None else probes.shape[1]

    def solve(self, end: float, rtol: float, atol: float, method: str) -> Tensor:
        """log p of each datum by each probe, ``(n, probes)``."""
        clean = float(self.path.log_snr(end))
        noisy = max(float(self.path.log_snr(1.0)), _LOG_SNR_FLOOR)
        span = torch.tensor([clean, noisy], dtype=torch.float64, device=self.x.device)
        c = torch.sigmoid(2 * span[0]).sqrt()
        start = self.x.double().flatten(1) * c
        state = torch.cat([start, start.new_zeros(len(start), self.columns)], 1)
        with torch.no_grad():
            path: Tensor = odeint(
                self._velocity, state, span, rtol=rtol, atol=atol, method=method, options={"norm": self._worst}
            )  # type: ignore[assignment] # a tensor for a tensor
        final = path[-1]
        u, integral = final[:, : self.d], final[:, self.d :]
        variance = torch.sigmoid(-2 * span[1]) * self.denoiser.temperature
        prior = -0.5 * ((u**2).sum(1) / variance + self.d * torch.log(2 * math.pi * variance))
        return prior.unsqueeze(1) + integral + self.d * torch.log(c)

    def _velocity(self, lam: Tensor, state: Tensor) -> Tensor:
        c, t = torch.sigmoid(2 * lam).sqrt(), self.path.time_at(lam)
        size = (self.path.alpha(t) ** 2 + self.path.sigma(t) ** 2).sqrt()
        u = state[:, : self.d]
        D, trace = self._denoise(u, t, size)
        return torch.cat([c * (D - c * u), c * (trace - c * self.d)], 1)

    def _denoise(self, u: Tensor, t: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
        """D ``(n, d)`` and tr dD/du ``(n, probes)``."""
        self.nfe += 1
        with torch.enable_grad():
            x = (u * size).to(self.denoiser.dtype).reshape(self.x.shape).requires_grad_()
            D = self.denoiser(x, t.expand(len(x)), **self.condition)
            directions = self.probes
            if directions is None:
                directions = torch.eye(self.d, device=x.device).unsqueeze(0).expand(len(x), -1, -1)
            pulled = pull_back(D, x, directions.to(D))
        trace = (pulled * directions).double().sum(-1)
        trace = trace.sum(1, keepdim=True) if self.probes is None else trace
        return D.detach().double().flatten(1), trace * size

    def _worst(self, error: Tensor) -> Tensor:
        """The error of the worst sample, so that a batch is as accurate as each of its parts."""
        states, integrals = error[:, : self.d], error[:, self.d :]
        return torch.maximum(states.square().mean(1).sqrt().max(), integrals.abs().max())


def pull_back(D: Tensor, x: Tensor, directions: Tensor) -> Tensor:
    """``v' dD/dx`` for each datum and each of its directions ``(n, k, d)``; a backward pass for every 16."""
    if not D.requires_grad:  # a constant
        return torch.zeros_like(directions)
    stacked = directions.transpose(0, 1).reshape(-1, *D.shape)
    rows = []
    for v in stacked.split(_DIRECTIONS):
        one = len(v) == 1  # without the batching transform, which not every operation has
        (row,) = torch.autograd.grad(D, x, v[0] if one else v, retain_graph=True, is_grads_batched=not one)
        rows.append(row.reshape(len(v), len(x), -1))
    return torch.cat(rows).transpose(0, 1)


def _probes(noise: KeyedNoise, count: int, dims: int) -> Tensor:
    """Random signs ``(n, count, dims)``."""
    return (noise.stream("probes").uniform((count, dims)) < 0.5).float() * 2 - 1


def _end(path: GaussianPath, end: float | None) -> float:
    end = path.t_min if end is None else float(end)
    require(0 <= end < 1, f"end is a time in [0, 1), got {end}")
    if float(path.sigma(end)) == 0:
        raise InputError(f"a density needs some noise: sigma is 0 at t = {end}; give end= a small positive time")
    return end


def _check_choices(divergence: str, method: str, probes: int) -> None:
    for what, name, known in (("divergence", divergence, DIVERGENCES), ("method", method, METHODS)):
        if name not in known:
            raise InputError(f"unknown {what} {name!r}; known: {', '.join(known)}.{near(name, known)}")
    require(probes >= 1, f"probes is at least 1, got {probes}")
