"""What the commands do: each turns the words of the command line into one call of a verb and says what came of it."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from torch import Tensor

import retrodict as rd
from retrodict.app import demo
from retrodict.app.blocks import brightness, contact_sheet
from retrodict.app.options import (
    name_of_process,
    parse_conditions,
    parse_device,
    parse_numbers,
    parse_process,
    parse_settings,
)
from retrodict.app.runs import Run, open_run, write_run_report
from retrodict.core.errors import InputError, require
from retrodict.solvers import solvers
from retrodict.training.files import write_json

log = logging.getLogger(__name__)

FORMATS = (".npy", ".npz", ".png", ".txt")
LOADING = ("conditions", "heldout", "layout", "levels", "length", "stride", "vocabulary")  # of `load_data`
REFERENCE = 200  # evaluations of the long run that solvers are compared with


def train_model(data: str, process: str, out: Path, given: Mapping[str, Any], settings: Sequence[str]) -> None:
    """Learn the reversal of a process into a run folder, and write its report."""
    device = parse_device(given["device"])
    options = parse_settings(settings, taken=("process", "data", "out", *given))
    loading = {name: options.pop(name) for name in LOADING if name in options}
    name_of_process(process)
    dataset = rd.load_data(data, seed=given["seed"], **loading)
    path = parse_process(process, {"vocabulary": dataset.levels})
    log.info("%r, %r into %s", path, dataset, out)
    rd.fit(path, dataset, out=out, **given, **options)
    run = open_run(out, device, dataset, options.get("x1"))
    log.info("%s", write_run_report(run, seed=given["seed"]))


def draw_samples(
    folder: str,
    n: int,
    out: Path,
    given: Mapping[str, Any],
    condition: Sequence[str],
    device: str,
    source: str | None = None,
) -> None:
    """Draw samples and write them to ``out``."""
    suffix = out.suffix.lower()
    require(suffix in FORMATS, f"--out {out}; accepted: a file that ends with {', '.join(FORMATS)}")
    run = open_run(folder, device, x1=source)
    require(
        suffix != ".png" or run.layout == "image",
        f"--out {out}: these samples are no images but of shape {run.denoiser.shape}; write .npy or .npz",
    )
    require(
        suffix != ".txt" or run.denoiser.codec is not None,
        f"--out {out}: these samples are no text; write .npy or .npz",
    )
    conditions = parse_conditions(condition, run.denoiser.conditions, n)
    words: dict[str, Any] = {**given, **run.ends(n), **conditions}
    samples = rd.sample(run.denoiser, n, **words)
    out.parent.mkdir(parents=True, exist_ok=True)
    _write(out, samples.x, conditions, run)
    log.info("%r -> %s", samples, out)


def _write(out: Path, x: Tensor, conditions: Mapping[str, Tensor], run: Run) -> None:
    if out.suffix.lower() == ".png":
        contact_sheet(brightness(x, run.denoiser.scale)).save(out)
    elif out.suffix.lower() == ".txt":
        out.write_text("\n".join(map(str, run.denoiser.decode(x.cpu()))) + "\n", encoding="utf-8")
    elif out.suffix.lower() == ".npy":
        np.save(out, x.cpu().numpy(), allow_pickle=False)
    else:
        arrays: dict[str, Any] = {"x": x.cpu().numpy()} | {name: value.numpy() for name, value in conditions.items()}
        np.savez_compressed(out, allow_pickle=False, **arrays)


def measure_solvers(
    folder: str, nfe: Sequence[str], names: Sequence[str], n: int, out: Path | None, seed: int, device: str
) -> None:
    """Print a table of solvers by budgets: error against a long run from the same starts, and time per sample."""
    budgets = parse_numbers(nfe, "--nfe")
    for name in names:
        if name != "auto":
            solvers[name]
    run = open_run(folder, device)
    if run.layout == "tokens":
        raise InputError("bench compares runs from the same starts, which tokens drawn at random do not have")
    reference = run.draw(n, nfe=REFERENCE, seed=seed)[0].x
    rows = [_measured(run, name, budget, n, seed, reference) for name in names for budget in budgets]
    table = Table("solver", "evaluations", "error", "± 95%", "ms a sample", box=None, title_justify="left")
    table.title = f"{n} starts, against {REFERENCE} evaluations; error is the root mean square in the model's units"
    for row in rows:
        cells = ("error", "interval", "ms")
        shown = [f"{row[key]:.4g}" for key in cells] if "error" in row else [row["skipped"], "", ""]
        table.add_row(row["solver"], str(row["nfe"]), *shown)
    Console().print(table)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_json(out, {"folder": str(folder), "n": n, "seed": seed, "reference": REFERENCE, "rows": rows})


def _measured(run: Run, name: str, nfe: int, n: int, seed: int, reference: Tensor) -> dict[str, Any]:
    """One solver at one budget; a budget that the solver does not have is told, not raised."""
    begun = time.perf_counter()
    try:
        x = run.draw(n, nfe=nfe, seed=seed, solver=name)[0].x
    except InputError as error:
        return {"solver": name, "nfe": nfe, "skipped": str(error)}
    seconds = time.perf_counter() - begun
    scale = run.denoiser.scale
    gap = scale(x) - scale(reference) if scale is not None else x - reference
    error = gap.flatten(1).double().pow(2).mean(1).sqrt()
    interval = 1.96 * float(error.std()) / math.sqrt(n)
    values = {"error": float(error.mean()), "interval": interval, "ms": 1000 * seconds / n}
    return {"solver": name, "nfe": nfe} | json.loads(json.dumps(values))


def report_on(folder: Path, nfe: int | None, seed: int, device: str) -> None:
    """Write ``report.html`` in a run folder; that of the demonstration has measurements of its own."""
    if demo.is_demo(folder):
        require(nfe is None, f"{folder} is the demonstration, whose report compares {demo.BUDGETS}; leave out --nfe")
        log.info("%s", demo.report(folder, device))
    else:
        log.info("%s", write_run_report(open_run(folder, device), nfe, seed))
