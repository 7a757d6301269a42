"""A transformer on graphs whose nodes and pairs of nodes are tokens: it commutes with any renumbering of the nodes.

    h_i  <- h_i + (1 + g1) ( sum_j softmax_j( q_i k_j / sqrt(d) + b(e_ij) ) v_j + mean_j w(e_ij) ),
    h_i  <- h_i + g2 * mlp(h_i),
    e_ij <- e_ij + g3 * mlp( e_ij + c(h_i) + c(h_j) )

Vectors of nodes attend to each other with a bias from the vector of their pair, and hear their pairs themselves, for
among equal nodes attention says nothing; pairs hear of both their nodes;
scales, shifts and gates come from time and conditions as in `Transformer` (Dwivedi and Bresson 2021; the layout of
tokens is that of `retrodict.data.Graphs`).  The first gate starts open: what one pair says to another passes two gates,
and were both shut neither would learn.  Logits of node types at an edge, and of edge types at a node, are
impossible.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from retrodict.core.errors import require
from retrodict.data import node_count
from retrodict.denoisers.networks.attention import Attention
from retrodict.denoisers.networks.base import Network, check_count, check_share, check_whole, look_up, networks, zero
from retrodict.denoisers.networks.embedding import Spec

IMPOSSIBLE = -1e4  # a logit whose probability is 0 in any precision


@networks.register("graph-transformer")
class GraphTransformer(Network):
    """The graph transformer.

    Args:
        shape: ``(N (N + 1)/2,)``: nodes, then pairs.
        vocabulary: number of token values of the input, a mask included.
        node_types, edge_types: how the clean values 0..node_types + edge_types - 1 are shared out.
        out_channels: number of logits, ``node_types + edge_types``; conditions, time: as in `Network`.
        hidden, pairs: width of the vector of a node, a multiple of ``heads``, and of a pair.
        depth, heads: number of blocks, and of attention heads.
        dropout: share dropped in the feed-forward parts, in [0, 1).
    """

    name = "graph-transformer"

    def __init__(
        self,
        shape: Sequence[int],
        *,
        vocabulary: int,
        node_types: int,
        edge_types: int,
        out_channels: int | None = None,
        conditions: Mapping[str, Spec | list[int]] | None = None,
        time: bool = True,
        hidden: int = 64,
        pairs: int = 32,
        depth: int = 3,
        heads: int = 4,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(shape, node_types + edge_types, conditions, time, width=hidden)
        require(len(self.shape) == 1, f"shape {self.shape}; accepted for graphs: (N (N + 1)/2,)")
        require(
            out_channels in (None, self.out_channels),
            f"out_channels={out_channels}; graphs have {node_types} + {edge_types} clean values",
        )
        require(vocabulary >= self.out_channels, f"vocabulary={vocabulary} is below the {self.out_channels} values")
        for what, value in (("hidden", hidden), ("pairs", pairs), ("depth", depth), ("heads", heads)):
            check_count(what, value)
        require(hidden % heads == 0 and hidden % 2 == 0, f"hidden={hidden} is no even multiple of heads={heads}")
        check_share("dropout", dropout)
        self.vocabulary, self.node_types, self.edge_types = vocabulary, node_types, edge_types
        self.nodes = node_count(self.shape[0])
        self.config |= {
            "vocabulary": vocabulary,
            "node_types": node_types,
            "edge_types": edge_types,
            "hidden": hidden,
            "pairs": pairs,
            "depth": depth,
            "heads": heads,
            "dropout": dropout,
        }
        self.enter_nodes, self.enter_pairs = nn.Embedding(vocabulary, hidden), nn.Embedding(vocabulary, pairs)
        self.loop = nn.Parameter(torch.zeros(pairs))  # the pair of a node with itself
        self.blocks = nn.ModuleList(GraphBlock(hidden, pairs, heads, dropout) for _ in range(depth))
        self.modulated = (6 * hidden + 3 * pairs) * depth + 2 * hidden + 2 * pairs
        self.modulate = zero(nn.Linear(hidden, self.modulated))
        self.norms = nn.ModuleList(nn.LayerNorm(n, elementwise_affine=False) for n in (hidden, pairs))
        self.leave_nodes, self.leave_pairs = (
            zero(nn.Linear(n, count)) for n, count in ((hidden, node_types), (pairs, edge_types))
        )
        self.register_buffer("upper", torch.triu_indices(self.nodes, self.nodes, 1), persistent=False)

    upper: Tensor

    def run(self, x: Tensor, condition: Tensor) -> Tensor:
        i, j = self.upper.unbind()
        h, e = self.enter(x, i, j)
        widths = [n for block in self.blocks for n in block.modulated]  # type: ignore[union-attr]
        widths += [h.shape[-1]] * 2 + [e.shape[-1]] * 2
        parts = iter(self.modulate(condition)[:, None].split(widths, dim=-1))
        for block in self.blocks:
            h, e = block(h, e, [next(parts) for _ in range(9)])
        a, b, c, d = parts
        h = self.leave_nodes(torch.addcmul(b, self.norms[0](h), 1.0 + a))
        e = self.leave_pairs(torch.addcmul(d, self.norms[1](e[:, i, j]), 1.0 + c))
        return torch.cat(
            [
                F.pad(h, (0, self.edge_types), value=IMPOSSIBLE),
                F.pad(e, (self.node_types, 0), value=IMPOSSIBLE),
            ],
            1,
        )

    def enter(self, x: Tensor, i: Tensor, j: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors of nodes ``(batch, N, hidden)`` and of ordered pairs ``(batch, N, N, pairs)``, symmetric."""
        h = look_up(x[:, : self.nodes], self.enter_nodes.weight)
        pair = look_up(x[:, self.nodes :], self.enter_pairs.weight)
        e = self.loop.expand(len(x), self.nodes, self.nodes, -1).clone()
        e[:, i, j] = pair
        e[:, j, i] = pair
        return h, e

    def check_state(self, x: Tensor) -> Tensor:
        return check_whole(x, self.shape, self.vocabulary)


class GraphBlock(nn.Module):
    """Attention between nodes, and the two feed-forward parts, each with scale, shift and gate from outside."""

    def __init__(self, hidden: int, pairs: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.modulated = [hidden] * 6 + [pairs] * 3
        self.norm, self.norm_pairs = (nn.LayerNorm(n, elementwise_affine=False) for n in (hidden, pairs))
        self.attention, self.bias = Attention(hidden, heads), nn.Linear(pairs, heads)
        self.tell, self.hear = nn.Linear(pairs, hidden), nn.Linear(hidden, pairs)
        self.feed, self.feed_pairs = _feed(hidden, dropout), _feed(pairs, dropout)

    def forward(self, h: Tensor, e: Tensor, parts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """``h (batch, N, hidden)``, ``e (batch, N, N, pairs)``, nine parts ``(batch, 1, width)``."""
        a1, b1, g1, a2, b2, g2, *of_pairs = parts
        a3, b3, g3 = (part.unsqueeze(1) for part in of_pairs)
        seen = self.norm_pairs(e)
        said = self.attention(torch.addcmul(b1, self.norm(h), 1.0 + a1), self.bias(seen).movedim(-1, 1))
        h = torch.addcmul(h, 1.0 + g1, said + self.tell(seen.mean(2)))
        h = torch.addcmul(h, g2, self.feed(torch.addcmul(b2, self.norm(h), 1.0 + a2)))
        said = self.hear(self.norm(h))
        heard = seen + said.unsqueeze(1) + said.unsqueeze(2)
        return h, torch.addcmul(e, g3, self.feed_pairs(torch.addcmul(b3, heard, 1.0 + a3)))


def _feed(width: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Dropout(dropout), nn.Linear(4 * width, width))
