"""The evidence bound of discrete states, in nats: tokens, categories and counts.

    -log p(x0 | x1) <= KL(q(x_1 | x0) || prior) + int_0^1 E[relative entropy rate of the backward jumps] dt

in continuous time, and the sum of the relative entropies of single steps on a chain of levels; see
`retrodict.objectives.tokens`.  With the exact posterior the mean over the data is their entropy, in discrete time up
to what decoding coordinates side by side costs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from retrodict.core.noise import KeyedNoise
from retrodict.denoisers import Denoiser
from retrodict.objectives.times import LogOdds
from retrodict.objectives.tokens import (
    belief_of,
    bound_rate,
    divergence,
    log_posterior,
    reveal_rate,
    step_divergence,
    terminal,
)
from retrodict.processes import Discrete, Quantised, TokenBridge

_HIDE_FLOOR = 1e-9
_TIMES = LogOdds(span=20.0)

Terms = tuple[Tensor, Tensor, Tensor]


def continuous_terms(
    denoiser: Denoiser, u: Tensor, x: Tensor, samples: int, noise: KeyedNoise, source: Tensor | None, condition: Any
) -> Terms:
    """``(prior, diffusion, reconstruction)`` of each draw ``(n * samples,)``, at times placed by uniforms ``u``."""
    process: Discrete = denoiser.process  # type: ignore[assignment]
    dims = x[0].numel()
    if isinstance(process, TokenBridge):
        t = u.clamp_min(_HIDE_FLOOR)
        x_t = _corrupted(process, x, t, samples, noise, source)
        log_p = log_posterior(denoiser, x_t, t, source, condition)
        bound = reveal_rate(process, t) * divergence(process, log_p, x, x_t, source).double() * dims
    else:
        t = _TIMES.quantile(u, process)
        x_t = _corrupted(process, x, t, samples, noise, source)
        believed = belief_of(denoiser, x_t, t, source, condition)
        bound = bound_rate(process, believed, x, x_t, t, source) * dims / _TIMES.density(t, process)
    prior = terminal(process, x)
    return prior, bound, torch.zeros_like(prior)


def chain_terms(
    denoiser: Denoiser,
    levels: list[float],
    x: Tensor,
    samples: int,
    noise: KeyedNoise,
    source: Tensor | None,
    condition: Any,
) -> Terms:
    """The same of a chain of levels ``t_1 < ... < 1``; the reconstruction is the step from t_1 to the data."""
    process: Discrete = denoiser.process  # type: ignore[assignment]
    steps = []
    for s, t in zip([0.0, *levels], levels):
        x_t = _corrupted(process, x, t, samples, noise, source)
        believed = belief_of(denoiser, x_t, t, source, condition)
        steps.append(step_divergence(process, believed, x, x_t, t, s, source).flatten(1).sum(1))
    prior = terminal(process, x)
    return prior, torch.stack([torch.zeros_like(prior), *steps[1:]]).sum(0), steps[0]


def _corrupted(
    process: Discrete, x: Tensor, t: float | Tensor, samples: int, noise: KeyedNoise, source: Tensor | None
) -> Tensor:
    """x_t for each draw of each datum, its noise keyed by datum."""
    shape = (samples, *x.shape[1:])
    if isinstance(process, Quantised):
        z = noise.normal((*shape, process.embeddings.shape[1])).flatten(0, 1)
    else:
        z = noise.uniform(shape).flatten(0, 1)
    return process.corrupt(x, t, z, source)
