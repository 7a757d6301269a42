"""A model laid out on data: the nodes of each series, the kernels between them, the observations at them.

*Nodes* 0..n are the distinct times of a series; ``t0`` where it lies before them; and, for a transition that is one
step of unit length, every whole step between (`layout`).  Observations that share a time share a node.  Shorter
series are padded with nodes that nothing is seen at; they change no answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from retrodict.core.lin import Lin
from retrodict.core.noise import Noise
from retrodict.inference.emissions import Emission, LinearEmission, law_seen
from retrodict.inference.layout import layout_of
from retrodict.inference.models import StateSpace, as_prior
from retrodict.inference.observed import Observed
from retrodict.inference.transitions import Arrays
from retrodict.kernels import Kernel, LinearGaussian
from retrodict.kernels.euler import NonLinearGaussian


class Problem:
    """A `StateSpace` on `Observed` data, with S series and nodes 0..n.

    Attributes:
        times: ``(S, n+1)`` float64, of the nodes (padding repeats the last time).
        real: ``(S, n+1)``, False at padding.
        at: ``(S, N)``, the node of each observation; -1 at padding.
        emission: the law of an observation.
        start, end: ``(S, n)``: the times of each step (of some real step, at padding).
    """

    def __init__(self, model: StateSpace, data: Observed) -> None:
        self.emission, data = law_seen(model.given[2], model.probe, data)  # anew: trained parameters are current
        self.model, self.data = model, data
        self.layout = layout_of(data, model.t0, model.transition.unit)
        self.times, self.real, self.at = self.layout.times, self.layout.real, self.layout.at
        self.start, self.end = self.layout.start, self.layout.end
        self.prior = as_prior(model.given[0])[0]

    @property
    def S(self) -> int:
        """Series."""
        return len(self.data)

    @property
    def n(self) -> int:
        """Steps: nodes are 0..n."""
        return self.times.shape[1] - 1

    @property
    def ends(self) -> list[int] | None:
        """The last node of each series; None where it is the same."""
        ends = (self.real.sum(1) - 1).tolist()
        return None if min(ends) == max(ends) else ends

    @property
    def size(self) -> int:
        """Coordinates of the state, or number of finite states."""
        return self.model.size

    @cached_property
    def family(self) -> str:
        """ "linear", "finite", "gaussian" or "general" transitions."""
        if self.n == 0:
            return "finite" if self.model.kind == "finite" else "linear"
        return self.model.transition.family(self.start[0, 0], self.end[0, 0])

    def arrays(self) -> Arrays:
        """``(A, b, Q)`` or ``(P,)`` of all steps, with leading axes ``(S|1, n|1)``."""
        if self.n == 0:  # no step: the shapes of none
            d = self.size
            eye = torch.eye(d, dtype=torch.float64)[None, None]
            return (
                (eye,) if self.model.kind == "finite" else (eye, torch.zeros(1, 1, d).double(), torch.zeros_like(eye))
            )
        return self.model.transition.arrays(self.start, self.end, self.size)

    @cached_property
    def _arrays(self) -> Arrays:
        return self.arrays()

    def kernel(self, k: int) -> Kernel:
        """The kernel of step ``k = 1..n``, from node k-1 to node k, on ``x (S, P, d)`` or integers ``(S, P)``."""
        if self.family == "linear":
            A, b, Q = (_step(v, k) for v in self._arrays)
            return LinearGaussian(Lin.dense(A), b, Lin.dense(Q))
        s, t = self.start[:, k - 1], self.end[:, k - 1]
        pairs, where = torch.stack([s, t], -1).unique(dim=0, return_inverse=True)
        if self.model.transition.unit:
            pairs = pairs[:1]
        kernels = [self.model.transition.kernel(k, s, t) for s, t in pairs]
        if len(pairs) == 1:
            return Grouped([(slice(None), kernels[0])], self.model.kind)
        return Grouped([((where == i).nonzero()[:, 0], kernel) for i, kernel in enumerate(kernels)], self.model.kind)

    # -- observations ---------------------------------------------------------------------------------------------

    @property
    def slots(self) -> Tensor:
        """``(S, n+1, r)``: numbers of the observations at each node, -1 where there are fewer than r."""
        return self.layout.slots

    @cached_property
    def filled(self) -> tuple[Tensor, Tensor]:
        """``(y, seen)`` of the data, with a value of the support where nothing was seen."""
        return self.data.filled

    @cached_property
    def _rows(self) -> list[list[tuple[Emission, Tensor, Tensor | None]]]:
        """For each node: ``(emission, y (S, 1, ...), seen or None for all)``, one entry an observation there."""
        y, seen = self.filled
        series, nodes = torch.arange(self.S), []
        for k in range(self.n + 1):
            rows = []
            for slot in self.slots[:, k].unbind(-1):
                present = slot >= 0
                here = seen[series, slot] & (present[:, None] if seen.ndim == 3 else present)
                if not bool(here.any()):
                    continue
                emission = self.emission
                if isinstance(emission, LinearEmission):
                    emission = emission.at((series[:, None], slot[:, None].clamp_min(0)))
                rows.append((emission, y[series, slot][:, None], None if bool(here.all()) else here[:, None]))
            nodes.append(rows)
        return nodes

    def log_likelihood(self, k: int, x: Tensor) -> Tensor:
        """log density of everything seen at node k given states ``x (S, P, d)`` or ``(S, P)``: ``(S, P)``, float64."""
        rows = self._rows[k]
        if not rows:
            return torch.zeros(x.shape[:2], dtype=torch.float64, device=x.device)
        total = rows[0][0].log_prob(x, *rows[0][1:])
        for emission, y, seen in rows[1:]:
            total = total + emission.log_prob(x, y, seen)
        return total.double()

    def observed(self, k: int) -> bool:
        """Whether anything was seen at node k in any series."""
        return bool(self._rows[k])

    def at_observations(self, values: Tensor) -> Tensor:
        """Values at nodes ``(..., S, n+1, *)`` with the series axis at 0, read at observations: ``(S, N, *)``."""
        if self.layout.plain and bool(self.real.all()):
            return values
        out = values[torch.arange(values.shape[0])[:, None], self.at.clamp_min(0).expand(values.shape[0], -1)]
        blank = (self.at < 0).reshape(*self.at.shape, *(1,) * (out.ndim - 2))
        return out.masked_fill(blank, float("nan") if out.is_floating_point() else -1)


@dataclass(frozen=True)
class Grouped(Kernel):
    """Kernels for groups of series, on ``x (S, P, ...)``: each is given its series' states in one flat batch."""

    parts: list[tuple[Any, Kernel]]
    kind: str

    def draw(self, noise: Noise, shape: tuple[int, ...]) -> list[Any]:
        """Innovations of every group, from a source with one slot for each of the S P states."""
        return [kernel.draw(noise, shape) for _, kernel in self.parts]

    def step(self, x: Tensor, z: list[Any] | Tensor) -> Tensor:
        """One step; ``z`` is what `draw` returned, or one tensor ``(S, P, r)`` or ``(S P, r)`` for all groups."""
        out = []
        for (index, kernel), own in zip(self.parts, [z] * len(self.parts) if isinstance(z, Tensor) else z):
            if isinstance(own, Tensor):
                own = own.reshape(*x.shape[:2], *own.shape[1 if own.shape[0] == x.shape[:2].numel() else 2 :])
                own = own[index].flatten(0, 1)
            chosen = x[index]
            y = kernel.step(chosen.flatten(0, 1), own)
            out.append((index, y.unflatten(0, chosen.shape[:2])))
        return _together(out, x)

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean ``(S, P, d)`` and covariance ``(S, P, d, d)`` of a Gaussian step from ``x (S, P, d)``."""
        means, covs = [], []
        for index, kernel in self.parts:
            assert isinstance(kernel, NonLinearGaussian)
            chosen = x[index]
            flat = chosen.flatten(0, 1)
            root = kernel.root_at(flat)
            cov = (root @ root.mT).expand(len(flat), -1, -1)
            means.append((index, kernel.mean(flat).unflatten(0, chosen.shape[:2])))
            covs.append((index, cov.unflatten(0, chosen.shape[:2])))
        return _together(means, x), _together(covs, x)

    def log_prob(self, x: Tensor, y: Tensor, event: int | None = None) -> Tensor:
        x, y = torch.broadcast_tensors(x, y)
        real = self.kind == "real"
        lead = x.shape[:-1] if real else x.shape
        out = []
        for index, kernel in self.parts:
            a, b = x[index], y[index]
            count = a.ndim - 1 if real else a.ndim
            value = kernel.log_prob(a.flatten(0, count - 1), b.flatten(0, count - 1), event=int(real))
            out.append((index, value.reshape(a.shape[:count])))
        return _together(out, x.new_empty(lead, dtype=torch.float64))


def _together(parts: list[tuple[Any, Tensor]], like: Tensor) -> Tensor:
    if isinstance(parts[0][0], slice):
        return parts[0][1]
    out = torch.empty((like.shape[0], *parts[0][1].shape[1:]), dtype=parts[0][1].dtype, device=like.device)
    for index, value in parts:
        out = out.index_put((index,), value)
    return out


def _step(value: Tensor, k: int) -> Tensor:
    """Step k of ``(S|1, n|1, ...)`` with an axis for particles: ``(S|1, 1, ...)``."""
    return value[:, 0 if value.shape[1] == 1 else k - 1].unsqueeze(1)
