"""The routes by name, and the table behind ``route="auto"``."""

from __future__ import annotations

from retrodict.core.errors import InputError
from retrodict.core.registry import Registry
from retrodict.kernels.scans.finite import blocks, compiled, loop, parallel, plain
from retrodict.kernels.scans.finite.chain import FiniteChain
from retrodict.kernels.scans.finite.passes import Logs, Route, Scaled

ROUTES: Registry[Route] = Registry("route")
ROUTES.add("loop", value=Scaled("loop", loop))
ROUTES.add("numpy", value=Scaled("numpy", plain, native=True))
ROUTES.add("blocks", value=Scaled("blocks", blocks))
ROUTES.add("scan", value=Scaled("scan", parallel))
ROUTES.add("numba", value=Scaled("numba", compiled, compiled, native=True))
ROUTES.add("log", value=Logs("log"))


def choose(chain: FiniteChain, verb: str, route: str = "auto") -> Route:
    """The route of the name, or for "auto" the one that the table names."""
    if route == "auto":
        return ROUTES["loop"]
    found = ROUTES[route]
    reason = found.refuses(chain, verb)
    if reason:
        raise InputError(f"route {route!r} cannot {verb} this chain: {reason}; route='auto' finds one that can")
    return found
