"""Who descends from whom: the whole history of a run, or only the branches that are still alive.

`History` keeps every particle, weight and parent, which backward sampling needs: memory O(n N).  `Genealogy` keeps
the tree of the living.  Branches die out fast: of the N paths at the end only one is left about N steps back, so that
the tree holds O(n + N log N) nodes (Jacob, Murray and Rubenthaler 2015).  `Moments` keeps two numbers a coordinate.
All are observers of `smc`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from retrodict.particles.engine import Node


class History:
    """Every node of a run.

    Attributes:
        x: states ``(S, N, ...)`` a node.
        log_w: normalised log-weights ``(S, N)`` in float64.
        ancestors: parents ``(S, N)`` of nodes 1, 2, ..., as indices at the node before.
    """

    def __init__(self) -> None:
        self.x: list[Tensor] = []
        self.log_w: list[Tensor] = []
        self.ancestors: list[Tensor] = []

    def __call__(self, node: Node) -> None:
        self.x.append(node.x)
        self.log_w.append(torch.log_softmax(node.log_w.double(), -1))
        if node.ancestors is not None:
            self.ancestors.append(node.ancestors)

    def trace(self, last: Tensor) -> Tensor:
        """The paths ``(S, P, n+1, ...)`` that end in the particles ``last (S, P)``."""
        return follow(self.x, self.ancestors, last)


class Genealogy:
    """The tree of the particles that have living descendants.

    Layers are stored compactly; every ``every`` nodes the dead branches are cut.  ``widths`` tells how many nodes a
    layer still has (the largest number over the series).
    """

    def __init__(self, every: int = 32) -> None:
        self.every = every
        self.x: list[Tensor] = []
        self.ancestors: list[Tensor] = []
        self.living: list[Tensor] = []  # how many of a layer's nodes are alive, (S,)
        self.cut = 0  # layers that the last cut has seen

    def __call__(self, node: Node) -> None:
        self.x.append(node.x)
        self.living.append(torch.full((len(node.x),), node.x.shape[1], device=node.x.device))
        if node.ancestors is not None:
            self.ancestors.append(node.ancestors)
        if node.k % self.every == 0:
            self.prune()

    @property
    def widths(self) -> list[int]:
        """Stored nodes of every layer."""
        return [x.shape[1] for x in self.x]

    def prune(self) -> None:
        """Cut what has no living descendants, from the present backward until a layer loses nothing."""
        for k in range(len(self.ancestors) - 1, -1, -1):
            parents, layer, before = self.ancestors[k], self.x[k], self.living[k]
            S, width = parents.shape[0], layer.shape[1]
            # a layer is as wide as its widest series; what fills the others up has no say
            counted = torch.arange(parents.shape[1], device=parents.device) < self.living[k + 1].unsqueeze(1)
            alive = torch.zeros((S, width), dtype=torch.int8, device=parents.device)
            alive.scatter_reduce_(1, parents, counted.to(torch.int8), "amax")
            self.living[k] = alive.sum(1)
            if k < self.cut and bool((self.living[k] == before).all()):
                break  # this layer and all before it are as the last cut left them
            kept = int(self.living[k].max())
            order = torch.sort(alive, dim=1, descending=True, stable=True).indices[:, :kept]  # the living first
            place = torch.zeros((S, width), dtype=torch.int64, device=parents.device)
            place.scatter_(1, order, torch.arange(kept, device=parents.device).expand(S, kept))
            self.ancestors[k] = place.gather(1, parents)
            self.x[k] = take(layer, order)
            if k:
                self.ancestors[k - 1] = self.ancestors[k - 1].gather(1, order)
        self.cut = len(self.ancestors)

    def trace(self, last: Tensor) -> Tensor:
        """The paths ``(S, P, n+1, ...)`` that end in the particles ``last (S, P)``."""
        return follow(self.x, self.ancestors, last)


class Families:
    """Which particle of node 0 each particle descends from, ``of (S, N)``."""

    def __init__(self) -> None:
        self.of: Tensor | None = None

    def __call__(self, node: Node) -> None:
        if self.of is None or node.ancestors is None:
            self.of = torch.arange(node.x.shape[1]).expand(node.x.shape[:2])
        else:
            self.of = self.of.gather(1, node.ancestors)

    def effective(self, log_w: Tensor) -> Tensor:
        """`effective_families` of the particles with log-weights ``(S, N)``."""
        assert self.of is not None
        return effective_families(self.of, log_w)


def effective_families(of: Tensor, log_w: Tensor) -> Tensor:
    """One over the sum of squares of the weights of families, ``(S,)``."""
    w = torch.softmax(log_w.double(), -1)
    return 1 / torch.zeros_like(w).scatter_add(1, of, w).square().sum(-1)


class Moments:
    """Mean and covariance of every filtering law: ``mean (S, n+1, d)``, ``cov (S, n+1, d, d)``, in float64."""

    def __init__(self) -> None:
        self._mean: list[Tensor] = []
        self._cov: list[Tensor] = []

    def __call__(self, node: Node) -> None:
        mean, cov = moments(node.x, node.weights)
        self._mean.append(mean)
        self._cov.append(cov)

    @property
    def mean(self) -> Tensor:
        return torch.stack(self._mean, 1)

    @property
    def cov(self) -> Tensor:
        return torch.stack(self._cov, 1)


def moments(x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Mean ``(S, d)`` and covariance ``(S, d, d)`` of weighted particles ``(S, N, ...)``, states flattened."""
    flat = x.double().reshape(*weights.shape, -1)
    mean = torch.einsum("sn,snd->sd", weights, flat)
    centred = flat - mean.unsqueeze(1)
    return mean, torch.einsum("sn,snd,sne->sde", weights, centred, centred)


def take(x: Tensor, index: Tensor) -> Tensor:
    """The particles ``index (S, P, ...)`` of each series of ``x (S, N, ...)``: shape ``(*index.shape, ...)``."""
    S, N = x.shape[:2]
    rows = torch.arange(S, device=x.device).view(S, *[1] * (index.ndim - 1))
    return x.flatten(0, 1)[(index + N * rows).flatten()].view(*index.shape, *x.shape[2:])


def follow(x: list[Tensor], parents: list[Tensor], last: Tensor) -> Tensor:
    """Paths ``(S, P, n+1, ...)`` along the links ``parents`` from the particles ``last`` of the last node."""
    states = [take(x[-1], last)]
    for layer, links in zip(reversed(x[:-1]), reversed(parents)):
        last = links.gather(1, last)
        states.append(take(layer, last))
    return torch.stack(states[::-1], 2)
