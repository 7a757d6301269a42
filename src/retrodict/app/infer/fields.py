"""A section of a configuration as named fields, each taken once with its type; what nobody takes is a mistake.

A *number* may stand for a parameter that is to be fitted: instead of ``0.5``,

    {guess: 0.5}                                 fitted without a prior
    {guess: 0.5, prior: {lognormal: [-1, 1]}}    fitted with a prior, by name

wherever a number stands, also inside lists.  `Fields` notes these as it meets them, under the name of the field
(``level``, ``drift.rate``, ``transition[0][1]``), and puts values in their places when a model is built for values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from retrodict.core.errors import InputError, near, require
from retrodict.core.registry import Registry

#: Laws of parameters by name: their numbers in order.
priors: Registry[Callable[..., Distribution]] = Registry("prior")
priors.add("normal", value=torch.distributions.Normal)
priors.add("lognormal", value=torch.distributions.LogNormal)
priors.add("half-normal", value=torch.distributions.HalfNormal)
priors.add("gamma", value=torch.distributions.Gamma)
priors.add("inverse-gamma", value=torch.distributions.InverseGamma)
priors.add("exponential", value=torch.distributions.Exponential)
priors.add("beta", value=torch.distributions.Beta)
priors.add("uniform", value=torch.distributions.Uniform)

SHOWN = 60  # characters of a value that an error quotes


@dataclass(frozen=True)
class Free:
    """A parameter to be fitted: where it starts, its prior, and whether it is positive by nature."""

    name: str
    guess: float
    prior: Distribution | None
    positive: bool


class Fields:
    """One mapping of a configuration.

    Args:
        given: what the file holds.
        where: its name in messages, such as "model".
        free: parameters met so far, by name; shared by all sections of a model.
        values: of parameters, by name; by default their guesses.
        prefix: of the names of parameters in this section.
    """

    def __init__(
        self,
        given: Any,
        where: str,
        free: dict[str, Free] | None = None,
        values: Mapping[str, Tensor] | None = None,
        prefix: str = "",
    ) -> None:
        if not isinstance(given, Mapping):
            raise InputError(f"{where} is {quote(given)}; it is a section of names and values")
        self.given, self.where, self.prefix = given, where, prefix
        self.free = {} if free is None else free
        self.values = {} if values is None else values
        self.asked: list[str] = []

    def __contains__(self, name: str) -> bool:
        return self.given.get(name) is not None

    def take(self, name: str, default: Any = ...) -> Any:
        """The value of a field as it was written; without a default it must be there."""
        self.asked.append(name)
        if name in self:
            return self.given[name]
        if default is ...:
            others = ", ".join(str(key) for key in self.given if key not in self.asked)
            raise InputError(
                f"{self.where} needs {name!r}" + (f"; not yet understood in it: {others}" if others else "")
            )
        return default

    def sub(self, name: str, short: str | None = None, default: Any = ...) -> Fields:
        """A section inside this one; where ``short`` is given, a single word w stands for ``{short: w}``."""
        value = self.take(name, default)
        value = {short: value} if short is not None and not isinstance(value, Mapping) else value
        return Fields(value, f"{self.where}.{name}", self.free, self.values, f"{self.prefix}{name}.")

    def word(self, name: str, known: Registry[Any], default: Any = ...) -> Any:
        """The entry of a registry that a field names."""
        return known[str(self.take(name, default))]

    def text(self, name: str, default: Any = ...) -> Any:
        """Text."""
        value = self.take(name, default)
        require(
            value is None or isinstance(value, str | int | float), f"{self.where}.{name} is {quote(value)}; give text"
        )
        return None if value is None else str(value)

    def whole(self, name: str, default: Any = ..., least: int = 0) -> Any:
        """A whole number of at least ``least``."""
        value = self.take(name, default)
        if value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= least):
            return value
        raise InputError(f"{self.where}.{name} is {quote(value)}; give a whole number of at least {least}")

    def tensor(self, name: str, default: Any = ..., positive: bool = False, axes: Sequence[int] = (0,)) -> Tensor:
        """A number, a list, or a list of lists of numbers, in float64, with one of so many ``axes``.

        Args:
            positive: the numbers are above zero.
        """
        value = self.take(name, default)
        found = self._number_tree(value, self.prefix + name, f"{self.where}.{name}", positive)
        if found.ndim not in axes:
            kinds = {0: "a number", 1: "a list of numbers", 2: "a matrix (a list of rows)"}
            accepted = " or ".join(kinds[n] for n in axes)
            raise InputError(f"{self.where}.{name} is {quote(value)}; give {accepted}")
        if positive and not bool((found.detach() > 0).all()):
            raise InputError(f"{self.where}.{name} is {quote(value)}; it is positive")
        return found

    def done(self) -> None:
        """Raise if something was written that nobody took."""
        for name in self.given:
            if name not in self.asked:
                known = ", ".join(self.asked)
                raise InputError(f"{self.where} has no {str(name)!r}; it has: {known}.{near(str(name), self.asked)}")

    def _number_tree(self, value: Any, name: str, where: str, positive: bool) -> Tensor:
        if isinstance(value, Sequence) and not isinstance(value, str):
            parts = [self._number_tree(v, f"{name}[{i}]", f"{where}[{i}]", positive) for i, v in enumerate(value)]
            if not parts or len({part.shape for part in parts}) > 1:
                raise InputError(f"{where} is {quote(value)}; its rows are lists of numbers of one length")
            return torch.stack(parts)
        if isinstance(value, Mapping):
            return self._parameter(value, name, where, positive)
        return torch.tensor(number(value, where), dtype=torch.float64)

    def _parameter(self, value: Mapping[str, Any], name: str, where: str, positive: bool) -> Tensor:
        section = Fields(value, where)
        guess = number(section.take("guess"), f"{where}.guess")
        prior = _prior(section, where) if "prior" in section else section.take("prior", None)
        section.done()
        if positive and prior is not None and not _positive(prior):
            raise InputError(f"{where} is positive, and its prior {type(prior).__name__} is not; take lognormal")
        if prior is not None and not bool(prior.support.check(torch.tensor(guess, dtype=torch.float64))):  # type: ignore[union-attr]
            raise InputError(f"{where}.guess is {guess:g}, where the prior has no probability")
        self.free[name] = Free(name, guess, prior, positive)
        return self.values[name] if name in self.values else torch.tensor(guess, dtype=torch.float64)


def number(value: Any, where: str) -> float:
    """A finite number; text that reads as one counts, since YAML takes 1e-3 for text."""
    try:
        if isinstance(value, bool):
            raise ValueError
        found = float(value)
    except (TypeError, ValueError):
        raise InputError(
            f"{where} is {quote(value)}; give a number, or {{guess: a number}} to have it fitted"
        ) from None
    require(abs(found) < float("inf"), f"{where} is {quote(value)}; give a finite number")
    return found


def quote(value: Any) -> str:
    """A value as an error shows it, not longer than a line."""
    text = repr(value)
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"


def _prior(section: Fields, where: str) -> Distribution:
    """``{name: numbers}`` as a law."""
    given = section.take("prior")
    require(
        isinstance(given, Mapping) and len(given) == 1,
        f"{where}.prior is {quote(given)}; write it as {{name: numbers}}, for example {{lognormal: [0, 1]}}",
    )
    ((name, values),) = given.items()
    make = priors[str(name)]
    values = values if isinstance(values, Sequence) and not isinstance(values, str) else [values]
    numbers = [torch.tensor(number(v, f"{where}.prior.{name}"), dtype=torch.float64) for v in values]
    try:
        return make(*numbers, validate_args=True)
    except (TypeError, ValueError):
        wanted = ", ".join(make.arg_constraints)  # type: ignore[attr-defined]
        raise InputError(f"{where}.prior is {quote(given)}; the numbers of {name} are: {wanted}") from None


def _positive(law: Distribution) -> bool:
    """Whether a law lives above zero."""
    support: Any = law.support
    if isinstance(support, type(constraints.interval(0, 1))):
        return bool(torch.as_tensor(support.lower_bound) >= 0)
    return support in (constraints.positive, constraints.nonnegative)
