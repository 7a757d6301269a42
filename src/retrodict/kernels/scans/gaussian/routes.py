"""The routes by name, what each can do, and the table behind ``route="auto"``.

The table is from measurements on CPU cores (``bench_inference_exact``), first line that applies:

    numba installed, CPU, no autograd *, d up to 24                      numba
    CPU, no autograd *, invertible P0 and Q; not filter, not messages    cholesky
    16 steps or more, and d^2 (series with their own matrices) up to
    1,024 or a device other than the CPU                                 scan
    else                                                                 loop

* The gradient of the evidence needs no autograd.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from retrodict.core.errors import InputError
from retrodict.core.registry import Registry
from retrodict.kernels.scans import native
from retrodict.kernels.scans.gaussian import banded, compiled, loop, parallel, passes
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

    def means(self, chain: GaussianChain) -> tuple[Tensor, Tensor]:
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

    def means(self, chain: GaussianChain) -> tuple[Tensor, Tensor]:
        return passes.means(self.module, chain)

    def evidence(self, chain: GaussianChain) -> Tensor:
        return self.module.filter(chain)[2]

    def score(self, chain: GaussianChain) -> tuple[Tensor, tuple[Tensor, ...]]:
        return passes.score(self.module, chain)

    def draw(self, chain: GaussianChain, z: Tensor) -> Tensor:
        return passes.draw(self.module, chain, z)

    def messages(self, chain: GaussianChain) -> Message:
        return self.module.messages(chain)


@dataclass(frozen=True)
class Cholesky(Route):
    """The banded factorisation of `banded`: smoother, evidence, gradient and draws, on the CPU."""

    name: str = "cholesky"

    def refuses(self, chain: GaussianChain, verb: str) -> str | None:
        if verb in ("filter", "messages"):
            return "it factors the precision of the whole path and has no law given the past alone"
        if chain.F.device.type != "cpu":
            return "it runs on the CPU"
        if verb != "evidence" and needs_gradient(chain):
            return "its gradients are those of the evidence only"
        return None

    def smooth(self, chain: GaussianChain, cross: bool) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        found = banded.factor(chain)
        cov, neighbours = (x.expand(chain.series, -1, -1, -1) for x in found.covariances())
        mean, log_evidence = self.means(chain)
        return mean, cov, log_evidence, neighbours if cross else None

    def means(self, chain: GaussianChain) -> tuple[Tensor, Tensor]:
        found = banded.factor(chain)
        mean = found.mean()
        return torch.from_numpy(mean.copy()), found.log_evidence(mean, found.residuals(mean))

    def evidence(self, chain: GaussianChain) -> Tensor:
        return self.means(chain)[1]

    def score(self, chain: GaussianChain) -> tuple[Tensor, tuple[Tensor, ...]]:
        return banded.score(chain)

    def draw(self, chain: GaussianChain, z: Tensor) -> Tensor:
        found = banded.factor(chain)
        return torch.from_numpy(found.mean() + found.solve(z.detach().numpy(), "half"))


def needs_gradient(chain: GaussianChain) -> bool:
    """Whether autograd has to see the computation."""
    return torch.is_grad_enabled() and any(x.requires_grad for x in chain.tensors)


@dataclass(frozen=True)
class Compiled(Route):
    """The passes of `compiled`: needs numba, the CPU, and no autograd (but for the evidence)."""

    name: str = "numba"

    def refuses(self, chain: GaussianChain, verb: str) -> str | None:
        if not native.installed():
            return "numba is not installed; pip install 'retrodict[fast]'"
        if chain.F.device.type != "cpu":
            return "it runs on the CPU"
        if verb != "evidence" and needs_gradient(chain):
            return "its gradients are those of the evidence only"
        return None

    def filter(self, chain: GaussianChain) -> tuple[Tensor, Tensor, Tensor]:
        return compiled.filter(chain)

    def smooth(self, chain: GaussianChain, cross: bool) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        return compiled.smooth(chain, cross)

    def means(self, chain: GaussianChain) -> tuple[Tensor, Tensor]:
        return compiled.means(chain)

    def evidence(self, chain: GaussianChain) -> Tensor:
        return compiled.evidence(chain)

    def score(self, chain: GaussianChain) -> tuple[Tensor, tuple[Tensor, ...]]:
        return compiled.score(chain)

    def draw(self, chain: GaussianChain, z: Tensor) -> Tensor:
        return compiled.draw(chain, z)

    def messages(self, chain: GaussianChain) -> Message:
        return compiled.messages(chain)


ROUTES: Registry[Route] = Registry("route")
ROUTES.add("loop", value=Passes("loop", loop))
ROUTES.add("scan", value=Passes("scan", parallel))
ROUTES.add("cholesky", value=Cholesky())
ROUTES.add("numba", value=Compiled())


def candidates(chain: GaussianChain, verb: str, route: str = "auto") -> list[Route]:
    """The route of the name, or for "auto" the routes of the table, best first; the last one takes every chain."""
    if route == "auto":
        deep = chain.n >= 16 and (chain.F.device.type != "cpu" or chain.own * chain.d**2 <= 1024)
        names = ["numba"] * (chain.d <= 24) + ["cholesky", "scan" if deep else "loop"]
        return [ROUTES[name] for name in names if not ROUTES[name].refuses(chain, verb)]
    found = ROUTES[route]
    reason = found.refuses(chain, verb)
    if reason:
        raise InputError(f"route {route!r} cannot {verb} this chain: {reason}; route='auto' finds one that can")
    return [found]
