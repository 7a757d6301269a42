"""The routes by name, and the table behind ``route="auto"``.

The table is from measurements on CPU cores (``bench_inference_exact``).  On the CPU, unless autograd has to pass
through (the gradient of the evidence does not need it):

    numba installed                                     numba
    4,000 steps or more, S K up to 16                   blocks (filter, smooth, evidence, messages)
    else                                                numpy

Through autograd on the CPU:

    64 steps or more, S K^3 up to 32,768                blocks
    else                                                loop

On another device: scan up to 32 states, else blocks; draws and most probable paths: loop.  A route that loses a state
to underflow hands over to log.
"""

from __future__ import annotations

from retrodict.core.errors import InputError
from retrodict.core.registry import Registry
from retrodict.kernels.scans.finite import blocks, compiled, loop, parallel, plain
from retrodict.kernels.scans.finite.chain import FiniteChain
from retrodict.kernels.scans.finite.passes import Logs, Route, Scaled

ROUTES: Registry[Route] = Registry("route")
ROUTES.add("loop", value=Scaled("loop", loop))
ROUTES.add("numpy", value=Scaled("numpy", plain, plain, native=True))
ROUTES.add("blocks", value=Scaled("blocks", blocks))
ROUTES.add("scan", value=Scaled("scan", parallel))
ROUTES.add("numba", value=Scaled("numba", compiled, compiled, native=True))
ROUTES.add("log", value=Logs("log"))


def choose(chain: FiniteChain, verb: str, route: str = "auto") -> Route:
    """The route of the name, or for "auto" the one that the table names."""
    if route == "auto":
        return ROUTES[_table(chain, verb)]
    found = ROUTES[route]
    reason = found.refuses(chain, verb)
    if reason:
        raise InputError(f"route {route!r} cannot {verb} this chain: {reason}; route='auto' finds one that can")
    return found


def _table(chain: FiniteChain, verb: str) -> str:
    n, series, states = chain.n, chain.series, chain.states
    walk = verb in ("draw", "viterbi")
    for name in ("numba", "numpy"):
        if ROUTES[name].refuses(chain, verb) is None:
            return "blocks" if name == "numpy" and not walk and n >= 4000 and series * states <= 16 else name
    if walk:
        return "loop"
    if chain.log_g.device.type != "cpu":
        return "scan" if states <= 32 else "blocks"
    return "blocks" if n >= 64 and series * states**3 <= 32768 else "loop"
