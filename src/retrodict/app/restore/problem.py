"""What `retrodict restore` is asked and what it answers, as plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from retrodict.app.restore.posterior import Restored
from retrodict.steering.operators import Operator


@dataclass(frozen=True)
class Settings:
    """What the command line asks of every image.

    Attributes:
        operator: in words; noise: standard deviation, a share of black to white for images.
        samples: draws written; the others as in `restore`.
    """

    operator: str
    noise: float
    degrade: bool
    samples: int
    method: str
    populations: int
    particles: int
    steps: int
    seed: int
    number: int | None


@dataclass(frozen=True)
class Problem:
    """Images to restore, in the user's units.

    Attributes:
        y: measurements ``(n, *output)``; truth: clean images ``(n, *shape)`` where they are known.
        noise: standard deviation in the user's units; range: black to white there.
        varying: pixels ``shape`` that vary in the data of the run; all, where those are not at hand.
    """

    operator: Operator
    y: Tensor
    truth: Tensor | None
    noise: float
    range: float
    black: float
    varying: Tensor

    def shades(self, x: Tensor) -> np.ndarray:
        """Images in the user's units as values in [0, 1], ``(n, H, W)`` or ``(n, H, W, 3)``."""
        z = ((x - self.black) / self.range).clamp(0, 1).float().cpu()
        return (z.permute(0, 2, 3, 1) if z.shape[1] == 3 else z[:, 0]).numpy()


@dataclass(frozen=True)
class Outcome:
    """One image: what is believed, and in numbers how good that is."""

    found: Restored
    numbers: dict[str, Any]
