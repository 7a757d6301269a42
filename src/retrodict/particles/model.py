"""What a sequential Monte Carlo run needs to know: a Feynman-Kac model with its proposals.

The target over paths is ``mu(dx_0) g_0(x_0) prod_k m_k(x_{k-1}, dx_k) g_k(x_k) / Z``.  A model draws node 0 and moves
particles from node k-1 to node k by any proposal, and pays the log of ``m g / proposal`` as weight.  With h = 1 this
is the bootstrap filter, with a guiding function the guided one; nothing else in the room of particles knows which.

States are tensors ``(series, particles, ...)``; log-weights ``(series, particles)``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from retrodict.core.errors import InputTypeError
from retrodict.core.noise import Noise


class FeynmanKac:
    """A sequence of targets with proposals; subclasses fill in what the chosen algorithm asks for.

    Attributes:
        n: the last node; nodes are 0..n.
        series: series run side by side.
        lengths: the last node of each series if they differ; beyond it a series stands still.
    """

    n: int
    series: int = 1
    lengths: Sequence[int] | None = None

    def start(self, particles: int, noise: Noise) -> tuple[Tensor, Tensor]:
        """Draws at node 0 and their log-weight ``mu g_0 / proposal``."""
        raise NotImplementedError

    def draw(self, moves: int, particles: int, noise: Noise) -> Iterable[Any]:
        """The next innovations, one item a move; drawn in blocks, which may run past the last node."""
        raise NotImplementedError

    def move(self, k: int, x: Tensor, z: Any) -> tuple[Tensor, Tensor]:
        """The particles at node k from those at node k-1, and the log of ``m_k g_k / proposal``."""
        raise NotImplementedError

    def look_ahead(self, k: int, x: Tensor) -> Tensor | None:
        """First-stage log-weights: how promising a particle at node k is for node k+1 (None: all alike)."""
        return None

    def log_transition(self, k: int, x: Tensor, y: Tensor) -> Tensor:
        """log m_k(x, y), the true transition density; the axes before the state's broadcast."""
        raise InputTypeError(
            f"{type(self).__name__} has no transition density, which backward sampling needs; trace the genealogy"
        )

    def log_transition_bound(self, k: int) -> Tensor | None:
        """An upper bound of log m_k, ``(series,)``, for backward draws by rejection; None if there is none."""
        return None

    def log_start(self, x: Tensor) -> Tensor:
        """The log-weight that `start` pays for given states ``(series, ...)``."""
        raise InputTypeError(f"{type(self).__name__} cannot weigh a given path: it has no log_start")

    def log_move(self, k: int, x: Tensor, y: Tensor) -> Tensor:
        """The log-weight that `move` pays for given states x, y ``(series, ...)`` at nodes k-1 and k."""
        raise InputTypeError(f"{type(self).__name__} cannot weigh a given path: it has no log_move")

    def running(self, k: int) -> Tensor | None:
        """Which series have reached node k, ``(series,)``; None for all."""
        if self.lengths is None or k <= min(self.lengths):
            return None
        return torch.tensor([k <= last for last in self.lengths])
