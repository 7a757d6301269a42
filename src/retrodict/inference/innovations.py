"""Markov chain Monte Carlo over innovations: paths and parameters of a guided process.

A guided path is a map ``X = GP(theta, z)`` of standard normals z, and the posterior of (theta, z) has the density

    prior(theta) N(z; 0, I) h_0^theta(x_0) Psi^theta(X),

the last two being the log-weight of the path.  Moves, after van der Meulen and Schauer 2017 and 2020:

* pCN: ``z' = rho z + sqrt(1 - rho^2) xi`` keeps N(0, I), so that only log-weights enter the ratio.  Each stretch
  between observations joins a move with probability 1/4 and is left alone otherwise; the innovation of a random start
  is a block of its own.  rho is adapted during burn-in, and fixed after it.
* theta: a Gaussian random walk on an unconstrained scale with z *fixed* (and the backward filter done again).
  Fixing z and not X is what lets a parameter of the diffusion coefficient move at all: a whole path pins it down.

Chains run side by side: on the axis of particles where the law is fixed, on the axis of series where each chain has a
theta of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, biject_to

from retrodict.core.errors import InputError, InputTypeError
from retrodict.core.noise import KeyedNoise, Noise
from retrodict.inference.guided.model import GuidedModel, Innovations
from retrodict.inference.guided.posterior import conditioned_sde
from retrodict.inference.observed import Observed
from retrodict.inference.sde import SDE

_SHARE = 0.25  # of the blocks join a pCN move
_TARGET = 0.3  # acceptance that rho and the walk of theta are adapted to
_SHORT, _LONG = 1.0, 4.0  # scales of the two random walks, mixed 2 : 1


@dataclass(frozen=True)
class ChainDraws:
    """What the chains visited after burn-in, ``(draws, chains)`` in front.

    Attributes:
        theta: parameter name -> ``(draws, chains)``.
        x: ``(draws, chains, S, K, d)`` at the kept nodes; times: ``(S, K)``.
        log_weights: of the current paths, ``(draws, chains, S)``.
        acceptance: share of accepted moves after burn-in, of "path" and "theta".
        rho: pCN coefficient in use.
        last: the final innovations.
    """

    theta: dict[str, Tensor]
    x: Tensor
    times: Tensor
    log_weights: Tensor
    acceptance: dict[str, float]
    rho: float
    last: Innovations = field(repr=False)

    def mean(self, f: Callable[[ChainDraws], Tensor]) -> tuple[Tensor, Tensor]:
        """Posterior mean of ``f(draws) (draws, chains, ...)`` and its standard error from the spread of the chains."""
        values = f(self).double().mean(0)
        if values.shape[0] < 2:
            raise InputError("a standard error is taken between chains; run at least 2")
        return values.mean(0), values.std(0) / math.sqrt(values.shape[0])


def innovation_chain(
    model: SDE | Callable[[dict[str, Tensor]], SDE],
    data: Observed,
    prior: Mapping[str, Distribution] | None = None,
    *,
    sweeps: int = 1000,
    burn: int | None = None,
    chains: int = 8,
    rho: float = 0.9,
    seed: int = 0,
    every: int = 1,
    grid: bool = False,
    **options: Any,
) -> ChainDraws:
    """Sample paths, and parameters where there are any, given data.

    Args:
        model: an `SDE`, or with ``prior`` a function from ``{name: theta (C, 1, 1)}`` to an `SDE` whose drift and
            diffusion broadcast such parameters against states ``(C, 1, d)``.
        prior: parameter name -> a univariate `torch.distributions` object.
        sweeps, burn: moves in all, and those of the adaptation (a quarter by default).
        chains: run side by side; every: keep every so many draws; grid: keep all nodes, not the observation times.
        rho: first pCN coefficient, in [0, 1).
        options: of the guide: start, steps, auxiliary, rounds, weight.

    Returns:
        `ChainDraws`.
    """
    burn = sweeps // 4 if burn is None else burn
    if not 0 <= rho < 1:
        raise InputError(f"rho is the share of the old innovations, 0 <= rho < 1, got {rho}")
    if not 0 <= burn < sweeps or chains < 1 or every < 1:
        raise InputError(f"0 <= burn < sweeps, chains >= 1 and every >= 1; got {burn}, {sweeps}, {chains}, {every}")
    if prior is None:
        if not isinstance(model, SDE):
            raise InputTypeError("without prior= the model is an SDE; with it, a function of the parameters")
        target: _Target = _Target(lambda theta: _guided(model, data, options), data, {}, chains)
    else:
        if isinstance(model, SDE) or not callable(model):
            raise InputTypeError("with prior= the model is a function from parameters to an SDE")
        wide = _repeat(data, chains)
        target = _Target(lambda theta: _guided(model(theta), wide, options), data, dict(prior), chains)
    return _Sampler(target, rho, KeyedNoise(seed, 1, name="chain"), burn).run(sweeps, every, grid)


def _guided(model: SDE, data: Observed, options: dict[str, Any]) -> tuple[GuidedModel, Tensor, list[int]]:
    post = conditioned_sde(model, data, **options)
    return post.guided, post.times, post.at


def _repeat(data: Observed, chains: int) -> Observed:
    """The data once for each chain, chains in front of the series."""
    wide = object.__new__(Observed)
    wide.__dict__.update(data.__dict__, single=False)
    wide.y, wide.times, wide.lengths = (torch.cat([v] * chains) for v in (data.y, data.times, data.lengths))
    return wide


@dataclass
class _Target:
    """The posterior density of (theta, z), and how chains are laid on its axes."""

    build: Callable[[dict[str, Tensor]], tuple[GuidedModel, Tensor, list[int]]]
    data: Observed
    prior: dict[str, Distribution]
    chains: int

    def __post_init__(self) -> None:
        self.particles = 1 if self.prior else self.chains
        self.maps = {name: biject_to(law.support) for name, law in self.prior.items()}  # type: ignore[arg-type]

    def values(self, free: Tensor) -> dict[str, Tensor]:
        """Parameters ``(C,)`` from unconstrained ``(C, p)``."""
        return {name: self.maps[name](column) for name, column in zip(self.prior, free.unbind(1))}

    def log_prior(self, free: Tensor) -> Tensor:
        """Of the unconstrained parameters, ``(C,)``."""
        total = torch.zeros(self.chains, dtype=torch.float64)
        for (name, law), column in zip(self.prior.items(), free.unbind(1)):
            value = self.maps[name](column)
            total = total + law.log_prob(value) + self.maps[name].log_abs_det_jacobian(column, value)
        return total

    def guided(self, free: Tensor) -> GuidedModel:
        S = len(self.data)
        theta = {name: value.repeat_interleave(S)[:, None, None] for name, value in self.values(free).items()}
        model, self.times, self.at = self.build(theta)
        return model


class _Sampler:
    def __init__(self, target: _Target, rho: float, noise: Noise, burn: int) -> None:
        self.target, self.noise, self.burn = target, noise, burn
        self.step = math.sqrt(1 - rho**2)  # pCN moves by this much
        self.walk = 0.0  # log of the scale of the random walk
        C, p = target.chains, len(target.prior)
        draws = [law.icdf(u) if _has_icdf(law) else law.mean.expand(C) for law, u in self._starts(C)]
        self.free = (
            torch.stack([target.maps[n].inv(v.double()) for n, v in zip(target.prior, draws)], 1)
            if p
            else torch.zeros(C, 0)
        )
        self.spread = torch.full((p,), 0.3, dtype=torch.float64)
        self.history: list[Tensor] = []
        self.model = target.guided(self.free)
        self.z = self._fresh()
        self.path, self.log_w = self.model.path(self.z)
        self.blocks = [[0], *([k + 1 for k in range(a, b)] for a, b in zip(self.model.bounds, self.model.bounds[1:]))]

    def _starts(self, C: int) -> list[tuple[Distribution, Tensor]]:
        """Central quantiles of the priors, to start chains apart."""
        return [(law, 0.25 + 0.5 * self.noise.uniform((C,))[0]) for law in self.target.prior.values()]

    def run(self, sweeps: int, every: int, grid: bool) -> ChainDraws:
        kept: list[tuple[Tensor, Tensor, Tensor]] = []
        counts = {"path": [0.0, 0], "theta": [0.0, 0]}
        nodes = slice(None) if grid else torch.tensor(self.target.at)
        for sweep in range(sweeps):
            adapting = sweep < self.burn
            moves = {"path": self._path_move}
            if self.target.prior:
                moves["theta"] = self._theta_move
            for name, move in moves.items():
                rate = move((sweep + 1) ** -0.6 if adapting else 0.0)
                if not adapting:
                    counts[name][0] += rate
                    counts[name][1] += 1
            if adapting and self.target.prior:
                self._learn_spread()
            elif not adapting and (sweep - self.burn) % every == 0:
                kept.append((self.free.clone(), self._by_chain(self.path[nodes]), self._log_w_by_chain()))
        free, x, log_w = (torch.stack(part) for part in zip(*kept))
        theta = {name: self.target.maps[name](free[..., i]) for i, name in enumerate(self.target.prior)}
        S = len(self.target.data)
        acceptance = {name: total / count for name, (total, count) in counts.items() if count}
        times = self.target.times[:S, nodes]
        return ChainDraws(theta, x, times, log_w, acceptance, math.sqrt(1 - self.step**2), self.z)

    # -- moves -----------------------------------------------------------------------------------------------

    def _path_move(self, gain: float) -> float:
        """pCN on a random set of blocks; every series of every chain accepts by itself."""
        u = self.noise.uniform((len(self.blocks) + 1,))[0]
        joins = u[:-1] < _SHARE
        if not bool(joins.any()):
            joins[int(u[-1] * len(self.blocks))] = True
        rho = torch.ones(self.model.steps.n + 1, dtype=torch.float64)
        for block, join in zip(self.blocks, joins):
            if join:
                rho[block] = math.sqrt(1 - self.step**2)
        proposal = self.z.blend(self._fresh(), rho)
        path, log_w = self.model.path(proposal)
        ratio = torch.nan_to_num(log_w - self.log_w, nan=-torch.inf)
        accept = self._log_uniform(log_w.shape) < ratio
        self.z = proposal.where(accept, self.z)
        self.path = torch.where(accept[..., None], path, self.path)
        self.log_w = torch.where(accept, log_w, self.log_w)
        rate = float(ratio.clamp_max(0).exp().mean())
        odds = math.log(self.step / (1 - self.step + 1e-9)) + gain * 4 * (rate - _TARGET)
        self.step = min(max(1 / (1 + math.exp(-odds)), 0.02), 0.999) if gain else self.step
        return rate

    def _theta_move(self, gain: float) -> float:
        """A random walk of theta with the innovations held; a chain accepts for all of its series."""
        C, p = self.free.shape
        z = self.noise.normal((C, p))[0].double()
        scale = torch.where(self.noise.uniform((C, 1))[0] < 1 / 3, _LONG, _SHORT) * math.exp(self.walk)
        free = self.free + scale * self.spread * z
        model = self.target.guided(free)
        path, log_w = model.path(self.z)
        ratio = (
            (log_w - self.log_w).reshape(C, -1).sum(1) + self.target.log_prior(free) - self.target.log_prior(self.free)
        )
        ratio = torch.nan_to_num(ratio, nan=-torch.inf)
        accept = self._log_uniform((C,)) < ratio
        wide = accept.repeat_interleave(log_w.shape[0] // C)[:, None]
        self.free = torch.where(accept[:, None], free, self.free)
        self.path = torch.where(wide[..., None], path, self.path)
        self.log_w = torch.where(wide, log_w, self.log_w)
        if bool(accept.any()):  # every chain is guided by the auxiliary of its own theta
            self.model = self.target.guided(self.free)
        rate = float(ratio.clamp_max(0).exp().mean())
        self.walk += gain * 2 * (rate - _TARGET)
        return rate

    def _learn_spread(self) -> None:
        """Scales of the walk: the standard deviations of what the chains visited lately."""
        self.history = [*self.history[-200:], self.free]
        if len(self.history) >= 20:
            visited = torch.stack(self.history[len(self.history) // 2 :]).flatten(0, 1)
            self.spread = visited.std(0).clamp_min(1e-3)

    # -- helpers ---------------------------------------------------------------------------------------------

    def _fresh(self) -> Innovations:
        """Standard normals for all chains, from the one slot of the sampler's noise."""
        S, N, steps = self.model.series, self.target.particles, self.model.steps
        start = self.noise.normal((S, N, steps.d))[0].double()
        return Innovations(start, self.noise.normal((steps.n, S, N, steps.r))[0].double())

    def _log_uniform(self, shape: tuple[int, ...]) -> Tensor:
        return self.noise.uniform(shape)[0].clamp_min(1e-300).log()

    def _by_chain(self, path: Tensor) -> Tensor:
        """``(nodes, S, N, d)`` as ``(chains, S, nodes, d)``."""
        if not self.target.prior:
            return path.permute(2, 1, 0, 3)
        return path[:, :, 0].unflatten(1, (self.target.chains, -1)).permute(1, 2, 0, 3)

    def _log_w_by_chain(self) -> Tensor:
        return self.log_w.T if not self.target.prior else self.log_w[:, 0].unflatten(0, (self.target.chains, -1))


def _has_icdf(law: Distribution) -> bool:
    try:
        law.icdf(torch.tensor(0.5))
    except NotImplementedError:
        return False
    return True
