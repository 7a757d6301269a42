"""Random-walk Metropolis-Hastings on free numbers, several chains side by side, with a robustly adapted proposal.

    free' = free + S u,  u ~ N(0, I);     accept with probability  alpha = min(1, pi(free') / pi(free))
    S S' <- S (I + eta (alpha - goal) u u' / |u|^2) S'          during burn-in          (Vihola 2012, equation 1)

The density pi may be an estimate: exp(log_density) with the right mean keeps the exact target (Andrieu and Roberts
2009), if the estimate of the current point is kept and not drawn again.  Each proposal has a seed of its own for it.
After burn-in S is fixed, so that what is kept is a Markov chain.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from retrodict.core.noise import Noise

#: ``(free (C, p), seeds of the C estimates) -> log density (C,)``; minus infinity where there is no mass.
LogDensity = Callable[[Tensor, list[int]], Tensor]

_FADE = 0.66  # the adaptation's step falls as l^-0.66


@dataclass(frozen=True)
class Walk:
    """Where chains went after burn-in.

    Attributes:
        free: ``(C, D, p)``; log_density: ``(C, D)``; seeds: of the accepted estimates, ``(C, D)``.
        acceptance: after burn-in ``(C,)``; scale: the roots S in use ``(C, p, p)``.
    """

    free: Tensor
    log_density: Tensor
    seeds: Tensor
    acceptance: Tensor
    scale: Tensor


def metropolis(
    log_density: LogDensity,
    free: Tensor,
    steps: int,
    burn_in: int,
    noise: Noise,
    *,
    goal: float,
    value: Tensor,
    seeds: list[int],
    scale: Tensor,
    thin: int = 1,
    each: Callable[[], Any] = lambda: None,
) -> Walk:
    """``steps`` kept draws of each chain after ``burn_in`` moves, ``thin`` moves apart.

    Args:
        free: where the C chains are ``(C, p)``, with log density ``value (C,)`` by the estimates ``seeds``.
        noise: one slot a chain; a chain's moves depend on its slot and on nothing else.
        goal: acceptance that burn-in adapts to; scale: first root of the proposal's covariance ``(p, p)``.
        each: called after every move.
    """
    C, p = free.shape
    root = scale.expand(C, p, p).clone()
    kept: list[tuple[Tensor, Tensor, Tensor]] = []
    accepted = torch.zeros(C, dtype=torch.float64)
    held = torch.tensor(seeds)
    for move in range(burn_in + steps * thin):
        u = noise.normal((p,)).double()
        chance, fresh = noise.uniform((2,)).unbind(1)
        proposal = free + (root @ u.unsqueeze(-1)).squeeze(-1)
        tickets = (fresh * 2**53).long()
        new = log_density(proposal, tickets.tolist())
        alpha = (new - value).nan_to_num(nan=-torch.inf).clamp_max(0).exp()
        take = chance < alpha
        free = torch.where(take.unsqueeze(-1), proposal, free)
        value, held = torch.where(take, new, value), torch.where(take, tickets, held)
        if move < burn_in:
            root = adapted(root, u, alpha - goal, min(1.0, p * (move + 1) ** -_FADE))
        else:
            accepted += take
            if (move - burn_in + 1) % thin == 0:
                kept.append((free, value, held))
        each()
    columns = [torch.stack(part, 1) for part in zip(*kept)]
    return Walk(columns[0], columns[1], columns[2], accepted / (steps * thin), root)


def adapted(root: Tensor, u: Tensor, surplus: Tensor, gain: float) -> Tensor:
    """The root after one step of robust adaptation; surplus ``(C,)`` is acceptance above its goal."""
    p = u.shape[-1]
    direction = u / u.norm(dim=-1, keepdim=True)
    change = gain * surplus[:, None, None] * direction.unsqueeze(-1) * direction.unsqueeze(-2)
    inner = torch.linalg.cholesky(torch.eye(p, dtype=root.dtype) + change)
    return root @ inner
