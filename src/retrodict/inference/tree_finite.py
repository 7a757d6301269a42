"""Trees and acyclic graphs of finite states: messages are tables of logs, batched over series and over a level's edges.

    pull   log h'(x) = log sum_y P(x, y) h(y)        fuse  sum of logs        guide  P(x, y) h(y) / h'(x)

At a vertex with parents x_1 .. x_p the pulled function ``(P h)(x_1 .. x_p)`` is replaced by the product of its means
over the other parents under a uniform law, and a draw pays ``(P h)(x_1 .. x_p) / prod h~_i(x_i)``.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable
from typing import Any

import torch
from torch import Tensor

from retrodict.core.errors import InputError, require
from retrodict.core.noise import KeyedNoise
from retrodict.inference.emissions import law_seen
from retrodict.inference.models import as_prior
from retrodict.inference.observed import Observed
from retrodict.inference.results import Marginals, Paths
from retrodict.inference.tree import Edges, Tree, TreePosterior


class FiniteTree(TreePosterior):
    """Exact on trees; on graphs draws are weighted and the evidence is estimated from ``particles`` of them."""

    def __init__(
        self,
        model: Tree,
        data: Observed,
        at: Iterable[Hashable] | None,
        root: Any,
        particles: int = 1000,
        seed: int = 0,
    ) -> None:
        super().__init__(model, data, particles, seed)
        self.exact = model.branching
        self.route = "messages by level" if self.exact else f"product messages, {particles} weighted draws"
        self.levels = model.levels()
        self.tables = [self._table(level) for level in self.levels]
        self.K = self.tables[0].shape[-1]
        self.prior = self._root(root)
        self.log_g = self._potentials(model.seen_at(data, at))
        self._backward()

    def _table(self, level: Edges) -> Tensor:
        """log probabilities ``(E, K, K)`` of a level, or ``(K, .., K)`` of a vertex with several parents."""
        pairs = [(level.parents[0], level.children[0])] if level.together else zip(level.parents, level.children)
        tables: list[Tensor] = []
        for pair in pairs:
            kernel, name = self.model.kernel(*pair), self.model.vertices[pair[1]]
            table = getattr(kernel, "log_p", None)
            if table is None:
                raise InputError(f"the kernel of {name!r} is {type(kernel).__name__}; the tree is finite: Finite, Jump")
            axes = 1 + (len(level.parents) if level.together else 1)
            if table.ndim != axes:
                raise InputError(
                    f"the table of {name!r} has the shape {tuple(table.shape)}; with its {axes - 1} parents it has "
                    f"{axes} axes"
                )
            tables.append(table.double())
        return tables[0] if level.together else torch.stack(tables)

    def _root(self, root: Any) -> Tensor:
        """log probabilities of the root, ``(S|1, K)``."""
        if isinstance(root, int) or (isinstance(root, Tensor) and not root.is_floating_point()):
            state = torch.as_tensor(root).reshape(-1)
            require(bool((state < self.K).all()), f"start is a state below {self.K}, got {int(state.max())}")
            return torch.nn.functional.one_hot(state, self.K).double().log()
        law, kind, size = as_prior(root)
        require(kind == "finite" and size == self.K, f"the prior of the root is over {self.K} states")
        return law.log_p

    def _potentials(self, at: list[int]) -> Tensor:
        """``log g (S, V, K)`` of what was seen at each vertex."""
        S, V = len(self.data), len(self.vertices)
        out = torch.zeros(S, V, self.K, dtype=torch.float64)
        states = torch.arange(self.K)
        if self.model.observation is None:
            y, seen = self.data.y, self.data.seen
            if not self.data.categories or int(y.max()) >= self.K:
                raise InputError(
                    f"without observation= the states themselves are seen, integers below {self.K} (-1: not seen)"
                )
            match = torch.where(seen[..., None], (y[..., None] == states).double().log(), 0.0)
            return out.index_add(1, torch.tensor(at), match)
        emission, data = law_seen(self.model.observation, states, self.data)
        y, seen = data.filled
        for j, vertex in enumerate(at):
            out[:, vertex] += emission.log_prob(states.expand(S, -1), y[:, j, None], seen[:, j, None])
        return out

    def _backward(self) -> None:
        """Messages of all vertices, deepest level first."""
        self.log_h = self.log_g.clone()
        self.pulled: list[Tensor] = [torch.empty(0)] * len(self.levels)
        for i in reversed(range(len(self.levels))):
            level, table = self.levels[i], self.tables[i]
            h = self.log_h[:, level.children]
            if level.together:
                joint = torch.logsumexp(table + h.reshape(-1, *(1,) * len(level.parents), self.K), -1)
                messages = self._product(joint, len(level.parents))
                self.pulled[i] = joint
            else:
                messages = torch.logsumexp(table + h.unsqueeze(-2), -1)
            self.log_h = self.log_h.index_add(1, torch.tensor(level.parents), messages)
        joint = self.prior + self.log_h[:, 0]
        self.log_norm = torch.logsumexp(joint, -1)
        if bool(torch.isinf(self.log_norm).any()):
            s = int(torch.isinf(self.log_norm).nonzero()[0])
            dead = [v for i, v in enumerate(self.vertices) if bool(torch.isinf(self.log_h[s, i]).all())]
            below = f"at and below the vertex {dead[-1]!r}" if dead else "given the prior of the root"
            raise InputError(
                f"what was seen {below} in series {s} has probability zero; give the tables or the law of observation "
                "a positive probability there, or mark a value as missing"
            )

    @staticmethod
    def _product(joint: Tensor, parents: int) -> Tensor:
        """The means of ``exp(joint (S, K, .., K))`` over all parents but one: ``(S, parents, K)`` of logs."""
        K = joint.shape[-1]
        rows = [joint.movedim(1 + i, -1).reshape(joint.shape[0], -1, K) for i in range(parents)]
        return torch.stack([torch.logsumexp(row, 1) - (parents - 1) * math.log(K) for row in rows], 1)

    # -- what is asked for -----------------------------------------------------------------------------------

    def smooth(self) -> Marginals:
        """Probabilities of the states of all vertices, ``(S, V, K)``."""
        if not self.exact:
            cloud = self._cloud
            counts = torch.nn.functional.one_hot(cloud.x, self.K).double()
            return self._marginals(probabilities=(cloud.weights[..., None, None] * counts).sum(0))
        law = torch.zeros_like(self.log_h)
        law[:, 0] = torch.softmax(self.prior + self.log_h[:, 0], -1)
        for level, table in zip(self.levels, self.tables):
            steps = torch.softmax(table + self.log_h[:, level.children].unsqueeze(-2), -1).nan_to_num()
            law[:, level.children] = (law[:, level.parents].unsqueeze(-2) @ steps).squeeze(-2)
        return self._marginals(probabilities=law)

    def sample(self, n: int, seed: int = 0) -> Paths:
        """``n`` draws of the states of all vertices, ``(n, S, V)``; of equal weight on a tree."""
        S, V = len(self.data), len(self.vertices)
        u = KeyedNoise(seed, S, name="tree").uniform((n, V)).movedim(1, 0)  # (n, S, V)
        x = torch.zeros(n, S, V, dtype=torch.int64)
        x[..., 0] = _invert(self.prior + self.log_h[:, 0], u[..., 0])
        for i in range(len(self.levels)):
            children = self.levels[i].children
            x[..., children] = _invert(self._conditional(i, x), u[..., children])
        return self._drawn(x, self.log_weight(x))

    def log_weight(self, x: Tensor) -> Tensor:
        """The log-weight ``(n, S)`` of states ``x (n, S, V)``; under the law of draws its mean is the evidence."""
        total = self.log_norm.expand(x.shape[0], -1)
        series = torch.arange(x.shape[1])
        for level, pulled in zip(self.levels, self.pulled):
            if level.together:
                states = [x[..., p] for p in level.parents]
                parts = self._product(pulled, len(level.parents))
                product = sum(parts[series, i, state] for i, state in enumerate(states))
                total = total + pulled[(series, *states)] - product
        return total

    def log_law(self, x: Tensor) -> Tensor:
        """The log probability ``(n, S)`` with which `sample` draws states ``x (n, S, V)``."""
        total = torch.log_softmax(self.prior + self.log_h[:, 0], -1).expand(*x.shape[:2], -1)
        total = total.gather(-1, x[..., :1])[..., 0]
        for i, level in enumerate(self.levels):
            rows = torch.log_softmax(self._conditional(i, x), -1)
            total = total + rows.gather(-1, x[..., level.children].unsqueeze(-1))[..., 0].sum(-1)
        return total

    def _conditional(self, i: int, x: Tensor) -> Tensor:
        """Logits ``(n, S, E, K)`` of the children of a level given the states of their parents."""
        level, table = self.levels[i], self.tables[i]
        if level.together:
            rows = table[tuple(x[..., p] for p in level.parents)].unsqueeze(-2)
        else:
            rows = table[torch.arange(len(level.children)), x[..., level.parents]]
        return rows + self.log_h[:, level.children]


def _invert(logits: Tensor, u: Tensor) -> Tensor:
    """States by inversion of uniforms ``u (...)`` under logits ``(..., K)``."""
    cumulative = torch.softmax(logits, -1).cumsum(-1)[..., :-1]
    return (u.unsqueeze(-1) >= cumulative).sum(-1)
