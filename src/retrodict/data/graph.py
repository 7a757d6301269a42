"""Graphs as tokens: one for every node, then one for every pair of nodes.

    (x_1, ..., x_N, a_12, a_13, ..., a_{N-1,N}),      node types 0..A-1, edge types A..A+B-1

The upper triangle row by row; graphs are undirected and without loops.  All have one number of nodes: pad smaller
ones with a node type of their own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from retrodict.core.errors import InputError, InputTypeError, require
from retrodict.data.arrays import as_tensor, build
from retrodict.data.codecs import Codec, check_tokens, codecs
from retrodict.data.types import Data, checked


@codecs.register("graphs")
class Graphs(Codec):
    """Nodes and edges of graphs as tokens (module docstring).

    Args:
        nodes: N, at least 2.
        node_types, edge_types: A and B; the first edge type is usually "no edge".
    """

    name = "graphs"
    network = "graph-transformer"

    def __init__(self, nodes: int, node_types: int, edge_types: int) -> None:
        require(nodes >= 2 and node_types >= 1 and edge_types >= 2, "a graph has 2 nodes and 2 types of edges or more")
        self.nodes, self.node_types, self.edge_types = nodes, node_types, edge_types

    @property
    def size(self) -> int:
        return self.node_types + self.edge_types

    @property
    def network_options(self) -> dict[str, Any]:
        return {"node_types": self.node_types, "edge_types": self.edge_types}

    def encode(self, value: tuple[Tensor, Tensor]) -> Tensor:
        """``(node types (n, N), edge types (n, N, N))``, the latter symmetric, as tokens ``(n, N (N + 1)/2)``."""
        nodes, edges = value
        i, j = torch.triu_indices(self.nodes, self.nodes, 1).unbind()
        return torch.cat([nodes, edges[:, i, j] + self.node_types], 1).long()

    def decode(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """``(node types (n, N), edge types (n, N, N))``; the diagonal is 0."""
        check_tokens(tokens, self.size)
        tokens = tokens.reshape(-1, tokens.shape[-1])
        nodes, pairs = tokens[:, : self.nodes], tokens[:, self.nodes :] - self.node_types
        wrong = torch.cat([nodes >= self.node_types, pairs < 0], 1).nonzero()
        if len(wrong):
            place = tuple(wrong[0].tolist())
            what = "edge type at a node" if place[1] < self.nodes else "node type at an edge"
            raise InputError(f"token {int(tokens[place])} at {place} is an {what}".replace("an node", "a node"))
        i, j = torch.triu_indices(self.nodes, self.nodes, 1).unbind()
        edges = tokens.new_zeros(len(tokens), self.nodes, self.nodes)
        edges[:, i, j] = pairs
        return nodes, edges + edges.mT

    def config(self) -> dict[str, Any]:
        return {"name": self.name, "nodes": self.nodes, "node_types": self.node_types, "edge_types": self.edge_types}


def graphs(
    edges: Any,
    nodes: Any = None,
    *,
    node_types: int | None = None,
    edge_types: int | None = None,
    conditions: Mapping[str, Any] | None = None,
    name: str = "graphs",
) -> Data:
    """Graphs as tokens.

    Args:
        edges: adjacency or edge types, integers or booleans ``(n, N, N)``, symmetric with a diagonal of 0.
        nodes: node types, integers ``(n, N)``; None for nodes of one type.
        node_types, edge_types: how many there are, where not all occur.
        conditions: as in `load_data`.
        name: what to call it.

    Raises:
        InputError: shapes that do not fit, negative types, graphs that are directed or have loops, with the place.

    >>> data = graphs([[[0, 1], [1, 0]], [[0, 0], [0, 0]]])
    >>> data.x.tolist(), data.levels
    ([[0, 0, 2], [0, 0, 1]], 3)
    """
    a = _whole(as_tensor(edges, "edges"), "edges")
    require(a.ndim == 3 and a.shape[1] == a.shape[2] >= 2, f"edges have shape (n, N, N), N >= 2; got {tuple(a.shape)}")
    x = torch.zeros(a.shape[:2], dtype=torch.int64) if nodes is None else _whole(as_tensor(nodes, "nodes"), "nodes")
    require(x.shape == a.shape[:2], f"nodes have shape {tuple(x.shape)} for edges of shape {tuple(a.shape)}")
    for wrong, what in ((a != a.mT, "is not that of the reverse pair"), (_diagonal(a) != 0, "is a loop")):
        if bool(wrong.any()):
            place = tuple(wrong.nonzero()[0].tolist())
            raise InputError(f"the edge type {int(a[place])} at {place} {what}; graphs are undirected, without loops")
    found = [int(v.max()) + 1 for v in (x, a)]
    counts = [given or least for given, least in zip((node_types, edge_types), (found[0], max(2, found[1])))]
    for what, count, least in zip(("node", "edge"), counts, found):
        require(count >= least, f"the {what} type {least - 1} occurs, out of range for {what}_types={count}")
    codec = Graphs(a.shape[1], *counts)
    data = build(codec.encode((x, a)), conditions or {}, name=name, layout="tokens", levels=codec.size)
    data.codec = codec
    return checked(data)


def node_count(length: int) -> int:
    """N of ``N (N + 1)/2`` tokens."""
    nodes = (math.isqrt(8 * length + 1) - 1) // 2
    require(
        nodes >= 2 and nodes * (nodes + 1) == 2 * length,
        f"graphs of N >= 2 nodes have N (N + 1)/2 tokens; got {length}",
    )
    return nodes


def _diagonal(a: Tensor) -> Tensor:
    return a * torch.eye(a.shape[1], dtype=a.dtype)


def _whole(x: Tensor, what: str) -> Tensor:
    if x.is_floating_point() and bool((x != x.round()).any()):
        raise InputTypeError(f"{what} hold types, whole numbers from 0; got {x.dtype} with fractions")
    x = x.long()
    if bool((x < 0).any()):
        place = tuple((x < 0).nonzero()[0].tolist())
        raise InputError(f"{what} hold types, whole numbers from 0; got {int(x[place])} at {place}")
    return x
