"""What a report says, as plain data: a tree of frozen dataclasses that knows nothing of HTML.

A `Report` has summary `Card`s and `Section`s; a section is a list of blocks: `Text`, `Images` (sample grids
and film strips), `LineChart`, `Scatter`, `Table`, `Code`.  Everything is checked on construction, so that a
report which can be built can be written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from retrodict.core.errors import require


def with_interval(value: float, low: float | None = None, high: float | None = None, digits: int = 3) -> str:
    """A number with its interval in the precision that the interval deserves.

    >>> with_interval(0.97153, 0.9641, 0.9778)
    '0.972 [0.964, 0.978]'
    >>> with_interval(12.3456)
    '12.3'
    >>> with_interval(1.0, 1.0, 1.0)
    '1'
    """
    if low is None or high is None or low == high:
        return f"{value:.{digits}g}"
    width = abs(high - low)
    places = max(0, min(8, 1 - int(np.floor(np.log10(width))))) if np.isfinite(width) else digits
    return " ".join([_fixed(value, places), f"[{_fixed(low, places)}, {_fixed(high, places)}]"])


def _fixed(value: float, places: int) -> str:
    """``value`` with so many decimals, and no minus before a zero."""
    text = f"{value:.{places}f}"
    return text.removeprefix("-") if float(text) == 0 else text


@dataclass(frozen=True)
class Card:
    """One number of the summary: what it is, its value, its interval if it has one, and how to read it."""

    label: str
    value: str
    interval: str = ""
    hint: str = ""


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Code:
    """Lines to be typed or run, shown as they are."""

    text: str
    caption: str = ""


@dataclass(frozen=True)
class Images:
    """A grid of images with labels: samples by class, or the backward run as a film strip.

    ``pixels`` has shape (rows, columns, H, W) for grey or (rows, columns, H, W, 3) for colour, values in
    [0, 1] (values outside are clipped).  ``alt`` says in words what is to be seen; ``columns_title`` names
    what the column labels count, such as the time.
    """

    pixels: np.ndarray
    alt: str
    title: str = ""
    caption: str = ""
    rows: Sequence[str] = ()
    columns: Sequence[str] = ()
    columns_title: str = ""

    def __post_init__(self) -> None:
        shape = np.shape(self.pixels)
        require(
            len(shape) == 4 or (len(shape) == 5 and shape[-1] == 3),
            f"images have shape {shape}; accepted is (rows, columns, H, W) or (rows, columns, H, W, 3)",
        )
        require(min(shape) > 0, f"images have shape {shape}; every axis needs at least one entry")
        require(bool(np.isfinite(self.pixels).all()), f"images {self.alt!r} hold NaN or infinity")
        for labels, count, axis in ((self.rows, shape[0], "rows"), (self.columns, shape[1], "columns")):
            require(len(labels) in (0, count), f"{len(labels)} labels were given for {count} {axis} of images")


@dataclass(frozen=True)
class Series:
    """One line of a chart, with an optional interval at every point (``low`` and ``high``); or marks without a line
    (``points``)."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    points: bool = False

    def __post_init__(self) -> None:
        lengths = {len(v) for v in (self.x, self.y, self.low, self.high) if v is not None}
        require(len(lengths) == 1, f"series {self.name!r} has x, y, low and high of lengths {sorted(lengths)}")


@dataclass(frozen=True)
class LineChart:
    """Lines over one axis, each axis linear or logarithmic, with named horizontal references.

    Points that are not finite, or not positive on a logarithmic axis, are left out of the drawing and kept in
    the table of numbers beneath it.  With ``dates`` the x axis counts days since 1970-01-01; ``wide`` takes the
    whole width of the page.
    """

    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    log_x: bool = False
    log_y: bool = False
    caption: str = ""
    references: Mapping[str, float] = field(default_factory=dict)
    dates: bool = False
    wide: bool = False

    def __post_init__(self) -> None:
        require(len(self.series) > 0, f"the chart {self.title!r} has no series")


@dataclass(frozen=True)
class Scatter:
    """Groups of points in the plane, each of shape (n, 2), drawn on equal axes."""

    title: str
    groups: Mapping[str, np.ndarray]
    caption: str = ""

    def __post_init__(self) -> None:
        require(len(self.groups) > 0, f"the scatter plot {self.title!r} has no groups")
        for name, points in self.groups.items():
            shape = np.shape(points)
            require(len(shape) == 2 and shape[1] == 2, f"points {name!r} have shape {shape}; accepted is (n, 2)")


@dataclass(frozen=True)
class Table:
    """Columns and rows; cells that are numbers are aligned at the right with equal-width digits."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str | float | int]]
    title: str = ""
    caption: str = ""

    def __post_init__(self) -> None:
        for row in self.rows:
            require(
                len(row) == len(self.columns),
                f"a row of the table {self.title!r} has {len(row)} cells for {len(self.columns)} columns",
            )


Block: TypeAlias = Text | Code | Images | LineChart | Scatter | Table


@dataclass(frozen=True)
class Section:
    """A heading, an optional opening sentence, and blocks."""

    title: str
    blocks: Sequence[Block]
    lead: str = ""


@dataclass(frozen=True)
class Report:
    """A whole report.  ``environment`` is printed at the end as names and values."""

    title: str
    subtitle: str = ""
    summary: str = ""
    cards: Sequence[Card] = ()
    sections: Sequence[Section] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
