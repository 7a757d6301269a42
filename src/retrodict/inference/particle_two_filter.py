"""Two-filter smoothing: particles forward, particles backward, and the smoothing law where they meet.

    p(x_k | all data)  proportional to  p(x_k | y_{0:k-1}) h_k(x_k),         h_k = g_k (kappa_{k+1} h_{k+1}):

the forward filter's prediction times the backward message of the calculus.  h_k is no law, so the backward filter
runs on gamma_k h_k with a Gaussian gamma_k of our choice (Briers, Doucet and Maskell 2010): here the moments of the
forward filter's prediction, a little widened, and the prior itself at node 0.  A backward step draws from the Bayes
inverse of the linearised transition at gamma_k, bent by the observation at node k, and pays

    gamma_k(x_k) m(x_k, x_{k+1}) g_k(x_k) / (gamma_{k+1}(x_{k+1}) q(x_k)),

so any gamma is right and a good one has even weights.  Half of the particles are drawn without the bend and all are
weighed against the mixture of both proposals (Veach and Guibas 1995), which bounds the weights where the expansion of
an observation sees one mode of several.  Meeting at node k, backward particles get the weight
``sum_i W_{k-1}^i m(x_{k-1}^i, x_k) / gamma_k(x_k)``: O(N^2).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from retrodict.core.noise import Noise
from retrodict.inference.particle import Guided
from retrodict.kernels.euler import jacobian, mv, normal_log_prob
from retrodict.particles import FeynmanKac, History, moments, smc
from retrodict.particles.backward import rows

_WIDER = 1.5  # variance of gamma relative to the prediction's


class Backward(FeynmanKac):
    """The backward filter as a Feynman-Kac model: its node r is node n - r of the data."""

    def __init__(self, forward: Guided, history: History) -> None:
        self.forward, self.n, self.series = forward, forward.n, forward.series
        self.gamma = self._laws(history)

    def _laws(self, history: History) -> list[tuple[Tensor, Tensor]]:
        """Mean ``(S, 1, d)`` and root ``(S, 1, d, d)`` of every gamma."""
        mean, root = self.forward.prior_root()
        laws = [(mean.unsqueeze(1), root.unsqueeze(1))]
        for k in range(1, self.n + 1):
            centres, spread = self.forward.steps.moments(k, history.x[k - 1])
            weights = history.log_w[k - 1].exp()
            mean, between = moments(centres, weights)
            noise = spread @ spread.mT
            within = noise[:, 0] if noise.shape[1] == 1 else torch.einsum("sn,snij->sij", weights, noise)
            laws.append((mean.unsqueeze(1), _root(_WIDER * (between + within)).unsqueeze(1)))
        return laws

    def log_gamma(self, k: int, x: Tensor) -> Tensor:
        """log gamma_k at states ``(S, P, d)``."""
        mean, root = self.gamma[k]
        return _log_normal(x - mean, root)

    def start(self, particles: int, noise: Noise) -> tuple[Tensor, Tensor]:
        mean, root = self.gamma[self.n]
        return self._proposed(self.n, mean, root, noise.normal((particles, root.shape[-1])))

    def draw(self, moves: int, particles: int, noise: Noise) -> Iterable[Any]:
        return noise.normal((moves, particles, self.gamma[0][0].shape[-1])).unbind(1)

    def move(self, k: int, x: Tensor, z: Any) -> tuple[Tensor, Tensor]:
        k = self.n - k  # the node that is drawn, from node k + 1
        mean, root = self._inverse(k, x)
        y, log_w = self._proposed(k, mean, root, z)
        ratio = self.log_gamma(k, y) + self.forward.log_transition(k + 1, y, x) - self.log_gamma(k + 1, x)
        return y, log_w + ratio - _log_normal(y - mean, root)

    def _proposed(self, k: int, mean: Tensor, root: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Draws ``(S, P, d)`` from N(mean, root root'), every other one bent by g_k, and log N g_k over the mixture."""
        bend = self.forward.bend(k, mean, root)
        bent, log_kh = bend.doob(mean.unsqueeze(-2), z.double().unsqueeze(-2))
        even = torch.arange(z.shape[1], device=z.device) % 2 == 0
        y = torch.where(even.unsqueeze(-1), bent.squeeze(-2), mean + mv(root, z.double()))
        share = even.double().mean()
        odds = (bend(y) - log_kh.squeeze(-1)) + share.log()  # the density of a bent draw relative to N, times its share
        return y, self.forward.log_g(k, y) - torch.logaddexp(odds, torch.log1p(-share))

    def _inverse(self, k: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """Bayes' inverse at gamma_k of the transition to node k+1, linearised at gamma's mean: mean and root."""
        at, root = self.gamma[k]
        with torch.enable_grad():
            value, J = jacobian(lambda v: self.forward.steps.mean(k + 1, v), at.detach())
        value, J = value.detach(), J.detach()
        spread = self.forward.steps.moments(k + 1, at)[1]
        cross = (root @ root.mT) @ J.mT
        gain = torch.linalg.solve(J @ cross + spread @ spread.mT, cross.mT).mT
        return at + mv(gain, x - value), _root(root @ root.mT - gain @ cross.mT)


def _root(V: Tensor) -> Tensor:
    return torch.linalg.cholesky(0.5 * (V + V.mT))


def _log_normal(residual: Tensor, root: Tensor) -> Tensor:
    return normal_log_prob(residual.unsqueeze(-2), root.unsqueeze(-3)).squeeze(-1)


def two_filter(
    forward: Guided, history: History, noise: Noise, resample: str, threshold: float
) -> tuple[list[Tensor], list[Tensor]]:
    """Backward particles ``(S, N, d)`` and their smoothed weights ``(S, N)`` at nodes 0..n (series of one length)."""
    model, behind = Backward(forward, history), History()
    N = history.log_w[0].shape[1]
    smc(model, N, noise, resample=resample, threshold=threshold, observers=[behind])
    states, weights = behind.x[::-1], []
    for k, (x, log_w) in enumerate(zip(states, behind.log_w[::-1])):
        if k:
            meet = [torch.logsumexp(v, -1) for _, v in rows(forward, k, history.x[k - 1], history.log_w[k - 1], x)]
            log_w = log_w + torch.cat(meet, 1) - model.log_gamma(k, x)
        weights.append(torch.softmax(log_w, -1))
    return states, weights
