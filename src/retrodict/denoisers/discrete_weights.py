"""Feynman-Kac weights of products of discrete denoisers, ``prod_i q_i^w_i`` with total weight W = sum w_i.

A step draws each coordinate from the product law, normalised: that is the common heuristic.  Two weights make it right
(Skreta et al. 2026; a jump process under a potential has the rate of weight (d/dt + R) h / h):

*masks*   Along ``prod_i q_i(shown)^w_i keep^shown hide^masked`` a position that is revealed multiplies the weight by
          ``S = sum_v prod_i p_i(v)^w_i``, taken before, and one that is masked again divides by S, taken after.  Then
          remasking is reversible and adds no weight on average.
*others*  With K the step that was taken, p_i that of expert i and p_0 that of data about which nothing is known,

              prod_i p_i(x_s | x_t)^w_i p_0(x_s | x_t)^(1 - W) / K(x_s | x_t),

          as every factor is a reversal of one forward process.

Both are exact where coordinates change one at a time; several in one step are an error of the order of the step.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from retrodict.core.errors import InputError
from retrodict.denoisers.denoiser import Step
from retrodict.kernels import Belief, Categorical
from retrodict.kernels.laws import event_sum
from retrodict.processes import Discrete, Masked

_OUT = -1e4  # log probability of what is ruled out, in sums


def product_law(parts: list[tuple[float, Belief]]) -> tuple[Categorical, Tensor]:
    """The normalised product of class posteriors, and its log normaliser ``log S (batch, *shape)``.

    A value that any expert rules out is out.
    """
    laws: list[Any] = [part.law for _, part in parts]
    if any(law is None for law in laws):
        raise InputError("a product of discrete denoisers needs laws over values; one of these gives a mean alone")
    log_p: Any = sum(w * law.log_p.clamp_min(_OUT) for (w, _), law in zip(parts, laws))
    out = torch.stack([law.log_p.isneginf() for law in laws]).any(0)
    log_p = log_p.masked_fill(out & ~out.all(-1, keepdim=True), -torch.inf)
    log_s = torch.logsumexp(log_p, -1)
    return Categorical(log_p - log_s.unsqueeze(-1)), log_s


def start_weight(process: Discrete, belief: Belief, total: float) -> Tensor:
    """Of a fresh start; the weights of masks need none."""
    out = torch.zeros(len(belief.mean), dtype=torch.float64, device=belief.mean.device)
    if isinstance(process, Masked):
        return out
    return out + (1 - total) * math.prod(belief.mean.shape[1:-1]) * math.log(process.vocabulary)


def increment(process: Discrete, step: Step, total: float) -> Tensor:
    """Of one move, the last one included."""
    if isinstance(process, Masked):
        return _of_masks(process, step)
    if step.log_move is None:
        raise InputError(
            "weights of a product of discrete denoisers need moves with a density: use solver='step' with eta=0, or "
            "'tau-leaping' (masks take any plan), or population=False"
        )
    parts = [*step.prev.parts]
    if total != 1:
        parts.append((1 - total, _knows_nothing(process, step)))
    out = -step.log_move(step.prev)
    for w, part in parts:
        out = out + w * step.log_move(part).clamp_min(_OUT)
    return out


def _of_masks(process: Masked, step: Step) -> Tensor:
    assert step.x_prev is not None
    before, after = process.hidden(step.x_prev), process.hidden(step.x)
    revealed, forgotten = before & ~after, after & ~before
    out = event_sum(torch.where(revealed, product_law(step.prev.parts)[1], 0.0))
    if step.now is not None and bool(forgotten.any()):
        out = out - event_sum(torch.where(forgotten, product_law(step.now.parts)[1], 0.0))
    return out.double()


def _knows_nothing(process: Discrete, step: Step) -> Belief:
    """The belief about data of which every value is as likely."""
    assert step.x_prev is not None
    log_p = torch.log_softmax(process.log_likelihood(step.x_prev, step.t, step.prev.x1).clamp_min(_OUT), -1)
    return Belief(log_p.exp(), law=Categorical(log_p), x1=step.prev.x1)
