"""Names at the edge, typed objects inside: a registry that suggests the nearest name.

A string is accepted only where a user types one; it resolves once, here, to a function or class.  Loading a
file goes through the same door, so nothing that a file names can run unless it was registered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from retrodict.core.errors import InputError, near

T = TypeVar("T")
U = TypeVar("U")


class Registry(Generic[T]):
    """A named table of objects of one kind.

    >>> colours = Registry("colour")
    >>> colours.add("red", value=1)
    1
    >>> colours["rad"]
    Traceback (most recent call last):
    ...
    retrodict.core.errors.InputError: unknown colour 'rad'; known: red. Did you mean 'red'?
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._table: dict[str, T] = {}

    def add(self, *names: str, value: T) -> T:
        """Register ``value`` under one or several names; a name can be taken once."""
        for name in names:
            if name in self._table:
                raise InputError(f"{self.kind} {name!r} is registered already")
            self._table[name] = value
        return value

    def register(self, *names: str) -> Callable[[U], U]:
        """Decorator form of `add`; the decorated class or function keeps its own type."""

        def decorate(value: U) -> U:
            self.add(*names, value=value)  # type: ignore[arg-type]
            return value

        return decorate

    def __getitem__(self, name: str) -> T:
        if name in self._table:
            return self._table[name]
        known = ", ".join(sorted(self._table))
        raise InputError(f"unknown {self.kind} {name!r}; known: {known}.{near(name, self._table)}")

    def __contains__(self, name: object) -> bool:
        return name in self._table

    def __iter__(self) -> Iterator[str]:
        return iter(self._table)

    def items(self) -> Iterator[tuple[str, T]]:
        return iter(self._table.items())
