"""A process: what noise does to a state over time, as a bridge between a datum and pure noise.

Three methods carry a process (t = 0 is data, t = 1 is noise):

* ``corrupt(x0, t, noise, x1)``: draw x_t given the ends;
* ``target(kind, x0, x_t, t, ...)``: what a network can regress on;
* ``bridge(x_t, t, s, eta, x1)``: the kernel from the clean end x0 to an earlier state x_s, given x_t.

`Process.reverse_step` is written once: the bridge pushes what is believed of x0, and the result is sampled.
DDPM, DDIM, ancestral sampling, unmasking and remasking are all this line.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from retrodict.core.errors import InputError
from retrodict.core.noise import Noise
from retrodict.core.registry import Registry
from retrodict.kernels import Belief, Kernel

#: Processes that a configuration file may name.
processes: Registry[type[Process]] = Registry("process")


class Process:
    """Base of every process.

    Attributes:
        state: "real", "tokens" or "count".
        ends: ("x0",), or ("x0", "x1") for a path between two data sets or from a degraded datum.
    """

    state: str = "real"
    ends: tuple[str, ...] = ("x0",)
    name: str = ""

    def corrupt(self, x0: Tensor, t: float | Tensor, noise: Noise | Tensor, x1: Tensor | None = None) -> Tensor:
        """x_t given the ends.  ``t`` is a number or ``(batch,)`` in [0, 1]."""
        raise NotImplementedError

    def target(self, kind: str, x0: Tensor, x_t: Tensor, t: float | Tensor, **known: Tensor) -> Tensor:
        """The regression target ``kind`` given the ends and the state."""
        raise NotImplementedError

    def heads(self) -> list[tuple[str, str, int]]:
        """What `fit` learns: ``[(target kind, loss, output width per coordinate)]``."""
        raise NotImplementedError

    def kernel(self, s: float | Tensor, t: float | Tensor, x1: Tensor | None = None) -> Kernel:
        """The forward kernel from x_s to x_t; ``s = 0`` means the clean datum and always exists."""
        raise NotImplementedError

    def bridge(self, x_t: Tensor, t: float | Tensor, s: float | Tensor, eta: float, x1: Tensor | None = None) -> Kernel:
        """The kernel from x0 to x_s (s < t) given x_t; ``eta`` in [0, 1] is the share of admissible noise.

        For every eta it maps the law of x_t given x0 to the law of x_s given x0.
        """
        raise NotImplementedError

    def prior(self, shape: tuple[int, ...], noise: Noise, x1: Tensor | None = None) -> Tensor:
        """The state at t = 1, ``(batch, *shape)``."""
        raise NotImplementedError

    def network_time(self, t: Tensor) -> Tensor:
        """The number that a network is told instead of t."""
        return t

    def reverse_step(
        self,
        x_t: Tensor,
        t: float | Tensor,
        s: float | Tensor,
        belief: Belief,
        eta: float,
        noise: Noise,
        x1: Tensor | None = None,
        belief_as: str = "mean",
    ) -> Tensor:
        """One step backward: the bridge pushes the belief, and the result is sampled.

        Args:
            belief_as: "mean" (cheapest), "gaussian" (mean and covariance), "marginal" (discrete states) or
                "sample" (exact for any step size when the joint posterior is exact).
        """
        other_end = x1 if x1 is not None else belief.x1
        law = belief.as_(belief_as, noise.stream("belief"))
        return self.bridge(x_t, t, s, eta, other_end).push(law).sample(noise)

    def config(self) -> dict[str, Any]:
        """Plain values from which `from_config` rebuilds the process."""
        raise InputError(
            f"{type(self).__name__} was made from code and cannot be written to a file; "
            "use a named constructor, or register a subclass with its own config()"
        )

    @property
    def can_save(self) -> bool:
        """Whether `config` describes this process in a file."""
        try:
            self.config()
        except InputError:
            return False
        return True

    def __repr__(self) -> str:
        options = {k: v for k, v in self.config().items() if k != "name"} if self.can_save else {}
        return f"{type(self).__name__}({', '.join(f'{k}={_short(v)}' for k, v in options.items())})"


def _short(value: Any) -> str:
    """A value for a person: a long table is its length and its ends."""
    if isinstance(value, list) and value and isinstance(value[0], list):
        return f"<{len(value)} x {len(value[0])} values>"
    if isinstance(value, list) and len(value) > 4:
        return f"<{len(value)} values, {value[0]:g} to {value[-1]:g}>"
    return repr(value)


def from_config(config: dict[str, Any]) -> Process:
    """Rebuild a process from `Process.config`; only registered names load."""
    if "name" not in config:
        raise InputError(f"a process configuration has a 'name', got keys {sorted(config)}")
    options = {k: v for k, v in config.items() if k != "name"}
    return processes[config["name"]](**options)
