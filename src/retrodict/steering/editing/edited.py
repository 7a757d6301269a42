"""What `retrodict.edit` returns."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from retrodict.steering.editing.delta import Rule, rms


@dataclass
class Edited:
    """Edited data, and how they came about.

    Attributes:
        x: ``(n, *shape)`` in the user's units, ``source + delta``.
        source: what was edited; delta: what the edit added.
        mask: where it was allowed to, ``(n or 1, *shape)``; None is everywhere.
        method, rule: the name and the setting of the recursion.
        times: the levels that were visited, from noise to the clean end.
        nfe: denoiser evaluations a sample; passes: network passes a sample, two an evaluation under guidance.
    """

    x: Tensor
    source: Tensor
    delta: Tensor
    mask: Tensor | None
    method: str
    rule: Rule
    times: tuple[float, ...]
    nfe: int
    passes: int

    #: An edit is a steered descent: no weight makes it a draw from a law.
    correction = "none"

    def __len__(self) -> int:
        return len(self.x)

    @property
    def distance(self) -> Tensor:
        """Root mean square of what was added, each sample ``(n,)``, in the user's units."""
        return rms(self.delta).flatten()

    def __repr__(self) -> str:
        shape = "x".join(str(s) for s in self.x.shape[1:])
        return (
            f"Edited({len(self)} of shape {shape}, {self.method!r}, {len(self.times) - 1} steps, {self.nfe} "
            f"evaluations, moved by {float(self.distance.mean()):.3g} root mean square)"
        )
