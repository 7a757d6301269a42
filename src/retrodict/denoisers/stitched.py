"""Several models along one run: cheap ones where the noise is high, the best one near the data (Pan et al. 2025).

At high noise every denoiser that knows the data's mean and covariance is nearly right, so that a small model may do
the first steps.  `Stitched` asks one model at each time; plans and their histories see denoiser outputs only, so that
multistep solvers run across the switch.  What a switch costs is read from losses: with ``L_k(t)`` the denoising loss
of model k in units of x0,

    E|D_small - D|^2 - E|D_big - D|^2 = L_small(t) - L_big(t)

exactly, whatever the true denoiser D is, and by Girsanov the part of the run between two times costs at most
``1/2 int (L_small - L_big) dSNR`` nats more than with the big model, SNR = alpha^2/sigma^2.  These prices add up over
intervals, so that who does best where, for every budget, is a knapsack; `stitchings` solves it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from retrodict.core.errors import InputError, InputTypeError, require
from retrodict.core.noise import KeyedNoise
from retrodict.denoisers.denoiser import Denoiser, batch_time
from retrodict.kernels import Belief
from retrodict.processes import GaussianPath


class Stitched(Denoiser):
    """One denoiser out of several, each in charge of a range of times.

    Args:
        denoisers: from the noisy end to the data, all of the same data and of the conditions that are used; the last
            one's process is the process of the whole.
        until: decreasing times in (0, 1): ``denoisers[i]`` is in charge while t >= until[i], the last one after that.
            One model has the run to itself where a bound is 0 (it, to the end) or 1 (not at all, but for t = 1).

    Models of other one-ended Gaussian paths are asked at the time with the same log-SNR, about the rescaled state.
    """

    def __init__(self, denoisers: Sequence[Denoiser], until: Sequence[float] = (0.5,)) -> None:
        require(len(denoisers) >= 2, f"stitching needs at least two denoisers, got {len(denoisers)}")
        require(
            len(until) == len(denoisers) - 1,
            f"{len(denoisers)} denoisers have {len(denoisers) - 1} bounds between them, got {len(until)}",
        )
        bounds = [float(u) for u in until]
        require(
            all(0 <= u <= 1.000001 for u in bounds) and bounds == sorted(bounds, reverse=True),
            f"until decreases and lies between 0 and 1, got {bounds}",
        )
        for d in denoisers:
            if not isinstance(d, Denoiser):
                raise InputTypeError(f"stitching takes denoisers, got {type(d).__name__}")
        last = denoisers[-1]
        conditions: dict[str, Any] = {}
        for d in denoisers:
            conditions |= d.conditions
            if not _same(d, last) and not (_plain(d) and _plain(last)):
                raise InputError(
                    "models of different processes are stitched on scalar Gaussian paths with one end only"
                )
        super().__init__(last.process, last.shape, conditions)
        self.models, self.until = nn.ModuleList(denoisers), bounds
        self.scale, self.temperature = last.scale, last.temperature

    def belief(self, x: Tensor, t: float | Tensor, **condition: Any) -> Belief:
        if not isinstance(t, Tensor) or t.ndim == 0:
            return self.ask(self.in_charge(float(t)), x, t, condition)
        who = torch.tensor([self.in_charge(float(v)) for v in t], device=x.device)
        if bool((who == who[0]).all()):
            return self.ask(int(who[0]), x, t, condition)
        mean = torch.empty_like(x)
        for k in who.unique().tolist():
            mine = who == k
            own = {
                n: v[mine] if isinstance(v, Tensor) and v.ndim and len(v) == len(x) else v for n, v in condition.items()
            }
            mean[mine] = self.ask(k, x[mine], t[mine], own).mean
        return Belief(mean)

    def in_charge(self, t: float) -> int:
        """Which model is asked at time t."""
        return next((i for i, bound in enumerate(self.until) if t >= bound), len(self.until))

    def ask(self, k: int, x: Tensor, t: float | Tensor, condition: dict[str, Any]) -> Belief:
        """What model k believes of a state of the whole's process."""
        model: Any = self.models[k]
        own = {n: v for n, v in condition.items() if n in model.conditions or n == "x1"}
        if _same(model, self):
            return model.belief(x, t, **own)
        here: Any = self.process
        there: Any = model.process
        time = batch_time(t, x)
        other = there.time_at(here.log_snr(time))
        ratio = (there.alpha(other) / here.alpha(time)).to(x.dtype).reshape(-1, *(1,) * (x.ndim - 1))
        return model.belief(x * ratio, other, **own)


@torch.no_grad()
def excess_divergence(
    small: Denoiser, big: Denoiser, data: Tensor, times: Sequence[float], *, seed: int = 0, **condition: Any
) -> Tensor:
    """What it costs to ask ``small`` instead of ``big`` between two times: nats, ``(len(times) - 1,)`` float64.

    Args:
        data: held-out data ``(n, *shape)`` in the model's units; times: decreasing, above sigma = 0.
        condition: of the data, for models that know it.

    The bound ``1/2 sum (L_small - L_big)(t_i) (SNR_{i+1} - SNR_i)`` has its losses at the noisier end of each interval,
    where a sampler asks; negative parts are set to zero.
    """
    return _prices([small, big], data, times, seed, condition)[0]


@dataclass(frozen=True)
class Stitching:
    """One way to share a run among models, than which no cheaper one has a lower bound.

    Attributes:
        cost: of all evaluations, in the units of the models' costs; nats: what they cost in divergence at most.
        who: which model is asked in each interval of the times; after the last time it is the last model.
        denoiser: the models so stitched.
    """

    cost: float
    nats: float
    who: tuple[int, ...]
    denoiser: Denoiser


def stitchings(
    models: Sequence[Denoiser],
    costs: Sequence[float],
    data: Tensor,
    times: Sequence[float],
    *,
    seed: int = 0,
    **condition: Any,
) -> list[Stitching]:
    """Every efficient way to share the intervals between ``times`` among models, cheapest first.

    Args:
        models: of the same data, the best one last; costs: of an evaluation of each.
        data, times, condition: as for `excess_divergence`; times are where a plan asks, its last evaluation apart.

    The best for a tolerance of d nats is the first whose ``nats`` is at most d; the last one has the smallest bound.
    Nothing forces the small models to come first: the losses do where they are better or hardly worse there.
    """
    require(len(models) >= 2, f"stitching needs at least two denoisers, got {len(models)}")
    require(
        len(costs) == len(models) and all(c >= 0 for c in costs),
        f"costs are {len(models)} numbers of at least 0, one a model; got {list(costs)}",
    )
    require(
        len(times) >= 2 and all(a > b for a, b in pairwise(times)),
        f"times are two or more and decrease, got {list(times)}",
    )
    prices = _prices(models, data, times, seed, condition).T.tolist()
    efficient: list[tuple[float, float, tuple[int, ...]]] = [(0.0, 0.0, ())]
    for interval in prices:
        longer = [
            (cost + costs[k], nats + price, (*who, k))
            for cost, nats, who in efficient
            for k, price in enumerate(interval)
        ]
        efficient = _undominated(longer)
    return [Stitching(cost, nats, who, _stitch(models, who, times)) for cost, nats, who in efficient]


def _undominated(ways: list[tuple[float, float, tuple[int, ...]]]) -> list[tuple[float, float, tuple[int, ...]]]:
    """Those with a lower price than everything cheaper, by cost."""
    kept: list[tuple[float, float, tuple[int, ...]]] = []
    for way in sorted(ways, key=lambda w: (round(w[0], 9), w[1])):
        if not kept or way[1] < kept[-1][1]:
            kept.append(way)
    return kept


def _stitch(models: Sequence[Denoiser], who: Sequence[int], times: Sequence[float]) -> Denoiser:
    """The models in turn; bounds lie half-way between the times that are asked on both sides of a change."""
    who = [*who, len(models) - 1]
    changes = [i for i in range(1, len(who)) if who[i] != who[i - 1]]
    if not changes:
        return models[who[0]]
    turns = [models[who[0]], *(models[who[i]] for i in changes)]
    return Stitched(turns, [(times[i - 1] + times[i]) / 2 for i in changes])


@torch.no_grad()
def _prices(
    models: Sequence[Denoiser], data: Tensor, times: Sequence[float], seed: int, condition: dict[str, Any]
) -> Tensor:
    """Nats of each model over the last one, ``(models, len(times) - 1)`` float64."""
    big = models[-1]
    path: Any = big.process
    require(_plain(big), "divergences are priced on scalar Gaussian paths with one end")
    require(len(data) >= 1, "data are needed to price a model")
    snr = torch.tensor([float(2 * path.log_snr(t)) for t in times], dtype=torch.float64).exp()
    require(bool(torch.isfinite(snr).all()), f"times end above sigma = 0, got {times[-1]:g}: leave the last one out")
    together = Stitched(models, [0.0] * (len(models) - 1))  # asks models of other paths, too, about states of this one
    noise = KeyedNoise(seed, len(data), dtype=data.dtype, device=data.device)
    losses = torch.empty(len(models), len(times) - 1, dtype=torch.float64)
    for i, t in enumerate(times[:-1]):
        x = path.corrupt(data, t, noise)
        for k in range(len(models)):
            miss = together.ask(k, x, t, condition).mean - data
            losses[k, i] = miss.double().flatten(1).square().sum(1).mean()
    return 0.5 * (losses - losses[-1]).clamp_min(0) * snr.diff()


def _plain(d: Denoiser) -> bool:
    return isinstance(d.process, GaussianPath) and d.process.scalar and len(d.process.ends) == 1


def _same(a: Denoiser, b: Denoiser) -> bool:
    p, q = a.process, b.process
    return p is q or (p.can_save and q.can_save and p.config() == q.config())
