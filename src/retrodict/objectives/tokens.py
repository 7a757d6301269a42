"""The regression of discrete states: what is believed of the clean value, scored by the jumps that it implies.

The evidence bound is the relative entropy of two jump processes, the backward process given x0 and the one that the
denoiser believes in, with rates r and m to the states y that x_t can jump to:

    -log p(x0 | x1) <= KL(q(x_1 | x0) || prior) + int_0^1 E sum_y [ m - r log m + r log r - r ] dt

One formula, and its cases (`Discrete.jumps` gives the rates):

* masks (Sahoo et al. 2024): ``hide'/hide`` times the cross-entropy of hidden tokens;
* token bridges: the same where source and target differ, and elsewhere ``1 - p(x1)``;
* any jump process, uniform noise among them: the score entropy of Lou et al. (2024) with its constant;
* Blackout (Santos et al. 2023): Poisson regression of the mean number of dead units with weight ``hide'/hide``.

With the exact posterior the bound is the entropy of the data.  In discrete time, `ChainRegression`, it is the sum of
the relative entropies of single steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from retrodict.core.errors import InputError, require
from retrodict.core.noise import GeneratorNoise
from retrodict.denoisers import CountDenoiser, Denoiser, EmbeddedDenoiser, TokenDenoiser
from retrodict.kernels import Categorical
from retrodict.kernels.laws import Point
from retrodict.objectives.regression import Objective
from retrodict.objectives.times import TimeLaw
from retrodict.objectives.weightings import ELBO, Level, Weighting
from retrodict.processes import Blackout, Discrete, GaussianPath, Process, TokenBridge
from retrodict.processes.discrete import divergence as jump_divergence
from retrodict.processes.discrete import one_hot_law


class _Discrete(Objective):
    """Reading a batch of discrete states."""

    def __init__(self, process: Process, weighting: Any, times: str | TimeLaw | None, dropout: float | None) -> None:
        if not isinstance(process, Discrete):
            raise InputError(
                f"this objective is for masks and token bridges, jumps and counts, got {type(process).__name__}"
            )
        suited = "stratified" if isinstance(process, TokenBridge) else "survival"
        super().__init__(process, weighting, suited if times is None else times, dropout)

    def states(self, denoiser: Denoiser, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | None, dict[str, Any]]:
        """``(x0, x1, conditions)``, integers."""
        x0, x1, condition = self.read(denoiser, batch)
        if x0.is_floating_point():
            kind = "counts" if self.process.state == "count" else "tokens"
            raise InputError(f"{kind} are integers, got {x0.dtype}")
        return x0, x1, condition


class TokenRegression(_Discrete):
    """The bound above, or plain regression, in nats a coordinate.

    Args:
        process: any discrete process.
        weighting: "elbo" (the bound above, without its terminal part), or "uniform" (all times alike: cross-entropy of
            unknown tokens, or Poisson regression of missing counts).
        times: None is "stratified" for masks and bridges, else "survival".
        dropout: see `retrodict.objectives.regression.Objective`.
        constant: whether what does not depend on the network is kept, so that the loss is a bound; without it the
            loss of a jump process is the score entropy, of the same gradients.
    """

    def __init__(
        self,
        process: Process,
        weighting: str | Weighting = "elbo",
        times: str | TimeLaw | None = None,
        dropout: float | None = None,
        constant: bool = True,
    ) -> None:
        super().__init__(process, weighting, times, dropout)
        if not isinstance(self.weighting, ELBO) and type(self.weighting) is not Weighting:
            raise InputError("tokens are weighted 'elbo' or 'uniform'; the other weightings are of the log-SNR")
        self.constant = bool(constant)

    def __call__(
        self, denoiser: Denoiser, batch: Mapping[str, Tensor], generator: torch.Generator
    ) -> dict[str, Tensor]:
        x0, x1, condition = self.states(denoiser, batch)
        process: Discrete = self.process  # type: ignore[assignment]
        t = self.times.sample(len(x0), process, generator).to(x0.device)
        x_t = process.corrupt(x0, t, GeneratorNoise(generator, len(x0), device=x0.device), x1)
        believed = belief_of(denoiser, x_t, t, x1, self.drop(denoiser, condition, generator))
        if not self.weighting.integral:
            return self.over_time(t, plain_error(process, believed, x0, x_t, x1), None)
        if isinstance(process, TokenBridge):
            error, weight = divergence(process, _log_p(believed), x0, x_t, x1), reveal_rate(process, t)
            return self.over_time(t, error, weight)
        return self.over_time(t, bound_rate(process, believed, x0, x_t, t, x1, self.constant), None)


class ChainRegression(_Discrete):
    """The bound of a chain of finitely many steps: T times the relative entropy of a random one, in nats a coordinate.

        -log p(x0 | x1) <= KL(q(x_1 | x0) || prior) + sum_k E KL( q(x_{k-1} | x_k, x0) || p(x_{k-1} | x_k) )

    Args:
        process: any discrete process.
        steps: T; the levels are the quantiles k/T of the law of times.
        times, dropout: as in `TokenRegression`.

    Source: Sohl-Dickstein et al. (2015), eq. (14), with the last step learned; Austin et al. (2021), eq. (1).
    """

    def __init__(
        self,
        process: Process,
        steps: int = 100,
        times: str | TimeLaw | None = None,
        dropout: float | None = None,
    ) -> None:
        super().__init__(process, "elbo", times, dropout)
        require(isinstance(steps, int) and steps >= 1, f"steps of a chain is an integer of at least 1, got {steps!r}")
        self.steps = steps

    def levels(self) -> Tensor:
        """Times ``(steps + 1,)`` from 0 to 1."""
        inner = self.times.quantile(torch.arange(1, self.steps, dtype=torch.float64) / self.steps, self.process)
        ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
        return torch.cat([ends[:1], inner, ends[1:]])

    def __call__(
        self, denoiser: Denoiser, batch: Mapping[str, Tensor], generator: torch.Generator
    ) -> dict[str, Tensor]:
        x0, x1, condition = self.states(denoiser, batch)
        process: Discrete = self.process  # type: ignore[assignment]
        u = torch.rand(len(x0), generator=generator, dtype=torch.float64, device=generator.device)
        u = (torch.randperm(len(x0), generator=generator, device=generator.device) + u) / len(x0)
        k = (u * self.steps).long().clamp(max=self.steps - 1).to(x0.device)
        levels = self.levels().to(x0.device)
        s, t = levels[k], levels[k + 1]
        x_t = process.corrupt(x0, t, GeneratorNoise(generator, len(x0), device=x0.device), x1)
        believed = belief_of(denoiser, x_t, t, x1, self.drop(denoiser, condition, generator))
        error = step_divergence(process, believed, x0, x_t, t, s, x1).flatten(1).mean(1)
        return {"loss": self.steps * error.mean()}


class EmbeddedRegression(Objective):
    """Cross-entropy of tokens whose embeddings were noised on a Gaussian path, in nats a token, at even times.

    Args:
        process: a scalar Gaussian path with one end.
        weighting: of levels, "uniform" by default; times, dropout: as in `Objective`.

    Source: Dieleman et al. (2022), section 3.1.
    """

    def __init__(
        self,
        process: Process,
        weighting: str | Weighting = "uniform",
        times: str | TimeLaw = "stratified",
        dropout: float | None = None,
    ) -> None:
        if not isinstance(process, GaussianPath):
            raise InputError(f"embeddings move on a Gaussian path, got {type(process).__name__}")
        super().__init__(process, weighting, times, dropout)
        self.path = process

    def __call__(
        self, denoiser: Denoiser, batch: Mapping[str, Tensor], generator: torch.Generator
    ) -> dict[str, Tensor]:
        x0, _, condition = self.read(denoiser, batch)
        if not isinstance(denoiser, EmbeddedDenoiser):
            raise InputError(f"this objective is for tokens by their embeddings, got {type(denoiser).__name__}")
        t = self.times.sample(len(x0), self.process, generator).to(x0.device)
        y0 = denoiser.scale(x0)
        z = GeneratorNoise(generator, len(x0), dtype=y0.dtype, device=x0.device).normal(y0.shape[1:])
        x_t = self.path.corrupt(y0, t, z)
        logits = denoiser.logits(x_t, t, **self.drop(denoiser, condition, generator)).float()
        error = _cross_entropy(torch.log_softmax(logits, -1), x0).flatten(1).mean(1)
        return self.over_time(t, error, self.weighting(Level(self.path, t, "data", 1.0)))


# -- what is believed ---------------------------------------------------------------------------------------------


def belief_of(
    denoiser: Denoiser, x_t: Tensor, t: float | Tensor, x1: Tensor | None, condition: dict[str, Any]
) -> Categorical | Tensor:
    """The law of clean values, or their mean where a count denoiser has no law; of a network with its gradient."""
    process, time = denoiser.process, torch.as_tensor(t, dtype=torch.float64, device=x_t.device)
    time = time.expand(len(x_t)) if time.ndim == 0 else time
    if isinstance(denoiser, TokenDenoiser):  # float64 and carry-over are for sampling
        logits = denoiser.logits(x_t, time, **condition).float()
        if not isinstance(process, TokenBridge):  # which is only asked where everything is possible
            possible = process.possible(x_t, x1)  # type: ignore[attr-defined]
            logits = logits if possible is None else logits.masked_fill(~possible, -torch.inf)
        return Categorical(torch.log_softmax(logits, -1))
    if isinstance(denoiser, CountDenoiser):
        return x_t + denoiser.missing(x_t, time, **condition)
    source = {} if x1 is None else {"x1": x1}
    belief = denoiser.belief(x_t, t, **condition, **source)
    if belief.law is not None:
        return belief.law
    if not isinstance(process, Blackout):
        raise InputError(f"{type(denoiser).__name__} gives no class posterior; wrap the network in a TokenDenoiser")
    return belief.mean


def log_posterior(
    denoiser: Denoiser, x_t: Tensor, t: Tensor, x1: Tensor | None, condition: dict[str, Tensor]
) -> Tensor:
    """log p(x0 | x_t) at each position ``(n, L, vocabulary)``; of a bridge only hidden positions are asked for."""
    return _log_p(belief_of(denoiser, x_t, t, x1, condition))


def _log_p(believed: Categorical | Tensor) -> Tensor:
    if isinstance(believed, Tensor):
        raise InputError("a law over values is needed, and this denoiser gives a mean alone")
    return believed.log_p


# -- bounds -------------------------------------------------------------------------------------------------------


def bound_rate(
    process: Discrete,
    believed: Categorical | Tensor,
    x0: Tensor,
    x_t: Tensor,
    t: float | Tensor,
    x1: Tensor | None = None,
    constant: bool = True,
) -> Tensor:
    """The integrand of the bound for any discrete process, a mean over coordinates ``(n,)`` float64.

    ``constant=False`` leaves out the part without the network.
    """
    model = process.jumps(believed, x_t, t, x1).rate
    known = x0.double() if isinstance(believed, Tensor) else one_hot_law(x0, process.vocabulary)
    true = process.jumps(known, x_t, t, x1).rate
    rate = jump_divergence(true, model)
    if not constant:
        rate = rate - (torch.xlogy(true, true) - true).sum(-1)
    return rate.flatten(1).mean(1)


def step_divergence(
    process: Discrete,
    believed: Categorical | Tensor,
    x0: Tensor,
    x_t: Tensor,
    t: float | Tensor,
    s: float | Tensor,
    x1: Tensor | None = None,
) -> Tensor:
    """``KL( q(x_s | x_t, x0) || p(x_s | x_t) )`` of each coordinate, ``(n, *shape)`` float64."""
    bridge: Any = process.bridge(x_t, t, s, 0.0, x1)
    true = bridge.push(one_hot_law(x0, process.vocabulary)).log_p
    law = Point(believed) if isinstance(believed, Tensor) else Categorical(believed.log_p.double())
    model = bridge.push(law).log_p
    p = true.exp()
    return torch.where(p > 0, p * (true - model.clamp_min(-1e4)), 0.0).sum(-1)


def plain_error(
    process: Discrete, believed: Categorical | Tensor, x0: Tensor, x_t: Tensor, x1: Tensor | None
) -> Tensor:
    """Cross-entropy of unknown values, or Poisson regression of missing counts from a mean; ``(n,)``."""
    if isinstance(believed, Tensor):
        missing = (believed - x_t).clamp_min(1e-12)
        return (missing - (x0 - x_t) * missing.log()).flatten(1).mean(1)
    cost = _cross_entropy(believed.log_p, x0)
    if isinstance(process, TokenBridge):
        return _over_hidden(process, cost, x_t, x1)
    return cost.flatten(1).mean(1)


def terminal(process: Discrete, x0: Tensor) -> Tensor:
    """``KL( q(x_1 | x0) || prior )`` of each datum ``(n,)`` float64; 0 where the other end is data."""
    if len(process.ends) == 2:
        return torch.zeros(len(x0), dtype=torch.float64, device=x0.device)
    kernel: Any = process.kernel(0.0, 1.0)
    law = kernel.push(one_hot_law(x0, process.vocabulary)).log_p
    p, prior = law.exp(), process.prior_log_p().to(x0.device)
    return torch.where(p > 0, p * (law - prior.clamp_min(-1e4)), 0.0).flatten(1).sum(1)


def reveal_rate(process: Discrete, t: Tensor) -> Tensor:
    """r(t) = -keep'/(1 - keep), float64."""
    return process.revival(t)


def divergence(process: TokenBridge, log_p: Tensor, x0: Tensor, x_t: Tensor, x1: Tensor | None) -> Tensor:
    """The bound's bracket of masks and bridges without its rate, a mean over positions ``(n,)``: `bound_rate` in closed
    form, in the precision of ``log_p``."""
    cost = _cross_entropy(log_p, x0)
    if len(process.ends) == 2:
        other = process.other(x_t, x1)
        stays = _picked(log_p, other).exp()
        cost = torch.where(x0 == other, 1.0, cost) - stays
    return _over_hidden(process, cost, x_t, x1)


def _cross_entropy(log_p: Tensor, x0: Tensor) -> Tensor:
    return -_picked(log_p, x0)


def _picked(log_p: Tensor, tokens: Tensor) -> Tensor:
    return log_p.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


def _over_hidden(process: TokenBridge, cost: Tensor, x_t: Tensor, x1: Tensor | None) -> Tensor:
    return torch.where(process.hidden(x_t, x1), cost, 0.0).flatten(1).mean(1)
