"""A report as one HTML file: styles, images and drawings are inside it, and nothing is fetched when it opens.

The page has no script.  It follows the reader's light or dark setting, fits a telephone, prints, and can be
read by ear: headings in order, captions on figures, descriptions of images, and the numbers of each chart as
a table.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from importlib.metadata import version
from importlib.resources import files
from itertools import count, groupby
from pathlib import Path

import numpy as np
from PIL import Image

from retrodict.app.report.charts import legend, line_chart, number, scatter, stroke
from retrodict.app.report.markup import Html, element, join
from retrodict.app.report.model import (
    Block,
    Card,
    Code,
    Images,
    LineChart,
    Report,
    Scatter,
    Section,
    Table,
    Text,
)


def write_report(path: str | Path, report: Report) -> Path:
    """Write ``report`` as one HTML file at ``path``, whole or not at all; returns the path.

    The file is written beside its final place and moved there, so that a reader never sees half of it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(render(report), encoding="utf-8")
    partial.replace(path)
    return path


def render(report: Report) -> str:
    """The text of the HTML file."""
    ids = (f"c{i}-" for i in count())
    names = [f"s{i}" for i in range(len(report.sections))]
    links = (element("li", element("a", s.title, href=f"#{name}")) for s, name in zip(report.sections, names))
    header = element(
        "header",
        element("h1", report.title),
        element("p", report.subtitle, class_="subtitle") if report.subtitle else "",
        element("p", report.summary, class_="summary") if report.summary else "",
        element("dl", *map(card, report.cards), class_="cards") if report.cards else "",
        element("nav", element("ul", *links), aria_label="Sections") if len(names) > 2 else "",
    )
    sections = (section(s, name, ids) for s, name in zip(report.sections, names))
    style = element("style", Html(files("retrodict.app.report").joinpath("style.css").read_text(encoding="utf-8")))
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", report.title),
        style,
    )
    body = element("body", header, element("main", *sections), footer(report))
    return f"<!doctype html>\n{element('html', head, body, lang='en')}\n"


def footer(report: Report) -> Html:
    """Where and when the report was made."""
    rows = join(element("div", element("dt", name), element("dd", value)) for name, value in report.environment.items())
    made = f"Written by retrodict {version('retrodict')} on {datetime.now():%Y-%m-%d at %H:%M}."
    environment = element("dl", rows, class_="environment") if report.environment else ""
    return element("footer", environment, element("p", made))


def card(one: Card) -> Html:
    """A number of the summary."""
    return element(
        "div",
        element("dt", one.label),
        element("dd", one.value, class_="value"),
        element("dd", one.interval, class_="interval") if one.interval else "",
        element("dd", one.hint, class_="hint") if one.hint else "",
    )


def section(one: Section, name: str, ids: Iterator[str]) -> Html:
    """A section; charts that follow each other stand side by side where there is room."""
    parts: list[Html] = []
    for plots, group in groupby(one.blocks, key=lambda block: isinstance(block, LineChart | Scatter)):
        rendered = [block(item, ids) for item in group]
        parts += [element("div", *rendered, class_="charts")] if plots else rendered
    lead = element("p", one.lead, class_="lead") if one.lead else ""
    return element("section", element("h2", one.title), lead, *parts, id=name)


def block(one: Block, ids: Iterator[str]) -> Html:
    """Any block of a section."""
    match one:
        case Text():
            return element("p", one.text)
        case Code():
            return figure("", element("pre", element("code", one.text), tabindex="0"), one.caption)
        case Images():
            return figure(one.title, image_grid(one), one.caption)
        case Table():
            return figure(one.title, element("div", table(one.columns, one.rows), class_="wide"), one.caption)
        case LineChart():
            key = legend([series.name for series in one.series], [stroke(series) for series in one.series])
            drawing = line_chart(one, next(ids))
            drawing = element("div", drawing, class_="wide") if one.wide else drawing
            parts = join([key, drawing, numbers(one)])
            return figure(one.title, parts, one.caption, class_="broad" if one.wide else None)
        case Scatter():
            key = legend(list(one.groups), ["mark"] * len(one.groups))
            return figure(one.title, join([key, scatter(one, next(ids))]), one.caption)


def figure(title: str, content: Html, caption: str, class_: str | None = None) -> Html:
    """A figure with its heading above and its caption below."""
    return element(
        "figure",
        element("h3", title) if title else "",
        content,
        element("figcaption", caption) if caption else "",
        class_=class_,
    )


def png(pixels: np.ndarray) -> str:
    """The data URI of one image with values in [0, 1], of shape (H, W) or (H, W, 3)."""
    buffer = io.BytesIO()
    Image.fromarray((np.clip(pixels, 0, 1) * 255).round().astype(np.uint8)).save(buffer, "png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def image_grid(images: Images) -> Html:
    """Images in rows and columns, enlarged without smoothing; one description stands for the whole grid."""
    pixels = np.asarray(images.pixels, float)
    rows, columns, height, width = pixels.shape[:4]
    cells: list[Html] = []
    corner = [element("span", class_="corner")] if images.rows else []
    if images.columns:
        cells += corner + [element("span", label, class_="column") for label in images.columns]
    for row in range(rows):
        if images.rows:
            cells.append(element("span", images.rows[row], class_="row"))
        cells += [element("img", src=png(pixels[row, column]), alt="") for column in range(columns)]
    labels = "auto " if images.rows else ""
    # Small images grow to a size that the eye can read, large ones keep theirs.
    cell = max(width, 52)
    style = (
        f"grid-template-columns:{labels}repeat({columns},minmax(1.6rem,{cell}px));--ratio:{width}/{height};"
        f"--smooth:{'pixelated' if width < 64 else 'auto'}"
    )
    title = element("p", images.columns_title, class_="axis") if images.columns_title else ""
    grid = element("div", *cells, class_="images", role="img", aria_label=images.alt, style=style)
    return element("div", title, grid, class_="wide")


def shown(cell: str | float | int) -> str:
    """A cell as text: numbers in four significant digits, text as it is."""
    return number(float(cell)) if isinstance(cell, int | float | np.number) else str(cell)


def is_number(cell: str | float | int) -> bool:
    """Whether a cell is, or reads as, a number and belongs at the right."""
    return not isinstance(cell, str) or cell.strip()[:1] in set("0123456789-−+.")


def table(columns: Sequence[str], rows: Iterable[Sequence[str | float | int]]) -> Html:
    """A table; a column whose every cell is a number is aligned at the right."""
    rows = list(rows)
    right = [bool(rows) and all(is_number(row[i]) for row in rows) for i in range(len(columns))]
    kinds = ["number" if is_right else None for is_right in right]
    heads = (element("th", name, scope="col", class_=kind) for name, kind in zip(columns, kinds))
    lines = (
        element("tr", *(element("td", shown(cell), class_=kind) for cell, kind in zip(row, kinds))) for row in rows
    )
    return element("table", element("thead", element("tr", *heads)), element("tbody", *lines))


def numbers(chart: LineChart) -> Html:
    """The numbers behind a chart as a table that opens on request; long series are thinned to 24 points."""
    rows: list[list[str | float]] = []
    for series in chart.series:
        kept = np.unique(np.linspace(0, len(series.x) - 1, min(len(series.x), 24)).round().astype(int))
        for i in kept if len(series.x) else ():
            low, high = (bound[i] if bound is not None else float("nan") for bound in (series.low, series.high))
            interval = f"{number(low)} to {number(high)}" if np.isfinite(low + high) else ""
            x = (
                str(np.datetime64(round(86400 * series.x[i]), "s").astype("datetime64[m]"))
                if chart.dates
                else series.x[i]
            )
            rows.append([series.name, x, series.y[i], interval])
    columns = ["series", chart.x_label, chart.y_label, "interval"]
    if not any(row[3] for row in rows):
        columns, rows = columns[:3], [row[:3] for row in rows]
    return element("details", element("summary", "Numbers"), element("div", table(columns, rows), class_="wide"))
