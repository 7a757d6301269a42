"""The variance of a run's log evidence, estimated from the run itself.

Let D_p(t) be the weight at time t of pairs of particles with different forebears in generation p, where a generation
begins at the start and wherever particles are redrawn.  Drawing children by itself makes pairs related: with
probability d_p = sum_i Var(count_i) / N^2 (1/N for multinomial counts).  Few unrelated pairs beyond that mean a poor
estimate; for one run (Lee and Whiteley 2018)

    relative variance of Z  ~  1 - a_0 D_0(n) = sum_p [ a_{p+1} D_{p+1}(n) - a_p D_p(n) ],  a_p = prod_{q>=p} 1/(1-d_q).

Over long series every particle has the same forebear and D_0 says nothing; what generation p adds is therefore read
off ``lag`` generations later (as Olsson and Douc 2019 do for expectations), by when its influence has died out.
"""

from __future__ import annotations

import torch
from torch import Tensor

from retrodict.particles.engine import Node
from retrodict.particles.resampling import resamplers


class EvidenceVariance:
    """An observer of `smc`; ``variance (S,)`` of log Z when the run is over.

    Args:
        resample: the run's scheme.
        lag: generations.
    """

    def __init__(self, resample: str = "systematic", lag: int = 20) -> None:
        self.scheme, self.lag = resamplers[resample], lag
        self._forebears: list[Tensor] = []  # of every particle in the last generations, oldest first, (S, N)
        self._related: list[Tensor] = []  # d_p of these generations, (S,)
        self._done = torch.zeros(0)
        self._weights = torch.zeros(0)

    def __call__(self, node: Node) -> None:
        S, N = node.x.shape[:2]
        own = torch.arange(N, device=node.x.device).expand(S, N)
        if node.ancestors is None:
            self._forebears, self._done = [own], torch.zeros(S, dtype=torch.float64, device=own.device)
            self._related = [torch.full_like(self._done, 1 / N)]
        elif bool((changed := (node.ancestors != own).any(1)).any()):
            self._forebears = [f.gather(1, node.ancestors) for f in self._forebears] + [own]
            drawing = self.scheme.variance(N * self._weights).sum(1) / N**2
            self._related.append(torch.where(changed, drawing, 0.0))
        self._weights = node.weights
        while len(self._forebears) > self.lag + 1:
            self._done = self._done + self._unrelated(1) - self._unrelated(0)
            self._forebears.pop(0)
            self._related.pop(0)

    def _unrelated(self, generation: int) -> Tensor:
        """a_p D_p of a generation kept."""
        families = torch.zeros_like(self._weights).scatter_add_(1, self._forebears[generation], self._weights)
        alone = torch.stack(self._related[generation:]).neg().log1p().sum(0)
        return (1 - (families**2).sum(1)) * torch.exp(-alone)

    @property
    def variance(self) -> Tensor:
        """The estimate ``(S,)``, at least 0."""
        return (self._done + 1 - self._unrelated(0)).clamp_min(0)
