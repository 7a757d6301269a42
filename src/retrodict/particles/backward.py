"""The particle filter's backward kernel: Bayes' inverse of the transition at the weighted particles.

    Lambda_k(y, j)  proportional to  W_{k-1}^j m_k(x_{k-1}^j, y)

is the law of the state at node k-1 given y at node k (Godsill, Doucet and West 2004).  Drawing from it node by node,
from the last to the first, gives smoothed paths (FFBSi); pushing weights through it gives smoothed marginals (FFBSm,
Doucet, Godsill and Andrieu 2000); pushing functionals forward gives PaRIS (`paris`).  The weights are the cumulative
ones of node k-1, before any resampling there; the potential at node k never enters.

A dense row costs N densities.  Where the density has a bound, a draw costs O(1) by rejection: propose j ~ W, accept
with probability m / bound (Douc, Garivier, Moulines and Olsson 2011), and what is left after some rounds gets its row.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from retrodict.core.errors import InputError
from retrodict.core.noise import Noise
from retrodict.particles.ancestry import History, take
from retrodict.particles.model import FeynmanKac
from retrodict.particles.resampling import Uniforms, pick

#: Above so many particles draws go by rejection where the model has a bound.
DENSE = 2000
_CHUNK = 1 << 22  # densities held at once


def log_backward(model: FeynmanKac, k: int, x: Tensor, log_w: Tensor, y: Tensor) -> Tensor:
    """log (W^j m_k(x^j, y^i)), ``(S, P, N)``: x ``(S, N, ...)`` at node k-1, y ``(S, P, ...)`` at node k."""
    return log_w.double().unsqueeze(1) + model.log_transition(k, x.unsqueeze(1), y.unsqueeze(2))


def rows(model: FeynmanKac, k: int, x: Tensor, log_w: Tensor, y: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """`log_backward` in pieces ``(particles of y, (S, piece, N))`` that fit into memory."""
    P = y.shape[1]
    size = max(1, _CHUNK // log_w.numel())
    for first in range(0, P, size):
        part = slice(first, min(first + size, P))
        yield part, log_backward(model, k, x, log_w, y[:, part])


class Backward:
    """Draws of parents from the backward kernel, node by node in either direction.

    Args:
        model: for its transition density and its bound.
        draws: independent parents of each child.
        noise: one slot a series.
        rejection: True, False, or None for rejection above `DENSE` particles where the density has a bound.
    """

    def __init__(self, model: FeynmanKac, draws: int, noise: Noise, rejection: bool | None = None) -> None:
        self.model, self.draws, self.noise, self.rejection = model, draws, noise, rejection
        self._uniforms: Uniforms | None = None

    def __call__(self, k: int, x: Tensor, log_w: Tensor, y: Tensor) -> Tensor:
        """Indices at node k-1, ``(S, P, draws)``, given particles x with weights there and ``y (S, P, ...)`` at k."""
        bound = self._bound(k, log_w.shape[1])
        if self._uniforms is None:
            rounds = 1 if bound is None else 2 * _rounds(log_w.shape[1]) + 1
            self._uniforms = Uniforms(self.noise, (rounds, y.shape[1] * self.draws))
        u = self._uniforms(k).to(x.device)
        if bound is None:
            u = u.view(len(u), y.shape[1], self.draws)
            found = [pick(_relative(log_p), u[:, part]) for part, log_p in rows(self.model, k, x, log_w, y)]
            return torch.cat(found, 1)
        return _draw_by_rejection(self.model, k, x, log_w, y, self.draws, u, bound)

    def _bound(self, k: int, particles: int) -> Tensor | None:
        if self.rejection is False or (self.rejection is None and particles <= DENSE):
            return None
        bound = self.model.log_transition_bound(k)
        if self.rejection and bound is None:
            raise InputError(
                f"{type(self.model).__name__} has no bound of its transition density; draw with rejection=False"
            )
        return bound


def _rounds(particles: int) -> int:
    return min(32, 2 * math.isqrt(particles))


def _relative(log_p: Tensor) -> Tensor:
    return (log_p - log_p.amax(-1, keepdim=True)).exp_()


def _draw_by_rejection(
    model: FeynmanKac, k: int, x: Tensor, log_w: Tensor, y: Tensor, draws: int, u: Tensor, bound: Tensor
) -> Tensor:
    S, N = log_w.shape
    P = y.shape[1]
    weights = torch.softmax(log_w.double(), -1)
    targets = y.repeat_interleave(draws, 1)
    found = torch.zeros((S, P * draws), dtype=torch.int64, device=x.device)
    open_ = torch.ones_like(found, dtype=torch.bool)
    for i in range(_rounds(N)):
        if not bool(open_.any()):
            break
        proposed = pick(weights, u[:, 2 * i])
        log_m = model.log_transition(k, take(x, proposed), targets)
        accepted = open_ & (torch.log(u[:, 2 * i + 1]) < log_m - bound.unsqueeze(1))
        found = torch.where(accepted, proposed, found)
        open_ &= ~accepted
    for s, i in enumerate(open_):  # the rest gets dense rows, series by series
        left = i.nonzero().squeeze(1)
        for part in left.split(max(1, _CHUNK // (S * N))):
            spread = targets[:, part]  # densities belong to series: all are asked, one is used
            log_p = log_backward(model, k, x, log_w, spread)[s]
            found[s, part] = pick(_relative(log_p), u[s, -1, part].unsqueeze(-1)).squeeze(-1)
    return found.view(S, P, draws)


def sample_paths(
    model: FeynmanKac, history: History, count: int, noise: Noise, *, rejection: bool | None = None
) -> Tensor:
    """Smoothed paths ``(S, count, n+1, ...)``, independent given the particles (FFBSi)."""
    x, draw = history.x, Backward(model, 1, noise, rejection)
    index = pick(history.log_w[-1].exp(), noise.stream("last").uniform((count,)).to(x[-1].device))
    states = [take(x[-1], index)]
    for k in range(len(x) - 1, 0, -1):
        drawn = draw(k, x[k - 1], history.log_w[k - 1], states[-1]).squeeze(-1)
        running = model.running(k)
        index = drawn if running is None else torch.where(running.to(drawn.device).unsqueeze(1), drawn, index)
        states.append(take(x[k - 1], index))
    return torch.stack(states[::-1], 2)


def smoothing_weights(model: FeynmanKac, history: History) -> list[Tensor]:
    """Smoothed weights ``(S, N)`` of the filter's particles at every node (FFBSm): O(N^2) a node.

    W_{k|n}^j = W_k^j sum_i W_{k+1|n}^i m(x^j, x^i) / sum_l W_k^l m(x^l, x^i)
    """
    smoothed = [history.log_w[-1].exp()]
    for k in range(len(history.x) - 1, 0, -1):
        x, log_w, y = history.x[k - 1], history.log_w[k - 1], history.x[k]
        weights = torch.zeros_like(smoothed[-1])
        for part, log_p in rows(model, k, x, log_w, y):
            backward = torch.softmax(log_p, -1).nan_to_num_()  # a row without parents belongs to a dead particle
            weights += torch.einsum("sp,spn->sn", smoothed[-1][:, part], backward)
        running = model.running(k)
        if running is not None:
            weights = torch.where(running.to(weights.device).unsqueeze(1), weights, smoothed[-1])
        smoothed.append(weights)
    return smoothed[::-1]
