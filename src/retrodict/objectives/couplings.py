"""Which datum is trained with which noise, or with which datum of the other end.

A coupling permutes the partners of a batch.  Optimal transport within the batch makes conditional paths cross
less, so that the backward flow is straighter (Pooladian et al. 2023; Tong et al. 2024); the marginal laws
at all times of a flow stay those of some coupling of the same two ends.  With labels, transport is solved
within each class: across classes it would make the noise depend on the label, and sampling with a label
would start from the wrong law.

A coupled noise is no longer independent of the datum: velocities and posterior means are still learned, but
the score is not ``-E[z | x_t] / sigma``, so sample such a model by its flow (eta = 0).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from retrodict.core.errors import InputError, optional_import, require
from retrodict.core.registry import Registry


class Coupling:
    """Partners as they come: paired where the data are paired, independent otherwise."""

    def __call__(self, x0: Tensor, other: Tensor, labels: Tensor | None, generator: torch.Generator) -> Tensor:
        """``other`` reordered so that row i is the partner of ``x0[i]``; both ``(n, *shape)``."""
        return other


class OptimalTransport(Coupling):
    """The pairing of least total squared distance within the batch.

    Args:
        entropy: strength of entropic regularisation, relative to the mean squared distance; 0 is the exact
            assignment.  A positive value draws each partner from the regularised plan, with repetition.
        by_class: solve within each class of ``label``.

    Needs the package POT (extra "ot").  Costs O(n^3) on the CPU for a batch of n.
    """

    def __init__(self, entropy: float = 0.0, by_class: bool = False) -> None:
        require(entropy >= 0, f"entropy of a transport plan is at least 0, got {entropy}")
        self.entropy, self.by_class = float(entropy), bool(by_class)
        optional_import("ot", "ot")

    def __call__(self, x0: Tensor, other: Tensor, labels: Tensor | None, generator: torch.Generator) -> Tensor:
        if not self.by_class:
            return other[self._partners(x0, other, generator)]
        if labels is None:
            raise InputError("a class-conditional coupling needs the condition 'label' in the batch")
        order = torch.arange(len(x0), device=x0.device)
        for label in labels.unique():
            rows = (labels == label).nonzero().squeeze(-1)
            order[rows] = rows[self._partners(x0[rows], other[rows], generator)]
        return other[order]

    def _partners(self, x0: Tensor, other: Tensor, generator: torch.Generator) -> Tensor:
        import ot

        cost = torch.cdist(x0.detach().flatten(1).double(), other.detach().flatten(1).double()) ** 2
        if self.entropy == 0:
            # with equal weights a vertex of the polytope of plans is a permutation
            plan = torch.from_numpy(ot.emd([], [], cost.cpu().numpy(), numItermax=10_000_000))
            return plan.argmax(1).to(x0.device)
        entropy = self.entropy * float(cost.mean())
        # rows are normalised below, so a plan that is still on its way pairs every datum all the same
        plan = ot.sinkhorn([], [], cost.cpu().numpy(), entropy, "sinkhorn_log", stopThr=1e-6, warn=False)
        rows = torch.from_numpy(plan).to(x0.device)
        return torch.multinomial(rows, 1, generator=generator).squeeze(-1)


#: Couplings by name.
couplings: Registry[Any] = Registry("coupling")
couplings.add("independent", value=Coupling)
couplings.add("optimal-transport", "ot", value=OptimalTransport)
couplings.add("class-optimal-transport", "class-ot", value=lambda **options: OptimalTransport(by_class=True, **options))
