"""The routes by name, what each can do, and the table behind ``route="auto"``."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

from torch import Tensor

from retrodict.core.errors import InputError
from retrodict.core.registry import Registry
from retrodict.kernels.scans.gaussian import loop, parallel, passes
from retrodict.kernels.scans.gaussian.algebra import Message
from retrodict.kernels.scans.gaussian.chain import GaussianChain


class Route:
    """One way to do all of it.  Leading axes of what comes back are S (messages: H may have one)."""

    name: str

    def refuses(self, chain: GaussianChain, verb: str) -> str | None:
        """Why this route cannot serve ``verb`` on the chain, or None."""
        return None

    def filter(self, chain: GaussianChain) -> tuple[Tensor, Tensor, Tensor]:
        raise NotImplementedError

    def smooth(self, chain: GaussianChain, cross: bool) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        raise NotImplementedError

    def evidence(self, chain: GaussianChain) -> Tensor:
        raise NotImplementedError

    def score(self, chain: GaussianChain) -> tuple[Tensor, tuple[Tensor, ...]]:
        raise NotImplementedError

    def draw(self, chain: GaussianChain, z: Tensor) -> Tensor:
        raise NotImplementedError

    def messages(self, chain: GaussianChain) -> Message:
        raise NotImplementedError


@dataclass(frozen=True)
class Passes(Route):
    """A route in torch from a pair of passes: `loop` or `parallel`."""

    name: str
    module: ModuleType

    def filter(self, chain: GaussianChain) -> tuple[Tensor, Tensor, Tensor]:
        return self.module.filter(chain)

    def smooth(self, chain: GaussianChain, cross: bool) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        return passes.smooth(self.module, chain, cross)

    def evidence(self, chain: GaussianChain) -> Tensor:
        return self.module.filter(chain)[2]

    def score(self, chain: GaussianChain) -> tuple[Tensor, tuple[Tensor, ...]]:
        return passes.score(self.module, chain)

    def draw(self, chain: GaussianChain, z: Tensor) -> Tensor:
        return passes.draw(self.module, chain, z)

    def messages(self, chain: GaussianChain) -> Message:
        return self.module.messages(chain)


ROUTES: Registry[Route] = Registry("route")
ROUTES.add("loop", value=Passes("loop", loop))
ROUTES.add("scan", value=Passes("scan", parallel))


def choose(chain: GaussianChain, verb: str, route: str = "auto") -> Route:
    """The route of the name, or for "auto" the one that the table names."""
    if route == "auto":
        return ROUTES["loop" if chain.n < 32 else "scan"]
    found = ROUTES[route]
    reason = found.refuses(chain, verb)
    if reason:
        raise InputError(f"route {route!r} cannot {verb} this chain: {reason}; route='auto' finds one that can")
    return found
