"""`Tree`: a process that branches: vertices with states, kernels on the edges, data at the leaves or anywhere.

Messages run from the leaves to the root: an edge pulls, a vertex with several children fuses.  Draws and laws run from
the root to the leaves.  All edges whose ends have equal depth are one batch.

A vertex with several parents makes the tree a directed acyclic graph.  Its kernel pulls to a function of all parents
together, which does not factorise; the messages to the parents are then a product that stands for it, and draws pay
the ratio as weight.  Every estimate stays unbiased, and nothing is exact any more.

Real states are in `tree_real`, finite ones in `tree_finite`.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from retrodict.core.errors import InputError, InputTypeError, near, require
from retrodict.inference.models import as_prior, leaves
from retrodict.inference.observed import Observed
from retrodict.inference.posterior import Conditioned, register
from retrodict.inference.results import Marginals, Paths
from retrodict.inference.sde import SDE
from retrodict.kernels import Gaussian, Kernel
from retrodict.particles import ess


@dataclass(frozen=True)
class Edges:
    """The edges into vertices of one depth, or one vertex with all of its parents.

    Attributes:
        parents: index of each edge's parent, or of all parents of the one child; children: of the children.
        together: whether the parents belong to one child.
    """

    parents: list[int]
    children: list[int]
    together: bool = False


class Tree:
    """A tree, or a directed acyclic graph with one root.

    Args:
        edges: ``(parent, child)`` or ``(parent, child, length)``; names are any hashable values.
        transition: a `Kernel` for every edge; anything with ``.kernel(s, t)`` (a jump process, a linear SDE), asked
            for ``kernel(0, length)``; an `SDE`; or ``{child: Kernel}``.  The kernel of a vertex with several parents
            takes their states side by side, in the order of the edges (finite states: a table with an axis each).
        prior: the law of the root; a known root is ``condition(..., start=x)``.
        observation: of a vertex's state, as of a `StateSpace`; by default the data bring operator and noise, and
            finite states are seen as they are.

    Attributes:
        vertices: names, every parent before its children; leaves: those without children, in that order.

    >>> Tree([("root", "a", 1.0), ("root", "b", 0.5), ("a", "c", 0.5)], SDE(lambda x, t: -x, 1.0)).leaves
    ['b', 'c']
    """

    def __init__(self, edges: Iterable[tuple], transition: Any, prior: Any = None, observation: Any = None) -> None:
        parents: dict[Hashable, list[Hashable]] = {}
        lengths: dict[tuple[Hashable, Hashable], float] = {}
        for edge in edges:
            if len(edge) not in (2, 3):
                raise InputError(f"an edge is (parent, child) or (parent, child, length), got {edge!r}")
            parent, child = edge[:2]
            parents.setdefault(child, []).append(parent)
            parents.setdefault(parent, [])
            if len(edge) == 3:
                length = float(edge[2])
                require(length >= 0, f"the length of an edge is at least 0, got {length:g} for {parent!r} -> {child!r}")
                lengths[parent, child] = length
        self.vertices = _sorted(parents)
        self.number = {name: i for i, name in enumerate(self.vertices)}
        self.parents = [[self.number[p] for p in parents[name]] for name in self.vertices]
        inner = {p for group in self.parents for p in group}
        self.leaves = [name for i, name in enumerate(self.vertices) if i not in inner]
        self.lengths = {(self.number[p], self.number[c]): v for (p, c), v in lengths.items()}
        self.transition, self.prior, self.observation = transition, prior, observation
        self.depth = [0] * len(self.vertices)
        for i, group in enumerate(self.parents):
            self.depth[i] = 1 + max(self.depth[p] for p in group) if group else 0

    @property
    def branching(self) -> bool:
        """Whether it is a tree: no vertex with several parents."""
        return all(len(group) <= 1 for group in self.parents)

    def parameters(self) -> Iterator[Tensor]:
        """Every tensor inside the laws that a gradient can reach."""
        yield from leaves((self.transition, self.prior, self.observation))

    def distances(self) -> Tensor:
        """Length of the way from the root to each vertex (number of edges where they have no lengths)."""
        away = [0.0] * len(self.vertices)
        for i, group in enumerate(self.parents):
            if group:
                away[i] = max(away[p] + self.lengths.get((p, i), 1.0) for p in group)
        return torch.tensor(away, dtype=torch.float64)

    def levels(self, apart: Iterable[int] = ()) -> list[Edges]:
        """Batches of edges, from the root outward; edges into the vertices ``apart`` are batched by themselves."""
        apart, groups = set(apart), []
        for depth in range(1, max(self.depth) + 1):
            here = [i for i in range(len(self.vertices)) if self.depth[i] == depth]
            single = [i for i in here if len(self.parents[i]) == 1]
            for kind in (True, False):
                children = [i for i in single if (i in apart) is kind]
                if children:
                    groups.append(Edges([self.parents[i][0] for i in children], children))
            groups += [Edges(self.parents[i], [i], True) for i in here if len(self.parents[i]) > 1]
        return groups

    def kernel(self, parent: int, child: int) -> Kernel | SDE:
        """What leads to a vertex: its kernel, or the diffusion along the edge."""
        given: Any = self.transition
        if isinstance(given, Mapping):
            name = self.vertices[child]
            if name not in given:
                raise InputError(f"transition has no kernel for the vertex {name!r}.{near(str(name), map(str, given))}")
            given = given[name]
        if isinstance(given, (Kernel, SDE)):
            return given
        if hasattr(given, "kernel"):
            return given.kernel(0.0, self.length(parent, child))
        raise InputTypeError(
            f"transition is a Kernel, an SDE, {{child: Kernel}} or has .kernel(s, t); got {type(given).__name__}"
        )

    def length(self, parent: int, child: int) -> float:
        """Of an edge; raises where there is none."""
        if (parent, child) not in self.lengths:
            names = f"{self.vertices[parent]!r} -> {self.vertices[child]!r}"
            raise InputError(f"the edge {names} has no length, and this transition needs it: (parent, child, length)")
        return self.lengths[parent, child]

    def seen_at(self, data: Observed, at: Iterable[Hashable] | None) -> list[int]:
        """The vertex of each row of the data: ``at``, by default the leaves."""
        names = self.leaves if at is None else list(at)
        for name in names:
            if name not in self.number:
                known = [str(v) for v in self.vertices]
                raise InputError(f"there is no vertex {name!r} to observe.{near(str(name), known)}")
        if data.y.shape[1] != len(names) or bool((data.lengths != len(names)).any()):
            what = "leaves" if at is None else "vertices in at="
            raise InputError(
                f"the data have {data.y.shape[1]} rows and there are {len(names)} {what} ({names[:6]}); one row each, "
                "NaN where nothing was seen"
            )
        return [self.number[name] for name in names]

    def __repr__(self) -> str:
        shape = "Tree" if self.branching else "Tree (acyclic graph)"
        return f"{shape}({len(self.vertices)} vertices, {len(self.leaves)} leaves, depth {max(self.depth)})"


def _sorted(parents: dict[Hashable, list[Hashable]]) -> list[Hashable]:
    """Names with every parent before its children, in order of appearance otherwise."""
    roots = [name for name, group in parents.items() if not group]
    if len(roots) != 1:
        raise InputError(f"a tree has one root, a vertex without parents; these have none: {roots[:6]}")
    order, placed = list(roots), set(roots)
    while len(order) < len(parents):
        ready = [v for v, group in parents.items() if v not in placed and all(p in placed for p in group)]
        if not ready:
            rest = [v for v in parents if v not in placed]
            raise InputError(f"edges go round in a circle among {rest[:6]}; an edge leads from parent to child, once")
        order += ready
        placed.update(ready)
    return order


class TreePosterior(Conditioned):
    """A tree given data.  Laws and draws are of all vertices, in the order of ``vertices``.

    `Marginals` and `Paths` have the distance from the root as their times.
    """

    #: log of the expected product of what the leaves say, where nothing was approximated; else of the guide.
    log_norm: Tensor

    def __init__(self, model: Tree, data: Observed, particles: int, seed: int) -> None:
        super().__init__(model, data)
        self.vertices = model.vertices
        self.particles, self.seed = particles, seed

    @cached_property
    def _cloud(self) -> Paths:
        return self.sample(self.particles, self.seed)

    @property
    def log_evidence(self) -> Tensor:
        if self.exact:
            return self.log_norm
        return torch.logsumexp(self._cloud.log_weights, 0) - math.log(self.particles)

    @property
    def log_evidence_se(self) -> Tensor | None:  # pyright: ignore[reportIncompatibleVariableOverride] -- made when asked
        return None if self.exact else (1 / self.ess - 1 / self.particles).clamp_min(0).sqrt()  # type: ignore[operator]

    @property
    def ess(self) -> Tensor | None:  # pyright: ignore[reportIncompatibleVariableOverride] -- made when asked
        return None if self.exact else ess(self._cloud.log_weights.T)

    @property
    def _times(self) -> Tensor:
        return self.model.distances().expand(len(self.data), -1)

    def of(self, name: Hashable, found: Marginals) -> dict[str, Tensor]:
        """What `smooth` found of one vertex: its mean and covariance, or its probabilities, ``(S, ...)``."""
        i = self.model.number[name]
        parts = {"mean": found.mean, "covariance": found.covariance, "probabilities": found.probabilities}
        return {key: value[:, i] for key, value in parts.items() if value is not None}

    def _marginals(self, **laws: Any) -> Marginals:
        return Marginals(self._times, **laws, log_evidence=self.log_evidence, exact=self.exact, single=self.data.single)

    def _drawn(self, x: Tensor, log_w: Tensor, innovations: Any = None) -> Paths:
        return Paths(x, log_w, self._times, innovations, single=self.data.single)


def build(
    model: Tree, data: Observed, at: Iterable[Hashable] | None = None, start: Any = None, **options: Any
) -> TreePosterior:
    """Which of the two families a tree is of, from its root and its first edge."""
    from retrodict.inference.tree_finite import FiniteTree
    from retrodict.inference.tree_real import RealTree

    if data.names is not None:
        require(at is None, "the data name their vertices, and at= names them too; give one of the two")
        at, data = data.names, data.nameless()
    root = model.prior if start is None else start
    root = root() if callable(root) else root
    if root is None:
        raise InputError("the state of the root is not known: give start=x, or Tree(..., prior=law)")
    first = next(i for i, group in enumerate(model.parents) if group)
    kernel = model.kernel(model.parents[first][0], first)
    if hasattr(kernel, "log_p"):  # a table of transitions
        for name in ("steps", "auxiliary"):
            require(name not in options, f"{name}= is of diffusions along edges; this tree has tables")
        return FiniteTree(model, data, at, root, **options)
    if isinstance(root, Gaussian) or not isinstance(root, torch.distributions.Distribution):
        return RealTree(model, data, at, root, **options)
    law, kind, _ = as_prior(root)
    require(kind == "real", "the root is finite and the first edge's kernel is not; give kernels.Finite tables")
    return RealTree(model, data, at, law, **options)


@register("guided", Tree, auto=0)
def conditioned_tree(
    model: Tree,
    data: Observed,
    at: Iterable[Hashable] | None = None,
    start: Any = None,
    steps: int | None = None,
    particles: int = 1000,
    seed: int = 0,
    auxiliary: str | None = None,
) -> TreePosterior:
    """A tree given data at its leaves, or at the vertices ``at``; exact where linear-Gaussian or finite.

    Args:
        at: names of the vertices that the rows of the data are about.
        start: a known state of the root, instead of the prior.
        steps: Euler steps along an edge with a diffusion (20); auxiliary: see `RealTree`.
        particles, seed: of the weighted draws, where something is not exact.
    """
    options = {"steps": steps, "auxiliary": auxiliary}
    given = {key: value for key, value in options.items() if value is not None}
    return build(model, data, at, start, particles=particles, seed=seed, **given)
