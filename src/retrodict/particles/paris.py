"""Smoothed expectations of additive functionals, on the fly and in constant memory.

For S_n = s_0(x_0) + sum_k s_k(x_{k-1}, x_k) every particle carries tau^i, an estimate of E[S_k | x_k = x^i, data], and

    tau^i  <-  average over parents J of  tau^J + s_k(x^J, x^i),           E[S_n | data] = sum_i W^i tau^i.

======================  =============================================================================================
``backward="paris"``    M independent parents from the backward kernel (Olsson and Westerborn 2017): O(N) a step.
                        M >= 2 keeps the variance linear in n; with M = 1 the paths collapse.
``backward="exact"``    all N parents with their backward probabilities (Del Moral, Doucet and Singh 2010): O(N^2).
``backward="tree"``     the one parent in the genealogy: free, and degenerate for long series.
======================  =============================================================================================

tau is not touched by resampling.  For the score (Fisher's identity) s_0 is the gradient of log mu(x_0) g_0(x_0), not
zero, and s_k that of log m_k(x_{k-1}, x_k) g_k(x_k).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from retrodict.core.errors import InputError
from retrodict.core.noise import Noise
from retrodict.particles.ancestry import follow, take
from retrodict.particles.backward import Backward, rows
from retrodict.particles.engine import Node
from retrodict.particles.model import FeynmanKac


class Additive:
    """The smoothed expectation of an additive functional; an observer of `smc`.

    Args:
        model: the model of the run, for its transition density.
        term: ``(k, x, y) -> (..., p)``, s_k at states x of node k-1 and y of node k; the axes before the state's
            are ``(S, N, 1)`` for y and ``(S, N, parents)`` for x and broadcast.  None: zero, for paths alone.
        start: ``x -> (..., p)``, s_0 (None: zero).
        noise: where the draws of parents come from, one slot a series; only "paris" draws.
        draws: M, parents a particle.
        backward: "paris", "exact" or "tree".
        rejection: as for `Backward`.
        links: keep states and first parents, so that `path` can draw smoothed paths (memory O(n N)).

    Attributes:
        tau: ``(S, N, p)``.
        estimate: ``(S, p)``, E[S_k | data up to the last node seen].
    """

    def __init__(
        self,
        model: FeynmanKac,
        term: Callable[[int, Tensor, Tensor], Tensor] | None,
        start: Callable[[Tensor], Tensor] | None = None,
        *,
        noise: Noise | None = None,
        draws: int = 2,
        backward: str = "paris",
        rejection: bool | None = None,
        links: bool = False,
    ) -> None:
        if backward not in ("paris", "exact", "tree"):
            raise InputError(f"backward is 'paris', 'exact' or 'tree', got {backward!r}")
        if draws < 1:
            raise InputError(f"draws is at least 1 (2 for estimates that are stable in time), got {draws}")
        if backward == "paris" and noise is None:
            raise InputError("PaRIS draws parents: give noise, one slot a series")
        if links and backward != "paris":
            raise InputError(f"paths are drawn along PaRIS' parents; backward={backward!r} draws none")
        self.model, self.start = model, start
        self.term = term or (lambda k, x, y: torch.zeros(1, 1, 1, 1, dtype=torch.float64, device=y.device))
        self.backward = backward
        self.draw = Backward(model, draws, noise, rejection) if noise is not None else None
        self.links: list[Tensor] | None = [] if links else None
        self.states: list[Tensor] = []
        self.tau = torch.zeros(0)
        self.estimate = torch.zeros(0)
        self._weights = torch.zeros(0)

    @torch.enable_grad()  # a run keeps no graph; terms that carry one (a score) do
    def __call__(self, node: Node) -> None:
        if node.before is None or node.ancestors is None:
            self.tau = self._first(node)
        else:
            tau = self._update(node, node.before, node.ancestors)
            ended = node.running
            self.tau = tau if ended is None else torch.where(ended.to(tau.device).view(-1, 1, 1), tau, self.tau)
        self._weights = node.weights
        self.estimate = torch.einsum("sn,snp->sp", self._weights, self.tau)
        if self.links is not None:
            self.states.append(node.x)

    def _first(self, node: Node) -> Tensor:
        if self.start is not None:
            return self.start(node.x).double()
        width = self.term(1, node.x.unsqueeze(2), node.x.unsqueeze(2)).shape[-1] if self.model.n else 1
        return torch.zeros(*node.x.shape[:2], width, dtype=torch.float64, device=node.x.device)

    def _update(self, node: Node, before: Node, ancestors: Tensor) -> Tensor:
        if self.backward == "exact":
            return self._exact(node, before)
        if self.backward == "tree":
            parents = ancestors.unsqueeze(-1)
        else:
            assert self.draw is not None
            parents = self.draw(node.k, before.x, before.log_w, node.x)
            if node.running is not None:
                own = torch.arange(parents.shape[1], device=parents.device).view(1, -1, 1)
                parents = torch.where(node.running.to(parents.device).view(-1, 1, 1), parents, own)
        if self.links is not None:
            self.links.append(parents[..., 0])
        step = self.term(node.k, take(before.x, parents), node.x.unsqueeze(2))
        return (take(self.tau, parents) + step).mean(2)

    def _exact(self, node: Node, before: Node) -> Tensor:
        tau = []
        for part, log_p in rows(self.model, node.k, before.x, before.log_w, node.x):
            step = self.term(node.k, before.x.unsqueeze(1), node.x[:, part].unsqueeze(2))
            backward = torch.softmax(log_p, -1).nan_to_num_()
            tau.append(torch.einsum("spn,spnq->spq", backward, self.tau.unsqueeze(1) + step))
        return torch.cat(tau, 1)

    def path(self, last: Tensor) -> Tensor:
        """Smoothed paths ``(S, P, n+1, ...)`` to the particles ``last (S, P)``, along the first parents drawn."""
        if self.links is None:
            raise InputError("no parents were kept: make the functional with links=True")
        return follow(self.states, self.links, last)
