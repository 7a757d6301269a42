"""`retrodict tune`: plans for one model, a table of errors before and after, a figure and a report."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table as RichTable

import retrodict as rd
from retrodict.app.blocks import plan_table
from retrodict.app.info import versions
from retrodict.app.options import parse_conditions, parse_device, parse_numbers
from retrodict.app.report import Code, LineChart, Report, Section, Series, Table, Text, write_report
from retrodict.app.runs import open_run
from retrodict.core.errors import InputError, require
from retrodict.denoisers import Denoiser
from retrodict.solvers.tuning import Effort

log = logging.getLogger(__name__)

COLUMNS = ("evaluations", "best untuned", "error", "tuned by", "error", "ratio (95%)", "seconds")


def tune_folder(
    folder: str,
    evaluations: Sequence[str],
    out: Path,
    given: dict[str, Any],
    condition: Sequence[str],
    device: str,
    effort: dict[str, int],
) -> None:
    """Tune plans for a run folder or a folder of diffusers, and write them with a figure and a report beside them.

    Args:
        out: the .json file of the plan; the others take its name.
        given: what goes to `rd.tune` as it is; effort: fields of `Effort`.
    """
    require(out.suffix == ".json", f"--out {out}; accepted: a file that ends with .json")
    budgets = parse_numbers(evaluations, "--evaluations")
    denoiser, own = _open(folder, parse_device(device))
    words: dict[str, Any] = {**given, **own, "effort": Effort(**effort)}
    words |= parse_conditions(condition, denoiser.conditions, given["trajectories"])
    tuned = rd.tune(denoiser, budgets, **words)
    files = tuned.save(out)
    Console().print(_table(tuned))
    for line in tuned.advice:
        log.info("%s", line)
    figure = draw(tuned, out.with_suffix(".png"))
    page = write_report(out.with_suffix(".html"), _report(tuned, folder, files))
    log.info("wrote %s, %s and %s", ", ".join(map(str, files)), figure, page)


def _open(folder: str, device: str) -> tuple[Denoiser, dict[str, torch.Tensor]]:
    """The denoiser of a folder, and its classes in turn where it has some."""
    path = Path(folder)
    if (path / "model_index.json").is_file() or (path / "unet").is_dir():
        denoiser: Denoiser = rd.from_diffusers(path, device=device)
        null = denoiser.conditions.get("label")
        return denoiser, {"label": torch.arange(null)} if isinstance(null, int) else {}
    run = open_run(folder, device)
    if run.denoiser.process.state != "real":
        raise InputError("tune compares runs from the same starts to where a long run takes them; tokens have no such")
    return run.denoiser, {} if run.classes is None else {run.classes[0]: torch.arange(run.classes[1])}


def _cells(row: dict[str, Any]) -> list[str]:
    return [
        str(row["evaluations"]),
        row["start"],
        f"{row['before']:.4g}",
        row["method"],
        f"{row['after']:.4g}",
        f"{row['ratio']:.2f} ({row['ratio_low']:.2f} to {row['ratio_high']:.2f})",
        f"{row['seconds']:.0f}",
    ]


def _table(tuned: rd.Tuned) -> RichTable:
    table = RichTable(*COLUMNS, box=None, title_justify="left")
    table.title = (
        f"guidance {tuned.guidance:g}; errors on trajectories that had no say, against {tuned.teacher} evaluations"
    )
    for row in tuned.table:
        table.add_row(*_cells(row))
    return table


def _series(tuned: rd.Tuned) -> list[tuple[str, list[int], list[float]]]:
    x = [row["evaluations"] for row in tuned.table]
    return [(name, x, [row[key] for row in tuned.table]) for name, key in (("untuned", "before"), ("tuned", "after"))]


def draw(tuned: rd.Tuned, path: Path) -> Path:
    """Error against evaluations, before and after."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for (name, x, y), marker in zip(_series(tuned), "os"):
        axes.plot(x, y, marker=marker, label=name)
    axes.set(xlabel="evaluations", ylabel="error on held-out trajectories", yscale="log", xticks=_series(tuned)[0][1])
    axes.legend()
    figure.savefig(path, dpi=150)
    return path


def _report(tuned: rd.Tuned, folder: str, files: Sequence[Path]) -> Report:
    lines = [Series(name, x, y) for name, x, y in _series(tuned)]
    chart = LineChart("Frontier", "evaluations", "error on held-out trajectories", lines, log_y=True)
    blocks = [chart, Table(COLUMNS, [_cells(row) for row in tuned.table]), *map(Text, tuned.advice)]
    methods = sorted({name for budget in tuned.budgets.values() for name in budget.tried})
    tried = Table(
        ["evaluations", *methods],
        [[nfe, *(f"{b.tried[m]:.4g}" if m in b.tried else "" for m in methods)] for nfe, b in tuned.budgets.items()],
        caption="Errors on the trajectories that choose among the methods, the best of each.",
    )
    guidance = f", guidance={tuned.guidance:g}" if tuned.guidance != 1 else ""
    nfe = f", nfe={min(tuned.plans)}" if len(tuned.plans) > 1 else ""  # of several; without it, the one of most
    use = (
        f'samples = rd.sample(denoiser, 64, plan="{files[0]}"{nfe}{guidance})\n'
        f'pipe.scheduler = rd.Plan.load("{files[0]}"{nfe}).to_diffusers(pipe.scheduler)'
    )
    plans = [block for nfe, plan in tuned.plans.items() for block in (Text(f"{nfe} evaluations"), plan_table(plan))]
    return Report(
        title=f"Plans tuned for {Path(folder).name}",
        subtitle=f"guidance {tuned.guidance:g}",
        summary="Errors are root mean square distances to where a teacher takes the same starts, in the model's units.",
        sections=[
            Section("Before and after", blocks),
            Section("What each method reached", [tried]),
            Section("The plans", plans, lead="A sampler is data: these rows are all of it."),
            Section("How to use them", [Code(use)]),
        ],
        environment=versions(),
    )
