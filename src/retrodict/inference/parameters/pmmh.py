"""Posterior draws of parameters by particle marginal Metropolis-Hastings (Andrieu, Doucet and Holenstein 2010).

    alpha = min(1,  Z_hat(theta') p(theta') / (Z_hat(theta) p(theta)))          on the free numbers of theta

with Z_hat an unbiased estimate of the likelihood (particles), or the likelihood itself where there is a closed form:
then it is plain Metropolis-Hastings.  Either way the law of the draws is the exact posterior.
"""

from __future__ import annotations

import logging
import math

import torch
from torch import Tensor

from retrodict.core.errors import InputError, first_line
from retrodict.core.noise import KeyedNoise
from retrodict.inference.parameters.likelihood import Likelihood
from retrodict.inference.parameters.mixing import effective_size, r_hat
from retrodict.inference.parameters.result import Fit, Sampled
from retrodict.inference.parameters.sampler import metropolis
from retrodict.inference.parameters.space import Space, plain
from retrodict.inference.parameters.task import Task
from retrodict.particles import ParticlesDied

log = logging.getLogger(__name__)

_TRIES = 50  # of a start with positive likelihood, for each chain
_APART = 0.3  # how far chains start from the given start, in free numbers
_FIRST = 0.3  # first standard deviation of a move, times 2.38 / sqrt(p)
_LOOSE = 1.05  # R-hat above which the chains have not mixed


def pmmh(
    task: Task,
    steps: int = 2000,
    particles: int = 200,
    chains: int = 4,
    burn_in: int | None = None,
    thin: int = 1,
    goal: float | None = None,
) -> Fit:
    """Sample the posterior.

    Args:
        steps: kept draws of each chain; chains: how many, each with a seed of its own.
        particles: of the likelihood's estimate, where it is not exact.
        burn_in: moves before, which adapt the proposal (by default as many as ``steps``, at most 2,000).
        thin: moves a kept draw.
        goal: acceptance to adapt to: by default 0.44 of one number and 0.234 of several, 0.2 with an estimate.

    A longer run of the same seed and burn-in begins with the draws of the shorter one.
    """
    space, likelihood = task.space(), task.likelihood_of(particles)
    for p in space.parameters:
        if p.prior is None:
            raise InputError(
                f"method='pmmh' needs a prior of every parameter, and {p.name!r} has none; give priors={{'{p.name}': "
                "torch.distributions...}, or fit by method='gradient'"
            )
    burn_in = min(steps, 2000) if burn_in is None else burn_in
    if burn_in < 0 or thin < 1:
        raise InputError(f"burn_in is at least 0 and thin at least 1, got {burn_in} and {thin}")
    density = Density(space, likelihood)
    with torch.no_grad():
        noise = KeyedNoise(task.seed, chains, dtype=torch.float64, name="pmmh")
        free, value, seeds = _starts(density, noise.stream("start"), chains)
        exact = likelihood.condition(space.model(free[0]), seeds[0]).exact
        goal = (0.44 if space.size == 1 else 0.234) if goal is None and exact else 0.2 if goal is None else goal
        scale = torch.eye(space.size, dtype=torch.float64) * (_FIRST * 2.38 / math.sqrt(space.size))
        bar = task.bar(burn_in + steps * thin, "pmmh")
        walk = metropolis(
            density, free, steps, burn_in, noise, goal=goal, value=value, seeds=seeds, scale=scale, thin=thin,
            each=bar.update,
        )  # fmt: skip
        bar.close()
        draws = space.values(walk.free)
        means = {name: v.mean((0, 1)) for name, v in draws.items()}
        model = space.model(space.free(means))
        here = likelihood.condition(model, task.seed)
    _warn(density, draws)
    return Fit(
        method="pmmh",
        parameters={name: plain(v) for name, v in means.items()},
        standard_errors={name: plain(v.flatten(0, 1).std(0)) for name, v in draws.items()},
        log_likelihood=float(here.log_evidence.sum().detach()),
        model=model,
        likelihood=likelihood,
        exact=here.exact,
        history={
            "log_density": walk.log_density,
            "log_likelihood": walk.log_density.flatten(),
            "failures": density.failures,
            "scale": walk.scale,
        },
        draws=draws,
        message=f"{chains} chains of {steps} draws, acceptance {float(walk.acceptance.mean()):.2f}",
        acceptance=walk.acceptance,
        sampled=Sampled(space, walk.free, walk.seeds),
        seed=task.seed,
    )


class Density:
    """The log posterior density of free numbers ``(C, p)`` by estimates with given seeds.

    Attributes:
        failures: reasons why points had no likelihood, and how often.
    """

    def __init__(self, space: Space, likelihood: Likelihood) -> None:
        self.space, self.likelihood = space, likelihood
        self.failures: dict[str, int] = {}

    def __call__(self, free: Tensor, seeds: list[int]) -> Tensor:
        return torch.stack([self.one(row, seed) for row, seed in zip(free, seeds)])

    def one(self, free: Tensor, seed: int) -> Tensor:
        """Of one point; minus infinity where the prior or the likelihood is zero."""
        prior = self.space.log_prior(free)
        if not bool(torch.isfinite(prior)):
            return prior.new_tensor(-torch.inf)
        try:
            value = self.likelihood.value(self.space.model(free), seed).detach()
        except (ParticlesDied, InputError, RuntimeError) as error:
            reason = f"{type(error).__name__}: {first_line(error)}"
            self.failures[reason] = self.failures.get(reason, 0) + 1
            return prior.new_tensor(-torch.inf)
        return (prior + value).nan_to_num(nan=-torch.inf)


def _starts(density: Density, noise: KeyedNoise, chains: int) -> tuple[Tensor, Tensor, list[int]]:
    """Chains apart from each other, each where the likelihood is positive; the first one tries the start itself."""
    found: list[tuple[Tensor, Tensor, int]] = []
    moves = noise.normal((_TRIES, density.space.size)).double() * _APART
    moves[0, 0] = 0
    tickets = (noise.uniform((_TRIES,)) * 2**53).long()
    for chain in range(chains):
        for move, ticket in zip(moves[chain], tickets[chain].tolist()):
            value = density.one(density.space.start + move, ticket)
            if bool(torch.isfinite(value)):
                found.append((density.space.start + move, value, ticket))
                break
        else:
            worst = max(density.failures, key=lambda k: density.failures[k]) if density.failures else "zero density"
            raise InputError(
                f"the likelihood is zero at start ({density.space.plain(density.space.start)}) and at {_TRIES} points "
                f"about it: {worst}. Give a start= that can explain the data, more particles, or a guided proposal "
                "(likelihood='guided')"
            )
    density.failures.clear()
    return torch.stack([f for f, _, _ in found]), torch.stack([v for _, v, _ in found]), [t for _, _, t in found]


def _warn(density: Density, draws: dict[str, Tensor]) -> None:
    for reason, count in density.failures.items():
        log.warning("%d proposals had no likelihood and were rejected (%s)", count, reason)
    for name, value in draws.items():
        worst = float(r_hat(value).max())
        if worst > _LOOSE:
            size = float(effective_size(value).min())
            log.warning("chains of %s have not mixed: R-hat %.2f, %.0f effective draws; more steps", name, worst, size)
