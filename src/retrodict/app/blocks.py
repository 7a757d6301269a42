"""Pieces of a report that any run can use: sample grids, the run backward, the loss, the plan, distances.

Each function takes tensors in the user's units and gives blocks of `retrodict.app.report`; none draws samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from retrodict.app.report import Code, Images, LineChart, Scatter, Series, Table, with_interval
from retrodict.data import Scale
from retrodict.diagnostics.distances import Measure, QualityReport
from retrodict.solvers import Plan
from retrodict.solvers.show import lines
from retrodict.training import read_metrics
from retrodict.verbs.samples import Trajectory

SHARES = ("precision", "recall", "coverage", "c2st", "class_histogram", "recognised", "accuracy")
MOST_ROWS = 24  # instructions of a plan that are shown
MOST_NUMBERS = 16  # coordinates of a vector, or channels of a series, that a table or chart names


def brightness(x: Tensor, scale: Scale | None) -> np.ndarray:
    """Images ``(n, C, H, W)`` as ``(n, H, W)`` or ``(n, H, W, 3)`` with values in [0, 1].

    Where grey levels were scaled to [-1, 1] the range is known; otherwise the smallest and the largest value are
    black and white.
    """
    known = scale is not None and scale.shift.ndim == 0 and not scale.is_identity
    z = (scale(x) + 1) / 2 if known and scale is not None else (x - x.min()) / (x.max() - x.min()).clamp_min(1e-12)
    z = z.clamp(0, 1).float().cpu()
    return (z.permute(0, 2, 3, 1) if z.shape[1] == 3 else z[:, 0]).numpy()


def image_grid(pixels: np.ndarray, columns: Sequence[str] = (), title: str = "class", caption: str = "") -> Images:
    """Images side by side, a column for each of ``columns``, or as near to a square as can be."""
    width = len(columns) or math.ceil(math.sqrt(len(pixels)))
    rows = len(pixels) // width
    shown = pixels[: rows * width].reshape(rows, width, *pixels.shape[1:])
    kinds = f", one column for each {title}" if columns else ""
    return Images(
        shown,
        alt=f"{rows} rows of {width} generated images{kinds}",
        columns=columns,
        columns_title=title if columns else "",
        caption=caption,
    )


def contact_sheet(pixels: np.ndarray, least: int = 32) -> Image.Image:
    """Images ``(n, H, W[, 3])`` in [0, 1] on one sheet, as near to a square as can be; small ones are enlarged."""
    n, height, width = pixels.shape[:3]
    columns = math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    zoom = max(1, math.ceil(least / max(height, width)))
    tiles = np.zeros((rows * columns, *pixels.shape[1:]))
    tiles[:n] = pixels
    sheet = tiles.reshape(rows, columns, *pixels.shape[1:]).swapaxes(1, 2).reshape(rows * height, columns * width, -1)
    sheet = sheet.repeat(zoom, 0).repeat(zoom, 1)
    sheet = sheet[..., 0] if sheet.shape[-1] == 1 else sheet
    return Image.fromarray((sheet * 255).round().astype(np.uint8))


def film_strip(run: Trajectory, names: Sequence[str], scale: Scale | None) -> Images:
    """Images run backward: for each sample the states above, and below them what is believed of the clean image."""
    states, count = run.x, run.x.shape[1]
    over = tuple(range(2, states.ndim))
    low, high = states.amin(over, keepdim=True), states.amax(over, keepdim=True)
    seen = [brightness(x, None) for x in (states - low) / (high - low).clamp_min(1e-12)]
    believed = [brightness(m, scale) for m in run.mean]
    rows = [np.stack([frame[i] for frame in frames]) for i in range(count) for frames in (seen, believed)]
    return Images(
        np.stack(rows),
        alt=f"Film strip of {count} samples: noisy states above, what the network believes below",
        rows=[word for name in names for word in (f"{name}: state", "belief")],
        columns=[f"{t:.2f}" for t in run.times],
        columns_title="time t",
        caption="upper rows: the state; lower rows: the image that the network believes is behind it",
    )


def backward_scatter(run: Trajectory, frames: int = 4) -> list[Scatter]:
    """Points of the plane run backward, at times from the start to the end."""
    picks = np.unique(np.linspace(0, len(run.times) - 1, frames).round().astype(int))
    return [Scatter(f"t = {run.times[i]:.2f}", {"": run.x[i, :, :2].cpu().numpy()}) for i in picks]


def plane(samples: Tensor, data: Tensor | None) -> Scatter:
    """The first two coordinates of samples, over those of data where there are some."""
    groups = {} if data is None else {"data": data[: len(samples), :2].cpu().numpy()}
    pair = "" if samples.shape[1] == 2 else "the first two coordinates; "
    return Scatter("", groups | {"samples": samples[:, :2].cpu().numpy()}, caption=f"{pair}at most 800 points of each")


def moments(samples: Tensor, data: Tensor | None) -> Table:
    """Mean and standard deviation of every coordinate, over the samples' other axes."""
    flat = [None if x is None else x.double().reshape(-1, x.shape[-1]) for x in (samples, data)]
    rows: list[list[str | float]] = []
    for i in range(min(samples.shape[-1], MOST_NUMBERS)):
        cells: list[str | float] = [str(i)]
        for x in flat:
            cells += [] if x is None else [float(x[:, i].mean()), float(x[:, i].std())]
        rows.append(cells)
    columns = ["coordinate", "mean", "std", "mean of data", "std of data"]
    return Table(columns if data is not None else columns[:3], rows)


def series_charts(samples: Tensor, data: Tensor | None, count: int = 4) -> list[LineChart]:
    """The first channel of a few samples over time, and of as many data."""
    charts = []
    for name, x in (("Samples", samples), ("Data", data)):
        if x is not None:
            times = list(range(x.shape[1]))
            drawn = [Series(str(i + 1), times, x[i, :, 0].tolist()) for i in range(min(count, len(x)))]
            charts.append(LineChart(name, "time step", "channel 0", drawn))
    return charts


def token_lines(x: Tensor, vocabulary: int, caption: str = "", width: int = 64) -> Code:
    """Tokens as lines of text: characters for a small alphabet, a dot for the mask; numbers for a large one."""
    letters = "0123456789abcdefghijklmnopqrstuvwxyz"
    small = vocabulary <= len(letters)
    words = [*letters[:vocabulary], "·"] if small else []
    text = ["".join(words[v] for v in row) if small else " ".join(map(str, row)) for row in x[:, :width].tolist()]
    return Code("\n".join(text), caption=caption)


def token_strip(run: Trajectory, vocabulary: int) -> Code:
    """One sequence run backward, a line for each evaluation."""
    picks = np.unique(np.linspace(0, len(run.times) - 1, 9).round().astype(int))
    states = torch.stack([run.x[i, 0] for i in picks])
    code = token_lines(states, vocabulary, caption="one sequence; a dot is a token still hidden")
    text = "\n".join(f"t = {run.times[i]:.2f}  {line}" for i, line in zip(picks, code.text.split("\n")))
    return Code(text, caption=code.caption)


def loss_chart(folder: Path) -> LineChart | None:
    """The loss of a run over its steps, or None where it was not recorded."""
    records = [r for r in read_metrics(folder / "metrics.jsonl") if r.get("loss") is not None]
    if not records:
        return None
    steps, losses = [r["step"] for r in records], [r["loss"] for r in records]
    return LineChart("Loss", "step", "loss", [Series("training", steps, losses)], log_y=min(losses) > 0)


def plan_table(plan: Plan) -> Table:
    """The instructions of a plan as a table; of a long one the first and the last."""
    rows = lines(plan)
    if len(rows) > MOST_ROWS:
        half = MOST_ROWS // 2
        rows = [*rows[:half], ["…", "", "", f"{len(rows) - 2 * half} more instructions"], *rows[-half:]]
    return Table(["#", "result", "t", "expression"], rows)


def quality_table(panel: QualityReport, caption: str) -> Table:
    """Distances with their intervals, beside those that the training set itself has."""
    rows: list[list[str]] = []
    for name, m in panel.items():
        cells = [name.replace("_", " "), with_interval(m.value, *interval(m))]
        if panel.floor is not None:
            least = panel.floor[name]
            cells.append(with_interval(least.value, *interval(least)))
        p = "" if m.p_value is None else "< 0.001" if m.p_value < 0.001 else f"{m.p_value:.3f}"
        rows.append([*cells, p])
    columns = ["measure", "samples", *(["training set"] if panel.floor is not None else []), "p"]
    return Table(columns, rows, caption=caption)


def interval(m: Measure) -> tuple[float, float]:
    """The interval of a measure within the values that it can have: shares lie between 0 and 1, density above 0.

    Distances without bias may be below 0, and so may their intervals.
    """
    kind = m.name.removesuffix("_features")
    low = max(m.low, 0.0) if kind in (*SHARES, "density", "wasserstein", "sliced_wasserstein") else m.low
    return low, min(m.high, 1.0) if kind in SHARES else m.high


def facts_table(facts: dict[str, Any]) -> Table:
    """Names and values."""
    return Table(["what", "value"], [[name, str(value)] for name, value in facts.items()])
