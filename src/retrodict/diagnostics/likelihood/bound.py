"""The evidence bound: how well a denoiser explains a datum, without solving anything.

In continuous time (Kingma et al. 2021, eq. (17), on any Gaussian path):

    -log p(x) <= KL(x_1 | x || prior) + int SNR E|x - D(x_lambda)|^2 dlambda + E[-log p(x | x_0)]

with the integral over lambda = log(alpha/sigma) between the prior and ``end``.  For a chain of finitely many
levels t_1 < ... < t_T = 1, with q the posterior of the forward chain and p the same bridge at what the denoiser
believes (Sohl-Dickstein et al. 2015, in the form that holds for any data):

    -log p(x) <= KL(q(x_T | x) || prior) + sum_{k=2..T} E KL(q(x_{k-1} | x_k, x) || p(x_{k-1} | x_k))
                 + E[-log p(x | x_1)]

With exact reverse kernels the bound is tight on average: it equals the entropy of the data.  Discrete
states have the bound of `retrodict.diagnostics.likelihood.discrete`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from retrodict.core.errors import InputError, require
from retrodict.core.noise import KeyedNoise
from retrodict.denoisers import Denoiser
from retrodict.diagnostics.likelihood.bits import bits_per_dim
from retrodict.diagnostics.likelihood.discrete import chain_terms, continuous_terms
from retrodict.diagnostics.likelihood.units import check_data, of_part, parts, to_model_units
from retrodict.kernels import Gaussian, Point
from retrodict.kernels.laws import event_size, event_sum
from retrodict.processes import Discrete, GaussianPath

_LOG_SNR_FLOOR = -10.0  # what a path that ends in alpha = 0 has left below is e^-20 |x|^2 / 2
DECODERS = ("gaussian", "none")


@dataclass(frozen=True)
class Bound:
    """A lower bound on the log-likelihood of each datum and its parts, in nats, ``(n,)`` float64.

    Attributes:
        prior: KL of the noised datum to the prior.
        diffusion: the sum or the integral over time.
        reconstruction: of the datum from the least noise.
        std_error: of the estimate of their sum.
        log_det: log |d model / d user| of one datum.
        dims: coordinates (or tokens) of a datum.
    """

    prior: Tensor
    diffusion: Tensor
    reconstruction: Tensor
    std_error: Tensor
    log_det: float
    dims: int

    @property
    def log_prob(self) -> Tensor:
        """The bound: log p(x) is at least this."""
        return self.log_det - (self.prior + self.diffusion + self.reconstruction)

    @property
    def per_dim(self) -> Tensor:
        """-log p per coordinate or token, at most."""
        return -self.log_prob / self.dims

    def bits_per_dim(self, width: float = 1.0) -> Tensor:
        """In bits, for grey levels that are ``width`` apart; see `bits_per_dim`."""
        return bits_per_dim(self.log_prob, self.dims, width)


def elbo(
    denoiser: Denoiser,
    x: Tensor,
    *,
    x1: Tensor | None = None,
    chain: Sequence[float] | None = None,
    belief_as: str = "mean",
    decoder: str = "gaussian",
    samples: int = 32,
    seed: int = 0,
    end: float | None = None,
    scale: Any = None,
    batch_size: int = 4096,
    **condition: Any,
) -> Bound:
    """The evidence bound of each datum.

    Args:
        denoiser: of a scalar Gaussian path with one end, or of a discrete process.
        x: data ``(n, *shape)`` in the user's units, tokens ``(n, L)`` or counts.
        x1: the source sequences of a token bridge.
        chain: levels ``0 < t_1 < ... < t_T = 1`` of a discrete chain; None is continuous time.
        belief_as: of a chain: "mean" (the reverse kernel at the posterior mean) or "gaussian" (with the
            denoiser's posterior covariance).
        decoder: "gaussian": x is normal around the posterior mean at the least noise; "none": no reconstruction
            term, for finite data sets, whose points are told apart there without error.
        samples: noise levels for each datum in continuous time, or draws of the whole chain.
        seed: the noise of datum i is the same whatever the batch.
        end: least noise in continuous time; None is the process' ``t_min``.
        scale: a map to the model's units with ``log_det_per_dim``; None takes the denoiser's own.
        batch_size: states in one call of the denoiser.

    Raises:
        InputError: a process without such a bound, data of the wrong shape, levels out of order.
    """
    require(samples >= 1, f"samples is at least 1, got {samples}")
    process = denoiser.process
    if isinstance(process, Discrete):
        check_data(denoiser, x, condition)
        process.check(x, "x")
        levels = None if chain is None else _levels(chain)
        terms = _over_parts(x, samples, batch_size, condition, lambda *p: _discrete(denoiser, x1, levels, *p), seed)
        return Bound(*terms, 0.0, x[0].numel())
    if not isinstance(process, GaussianPath) or not process.scalar or len(process.ends) == 2:
        raise InputError(f"the bound needs tokens or a scalar Gaussian path with one end, got {process!r}")
    require(decoder in DECODERS, f"decoder is one of {', '.join(DECODERS)}, got {decoder!r}")
    check_data(denoiser, x, condition)
    z, log_det = to_model_units(denoiser, x, scale)
    if chain is None:
        least = process.t_min if end is None else float(end)
        require(0 <= least < 1, f"end is a time in [0, 1), got {end}")
        work = lambda *part: _continuous(denoiser, decoder, least, *part)  # noqa: E731
    else:
        levels = _levels(chain)
        work = lambda *part: _chain(denoiser, decoder, levels, belief_as, *part)  # noqa: E731
    return Bound(*_over_parts(z, samples, batch_size, condition, work, seed), log_det, z[0].numel())


def _over_parts(
    x: Tensor, samples: int, batch_size: int, condition: dict[str, Any], work: Any, seed: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``(prior, diffusion, reconstruction, standard error)``, each ``(n,)``, from draws ``(part, samples)``."""
    found: list[Tensor] = []
    for part in parts(len(x), max(1, batch_size // samples)):
        noise = KeyedNoise(seed, range(part.start, part.stop), dtype=torch.float64, device=x.device)
        repeated = x[part].repeat_interleave(samples, 0)
        with torch.no_grad():
            terms = work(part, samples, noise, repeated, of_part(condition, part, len(x), samples))
        rows = torch.stack([term.reshape(-1, samples) for term in terms])
        spread = rows.sum(0).std(1) / samples**0.5 if samples > 1 else torch.full_like(rows[0, :, 0], math.nan)
        found.append(torch.cat([rows.mean(2), spread.unsqueeze(0)]))
    prior, diffusion, reconstruction, error = torch.cat(found, 1)
    return prior, diffusion, reconstruction, error


def _stratified(noise: KeyedNoise, samples: int) -> Tensor:
    """Uniforms ``(n * samples,)``, one in each of ``samples`` strata for every datum."""
    u = noise.stream("times").uniform((samples,))
    return ((torch.arange(samples, device=u.device) + u) / samples).reshape(-1)


def _normals(noise: KeyedNoise, samples: int, like: Tensor) -> Tensor:
    """Standard normals shaped as ``like (n * samples, *shape)``, keyed by datum."""
    return noise.normal((samples, *like.shape[1:])).flatten(0, 1)


# -- continuous time ------------------------------------------------------------------------------------------


def _continuous(
    denoiser: Denoiser, decoder: str, least: float, part: slice, samples: int, noise: KeyedNoise, x: Tensor,
    condition: dict[str, Any],
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    path: GaussianPath = denoiser.process  # type: ignore[assignment]
    clean, noisy = float(path.log_snr(least)), max(float(path.log_snr(1.0)), _LOG_SNR_FLOOR)
    if math.isinf(clean):
        raise InputError(f"the bound needs some noise: sigma is 0 at t = {least}; give end= a small positive time")
    lam = noisy + (clean - noisy) * _stratified(noise, samples)
    t = path.time_at(lam)
    error = _error(denoiser, x, t, _normals(noise, samples, x), condition)
    diffusion = (clean - noisy) * torch.exp(2 * lam) * error
    prior = 0.5 * math.exp(2 * noisy) * event_sum(x.double() ** 2)
    if decoder == "none":
        return prior, diffusion, torch.zeros_like(prior)
    t = torch.full_like(lam, least)
    error = _error(denoiser, x, t, _normals(noise.stream("decoder"), samples, x), condition)
    return prior, diffusion, _gaussian_code(error, clean, event_size(x))


def _error(denoiser: Denoiser, x: Tensor, t: Tensor, z: Tensor, condition: dict[str, Any]) -> Tensor:
    """|x - D(x_t)|^2 ``(n,)``, with the corruption in float64."""
    x_t = denoiser.process.corrupt(x.double(), t, z)
    D = denoiser(x_t.to(denoiser.dtype), t, **condition)
    return event_sum((x.double() - D.double()) ** 2)


def _gaussian_code(error: Tensor, log_snr: float, dims: int) -> Tensor:
    """-log N(x; D, sigma^2/alpha^2)."""
    return 0.5 * (math.exp(2 * log_snr) * error + dims * (math.log(2 * math.pi) - 2 * log_snr))


# -- a chain of levels ----------------------------------------------------------------------------------------


def _levels(chain: Sequence[float]) -> list[float]:
    levels = [float(t) for t in chain]
    ordered = all(a < b for a, b in zip(levels, levels[1:]))  # noqa: RUF007
    if not levels or levels[0] <= 0 or levels[-1] != 1 or not ordered:
        raise InputError(f"a chain has levels 0 < t_1 < ... < t_T = 1, got {levels[:4]} ... {levels[-1:]}")
    return levels


def _chain(
    denoiser: Denoiser, decoder: str, levels: list[float], belief_as: str, part: slice, samples: int,
    noise: KeyedNoise, x: Tensor, condition: dict[str, Any],
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    path, x = denoiser.process, x.double()
    last = path.kernel(0, 1.0).push(Point(x))  # type: ignore[attr-defined]
    prior = _kl(last, Gaussian(torch.zeros_like(x), last.cov.scale(denoiser.temperature)))
    diffusion = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    for s, t in zip(levels, levels[1:]):  # noqa: RUF007
        x_t = path.corrupt(x, t, _normals(noise, samples, x))
        bridge = path.bridge(x_t, t, s, 1.0)
        believed = _belief(denoiser, x_t, t, condition, belief_as)
        diffusion = diffusion + _kl(bridge.push(Point(x)), bridge.push(believed))
    if decoder == "none":
        return prior, diffusion, torch.zeros_like(prior)
    x_t = path.corrupt(x, levels[0], _normals(noise, samples, x))
    believed = _belief(denoiser, x_t, levels[0], condition, belief_as)
    if belief_as == "gaussian":
        return prior, diffusion, -believed.log_prob(x)
    log_snr = float(path.log_snr(levels[0]))  # type: ignore[attr-defined]
    return prior, diffusion, _gaussian_code(event_sum((x - believed.mean) ** 2), log_snr, event_size(x))


def _belief(denoiser: Denoiser, x_t: Tensor, t: float, condition: dict[str, Any], belief_as: str) -> Gaussian:
    belief = denoiser.belief(x_t.to(denoiser.dtype), t, **condition)
    if belief_as == "mean":
        return Point(belief.mean.double())
    require(belief_as == "gaussian", f"belief_as is 'mean' or 'gaussian' in a bound, got {belief_as!r}")
    return Gaussian(belief.mean.double(), belief.covariance().to(torch.float64))


def _kl(q: Gaussian, p: Gaussian) -> Tensor:
    """KL(q || p) of Gaussian laws ``(n,)``."""
    d = event_size(p.mean)
    difference = p.mean - q.mean
    spread = (p.cov.inv() @ q.cov).trace(d) - d + p.cov.logdet(d) - q.cov.logdet(d)
    return 0.5 * (event_sum(difference * p.cov.solve(difference)) + spread)


# -- discrete states ------------------------------------------------------------------------------------------


def _discrete(
    denoiser: Denoiser, x1: Tensor | None, levels: list[float] | None, part: slice, samples: int, noise: KeyedNoise,
    x: Tensor, condition: dict[str, Any],
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    source = None if x1 is None else x1[part].repeat_interleave(samples, 0)
    if levels is not None:
        return chain_terms(denoiser, levels, x, samples, noise, source, condition)
    return continuous_terms(denoiser, _stratified(noise, samples), x, samples, noise, source, condition)
