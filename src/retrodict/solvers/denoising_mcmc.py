"""Denoising MCMC: a chain over states and noise levels, denoised now and then (Kim and Ye 2023).

The chain's law is ``p(y, k) = p_k(y)/K``, p_k the data's law blurred by sigma_k, in y = x/alpha on a grid of K levels.
It alternates a Langevin step at the present level and a draw of the level given the state,

    y <- y + (e/2) score_k(y) + sqrt(e) z,     e = kappa (sigma_k^2 + v)           k <- draw of p(k | y) ~ p_k(y)

and keeps a state of every block, from which a short plan goes to the data (`finish`).  It moves between modes at high
levels and never returns to pure noise.

The official code keeps the state with the smallest level of each block, a selection, which in the plane makes samples a
third too wide; it takes the most probable level instead of a draw, which is another chain (it clings to low levels in
few dimensions), and a constant e, which is unstable where sigma_k is small.  Here levels are drawn, and e follows the
level: v is the variance inside a mode, and kappa = .1 keeps the law of the levels to a few hundredths.  Where log p_k
is known with its constant each step is accepted or rejected (Metropolis): then the law is exact, and kappa = 1 will do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from retrodict.core.errors import InputError, require
from retrodict.core.noise import KeyedNoise
from retrodict.denoisers import Denoiser
from retrodict.processes import GaussianPath
from retrodict.solvers import general
from retrodict.solvers.build import plan


@dataclass(frozen=True)
class Walk:
    """What a chain leaves.

    Attributes:
        x: the state kept of each block ``(blocks, chains, *shape)``, on the process' scale.
        t: their times ``(blocks, chains)`` float64; start plans of the process there.
        levels: index of the level after every step ``(steps, chains)``, 0 the noisiest.
        times: of the levels ``(K,)``.
        last: where the chains stand, ``(chains, *shape)``, to go on from.
    """

    x: Tensor
    t: Tensor
    levels: Tensor
    times: Tensor
    last: Tensor


@torch.no_grad()
def denoising_mcmc(
    denoiser: Denoiser,
    log_level: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    t: float,
    *,
    metropolis: bool = False,
    keep: str = "last",
    blocks: int = 1,
    skip: int = 10,
    levels: int = 100,
    range: tuple[float, float] | None = None,
    kappa: float = 0.1,
    within: float = 0.0,
    seed: int = 0,
    **condition: Any,
) -> Walk:
    """Run chains.

    Args:
        log_level: ``(y (batch, *shape), sigma (K,)) -> (batch, K)``, log p_k(y) up to a constant of each state: of an
            exact law, or the logits of a network trained to tell the level of x0 + sigma_k z, k uniform.
        metropolis: whether log_level is log p_k(y) itself, up to one constant for all y: steps are then accepted or
            rejected, at one more evaluation each.
        x, t: where the chains start: states at time t.
        keep: of each block the "last" state, which has the chain's law, or the one with the "smallest" level as
            published, from where the way to the data is shorter.
        blocks, skip: samples taken from each chain, and steps (of one evaluation) for each.
        levels, range: how many levels, evenly in log sigma/alpha between (highest, lowest); None is .01 to 50, inside
            the path.
        kappa: step size relative to the largest that is natural; within: v, the variance inside a mode.
    """
    path: Any = denoiser.process
    if not isinstance(path, GaussianPath) or not path.scalar or len(path.ends) == 2:
        raise InputError("the chain needs a scalar Gaussian path with one end")
    require(0 < t <= 1, f"the chain starts at a time in (0, 1], got {t}")
    require(blocks >= 1 and skip >= 1 and levels >= 2, "blocks and skip are at least 1, levels at least 2")
    require(keep in ("smallest", "last"), f"keep is 'smallest' or 'last', got {keep!r}")
    require(0 < kappa <= 2 and within >= 0, f"0 < kappa <= 2 and within >= 0 are needed, got {kappa} and {within}")
    lowest, highest = (float((-path.log_snr(v)).exp()) for v in (max(path.t_min, 0.0), 1.0))
    top, bottom = (min(50.0, highest), max(0.01, lowest)) if range is None else range
    require(lowest * 0.999 <= bottom < top <= highest * 1.001, f"levels lie inside the path, {lowest:g} to {highest:g}")
    log_sigma = torch.linspace(float(torch.tensor(top).log()), float(torch.tensor(bottom).log()), levels).double()
    sigma, times = log_sigma.exp().to(x.device), path.time_at(-log_sigma)
    noise = KeyedNoise(seed, len(x), dtype=x.dtype, device=x.device)
    view = (-1, *(1,) * (x.ndim - 1))
    y = x / float(path.alpha(t))
    k = (log_sigma + float(path.log_snr(t))).abs().argmin().expand(len(x)).to(x.device)
    best_x, best_t, story = [], [], []
    shape = tuple(log_level(y, sigma).shape)
    require(shape == (len(x), levels), f"log_level returns (batch, levels) = {(len(x), levels)}, got {shape}")
    ask = lambda y, k: _ask(denoiser, path, times.to(x.device)[k], y, view, condition)  # noqa: E731
    for _ in [None] * blocks:
        least, kept = k.clone(), y.clone()
        for _ in [None] * skip:
            e = kappa * (sigma[k].to(x.dtype).view(view) ** 2 + within)
            s = sigma[k].to(x.dtype).view(view)
            ahead = y + 0.5 * e * (ask(y, k) - y) / s**2
            moved = ahead + e.sqrt() * noise.normal(tuple(x.shape[1:]))
            if metropolis:
                back = moved + 0.5 * e * (ask(moved, k) - moved) / s**2
                paths = [((a - b) ** 2 / e).double().flatten(1).sum(1) for a, b in ((moved, ahead), (y, back))]
                gain = (log_level(moved, sigma) - log_level(y, sigma)).gather(1, k[:, None])[:, 0]
                ratio = gain.double() + 0.5 * (paths[0] - paths[1])
                moved = torch.where((noise.stream("accept").uniform().to(x.device).log() < ratio).view(view), moved, y)
            y = moved
            k = noise.stream("levels").categorical(log_level(y, sigma)).to(x.device)
            story.append(k)
            lower = k > least if keep == "smallest" else torch.ones_like(k, dtype=torch.bool)
            least, kept = torch.where(lower, k, least), torch.where(lower.view(view), y, kept)
        reached = times.to(x.device)[least]
        best_x.append(kept * path.alpha(reached).to(x.dtype).view(view))
        best_t.append(reached)
    last = y * path.alpha(times.to(x.device)[k]).to(x.dtype).view(view)
    return Walk(torch.stack(best_x), torch.stack(best_t), torch.stack(story), times, last)


def _ask(denoiser: Denoiser, path: Any, at: Tensor, y: Tensor, view: tuple[int, ...], condition: Any) -> Tensor:
    return denoiser(y * path.alpha(at).to(y.dtype).view(view), at, **condition)


@torch.no_grad()
def finish(
    denoiser: Denoiser,
    walk: Walk,
    *,
    solver: str = "dpm-solver++",
    steps: int = 6,
    groups: int = 8,
    seed: int = 0,
    **condition: Any,
) -> Tensor:
    """Samples from the states that a chain kept, ``(blocks * chains, *shape)`` in the model's units.

    Args:
        solver, steps: of the plan that goes from a state's level to the data.
        groups: states of similar levels share a plan: each is noised up to the highest of its group.
        condition: as in the chain, shared by all states.
    """
    require(groups >= 1, f"groups is at least 1, got {groups}")
    path: Any = denoiser.process
    x, t = walk.x.flatten(0, 1), walk.t.flatten()
    out = torch.empty_like(x)
    for number, part in enumerate(t.argsort().chunk(groups)):
        top = max(float(t[part].max()), path.t_min, 1e-3)
        ratio, high, low = path.alpha(top) / path.alpha(t[part]), path.sigma(top), path.sigma(t[part])
        more = (high**2 - (ratio * low) ** 2).clamp_min(0).sqrt()
        noise = KeyedNoise(seed, part.cpu().numpy(), dtype=x.dtype, device=x.device)
        view = (-1, *(1,) * (x.ndim - 1))
        lifted = ratio.to(x).view(view) * x[part] + more.to(x).view(view) * noise.normal(tuple(x.shape[1:]))
        short = plan(solver, path, steps=steps, start=top)
        out[part] = general.run(short, denoiser, lifted, noise.stream(f"plan {number}"), condition).x
    return out
