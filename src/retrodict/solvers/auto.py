"""``solver="auto"``: a documented, deterministic choice, made without evaluating the network."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from retrodict.processes import GaussianPath, Process


@dataclass(frozen=True)
class Choice:
    """A solver with its grid, stochasticity and options."""

    solver: str
    grid: Any = None
    eta: float = 0.0
    options: dict[str, Any] = field(default_factory=dict)


def choose(process: Process, budget: int | None, *, guidance: float = 1.0, population: bool = False) -> Choice:
    """The plan that ``solver="auto"`` makes.

    Args:
        budget: evaluations (or steps) per sample; guidance: classifier-free scale; population: whether samples
            carry weights, which need a stochastic plan.
    """
    if not isinstance(process, GaussianPath) or not process.scalar or len(process.ends) == 2:
        return Choice("step" if process.state != "real" else "ddim", grid="uniform")
    if population:
        return Choice("adams", grid="logsnr", eta=1.0, options={"order": 1})
    return Choice("adams", grid="angle", options={"order": 2, "kind": "flow"})
