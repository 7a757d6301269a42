"""The regression of tokens: a class posterior at the positions that hide the clean token.

On a bridge that shows x0 with probability keep(t) and the other end x1 otherwise, the reverse process
reveals a hidden position at rate ``r(t) = -keep'/(1 - keep)``.  With p the denoiser's posterior, the
evidence bound is the relative entropy of the two jump processes (Sahoo et al. 2024 for masks):

    -log p(x0 | x1) <= int_0^1 r(t) E sum_{l hidden} [ -1{x0 != x1} log p(x0^l) + 1{x0 = x1} - p(x1^l) ] dt

Where the other end is a mask, which is never the clean token, only the cross-entropy is left.  With the exact
posterior the bound is the entropy of the data.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from retrodict.core.errors import InputError
from retrodict.core.noise import GeneratorNoise
from retrodict.denoisers import Denoiser, TokenDenoiser
from retrodict.objectives.regression import Objective
from retrodict.objectives.times import TimeLaw
from retrodict.objectives.weightings import ELBO, Weighting
from retrodict.processes import Process, TokenBridge
from retrodict.processes.gaussian import derivative


class TokenRegression(Objective):
    """Cross-entropy of hidden tokens, in nats a token.

    Args:
        process: `Masked` or `TokenBridge`.
        weighting: "elbo" (the bound above), or "uniform" (plain cross-entropy of hidden tokens, all times
            alike).
        times, dropout: see `retrodict.objectives.regression.Objective`.
    """

    def __init__(
        self,
        process: Process,
        weighting: str | Weighting = "elbo",
        times: str | TimeLaw = "stratified",
        dropout: float | None = None,
    ) -> None:
        if not isinstance(process, TokenBridge):
            raise InputError(f"this objective is for masks and token bridges, got {type(process).__name__}")
        super().__init__(process, weighting, times, dropout)
        if not isinstance(self.weighting, ELBO) and type(self.weighting) is not Weighting:
            raise InputError("tokens are weighted 'elbo' or 'uniform'; the other weightings are of the log-SNR")

    def __call__(
        self, denoiser: Denoiser, batch: Mapping[str, Tensor], generator: torch.Generator
    ) -> dict[str, Tensor]:
        x0, x1, condition = self.read(denoiser, batch)
        if x0.is_floating_point():
            raise InputError(f"tokens are integers, got {x0.dtype}")
        process: TokenBridge = self.process  # type: ignore[assignment]
        t = self.times.sample(len(x0), process, generator).to(x0.device)
        x_t = process.corrupt(x0, t, GeneratorNoise(generator, len(x0), device=x0.device), x1)
        log_p = log_posterior(denoiser, x_t, t, x1, self.drop(denoiser, condition, generator))
        if not self.weighting.integral:
            return self.over_time(t, _over_hidden(process, _cross_entropy(log_p, x0), x_t, x1), None)
        return self.over_time(t, divergence(process, log_p, x0, x_t, x1), reveal_rate(process, t))


def reveal_rate(process: TokenBridge, t: Tensor) -> Tensor:
    """r(t) = -keep'/(1 - keep), float64."""
    return derivative(process.hide, t) / process.hide(t)


def divergence(process: TokenBridge, log_p: Tensor, x0: Tensor, x_t: Tensor, x1: Tensor | None) -> Tensor:
    """The bracket of the bound, a mean over positions ``(n,)``; the bound is its integral against r(t)."""
    cost = _cross_entropy(log_p, x0)
    if len(process.ends) == 2:
        other = process.other(x_t, x1)
        stays = _picked(log_p, other).exp()
        cost = torch.where(x0 == other, 1.0, cost) - stays
    return _over_hidden(process, cost, x_t, x1)


def log_posterior(
    denoiser: Denoiser, x_t: Tensor, t: Tensor, x1: Tensor | None, condition: dict[str, Tensor]
) -> Tensor:
    """log p(x0 | x_t) at each position ``(n, L, vocabulary)``; only hidden positions are asked for."""
    if isinstance(denoiser, TokenDenoiser):  # float64 and carry-over are for sampling
        return torch.log_softmax(denoiser.logits(x_t, t, **condition).float(), -1)
    source = {} if x1 is None else {"x1": x1}
    law = denoiser.belief(x_t, t, **condition, **source).law
    if law is None:
        raise InputError(f"{type(denoiser).__name__} gives no class posterior; wrap the network in a TokenDenoiser")
    return law.log_p


def _cross_entropy(log_p: Tensor, x0: Tensor) -> Tensor:
    return -_picked(log_p, x0)


def _picked(log_p: Tensor, tokens: Tensor) -> Tensor:
    return log_p.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


def _over_hidden(process: TokenBridge, cost: Tensor, x_t: Tensor, x1: Tensor | None) -> Tensor:
    return torch.where(process.hidden(x_t, x1), cost, 0.0).flatten(1).mean(1)
