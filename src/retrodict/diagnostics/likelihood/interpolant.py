"""Likelihood on a path between two data sets, at any noise level of the sampler.

Let b be the velocity and s the score that a denoiser's two ends imply, and eps >= 0.  With Y the forward
diffusion ``dY = (b + eps s) dt + sqrt(2 eps) dW`` from the datum to the other end,

    log p(x) = E[ log p_1(Y_1) + int_0^1 ( div(b - eps s) - eps |s|^2 )(t, Y_t) dt ]

which for eps = 0 is the change of variables along the flow.  A model (b^, s^) sampled at eps > 0 obeys

    KL(data || model) <= 1/(4 eps) int E|(b^ - b) - eps (s^ - s)|^2 dt
                      <= 1/(2 eps) int E|b^ - b|^2 dt + eps/2 int E|s^ - s|^2 dt

and no such control exists at eps = 0.  Source: Albergo, Boffi and Vanden-Eijnden (2023), theorems 2.23 and 2.29.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from retrodict.core.errors import InputError, require
from retrodict.core.noise import KeyedNoise
from retrodict.denoisers import Denoiser
from retrodict.diagnostics.likelihood.flow import Likelihood, pull_back
from retrodict.diagnostics.likelihood.units import check_data, of_part
from retrodict.kernels.laws import event_sum
from retrodict.processes import GaussianPath, Process, conversions


@dataclass(frozen=True)
class KLBound:
    """Bounds on KL(data || model) of a sampled interpolant, in nats.

    Attributes:
        joint: the first bound above; split: the second.
        std_error: of ``joint``.
        best_level: the noise level at which ``split`` is least.
    """

    joint: float
    split: float
    std_error: float
    best_level: float


def interpolant_log_likelihood(
    denoiser: Denoiser,
    x: Tensor,
    base_log_prob: Callable[[Tensor], Tensor],
    *,
    noise_level: float = 0.0,
    steps: int = 200,
    paths: int = 16,
    seed: int = 0,
    **condition: Any,
) -> Likelihood:
    """Log-likelihood of data under the sampler of an interpolant with two ends, in the model's units.

    Args:
        denoiser: of a scalar Gaussian path with two ends; its belief has both.
        x: data at t = 0, ``(n, *shape)``.
        base_log_prob: log density of the other end, ``(m, *shape) -> (m,)``.
        noise_level: eps of the sampler; 0 is its flow.
        steps: of the forward diffusion, finer at both ends of time.
        paths: draws of it for each datum; one suffices at eps = 0.
        seed: of the diffusion, keyed by datum.

    Returns:
        With ``std_error`` over the paths (zero for the flow); the bias of the steps is of first order.
    """
    path = _two_ended(denoiser)
    require(noise_level >= 0, f"noise_level is at least 0, got {noise_level}")
    require(steps >= 1 and paths >= 1, f"steps and paths are at least 1, got {steps} and {paths}")
    check_data(denoiser, x, condition)
    n, paths = len(x), paths if noise_level > 0 else 1
    noise = KeyedNoise(seed, n, dtype=torch.float64, device=x.device)
    y = x.double().repeat_interleave(paths, 0)
    repeated = of_part(condition, slice(0, n), n, paths)
    total = torch.zeros(len(y), dtype=torch.float64, device=x.device)
    for s, t in itertools.pairwise(_times(steps)):
        dt, middle = t - s, (s + t) / 2
        # the middle of a step, in time and for the flow in space: b and s are singular at the ends of time
        if noise_level == 0:
            y_half = y + dt / 2 * _fields(denoiser, path, y, middle, repeated)[0].detach()
            forward, rate = _rates(denoiser, path, y_half, middle, noise_level, repeated)
        else:
            forward, rate = _rates(denoiser, path, y, middle, noise_level, repeated)
        total = total + dt * rate
        z = noise.normal((paths, *x.shape[1:])).flatten(0, 1)
        y = y + dt * forward + math.sqrt(2 * noise_level * dt) * z
    total = total + base_log_prob(y).double()
    each = total.reshape(n, paths)
    error = each.std(1) / paths**0.5 if paths > 1 else torch.full_like(each[:, 0], math.nan)
    error = torch.zeros_like(error) if noise_level == 0 else error
    calls = steps * (2 if noise_level == 0 else 1)
    return Likelihood(each.mean(1), error, calls, "exact", x[0].numel())


def interpolant_kl_bound(
    reference: Denoiser,
    model: Denoiser,
    x0: Tensor,
    x1: Tensor,
    *,
    noise_level: float,
    times: int = 64,
    seed: int = 0,
    **condition: Any,
) -> KLBound:
    """How far the sampler of ``model`` can be from the data, given the exact (or a better) ``reference``.

    Args:
        reference, model: denoisers of one path with two ends.
        x0, x1: samples of the coupled ends, ``(n, *shape)``.
        noise_level: eps of the sampler, positive.
        times: at which the mean squared errors are taken, Gauss-Legendre on a clock that is finer at both ends.
    """
    path = _two_ended(model)
    if noise_level <= 0:
        raise InputError(f"only a sampler with noise has this bound: noise_level is positive, got {noise_level}")
    if not _same(reference.process, model.process):
        raise InputError(f"both denoisers are of one path, got {reference.process!r} and {model.process!r}")
    noise = KeyedNoise(seed, len(x0), dtype=torch.float64, device=x0.device)
    joint = torch.zeros(len(x0), dtype=torch.float64, device=x0.device)
    of_velocity, of_score = joint, joint
    nodes, weights = _legendre(times)
    for angle, weight in zip(nodes, weights):
        t, weight = math.sin(angle) ** 2, weight * math.sin(2 * angle)
        x_t = path.corrupt(x0.double(), t, noise, x1.double())
        with torch.no_grad():
            b, s = _fields(reference, path, x_t, t, condition)
            b_hat, s_hat = _fields(model, path, x_t, t, condition)
        db, ds = b_hat - b, s_hat - s
        joint = joint + weight * event_sum((db - noise_level * ds) ** 2)
        of_velocity = of_velocity + weight * event_sum(db**2)
        of_score = of_score + weight * event_sum(ds**2)
    L_b, L_s = float(of_velocity.mean()), float(of_score.mean())
    return KLBound(
        float(joint.mean()) / (4 * noise_level),
        L_b / (2 * noise_level) + noise_level / 2 * L_s,
        float(joint.std()) / len(x0) ** 0.5 / (4 * noise_level),
        math.sqrt(L_b / L_s) if L_s > 0 else math.inf,
    )


def _fields(
    denoiser: Denoiser, path: GaussianPath, x: Tensor, t: float, condition: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """``(b, s)`` at x in float64."""
    belief = denoiser.belief(x.to(denoiser.dtype), t, **condition)
    if belief.x1 is None:
        raise InputError(f"{type(denoiser).__name__} believes nothing of the other end; wrap it as TwoEnded")
    ends = belief.mean.double(), belief.x1.double()
    return conversions.velocity(path, x, t, *ends), conversions.score(path, x, t, *ends)


def _rates(
    denoiser: Denoiser, path: GaussianPath, y: Tensor, t: float, eps: float, condition: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """The forward drift ``b + eps s``, and ``div(b - eps s) - eps |s|^2`` of each sample."""
    with torch.enable_grad():
        y = y.detach().requires_grad_()
        b, s = _fields(denoiser, path, y, t, condition)
        backward = b - eps * s
        d = y[0].numel()
        basis = torch.eye(d, dtype=y.dtype, device=y.device).expand(len(y), d, d)
        divergence = (pull_back(backward, y, basis) * basis).sum((1, 2))
    return (b + eps * s).detach(), divergence - eps * event_sum(s.detach() ** 2)


def _two_ended(denoiser: Denoiser) -> GaussianPath:
    process = denoiser.process
    if not isinstance(process, GaussianPath) or not process.scalar or len(process.ends) != 2:
        raise InputError(f"an interpolant's likelihood needs a path with two ends, got {process!r}")
    return process


def _same(a: Process, b: Process) -> bool:
    return a is b or (a.can_save and b.can_save and a.config() == b.config())


def _times(steps: int) -> list[float]:
    return [math.sin(math.pi / 2 * k / steps) ** 2 for k in range(steps + 1)]


def _legendre(count: int) -> tuple[list[float], list[float]]:
    """Nodes and weights of an integral over the angle from 0 to pi/2."""
    nodes, weights = np.polynomial.legendre.leggauss(count)
    return list((nodes + 1) * math.pi / 4), list(weights * math.pi / 4)
