"""Resampling: how many children each weighted particle has, and whose child each new particle is.

A scheme turns normalised weights w and uniforms into counts with E[count_j] = M w_j.  It returns them *cumulated*,
``below_j = count_0 + ... + count_j``, because evenly spaced positions meet the cumulative weights C_j in closed form,

    systematic:   below_j = floor(M C_j + u),        stratified:  below_j = floor(M C_j) + [u_m < frac(M C_j)],

and because parents follow from the cumulated counts by marking and one cumulative sum: child i has parent
``#{j : below_j <= i}``.  Nothing is searched, and children come in the order of their parents.

Every scheme works on ``weights (G, K)`` and ``uniforms (G, width)``, and makes M children, which need not be K.
Sources: multinomial, stratified, residual and systematic as compared by Douc, Cappe and Moulines (2005); SSP by
Srinivasan (2001) and Gerber, Chopin and Whiteley (2019).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from retrodict.core.noise import Noise
from retrodict.core.registry import Registry

_BLOCK_NUMBERS = 1 << 18  # random numbers a series that are drawn at once


@dataclass(frozen=True)
class Scheme:
    """A resampling scheme.

    Attributes:
        below: ``(weights (G, K), uniforms (G, width), M) -> cumulated counts (G, K)``, the last of them M.
        width: uniforms that it takes for K parents and M children.
        variance: of each count, ``shares M w (G, K) -> (G, K)``; that of systematic counts' fractional parts where
            the scheme has no closed form.
        independent: children are independent given the weights, as conditional SMC wants them.
    """

    below: Callable[[Tensor, Tensor, int], Tensor]
    width: Callable[[int, int], int]
    variance: Callable[[Tensor], Tensor]
    independent: bool = False

    def counts(self, weights: Tensor, uniforms: Tensor, children: int) -> Tensor:
        """Children of each particle, ``(G, K)``."""
        return torch.diff(self.below(weights, uniforms, children), dim=-1, prepend=weights.new_zeros(len(weights), 1))

    def __call__(self, weights: Tensor, uniforms: Tensor, children: int | None = None) -> Tensor:
        """Parents ``(G, children)``, in rising order; as many children as uniforms unless said otherwise."""
        children = weights.shape[-1] if children is None else children
        return parents(self.below(weights, uniforms, children), children)


#: Resampling schemes by name.
resamplers: Registry[Scheme] = Registry("resampling scheme")


def parents(below: Tensor, children: int) -> Tensor:
    """The parent of each child, ``(G, children)``, from cumulated counts ``(G, K)`` whose last is ``children``."""
    if len(below) == 1:  # the same by the faster way to count
        if below.device.type == "cpu":
            marks = np.bincount(below.numpy()[0], minlength=children + 1)[:children]
            return torch.from_numpy(np.add.accumulate(marks)[None])
        return torch.bincount(below[0], minlength=children + 1)[:children].cumsum(0).unsqueeze(0)
    marks = torch.zeros((len(below), children + 1), dtype=torch.int64, device=below.device)
    marks.scatter_add_(1, below, _one(below).expand_as(below))
    return marks[:, :children].cumsum(1)


def pick(weights: Tensor, uniforms: Tensor) -> Tensor:
    """Independent draws ``(..., M)`` from the weights ``(..., K)``, not necessarily normalised, by inversion."""
    total = weights.cumsum(-1, dtype=torch.float64)
    # right=True and u < 1 keep weightless particles out; rounding must not run over the end
    found = torch.searchsorted(total, uniforms * total[..., -1:], right=True)
    return found.clamp_(max=weights.shape[-1] - 1)


def block_size(numbers: int, most: int = 64) -> int:
    """How many nodes' random numbers are drawn together, at so many numbers a node."""
    return max(1, min(most, _BLOCK_NUMBERS // max(numbers, 1)))


class Uniforms:
    """Uniforms ``(S, *shape)`` for every node, drawn in whole blocks that are keyed by their number.

    What a series draws at a node then depends neither on how long the other series are, nor on when they resample,
    nor on how often the run was repeated with series of other lengths beside it.
    """

    def __init__(self, noise: Noise, shape: tuple[int, ...], most: int = 64) -> None:
        self.noise, self.shape, self.size = noise, shape, block_size(math.prod(shape), most)
        self.block, self.held = -1, torch.zeros(0)

    def hold(self, k: int) -> None:
        """Have the block of node k drawn, used or not: a block that others need must not be kept for a later run."""
        block = k // self.size
        if block != self.block:
            self.block, self.held = block, self.noise.stream(str(block)).uniform((self.size, *self.shape))

    def __call__(self, k: int) -> Tensor:
        self.hold(k)
        return self.held[:, k % self.size]


def _one(like: Tensor) -> Tensor:
    return torch.ones((), dtype=like.dtype, device=like.device)


def _scaled(weights: Tensor, children: int) -> Tensor:
    """M C_j in float64; the last is exactly M."""
    total = weights.cumsum(-1, dtype=torch.float64)
    return total.div_(total[..., -1:].clone()).mul_(children)


def _systematic(weights: Tensor, uniforms: Tensor, children: int) -> Tensor:
    if len(weights) == 1 and weights.device.type == "cpu":  # the same in NumPy, which starts an operation faster
        total = np.add.accumulate(weights.detach().numpy(), 1, np.float64)
        total *= children / total[0, -1]
        total[0, -1] = children
        total += uniforms.numpy()[:, :1]
        return torch.from_numpy(np.minimum(total.astype(np.int64), children))
    return _scaled(weights, children).add_(uniforms[..., :1]).long().clamp_(max=children)


def _stratified(weights: Tensor, uniforms: Tensor, children: int) -> Tensor:
    scaled = _scaled(weights, children)
    stratum = scaled.long().clamp_(max=children - 1)
    return stratum + (uniforms.gather(-1, stratum) < scaled - stratum)


def _multinomial(weights: Tensor, uniforms: Tensor, children: int) -> Tensor:
    return _count(pick(weights, uniforms[..., :children]), weights).cumsum(-1)


def _residual(weights: Tensor, uniforms: Tensor, children: int) -> Tensor:
    share = weights.double() * (children / weights.sum(-1, keepdim=True, dtype=torch.float64))
    certain = _floor(share)
    left = children - certain.sum(-1, keepdim=True)
    draws = pick((share - certain).clamp_min_(0), uniforms[..., :children])
    extra = _count(draws, weights, torch.arange(children, device=weights.device) < left)
    return (certain + extra).cumsum(-1)


def _count(draws: Tensor, weights: Tensor, kept: Tensor | None = None) -> Tensor:
    counts = torch.zeros(weights.shape, dtype=torch.int64, device=weights.device)
    ones = torch.ones_like(draws) if kept is None else kept.to(torch.int64)
    return counts.scatter_add_(-1, draws, ones)


def _floor(share: Tensor) -> Tensor:
    """The integer part; a share within rounding of an integer is that integer."""
    return (share + 1e-9).long()


def _ssp(weights: Tensor, uniforms: Tensor, children: int) -> Tensor:
    """Srinivasan's pairwise sweep over the fractional parts, played as a tournament: log2 K rounds for all pairs.

    Of two fractions a, b one is settled: for a + b < 1 the loser gets 0 and the other carries a + b (a stays with
    probability a/(a+b)); else one gets 1 and the other carries a + b - 1 (a gets 1 with probability
    (1-b)/(2-a-b)).  What is carried meets the winner of another pair.
    """
    share = weights.double() * (children / weights.sum(-1, keepdim=True, dtype=torch.float64))
    certain = _floor(share)
    fraction = (share - certain).clamp_min_(0)
    groups, size = weights.shape
    slots = torch.arange(size, device=weights.device).expand(groups, size)
    settled = torch.zeros_like(certain)
    used = 0
    while fraction.shape[-1] > 1:
        odd = fraction.shape[-1] % 2
        bye, slot_bye = fraction[:, :odd], slots[:, :odd]
        a, b = fraction[:, odd::2], fraction[:, odd + 1 :: 2]
        slot_a, slot_b = slots[:, odd::2], slots[:, odd + 1 :: 2]
        u = uniforms[:, used : used + a.shape[-1]]
        used += a.shape[-1]
        total = a + b
        low = total < 1
        carries_a = u * total < a  # low: a carries on and b is settled at 0
        one_a = u * (2 - total) < 1 - b  # high: a is settled at 1 and b carries on
        stays_a = torch.where(low, carries_a | (total == 0), ~one_a)
        settled.scatter_add_(1, torch.where(stays_a, slot_b, slot_a), (~low).to(torch.int64))
        fraction = torch.cat([bye, torch.where(low, total, total - 1)], 1)
        slots = torch.cat([slot_bye, torch.where(stays_a, slot_a, slot_b)], 1)
    counts = certain + settled
    # the fractions sum to an integer, so the last one is 0 or 1 but for rounding: give it what is left
    counts.scatter_add_(1, slots, children - counts.sum(-1, keepdim=True))
    return counts.cumsum(-1)


def _fractions(share: Tensor) -> Tensor:
    fraction = share - _floor(share)
    return fraction * (1 - fraction)


def _residual_variance(share: Tensor) -> Tensor:
    fraction = share - _floor(share)
    return fraction * (1 - fraction / fraction.sum(-1, keepdim=True).clamp_min(1))


def _multinomial_variance(share: Tensor) -> Tensor:
    return share * (1 - share / share.sum(-1, keepdim=True))


resamplers.add("systematic", value=Scheme(_systematic, lambda parents, children: 1, _fractions))
resamplers.add("stratified", value=Scheme(_stratified, lambda parents, children: children, _fractions))
resamplers.add(
    "multinomial", value=Scheme(_multinomial, lambda parents, children: children, _multinomial_variance, True)
)
resamplers.add("residual", value=Scheme(_residual, lambda parents, children: children, _residual_variance))
resamplers.add("ssp", value=Scheme(_ssp, lambda parents, children: max(parents - 1, 1), _fractions))
