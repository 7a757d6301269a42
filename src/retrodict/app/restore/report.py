"""The report of `retrodict restore`: what was seen, what it may have been, how sure that is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from retrodict.app.blocks import facts_table
from retrodict.app.info import versions
from retrodict.app.report import Card, Code, Images, Report, Section, Table, Text, write_report
from retrodict.app.restore.problem import Outcome, Problem, Settings
from retrodict.app.restore.words import as_picture, parse_method

MOST_IMAGES = 12  # shown
MOST_DRAWS = 6  # of each

CORRECTIONS = {
    "weighted": "Weighted: in the limit of many particles these are draws from the posterior of the model given the "
    "measurement, whatever the steering missed on the way.",
    "none": "Without weights: this method steers towards the measurement and does not repair its bias, so that spread "
    "and coverage say little.",
    "exact": "Exact.",
}


def write_restore_report(
    out: Path,
    model: str,
    problem: Problem,
    outcomes: Sequence[Outcome],
    summary: dict[str, Any],
    settings: Settings,
) -> Path:
    """Write ``report.html`` in the folder."""
    sections = [
        Section("Restored", [restored(problem, outcomes)], lead="A row is an image: draws, mean and spread."),
        Section("Numbers", [_table(outcomes), Text(CORRECTIONS[summary["correction"]])]),
        Section("Settings", [facts_table({"model": model, **vars(settings)})]),
        Section("How to reproduce", [Code(_reproduce(model, problem, settings))]),
    ]
    report = Report(
        title="Restored images",
        subtitle=f"{settings.operator}, noise {settings.noise:g} of black to white",
        summary=f"{len(outcomes)} images; {outcomes[0].found.method}.",
        cards=_cards(summary),
        sections=sections,
        environment=versions(),
    )
    return write_report(out / "report.html", report)


def restored(problem: Problem, outcomes: Sequence[Outcome]) -> Images:
    """For each image: the truth where it is known, the measurement, draws, their mean, twice their spread."""
    rows, names = [], [str(i + 1) for i in range(min(len(outcomes), MOST_IMAGES))]
    shape = tuple(outcomes[0].found.x.shape[1:])
    seen = as_picture(problem.operator, problem.y, shape, problem.black + problem.range / 2)
    for i, outcome in enumerate(outcomes[:MOST_IMAGES]):
        found = outcome.found
        cells = [] if problem.truth is None else [problem.truth[i]]
        cells += [] if seen is None else [_enlarged(seen[i], shape)]
        cells += [*found.draws(MOST_DRAWS), found.mean, problem.black + 2 * found.spread]
        rows.append(problem.shades(torch.stack([cell.float() for cell in cells])))
    columns = ["truth"] * (problem.truth is not None) + ["seen"] * (seen is not None)
    columns += [f"draw {i + 1}" for i in range(MOST_DRAWS)] + ["mean", "spread"]
    note = (
        "spread is twice the standard deviation of each pixel, white at black to white; grey in what was seen is hidden"
    )
    alt = "A row for each image: " + ", ".join(columns)
    return Images(np.stack(rows), alt=alt, rows=names, columns=columns, caption=note)


def _enlarged(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """An image in the size and with the channels of others, without smoothing."""
    x = torch.nn.functional.interpolate(x[None].float(), size=shape[-2:], mode="nearest")[0]
    return x if len(x) == shape[0] else x.mean(0, keepdim=True).expand(shape[0], -1, -1)


def _cards(summary: dict[str, Any]) -> list[Card]:
    def interval(name: str) -> str:
        se = summary.get(f"{name}_se")
        return "" if se is None else f"± {1.96 * se:.2g}"

    cards = [Card("Spread", f"{summary['spread']:.3f}", interval("spread"), "of a pixel, as a share of black to white")]
    if "rmse" in summary:
        cards.insert(0, Card("Error", f"{summary['rmse']:.3f}", interval("rmse"), "of the mean; the same units"))
        hint = "of 90% intervals of pixels that vary; 90% is right"
        cards.append(Card("Coverage", f"{summary['coverage']:.1%}", interval("coverage"), hint))
    hint = "of simulated measurements, in units of the noise; 1 is expected"
    cards.append(Card("Residual", f"{summary['residual']:.2f}", interval("residual"), hint))
    return cards


def _table(outcomes: Sequence[Outcome]) -> Table:
    known = "rmse" in outcomes[0].numbers
    columns = ["image", "spread", "residual", "effective sample size", "log evidence", "seconds"]
    rows: list[list[str | float]] = []
    for i, outcome in enumerate(outcomes):
        n = outcome.numbers
        evidence = "" if n["log_evidence"] is None else f"{n['log_evidence']:.2f}"
        size = f"{float(np.mean(n['ess'])):.0f} of {len(outcome.found.x) // len(n['ess'])}"
        row: list[str | float] = [str(i + 1), n["spread"], n["residual"], size, evidence, f"{n['seconds']:.1f}"]
        rows.append([*row, n["rmse"], f"{n['psnr']:.1f}", f"{n['coverage']:.0%}"] if known else row)
    return Table([*columns, "error", "PSNR", "coverage"] if known else columns, rows)


def _reproduce(model: str, problem: Problem, settings: Settings) -> str:
    method, options = parse_method(settings.method)
    words = "".join(f", {name}={value!r}" for name, value in options.items())
    return (
        "import numpy as np\nimport retrodict as rd\nfrom retrodict.app.restore.words import parse_operator\n\n"
        f'denoiser = rd.load("{model}")\n'
        f"operator = parse_operator({settings.operator!r}, {problem.black:g}, {problem.black + problem.range:g})\n"
        f'y = np.load("measurement.npy")[0]\n'
        f"steered = rd.condition(denoiser, rd.Measurement(y, operator, noise={problem.noise:g}), "
        f"method={method!r}{words})\n"
        f"samples = rd.sample(steered, {settings.particles}, steps={settings.steps}, seed={settings.seed})\n"
    )
