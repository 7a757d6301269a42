"""What conditioning returns, and the one table of methods that make it.

A *method* is a way from (model, data) to a `Conditioned`: exact where a closed form exists, approximate or weighted
particles elsewhere.  Every route registers itself here for the type of model that it serves, says where it does not
apply, and whether ``method="auto"`` may pick it:

    @register("exact", StateSpace, auto=0, why_not=not_linear_gaussian)
    def exact(model, data): ...
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from retrodict.core.errors import InputError, InputTypeError, near
from retrodict.core.registry import Registry
from retrodict.inference.observed import Observed
from retrodict.inference.results import Marginals, Paths

__all__ = ["Conditioned", "Marginals", "Method", "Paths", "condition_model", "methods", "register"]


class Conditioned:
    """A model conditioned on data.  Every route subclasses this; what a route cannot do raises and says why.

    Attributes:
        method: the word that chose the route ("exact", "extended", "guided", ...).
        route: how it was computed, in words ("Kalman filter, cholesky").
        exact: True when nothing but rounding is approximate.
        log_evidence: log density of the data, ``(S,)``, differentiable in the model's parameters where exact.
        log_evidence_se: its standard error ``(S,)``, or None when it is not an estimate.
        ess: effective sample size ``(S,)`` of the draws, or None when every draw counts in full.
    """

    method: str = ""
    route: str = ""
    exact: bool = False
    log_evidence_se: Tensor | None = None
    ess: Tensor | None = None

    def __init__(self, model: Any, data: Observed) -> None:
        self.model, self.data = model, data

    @property
    def log_evidence(self) -> Tensor:
        """log density of the data under the model, ``(S,)``."""
        raise self._cannot("log_evidence")

    def filter(self) -> Marginals:
        """The law of the state at each time given what was seen up to and at that time."""
        raise self._cannot("filter")

    def smooth(self) -> Marginals:
        """The law of the state at each time given all data."""
        raise self._cannot("smooth")

    def sample(self, n: int, seed: int = 0) -> Paths:
        """``n`` hidden paths given all data."""
        raise self._cannot("sample")

    def forecast(self, times: Any, of: str = "state") -> Marginals:
        """The law of the state (``of="observation"``: of what will be seen) at later times.

        Args:
            times: ``(h,)`` numbers or dates, none before the last observation; an integer h means h unit steps on.
        """
        raise self._cannot("forecast")

    def residuals(self) -> Tensor:
        """Standardised one-step-ahead errors ``(S, N, m)``: independent standard normals if the model is right."""
        raise self._cannot("residuals")

    def _ran(self, verb: str, route: str) -> None:
        """Note in ``route`` which algorithm answered a verb."""
        words, _, rest = self.route.partition(" (")
        runs = dict(pair.split(": ") for pair in rest.rstrip(")").split(", ")) if rest else {}
        self.route = f"{words} ({', '.join(f'{v}: {r}' for v, r in (runs | {verb: route}).items())})"

    def _know(self, log_evidence: Tensor, inputs: tuple[Tensor, ...]) -> None:
        """Keep the evidence that came with a pass, unless a gradient may be wanted of it (a cached property has it)."""
        if not any(value.requires_grad for value in inputs):
            self.__dict__.setdefault("log_evidence", log_evidence)

    def _cannot(self, verb: str) -> InputError:
        able = [name for name in serving(type(self.model)) if name != self.method]
        return InputError(
            f"method={self.method!r} on {type(self.model).__name__} does not give {verb!r}; other methods: "
            f"{', '.join(sorted(able)) or 'none'}"
        )

    def __repr__(self) -> str:
        kind = "exact" if self.exact else "approximate"
        return f"Conditioned({type(self.model).__name__}, method={self.method!r}: {kind}, {self.route}; {self.data!r})"


@dataclass(frozen=True)
class Method:
    """One way to condition one type of model.

    Attributes:
        model: the type of model it serves (subclasses too).
        build: ``(model, data, **options) -> Conditioned``; its keyword parameters are the options it takes.
        why_not: ``(model, data) -> reason`` why it does not apply, or None where it does.
        auto: its place in the order in which ``method="auto"`` tries; None: only by name.
    """

    name: str
    model: type
    build: Callable[..., Conditioned]
    why_not: Callable[[Any, Observed], str | None] = field(default=lambda model, data: None)
    auto: int | None = None

    def options(self) -> list[str]:
        """The keywords that this method takes beyond the model and the data."""
        return [name for name in list(inspect.signature(self.build).parameters)[2:]]


#: Method name -> its instances, one for each type of model.
methods: Registry[dict[type, Method]] = Registry("method")


def register(
    name: str,
    model: type,
    *,
    why_not: Callable[[Any, Observed], str | None] | None = None,
    auto: int | None = None,
) -> Callable[[Callable[..., Conditioned]], Callable[..., Conditioned]]:
    """Decorator: make ``build(model, data, **options)`` the method ``name`` of a type of model."""

    def decorate(build: Callable[..., Conditioned]) -> Callable[..., Conditioned]:
        table = methods[name] if name in methods else methods.add(name, value={})
        if model in table:
            raise InputError(f"method {name!r} is registered already for {model.__name__}")
        table[model] = Method(name, model, build, why_not or (lambda model, data: None), auto)
        return build

    return decorate


def serving(kind: type) -> dict[str, Method]:
    """Every method registered for a type of model; the nearest class of its ancestry wins."""
    found: dict[str, Method] = {}
    for base in reversed(kind.__mro__):
        found |= {name: table[base] for name, table in methods.items() if base in table}
    return found


def known_models() -> str:
    """The names of the types of model that some method serves."""
    return ", ".join(sorted({model.__name__ for _, table in methods.items() for model in table}))


def condition_model(
    model: Any, data: Observed, method: str = "auto", options: Mapping[str, Any] | None = None
) -> Conditioned:
    """Choose the method and run it.

    Args:
        options: what the user gave; None values were not given.  "seed" is dropped where nothing is random.

    Raises:
        InputError: an unknown method (with the nearest name), one that does not apply (with the reason and those that
            do), an option that the method does not take.
    """
    if not isinstance(data, Observed):
        raise InputTypeError(f"a model is conditioned on Observed(y, times=...), got {type(data).__name__}")
    table = serving(type(model))
    if not table:
        raise InputTypeError(f"no method conditions a {type(model).__name__}; models are: {known_models()}")
    chosen = _automatic(table, model, data) if method == "auto" else _named(table, method, model, data)
    given = {key: value for key, value in (options or {}).items() if value is not None}
    accepted = chosen.options()
    for key in list(given):
        if key in accepted:
            continue
        if key == "seed" or (method == "auto" and key == "particles"):
            del given[key]  # nothing is random, or nothing is weighted, in the route that auto chose
            continue
        raise InputError(
            f"method={chosen.name!r} on {type(model).__name__} takes no {key!r}; it takes: "
            f"{', '.join(accepted) or 'no options'}.{near(key, accepted)}"
        )
    conditioned = chosen.build(model, data, **given)
    conditioned.method = chosen.name
    return conditioned


def _named(table: dict[str, Method], name: str, model: Any, data: Observed) -> Method:
    if name not in table:
        kind = type(model).__name__
        if name in methods:
            served = ", ".join(sorted(t.__name__ for t in methods[name]))
            raise InputError(f"method={name!r} is for {served}; for {kind} there are: auto, {', '.join(sorted(table))}")
        known = ["auto", *sorted(table)]
        raise InputError(f"unknown method {name!r}; for {kind} there are: {', '.join(known)}.{near(name, known)}")
    reason = table[name].why_not(model, data)
    if reason is not None:
        raise InputError(f"method={name!r} does not apply: {reason}. {_those_that_do(table, model, data)}")
    return table[name]


def _automatic(table: dict[str, Method], model: Any, data: Observed) -> Method:
    ranked = sorted((m for m in table.values() if m.auto is not None), key=lambda m: m.auto or 0)
    reasons = []
    for candidate in ranked:
        reason = candidate.why_not(model, data)
        if reason is None:
            return candidate
        reasons.append(f"{candidate.name}: {reason}")
    raise InputError(f"no method applies by itself ({'; '.join(reasons)}). {_those_that_do(table, model, data)}")


def _those_that_do(table: dict[str, Method], model: Any, data: Observed) -> str:
    able = sorted(name for name, m in table.items() if m.why_not(model, data) is None)
    return f"Those that do: {', '.join(able)}" if able else "None of the registered methods does"
