"""From a configuration and a CSV to a folder of results.

    model   what the hidden process is, by names and numbers (`models`)
    data    which columns of the CSV are observed, and when (`data`)
    infer   the method and its options
    fit     how parameters are fitted that the model leaves open

The folder holds ``report.html``, ``smoothed.csv``, ``draws.npz``, ``metrics.json`` and ``config.json``: the
configuration as it was read, with the version of its format, which runs again.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

import retrodict as rd
from retrodict.app.infer import data as tables
from retrodict.app.infer.fields import Fields, quote
from retrodict.app.infer.fitting import fit_model, summaries
from retrodict.app.infer.models import Built, build
from retrodict.app.infer.report import write_infer_report
from retrodict.app.infer.results import Results, compute
from retrodict.core.errors import InputError, require
from retrodict.training.files import write_json

log = logging.getLogger(__name__)

FORMAT, VERSION = "retrodict.infer", 1
ROUNDS = 4  # of re-linearisation along the guided path: what one pass leaves uneven, three more mend


@dataclass(frozen=True)
class Plan:
    """A configuration, read and checked except for the model, whose check needs the data.

    Attributes:
        given: the whole of it as plain values.
        infer, fit: options of `rd.condition` and of fitting.
        draws: paths to be drawn; forecast: steps or times beyond the data.
    """

    given: dict[str, Any]
    title: str
    source: tables.Source
    method: str
    infer: dict[str, Any]
    draws: int
    forecast: Any
    fit: Mapping[str, Any]


def read_config(path: Path) -> Plan:
    """A YAML or JSON file as a plan; unknown names raise with the nearest known one."""
    require(path.is_file(), f"{path} is not a file; `retrodict infer --example DIR` writes one to start from")
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as YAML: {error}") from None
    return parse_config(given, path.name)


def parse_config(given: Any, name: str = "config") -> Plan:
    """Plain values as a plan."""
    top = Fields(given, name)
    require(top.text("format", FORMAT) == FORMAT, f"{name} is of the format {given.get('format')!r}, not {FORMAT!r}")
    version = top.whole("version", VERSION)
    require(version <= VERSION, f"{name} is of version {version}; this retrodict reads versions up to {VERSION}")
    title = top.text("title", None)
    top.take("model")
    source = tables.Source.of(top.take("data"))
    infer = Fields(top.take("infer", {}), "infer")
    options: dict[str, Any] = {"seed": infer.whole("seed", 0)}
    for word in ("particles", "steps", "rounds"):
        if word in infer:
            options[word] = infer.whole(word, least=1)
        infer.take(word, None)
    method, draws = infer.text("method", "auto"), infer.whole("draws", 200, least=1)
    forecast = infer.take("forecast", None)
    infer.done()
    fit = top.take("fit", {})
    require(isinstance(fit, Mapping), f"fit is {quote(fit)}; it is a section of names and values")
    top.done()
    plain = {"format": FORMAT, "version": VERSION} | {k: v for k, v in given.items() if k not in ("format", "version")}
    kind = given["model"].get("kind") if isinstance(given["model"], Mapping) else "model"
    return Plan(
        plain, title or f"{kind} on {', '.join(source.observed)}", source, method, options, draws, forecast, fit
    )


def infer_files(config: Path | None, csv: Path | None, out: Path, example: Path | None) -> None:
    """What the command line asks for: an example, or an inference."""
    if example is not None:
        require(config is None, "--example writes a configuration and takes none; run it in a second step")
        write_example(example)
        return
    if config is None or csv is None:
        raise InputError("give a configuration and a CSV; `retrodict infer --example DIR` writes both to start from")
    infer(config, csv, out)


def infer(config: Path, csv: Path, out: Path) -> Path:
    """Condition the model of a configuration on a CSV, into a folder; returns the path of its report."""
    begun = time.perf_counter()
    plan = read_config(config)
    require(
        not out.exists() or (out.is_dir() and (not any(out.iterdir()) or _is_ours(out))),
        f"--out {out} holds something else; give a new folder, or one that retrodict infer made",
    )
    values = tables.frame(tables.read_table(csv), plan.source)
    built, fit, data = prepare(plan, values)
    log.info("%s on %r", plan.given["model"]["kind"], data)
    post = rd.condition(built.model, data, plan.method, **_taken(built, plan))
    results = compute(post, built, plan.draws, plan.infer["seed"], len(values))
    seconds = time.perf_counter() - begun
    write_folder(out, plan, values, results, fit, seconds)
    page = write_infer_report(out, plan.title, plan.given, values, results, fit)
    evidence = results.metrics["log_evidence"]
    log.info("%s, %s; log evidence %.4f; %s after %.1f s", post.method, post.route, evidence, page, seconds)
    return page


def prepare(plan: Plan, values: Any) -> tuple[Built, Any, rd.Observed]:
    """The model, fitted where that is asked for (else None), and the data with the times of a forecast."""
    columns, spec = values.shape[1], plan.given["model"]
    built, _ = build(spec, columns, 0.0)  # says what is observed; the time of the first row is known after that
    seen = tables.observed(values, built.emission.categories)
    built, free = build(spec, columns, float(seen.times[0, 0]))
    fit = None
    if free or plan.fit:
        taken = _taken(built, plan)
        words: dict[str, Any] = {"likelihood": plan.method, "seed": taken.pop("seed")}
        words["particles"] = taken.pop("particles", None)
        built, fit = fit_model(spec, built, free, seen, plan.fit, words | {"conditioning": taken})
    return built, fit, tables.observed(tables.ahead(values, plan.forecast), built.emission.categories)


def _taken(built: Built, plan: Plan) -> dict[str, Any]:
    """The options of `rd.condition`; Euler steps are for diffusions alone, whose guide is re-linearised."""
    if isinstance(built.model, rd.SDE):
        return ({"rounds": ROUNDS} if plan.method in ("auto", "guided") else {}) | plan.infer
    require("steps" not in plan.infer, "infer.steps counts Euler steps of a diffusion; these transitions need none")
    return dict(plan.infer)


def _is_ours(out: Path) -> bool:
    try:
        given = yaml.safe_load((out / "config.json").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return False
    return isinstance(given, dict) and given.get("format") == FORMAT


def write_folder(out: Path, plan: Plan, values: Any, results: Results, fit: Any, seconds: float) -> None:
    """Everything but the report."""
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "config.json", plan.given)
    results.table.to_csv(out / "smoothed.csv")
    arrays: dict[str, Any] = {
        "x": results.draws.x[:, 0].numpy(),
        "log_weights": results.draws.log_weights[:, 0].numpy(),
        "times": results.draws.times[0].numpy(),
    }
    if fit is not None and fit.draws is not None:
        arrays |= {f"parameter {name}": draws.numpy() for name, draws in fit.draws.items()}
    np.savez_compressed(out / "draws.npz", allow_pickle=False, **arrays)
    numbers = results.metrics | {"times": len(values), "seconds": round(seconds, 2)}
    if fit is not None:
        about = {one.name: {k: v for k, v in asdict(one).items() if k != "name"} for one in summaries(fit)}
        numbers |= {"fit": fit.method, "fit_message": fit.message, "parameters": about}
    write_json(out / "metrics.json", _finite(numbers))


def _finite(value: Any) -> Any:
    """JSON has no NaN: None in its place."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_example(folder: Path) -> list[Path]:
    """Write a small configuration and its data; returns their paths."""
    from retrodict.app.infer.example import CONFIG, simulate

    paths = [folder / "config.yaml", folder / "data.csv"]
    for path in paths:
        require(not path.exists(), f"{path} exists; give a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    paths[0].write_text(CONFIG, encoding="utf-8")
    paths[1].write_text(simulate(), encoding="utf-8")
    log.info("retrodict infer %s %s --out %s", *paths, folder / "results")
    return paths
