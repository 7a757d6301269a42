"""Charts as inline SVG that follows the page's colours, light or dark.

matplotlib does the axes, ticks and paths.  It draws with stand-in colours, one for each role, which are then
replaced by the CSS variables of the page; text stays text.  The drawing is about 420 units wide, so that its
letters are readable on a telephone, and the legend is HTML beside it.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator
from matplotlib.transforms import ScaledTranslation

from retrodict.app.report.markup import Html, element, join
from retrodict.app.report.model import LineChart, Scatter, Series

# Stand-in colours and the CSS variables that replace them.  Six series colours are told apart by people who
# confuse red and green; markers and dashes tell them apart without colour.
ROLES = {"#010101": "--ink", "#020202": "--muted", "#030303": "--line"}
SERIES = [f"#0{i}0a0b" for i in range(6)]
ROLES |= {colour: f"--series-{i}" for i, colour in enumerate(SERIES)}
INK, MUTED, LINE = list(ROLES)[:3]
MARKERS = "osD^vP"
DASHES = ["-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)), (0, (3, 1.5)), (0, (8, 2))]
MOST_POINTS = 800
FEW = 24  # points of a line that are marked one by one

STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "retrodict",
    "text.parse_math": False,
    "font.family": ["DejaVu Sans"],
    "font.size": 8.5,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.2,
}


def number(value: float, _: int | None = None) -> str:
    """A tick label: short, without the mathematics of matplotlib's own formatters.

    >>> [number(v) for v in (0.001, 0.00001, 20, 5000, 2e6)]
    ['0.001', '1e-5', '20', '5000', '2e6']
    """
    text = f"{value:.4g}"
    return re.sub(r"e([+-])0*(\d+)", lambda m: f"e{m[1].strip('+')}{m[2]}", text)


def svg(figure: Figure, label: str, prefix: str) -> Html:
    """The drawing as an SVG element whose colours are CSS variables and whose ids begin with ``prefix``."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    box = re.search(r'viewBox="([^"]*)"', text)
    body = text[text.index(">", text.index("<svg")) + 1 : text.rindex("</svg>")]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r'\b(id="|url\(#|href="#)', rf"\g<1>{prefix}", body)
    body = re.sub(r"font: ?[^;\"]*?([\d.]+)px[^;\"]*", r"font-size: \1px", body)
    for colour, variable in ROLES.items():
        body = body.replace(colour, f"var({variable})")
    view = box.group(1) if box else "0 0 400 260"
    return Html(f'<svg viewBox="{view}" role="img" aria-label="{escape(label)}">{body}</svg>')


def usable(series: Series, chart: LineChart) -> np.ndarray:
    """Which points of a series can be drawn on the chart's axes."""
    x, y = np.asarray(series.x, float), np.asarray(series.y, float)
    keep = np.isfinite(x) & np.isfinite(y)
    return keep & ((x > 0) | (not chart.log_x)) & ((y > 0) | (not chart.log_y))


def stroke(series: Series) -> str:
    """How a series is drawn: "mark", "line", or "both" where points are few."""
    return "mark" if series.points else "both" if len(series.x) <= FEW else "line"


def faint(series: Series, chart: LineChart) -> bool:
    """Whether a line is one of many without names, which share one colour."""
    return not series.name and not series.points and len(chart.series) > 1


def draw_series(figure: Figure, axes: Axes, chart: LineChart, series: Series, index: int) -> None:
    """One line with its interval: bars where points are few, a band where they are many."""
    keep = usable(series, chart)
    x, y = np.asarray(series.x, float)[keep], np.asarray(series.y, float)[keep]
    colour, few, count = SERIES[index % 6], stroke(series) == "both", len(chart.series)
    if faint(series, chart):
        axes.plot(x, y, color=SERIES[0], linewidth=0.9, alpha=0.45)
    elif series.points:
        axes.plot(x, y, color=colour, linestyle="", marker=MARKERS[index % 6], markersize=2.8, zorder=20 - index)
    else:
        marker = MARKERS[index % 6] if few else ""
        axes.plot(x, y, color=colour, linestyle=DASHES[index % 6], marker=marker, zorder=10 - index)
    if series.low is None or series.high is None:
        return
    low, high = np.asarray(series.low, float)[keep], np.asarray(series.high, float)[keep]
    if chart.log_y:
        low = np.where(low > 0, low, y)
    if few:
        # a step aside, so that intervals at one place do not hide each other
        aside = axes.transData + ScaledTranslation(2.2 * (index - count / 2 + 0.5) / 72, 0, figure.dpi_scale_trans)
        axes.vlines(x, low, high, color=colour, linewidth=1.2, alpha=0.55, zorder=9 - index, transform=aside)
        axes.update_datalim(np.column_stack([np.tile(x, 2), np.concatenate([low, high])]))
        axes.autoscale_view()
    else:
        axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)


def set_ticks(axes: Axes, chart: LineChart) -> None:
    """Ticks at the very values where the x axis has few, round numbers elsewhere."""
    values = np.unique(np.concatenate([np.asarray(s.x, float)[usable(s, chart)] for s in chart.series]))
    for axis, log in ((axes.xaxis, chart.log_x), (axes.yaxis, chart.log_y)):
        axis.set_major_formatter(FuncFormatter(number))
        axis.set_minor_locator(NullLocator())
        if axis is axes.xaxis and chart.dates:
            locator = AutoDateLocator(maxticks=7)
            axis.set_major_locator(locator)
            axis.set_major_formatter(ConciseDateFormatter(locator))
        elif axis is axes.xaxis and 1 <= len(values) <= 7:
            axis.set_major_locator(FixedLocator(values.tolist()))
        elif log:
            low, high = sorted(axis.get_view_interval())
            decades = np.log10(high / low)
            axis.set_major_locator(LogLocator(subs=(1.0,) if decades > 3 else (1.0, 2.0, 5.0), numticks=12))
        else:
            axis.set_major_locator(MaxNLocator(5))


def line_chart(chart: LineChart, prefix: str) -> Html:
    """The SVG of a line chart."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.4, 3.2) if chart.wide else (5.6, 3.4), layout="constrained")
        axes = figure.subplots()
        axes.set_xscale("log" if chart.log_x else "linear")
        axes.set_yscale("log" if chart.log_y else "linear")
        for index, series in enumerate(chart.series):
            draw_series(figure, axes, chart, series, index)
        for name, value in chart.references.items():
            axes.axhline(value, color=MUTED, linewidth=0.9, linestyle=(0, (2, 3)))
            axes.annotate(
                name, (1, value), (0, 3), ("axes fraction", "data"), "offset points",
                ha="right", va="bottom", color=MUTED, fontsize=8,
            )  # fmt: skip
        set_ticks(axes, chart)
        axes.grid(axis="y")
        axes.tick_params(length=0, pad=5)
        axes.set_xlabel(chart.x_label)
        axes.set_ylabel(chart.y_label)
        names = ", ".join(series.name for series in chart.series if series.name) or f"{len(chart.series)} series"
        return svg(figure, f"{chart.title}: {chart.y_label} against {chart.x_label} for {names}", prefix)


def scatter(plot: Scatter, prefix: str) -> Html:
    """The SVG of a scatter plot; at most 800 points a group are drawn."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.6, 4.4), layout="constrained")
        axes = figure.subplots()
        for index, points in enumerate(plot.groups.values()):
            points = np.asarray(points, float)
            points = points[np.isfinite(points).all(1)][:MOST_POINTS]
            axes.plot(
                *points.T, linestyle="", marker=MARKERS[index % 6], markersize=2.2,
                color=SERIES[index % 6], alpha=0.6, markeredgewidth=0,
            )  # fmt: skip
        axes.set_aspect("equal", adjustable="datalim")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(5))
            axis.set_major_formatter(FuncFormatter(number))
        axes.grid()
        axes.tick_params(length=0, pad=5)
        return svg(figure, f"{plot.title}: points of {', '.join(plot.groups)}", prefix)


def swatches(strokes: Iterable[str]) -> Iterator[Html]:
    """Samples of the series' strokes for a legend; see `stroke`."""
    shapes = {
        "o": '<circle cx="13" cy="5" r="3"/>',
        "s": '<rect x="10.3" y="2.3" width="5.4" height="5.4"/>',
        "D": '<path d="M13 1.4 16.6 5 13 8.6 9.4 5z"/>',
        "^": '<path d="M13 1.6 16.4 8H9.6z"/>',
        "v": '<path d="M13 8.4 16.4 2H9.6z"/>',
        "P": '<path d="M11.8 1.5h2.4v2.3h2.3v2.4h-2.3v2.3h-2.4V6.2H9.5V3.8h2.3z"/>',
    }
    for index, kind in enumerate(strokes):
        dash = DASHES[index % 6]
        dashes = " ".join(f"{1.6 * length:g}" for length in dash[1]) if isinstance(dash, tuple) else "none"
        line = "" if kind == "mark" else f'<path d="M0 5H26" stroke-width="1.8" stroke-dasharray="{dashes}"/>'
        mark = "" if kind == "line" else shapes[MARKERS[index % 6]]
        colour = f"var(--series-{index % 6})"
        yield Html(
            '<svg class="swatch" viewBox="0 0 26 10" aria-hidden="true" '
            f'style="fill:{colour};stroke:{colour}">{line}{mark}</svg>'
        )


def legend(names: Sequence[str], strokes: Sequence[str]) -> Html:
    """The legend of a chart as a list; nothing where no series has a name."""
    if not any(names):
        return Html("")
    items = (element("li", swatch, name) for swatch, name in zip(swatches(strokes), names))
    return element("ul", join(items), class_="legend")
