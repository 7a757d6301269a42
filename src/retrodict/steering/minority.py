"""Rare samples on purpose: the minority score, its quantiles as classes, and guidance toward them.

    m(x0) = E_z |x0 - D(alpha x0 + sigma z, t)|^2 / d

is large where a denoiser does not bring a datum back: at low density and in rare modes (Um et al. 2024).  It is a score
of atypicality on its own.  Two ways lead to samples with a high one: a classifier of noisy states for the quantile of m
(the published one), or m of the posterior mean as a reward, without training.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from retrodict.core.errors import InputError, require
from retrodict.core.noise import KeyedNoise
from retrodict.denoisers import Denoiser
from retrodict.processes import GaussianPath
from retrodict.steering.readout import fit_classifier
from retrodict.steering.reward import Reward


@torch.no_grad()
def minority_score(denoiser: Denoiser, x0: Any, t: float = 0.5, draws: int = 5, seed: int = 0) -> Tensor:
    """How badly a denoiser brings data back from time t, ``(n,)`` float64, in the model's units squared.

    Args:
        x0: clean states ``(n, *shape)`` in the user's units.
        t: where; at small t the noise decides, at large t the distance from the mean of all data.
        draws: of noise, averaged; the same for every state.
    """
    path = denoiser.process
    if not isinstance(path, GaussianPath) or not path.scalar or len(path.ends) == 2:
        raise InputError(f"minority scores are of real states on a scalar Gaussian path, not {type(path).__name__}")
    require(0 < t <= 1, f"t is a time in (0, 1], got {t}")
    require(draws >= 1, f"draws is at least 1, got {draws}")
    x = torch.as_tensor(x0)
    x = x if denoiser.scale is None else denoiser.scale(x)
    noise = KeyedNoise(seed, draws, dtype=x.dtype, device=x.device, name="minority").normal(tuple(x.shape[1:]))
    total = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    for z in noise:
        noisy = path.corrupt(x, t, z.expand_as(x).contiguous())
        total += (x - denoiser(noisy.to(denoiser.dtype), t)).double().square().flatten(1).mean(1)
    return total / draws


def minority_labels(score: Tensor, levels: int = 10) -> Tensor:
    """Quantile classes ``(n,)`` of scores, 0 the most typical: ``(q_j, q_{j+1}]``, the first with its minimum."""
    require(isinstance(levels, int) and levels >= 2, f"levels is an integer of at least 2, got {levels!r}")
    require(score.ndim == 1 and len(score) >= levels, f"{levels} levels need as many scores, got {tuple(score.shape)}")
    shares = torch.linspace(0, 1, levels + 1, dtype=torch.float64)[1:-1]
    return torch.bucketize(score.double(), torch.quantile(score.double(), shares))


def fit_minority(
    denoiser: Denoiser, data: Any, levels: int = 10, *, t: float = 0.5, draws: int = 5, seed: int = 0, **training: Any
) -> nn.Module:
    """A classifier of noisy states for the level of their minority score; use it in a `Classifier`.

    Args:
        data: clean states ``(n, *shape)`` in the user's units.
        levels, t, draws: as above; training: of `fit_classifier`.
    """
    x0 = torch.as_tensor(data.x if hasattr(data, "x") else data)
    labels = minority_labels(minority_score(denoiser, x0, t, draws, seed), levels)
    return fit_classifier(denoiser, x0, labels, seed=seed, **training)


def minority_reward(
    denoiser: Denoiser, strength: float = 1.0, *, t: float = 0.5, draws: int = 5, seed: int = 0, **options: Any
) -> Reward:
    """The minority score as a black-box reward: ``p(x0) exp(strength m(x0))``; options are those of `Reward`."""
    return Reward(lambda x0: minority_score(denoiser, x0, t, draws, seed), strength, **options)
