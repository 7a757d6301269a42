"""The demonstration: handwritten digits, from real scans to a report, in a few minutes on two cores.

Every stage leaves its result in the run folder, so that a second run reads what is there: the weights, the fixed
classifier, the measurements, and last the report.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import retrodict as rd
from retrodict.app import blocks, hidden, measuring, restoration
from retrodict.app.info import versions
from retrodict.app.options import parse_device
from retrodict.app.report import (
    Card,
    Code,
    Images,
    LineChart,
    Report,
    Section,
    Series,
    Text,
    write_report,
)
from retrodict.data import Data
from retrodict.denoisers import Denoiser
from retrodict.diagnostics.distances import QualityReport

log = logging.getLogger(__name__)

#: How the demonstration trains; the recipe was chosen by recognised samples after a fixed time on two cores.
RECIPE: dict[str, Any] = {"steps": 1200, "batch_size": 128, "lr": 2e-3}
MEASURES = "measures.json"
GUIDANCE = 1.5
QUALITY_NOTE = (
    "95% intervals in brackets; 1,000 samples at 8 evaluations. The classifier test (c2st) sees at once that samples "
    "are real numbers and scans whole grey levels; the other measures do not look for that."
)
BUDGETS = (5, 8, 10, 20)
SAMPLES = 500  # of each solver at each budget; twice as many for the panel of distances
STARTS = 100  # shared by all solvers and the long run
SOLVERS: dict[str, dict[str, Any]] = {
    "auto": {"solver": "auto"},
    "dpm-solver++": {"solver": "dpm-solver++", "grid": "logsnr"},
    "unipc": {"solver": "unipc", "grid": "logsnr"},
    "ddim": {"solver": "ddim", "grid": "uniform"},
}


def run(out: Path, seed: int = 0, device: str = "auto") -> Path:
    """Train, sample, measure and write ``out/report.html``; returns its path."""
    begun = time.perf_counter()
    data = rd.load_data("digits")
    log.info("1/6  training on %d digits, %d held out", len(data.x), len(data.heldout.x))  # type: ignore[union-attr]
    denoiser = rd.fit(rd.VP("cosine"), "digits", out=out, seed=seed, device=device, **RECIPE)
    path = measure(out, denoiser, data)
    log.info("%s, after %.0f s", path, time.perf_counter() - begun)
    return path


def is_demo(folder: Path) -> bool:
    """Whether a run folder is that of a demonstration: it has measurements of this module."""
    return (folder / MEASURES).is_file()


def report(folder: Path, device: str = "auto") -> Path:
    """Write the report of a finished demonstration again; what was measured is read."""
    return measure(folder, rd.load(folder, parse_device(device)), rd.load_data("digits"))


def measure(out: Path, denoiser: Denoiser, data: Data) -> Path:
    """Measure what is not yet measured and write ``out/report.html``; returns its path."""
    classifier = measuring.classifier_of(out, data)
    ledger = measuring.Ledger(out / MEASURES, out / "model.safetensors")
    log.info("2/6  sampling with %d solvers at %s evaluations", len(SOLVERS), ", ".join(map(str, BUDGETS)))
    cells = sweep(ledger, denoiser, data, classifier)
    log.info("3/6  measuring against held-out digits")
    x, label = measuring.draw(denoiser, 2 * SAMPLES, 10, GUIDANCE, seed=1, nfe=8)
    panel = QualityReport.from_dict(ledger.get("quality", lambda: measuring.full_quality(data, classifier, x, label)))
    bits = ledger.get("bits", lambda: measuring.likelihood(denoiser, data, 100))
    log.info("4/6  finding hidden paths: %d series of a diffusion of which half is seen", hidden.REPLICATES)
    paths = ledger.get("hidden", hidden.measure)
    log.info("5/6  restoring digits that are half hidden or blurred")
    whole = ledger.get("restoration", lambda: restoration.measure(out, denoiser, data))
    log.info("6/6  writing the report")
    return write_report(out / "report.html", build(out, denoiser, data, cells, panel, bits, paths, whole))


def sweep(
    ledger: measuring.Ledger, denoiser: Denoiser, data: Data, classifier: Any
) -> dict[str, dict[int, dict[str, Any]]]:
    """Every solver at every budget, and a long run as the reference."""

    def reference() -> Tensor:
        return measuring.draw(denoiser, STARTS, 10, GUIDANCE, seed=1, nfe=200)[0]

    fixed: list[Tensor] = []
    cells: dict[str, dict[int, dict[str, Any]]] = {}
    for name, words in SOLVERS.items():
        for nfe in BUDGETS:

            def compute(words: dict[str, Any] = words, nfe: int = nfe) -> dict[str, Any]:
                if not fixed:
                    fixed.append(reference())
                return measuring.cell(
                    denoiser,
                    data,
                    classifier,
                    words | {"nfe": nfe},
                    n=SAMPLES,
                    guidance=GUIDANCE,
                    seed=1,
                    reference=fixed[0],
                )

            cells.setdefault(name, {})[nfe] = ledger.get(f"cell/{name}/{nfe}", compute)
    return cells


# -- the report -----------------------------------------------------------------------------------------------


def build(
    out: Path,
    denoiser: Denoiser,
    data: Data,
    cells: dict[str, dict[int, dict[str, Any]]],
    panel: QualityReport,
    bits: dict[str, Any],
    paths: dict[str, Any],
    whole: dict[str, Any],
) -> Report:
    """The report as plain data."""
    plan = rd.sample(denoiser, 1, nfe=8, label=0, guidance=GUIDANCE, progress=False).plan
    return Report(
        title="Handwritten digits, run backward",
        subtitle="A diffusion model of 1,497 real scans, sampled in a few network evaluations",
        summary=(
            "The model was trained from scratch on the digits that ship with scikit-learn. Every number below was "
            "measured on this machine, against 300 digits that training never saw. At the end, kernels of the same "
            f"kind find the hidden half of a diffusion: 90% bands cover it {paths['coverage'][1]:.0%} of the time."
        ),
        cards=cards(panel, bits),
        sections=[
            Section("Samples", [_grid(denoiser)], lead="One column a class, eight evaluations a sample."),
            Section("The run backward", [_strip(denoiser)], lead="From noise to digits, one evaluation a column."),
            Section("Fewer evaluations", _frontier(cells), lead="What each budget buys, solver by solver."),
            Section(
                "Quality",
                [blocks.quality_table(panel, QUALITY_NOTE)],
                lead="Distances to held-out digits, beside what the training set itself earns.",
            ),
            Section("Training", [c for c in [blocks.loss_chart(out)] if c is not None]),
            Section(
                "The plan",
                [Text(f"{plan!r}"), blocks.plan_table(plan)],
                lead="A sampler is data: these rows are all of it.",
            ),
            restoration.section(whole),
            hidden.section(paths),
            Section("How to reproduce", [Code(_REPRODUCE)]),
        ],
        environment=versions(),
    )


def cards(panel: QualityReport, bits: dict[str, Any]) -> list[Card]:
    accuracy, distance, coverage = panel["recognised"], panel["frechet_features"], panel["coverage_features"]
    assert panel.floor is not None
    floor, covered = panel.floor["frechet_features"].value, panel.floor["coverage_features"].value
    return [
        Card(
            "Recognised",
            f"{accuracy.value:.1%}",
            "{:.1%} to {:.1%}".format(*blocks.interval(accuracy)),
            "share of samples in which a classifier of real digits sees the class asked for",
        ),
        Card(
            "Frechet distance",
            f"{distance.value:.2f}",
            f"{distance.low:.2f} to {distance.high:.2f}",
            f"in classifier features, bias removed; the training set itself has {floor:.2f}",
        ),
        Card(
            "Coverage",
            f"{coverage.value:.2f}",
            "{:.2f} to {:.2f}".format(*blocks.interval(coverage)),
            f"share of held-out digits with a sample near by; the training set has {covered:.2f}",
        ),
        Card(
            "Likelihood",
            f"{bits['bits']:.2f} bits/dim",
            f"± {1.96 * bits['se']:.2f}",
            "of held-out digits; a uniform guess over 17 grey levels has 4.09",
        ),
    ]


def _grid(denoiser: Denoiser) -> Images:
    x, _ = measuring.draw(denoiser, 100, 10, GUIDANCE, seed=1, nfe=8)
    pixels = blocks.brightness(x, denoiser.scale)
    return blocks.image_grid(pixels, [str(i) for i in range(10)], caption=f"guidance {GUIDANCE}, seed 1, not selected")


def _strip(denoiser: Denoiser) -> Images:
    digits = [0, 2, 3, 5, 8]
    label = torch.tensor(digits)
    run = rd.sample(denoiser, 5, nfe=8, label=label, guidance=GUIDANCE, seed=1, trajectory=True, progress=False)
    assert run.trajectory is not None
    return blocks.film_strip(run.trajectory, [str(d) for d in digits], denoiser.scale)


def _frontier(cells: dict[str, dict[int, dict[str, Any]]]) -> list[LineChart]:
    def series(value: str, low: str = "", high: str = "") -> list[Series]:
        lines = []
        for name, budgets in cells.items():
            picked = [
                c[value]
                if isinstance(c[value], dict)
                else {
                    "value": c[value],
                    "low": c[value] - 1.96 * c["error_se"],
                    "high": c[value] + 1.96 * c["error_se"],
                }
                for c in budgets.values()
            ]
            lines.append(
                Series(
                    name,
                    list(budgets),
                    [p["value"] for p in picked],
                    [p["low"] for p in picked],
                    [p["high"] for p in picked],
                )
            )
        return lines

    return [
        LineChart(
            "Error",
            "evaluations",
            "distance to a 200-step run",
            series("error"),
            log_x=True,
            log_y=True,
            caption="root mean square over pixels in [-1, 1], from the same starts; bars are 95% intervals",
        ),
        LineChart(
            "Frechet distance to held-out digits",
            "evaluations",
            "Frechet distance",
            series("frechet"),
            log_x=True,
            caption="in classifier features, bias removed, 500 samples a point",
        ),
        LineChart(
            "Recognised samples",
            "evaluations",
            "share",
            series("accuracy"),
            log_x=True,
            caption="by a classifier trained on real digits",
        ),
    ]


_REPRODUCE = """\
import torch
import retrodict as rd

denoiser = rd.load("runs/demo")
samples = rd.sample(denoiser, 64, nfe=8, label=torch.arange(64) % 10, guidance=1.5, seed=0)
"""
