"""One measurement and its verdict."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """A measured value beside what it should be.

    Attributes:
        name: what was measured.
        value, expected: both as numbers.
        ok: whether the value is within the tolerance of the measurement.
        text: one line for people.
        details: the numbers behind the value, in the order of the measurement.
    """

    name: str
    value: float
    expected: float
    ok: bool
    text: str
    details: tuple[float, ...] = ()

    def __bool__(self) -> bool:
        return self.ok

    def __str__(self) -> str:
        return f"{'ok  ' if self.ok else 'FAIL'}  {self.name}: {self.text}"


def deviation(name: str, value: float, tol: float, what: str) -> Finding:
    """A finding whose value should be zero within ``tol``; NaN is a failure."""
    return Finding(name, value, 0.0, bool(value <= tol), f"{what}: off by {value:.2e} (at most {tol:.0e})")
