"""The registry of solvers: what a row generator declares about itself.

A solver is a short function that walks a grid and emits rows through a `Builder`.  It declares its order, the
stochasticity it allows and the invariants it claims; the tests hold every entry to its declaration, and to the
*absence* of what it does not claim.

=========  ==============================================================================================
claim      what holds
=========  ==============================================================================================
constant   a constant denoiser is integrated exactly (of a stochastic plan: the mean is)
variance   the noise that a stochastic plan adds keeps the marginal variance under a constant denoiser
order      errors fall with the declared power of the number of steps
bridge     rows that depend on data are the process' bridge, which maps its one-time laws to each other
reversal   with an exact posterior the law of the samples tends to the data's; discrete processes only
=========  ==============================================================================================
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from retrodict.core.errors import InputError, near
from retrodict.core.registry import Registry

CLAIMS = ("constant", "variance", "order", "bridge", "reversal")


@dataclass(frozen=True)
class Solver:
    """A registered row generator.

    Attributes:
        name: the canonical name.
        generate: ``(builder, **options) -> register of the result``.
        order: declared order of convergence, a number or a function of the options; None if it has none.
        eta: "none" (deterministic), "share" (any eta in [0, 1]) or "always" (eta in (0, 1]).
        default_eta: the stochasticity when none is asked for.
        grid: the grid used by default.
        claims: the invariants that hold with the default options.
        without: claims that are absent, or absent under some options, each with its reason.
        ends: how many unknown ends of a path it can handle.
        preset: options that this name fixes (of an alias).
        budget: ``(evaluations, options, to the clean end) -> (steps, derived options)``, where a number of steps alone
            does not say how to spend the evaluations.
        discrete: whether it is for discrete processes only.
    """

    name: str
    generate: Callable[..., int]
    order: float | Callable[[Mapping[str, Any]], float | None] | None
    eta: str = "none"
    default_eta: float = 0.0
    grid: str = "logsnr"
    claims: tuple[str, ...] = ("constant", "order")
    without: Mapping[str, str] = field(default_factory=dict)
    ends: int = 1
    preset: Mapping[str, Any] = field(default_factory=dict)
    budget: Callable[[int, Mapping[str, Any], bool], tuple[int, dict[str, Any]]] | None = None
    discrete: bool = False

    @property
    def options(self) -> dict[str, Any]:
        """Option names and defaults."""
        parameters = list(inspect.signature(self.generate).parameters.values())[1:]
        return {p.name: p.default for p in parameters} | dict(self.preset)

    @property
    def doc(self) -> str:
        """What the generator says of itself."""
        return inspect.getdoc(self.generate) or ""

    def declared_order(self, options: Mapping[str, Any], eta: float) -> float | None:
        """Order of convergence: pathwise if deterministic; the weak order, which ends at 2, if not."""
        order = self.order(self.options | dict(options)) if callable(self.order) else self.order
        return order if eta == 0 or order is None else min(order, 2.0)

    def check_options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The preset with the user's options; raises on unknown names and on options that the name has fixed."""
        for name in options:
            if name not in self.options:
                known = ", ".join(self.options) or "none"
                raise InputError(
                    f"unknown option {name!r} of solver {self.name!r}; known: {known}.{near(name, self.options)}"
                )
            if name in self.preset and options[name] != self.preset[name]:
                raise InputError(
                    f"this name fixes {name}={self.preset[name]!r}; for {options[name]!r} use {self.name!r}"
                )
        return {**self.preset, **{k: _tabulated(v) for k, v in options.items()}}

    def check_eta(self, eta: float | None) -> float:
        """The share of stochasticity, defaulted and checked."""
        if eta is None:
            return self.default_eta
        if not 0 <= eta <= 1:
            raise InputError(f"eta is the share of admissible noise, between 0 and 1; got {eta}")
        if eta > 0 and self.eta == "none":
            raise InputError(
                f"solver {self.name!r} is deterministic: eta must be 0, got {eta}; 'ddim' and 'adams' take any eta"
            )
        if eta == 0 and self.eta == "always":
            raise InputError(f"solver {self.name!r} is stochastic by nature: eta must be above 0; 'ddim' takes any eta")
        return float(eta)


solvers: Registry[Solver] = Registry("solver")


def solver(
    *names: str,
    order: Any = None,
    eta: str = "none",
    default_eta: float | None = None,
    grid: str = "logsnr",
    claims: tuple[str, ...] = ("constant", "order"),
    without: Mapping[str, str] | None = None,
    ends: int = 1,
    budget: Any = None,
    discrete: bool = False,
) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Register a row generator under one or several names; the first is canonical."""

    def add(generate: Callable[..., int]) -> Callable[..., int]:
        share = (1.0 if eta == "always" else 0.0) if default_eta is None else default_eta
        entry = Solver(names[0], generate, order, eta, share, grid, claims, without or {}, ends, {}, budget, discrete)
        solvers.add(*names, value=entry)
        return generate

    return add


def alias(name: str, of: str, **preset: Any) -> None:
    """Register ``name`` for an existing solver with some of its options fixed."""
    base = solvers[of]
    solvers.add(name, value=replace(base, preset={**base.preset, **preset}))


def _tabulated(value: Any) -> Any:
    """A function of time becomes its values at 257 times from 0 to 1, so that a plan is data and can be saved, and an
    object with a configuration that.

    At the ends themselves, where rates of a path need not exist, the value just inside stands in.
    """
    if not callable(value):
        config = getattr(value, "config", None)
        return value if config is None else config()
    function: Any = value
    table = [float(function(i / 256)) for i in range(257)]
    for i, inside in ((0, 1e-6), (256, 1 - 1e-6)):
        table[i] = table[i] if math.isfinite(table[i]) else float(function(inside))
    return tuple(table)
