"""Interacting sites: many finite coordinates, each drawn given the *joint* previous state (spins, cells, contagion).

    kappa(x, y) = product over sites i of p_i(y_i | x)

The states are too many for tables, so that the message is kept as a product over sites.  The auxiliary lets each site
move by itself, ``kappa~_i(x_i, y_i)``; guiding uses the true conditionals, site by site, and pays

    w(x) = product over i of  sum_y p_i(y | x) h_i(y)  /  sum_y kappa~_i(x_i, y) h_i(y).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from retrodict.core.errors import InputError, InputTypeError
from retrodict.core.noise import Noise
from retrodict.kernels.checks import Space
from retrodict.kernels.finite import Finite
from retrodict.kernels.jump import pick_by_weight
from retrodict.kernels.kernel import Kernel, Pulled
from retrodict.kernels.laws import Table, event_sum


@dataclass(frozen=True)
class InteractingSites(Kernel):
    """Sites with K states each that move together, independent given the joint previous state.

    Args:
        conditional: ``x (batch, sites) -> log p (batch, sites, K)``, the law of each site given all of x.
        aux: tables ``(sites, K, K)`` (or one ``(K, K)``) of sites that move by themselves; `frozen_at` makes one.

    Messages are `Table` with ``log_h (batch, sites, K)``: products over sites.
    """

    conditional: Callable[[Tensor], Tensor]
    aux: Finite

    def __post_init__(self) -> None:
        if not isinstance(self.aux, Finite):
            raise InputTypeError(
                f"the auxiliary of interacting sites is a Finite kernel, got {type(self.aux).__name__}"
            )

    @staticmethod
    def frozen_at(conditional: Callable[[Tensor], Tensor], nominal: Tensor, states: int) -> InteractingSites:
        """The auxiliary in which each site sees the others at ``nominal (sites,)``."""
        sites = nominal.shape[-1]
        others = nominal.expand(sites, states, sites).clone()  # site i at state k, the rest nominal
        index = torch.arange(sites)
        others[index, :, index] = torch.arange(states)
        log_p = conditional(others.reshape(-1, sites)).reshape(sites, states, sites, states)
        return InteractingSites(conditional, Finite(log_p[index, :, index].double()))

    @property
    def domain(self) -> Space:
        return self.aux.domain

    @property
    def codomain(self) -> Space:
        return self.aux.codomain

    def _log_p(self, x: Tensor) -> Tensor:
        log_p = self.conditional(x).double()
        if log_p.shape != (*x.shape, self.aux.log_p.shape[-1]):
            raise InputError(
                f"conditional(x) returned shape {tuple(log_p.shape)} at states {tuple(x.shape)}; log probabilities"
                f" {(*x.shape, self.aux.log_p.shape[-1])} are accepted"
            )
        return log_p

    def draw(self, noise: Noise, shape: tuple[int, ...]) -> Tensor:
        return noise.uniform(shape)

    def step(self, x: Tensor, z: Tensor) -> Tensor:
        return pick_by_weight(self._log_p(x).exp(), z)

    def log_prob(self, x: Tensor, y: Tensor, event: int | None = None) -> Tensor:
        return event_sum(self._log_p(x).gather(-1, y.unsqueeze(-1)).squeeze(-1), event)

    def pull(self, h: Table) -> tuple[Kernel, Table]:
        if not isinstance(h, Table):
            return super().pull(h)
        guided, earlier = self.aux.pull(h)
        return Pulled(guided, h, earlier), earlier

    def guide(self, residual: Any, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        joint = self._log_p(x) + residual.later.log_h
        total = torch.logsumexp(joint, -1)
        y = pick_by_weight((joint - total.unsqueeze(-1)).exp(), z)
        return y, event_sum(total) - residual.earlier(x)
