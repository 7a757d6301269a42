"""The report of any run folder: what the model draws, how it got there, how far from the data it is.

`Run` is a folder with its denoiser and, where they can be had again, its data: sets by name are loaded anew, files
are known only while the command that read them runs.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import retrodict as rd
from retrodict.app import blocks
from retrodict.app.info import flatten, versions
from retrodict.app.options import parse_device
from retrodict.app.report import Block, Card, Code, Report, Section, Text, write_report
from retrodict.core.errors import InputError
from retrodict.data import Data
from retrodict.data.named import DATASETS
from retrodict.denoisers import Denoiser
from retrodict.diagnostics.distances import QualityReport, floor, quality
from retrodict.training import RunFolder, read_metrics

LAYOUTS = {1: "vector", 2: "series", 3: "image"}
MOST_CLASSES = 12  # columns of a grid of samples
DISTANCES = 400  # samples in the panel of distances
LEAST = 20  # samples below which the panel says nothing


@dataclass
class Run:
    """A run folder in use.

    Attributes:
        data, x1: the data of the clean and of the other end, in the user's units, or None where not at hand.
    """

    folder: Path
    denoiser: Denoiser
    config: dict[str, Any]
    data: Data | None = None
    x1: Tensor | None = None

    @property
    def layout(self) -> str:
        """vector, image, series or tokens."""
        shape = self.denoiser.shape or ()
        return "tokens" if self.denoiser.process.state == "tokens" else LAYOUTS.get(len(shape), "other")

    @property
    def classes(self) -> tuple[str, int] | None:
        """The first condition that is a class, with the number of classes."""
        return next(iter(self.config["classes"].items()), None)

    def draw(self, n: int, *, seed: int, **words: Any) -> tuple[rd.Samples, dict[str, Tensor]]:
        """Samples with the classes in turn, and those classes."""
        condition = {} if self.classes is None else {self.classes[0]: torch.arange(n) % self.classes[1]}
        ends = self.ends(n)
        return rd.sample(self.denoiser, n, seed=seed, progress=False, **condition, **ends, **words), condition

    def ends(self, n: int) -> dict[str, Tensor]:
        """The first n samples of the other end as `rd.sample` takes them; nothing for a path with one end."""
        if len(self.denoiser.process.ends) == 1:
            return {}
        if self.x1 is None:
            raise InputError(
                f"{self.folder} is a path between two data sets, and the other one is not at hand; give it: --source "
                "with a data set by name or a file"
            )
        start = self.x1[torch.arange(n) % len(self.x1)]
        scale = self.denoiser.scale
        return {"x1": start.long()} if self.layout == "tokens" else {"init": scale(start.float()) if scale else start}


def open_run(folder: str | Path, device: str = "auto", data: Data | None = None, x1: Any = None) -> Run:
    """A finished run; data and the other end are loaded again where the run names them."""
    denoiser = rd.load(folder, parse_device(device))
    path = Path(folder)
    recipe: Any = denoiser.recipe
    config: dict[str, Any] = RunFolder(path).config() if path.is_dir() else recipe
    about = config.get("data", {})
    seed = config.get("training", {}).get("seed", 0)
    data = data if data is not None else _again(about.get("name"), seed)
    other = rd.load_data(x1, seed=seed) if x1 is not None else _again(about.get("x1"), seed)
    return Run(path, denoiser, config, data, None if other is None else other.x)


def _again(name: str | None, seed: int) -> Data | None:
    """A data set by name once more, or None for what was a file or an array."""
    known = name is not None and name.partition(":")[0] in DATASETS
    return rd.load_data(name, seed=seed) if known else None


def budget(run: Run, nfe: int | None) -> int:
    """Evaluations of the samples in a report: few for real states, more where tokens are revealed one by one."""
    return nfe if nfe is not None else (8 if run.layout != "tokens" else 32)


# -- the report -----------------------------------------------------------------------------------------------


def write_run_report(run: Run, nfe: int | None = None, seed: int = 0) -> Path:
    """Draw samples, measure what can be measured, and write ``report.html`` in the run's folder."""
    nfe = budget(run, nfe)
    begun = time.perf_counter()
    samples, _ = run.draw(DISTANCES, nfe=nfe, seed=seed)
    seconds = time.perf_counter() - begun
    panel = _distances(run, samples.x, seed)
    report = Report(
        title=f"{run.config.get('data', {}).get('name', run.folder.name)}, run backward",
        subtitle=f"{run.denoiser.process}",
        cards=_cards(run, panel, nfe, seconds),
        sections=_sections(run, samples, panel, nfe, seed),
        environment=versions(),
    )
    return write_report(run.folder / "report.html", report)


def _sections(run: Run, samples: rd.Samples, panel: QualityReport | None, nfe: int, seed: int) -> list[Section]:
    sections = [Section("Samples", _samples(run, samples.x, nfe, seed))]
    backward = _backward(run, nfe, seed)
    if backward:
        sections.append(Section("The run backward", backward, lead="From noise to data along one plan."))
    if panel is not None:
        table = blocks.quality_table(panel, f"95% intervals in brackets; {len(samples)} samples at {nfe} evaluations")
        sections.append(Section("Quality", [table], lead="Distances to data that training did not see."))
    loss = blocks.loss_chart(run.folder)
    if loss is not None:
        sections.append(Section("Training", [loss]))
    plan: list[Block] = [Text(f"{samples.plan!r}"), blocks.plan_table(samples.plan)]
    sections.append(Section("The plan", plan, lead="A sampler is data: these rows are all of it."))
    sections.append(Section("Configuration", [blocks.facts_table(_facts(run))]))
    sections.append(Section("How to reproduce", [Code(_reproduce(run, nfe, seed))]))
    return sections


def _samples(run: Run, x: Tensor, nfe: int, seed: int) -> list[Block]:
    caption = f"seed {seed}, {nfe} evaluations a sample, not selected"
    data = None if run.data is None else run.data.x
    if run.layout == "image":
        name, count = run.classes or ("", 0)
        columns = [str(i) for i in range(count)] if 0 < count <= MOST_CLASSES else []
        shown = x[: (8 * count if columns else 64)]
        return [blocks.image_grid(blocks.brightness(shown, run.denoiser.scale), columns, name, caption)]
    if run.layout == "vector":
        table = blocks.moments(x, data)
        return [blocks.plane(x, data), table] if x.shape[1] >= 2 else [table]
    if run.layout == "series":
        return [*blocks.series_charts(x, data), blocks.moments(x, data)]
    if run.layout == "tokens":
        return [blocks.token_lines(x[:16], _vocabulary(run), caption)]
    return [Text(f"{len(x)} samples of shape {tuple(x.shape[1:])}.")]


def _backward(run: Run, nfe: int, seed: int) -> list[Block]:
    n = {"image": 4, "vector": 400, "tokens": 1}.get(run.layout, 0)
    if n == 0 or (run.layout == "vector" and (run.denoiser.shape or (0,))[0] < 2):
        return []
    samples, condition = run.draw(n, nfe=nfe, seed=seed, trajectory=True, population=False)
    path = samples.trajectory
    if path is None:
        return []
    if run.layout == "image":
        labels = next(iter(condition.values()), torch.arange(n))
        return [blocks.film_strip(path, [str(int(v)) for v in labels], run.denoiser.scale)]
    if run.layout == "tokens":
        return [blocks.token_strip(path, _vocabulary(run))]
    return list(blocks.backward_scatter(path))


def _vocabulary(run: Run) -> int:
    return run.denoiser.process.vocabulary  # type: ignore[attr-defined]


def _distances(run: Run, x: Tensor, seed: int) -> QualityReport | None:
    """Distances to data kept aside or, for a toy, drawn anew; None where there are none."""
    if run.data is None or run.layout == "tokens":
        return None
    held = run.data.heldout
    if held is None:
        fresh = run.data.name.partition(":")[0] in DATASETS
        held = rd.load_data(run.data.name, seed=run.config["training"]["seed"] + 1, n=DISTANCES) if fresh else None
    if held is None or len(held) < LEAST or len(run.data) < LEAST:
        return None
    real, train = held.x[:DISTANCES].float(), run.data.x.float()
    least = floor(train, real, n=min(len(x), len(train)), seed=seed)
    return quality(real, x.float().cpu(), floor=least, seed=seed)


def _cards(run: Run, panel: QualityReport | None, nfe: int, seconds: float) -> list[Card]:
    records = read_metrics(run.folder / "metrics.jsonl")
    size = sum(p.numel() for p in run.denoiser.parameters())
    cards = []
    if panel is not None:
        distance = panel["energy"]
        assert panel.floor is not None
        cards.append(
            Card(
                "Energy distance",
                f"{distance.value:.3f}",
                f"{distance.low:.3f} to {distance.high:.3f}",
                f"to data that training did not see; the training set itself has {panel.floor['energy'].value:.3f}",
            )
        )
    cards.append(Card("Network", f"{size:,}", hint=f"parameters of {run.config['network']['name']}"))
    if records:
        last = records[-1]
        cards.append(Card("Steps", f"{last['step']:,}", hint=f"{last.get('wall', 0):.0f} s of training"))
    cards.append(Card("Sampling", f"{1000 * seconds / DISTANCES:.2f} ms", hint=f"a sample, {nfe} evaluations, here"))
    return cards


def _facts(run: Run) -> dict[str, Any]:
    """The configuration as flat names and values, without the long ones."""
    kept = {key: value for key, value in run.config.items() if key in ("process", "network", "denoiser", "training")}
    return {"folder": run.folder, **{k: v for k, v in flatten(kept) if "digest" not in k}}


def _reproduce(run: Run, nfe: int, seed: int) -> str:
    call = f"rd.sample(denoiser, 64, nfe={nfe}, seed={seed}"
    if run.classes is not None:
        name, count = run.classes
        call += f", {name}=torch.arange(64) % {count}"
    if len(run.denoiser.process.ends) == 2:
        call += ", x1=start" if run.layout == "tokens" else ", init=denoiser.scale(start)"
    return f'import torch\nimport retrodict as rd\n\ndenoiser = rd.load("{run.folder}")\nsamples = {call})\n'
