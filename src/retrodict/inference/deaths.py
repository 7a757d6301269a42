"""When particles die: the engine knows the node, the user knows the time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from retrodict.particles import ParticlesDied


@contextmanager
def dated(times: Tensor) -> Iterator[None]:
    """Inside, `ParticlesDied` gets the time of its node, from ``times (S, nodes)``."""
    try:
        yield
    except ParticlesDied as dead:
        when = float(times[dead.series, dead.node])
        raise ParticlesDied(f"at time {when:g}: {dead}", dead.node, dead.series) from None
