"""From files to a folder: read images, restore each of them, write what was found."""

from __future__ import annotations

import logging
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import retrodict as rd
from retrodict.app.blocks import contact_sheet
from retrodict.app.restore.posterior import restore
from retrodict.app.restore.problem import Outcome, Problem, Settings
from retrodict.app.restore.report import write_restore_report
from retrodict.app.restore.words import parse_method, parse_operator, read_measurement
from retrodict.app.runs import Run, open_run
from retrodict.core.errors import InputError, require
from retrodict.core.noise import KeyedNoise
from retrodict.data.named import DATASETS
from retrodict.data.sources import IMAGES
from retrodict.training.files import write_json

log = logging.getLogger(__name__)

FORMAT = 1
LEVEL = 0.9  # of the intervals whose coverage is checked
NAMED = 4  # images of a data set by name, where --number does not say


def restore_files(images: str, model: str, out: Path, settings: Settings, device: str = "auto") -> Path:
    """Restore images into a folder; returns the path of its report."""
    require(not out.exists() or _is_ours(out), f"--out {out} holds something else; give a new folder")
    run = open_run(model, device)
    problem = pose(images, run, settings)
    outcomes = []
    for i in range(len(problem.y)):
        outcomes.append(solve(run, problem, i, settings))
        log.info("%s", _line(i, len(problem.y), outcomes[-1]))
    summary = summarise(outcomes)
    write_folder(out, problem, outcomes, summary, settings)
    return write_restore_report(out, model, problem, outcomes, summary, settings)


# -- what is asked ----------------------------------------------------------------------------------------------


def pose(images: str, run: Run, settings: Settings) -> Problem:
    """The problem that the words describe."""
    shape = run.denoiser.shape
    if run.layout != "image" or shape is None:
        raise InputError(f"{run.folder} makes no images but states of shape {shape}; restore works on images")
    require(
        math.isfinite(settings.noise) and settings.noise >= 0,
        f"--noise is a share of black to white, 0 or more; got {settings.noise}",
    )
    black, white = _levels(run)
    operator = parse_operator(settings.operator, black, white)
    output = operator.output_shape(shape)  # raises where the two do not meet
    noise = settings.noise * (white - black)
    given, clean = read_images(images, run, settings.number, (shape, output))
    if clean or settings.degrade:
        misfit = [tuple(x.shape) for x in given if tuple(x.shape) != shape]
        require(not misfit, f"--degrade takes clean images of shape {shape}, got {misfit[:1]}")
        truth = torch.stack(given)
        seen = operator(truth)
        noises = KeyedNoise(settings.seed, len(seen)).stream("measurement").normal(tuple(seen.shape[1:]))
        y = seen + noise * noises.to(seen)
    else:
        truth = None
        y = torch.cat([read_measurement(operator, image[None], shape) for image in given])
    varying = torch.ones(shape, dtype=torch.bool)
    if run.data is not None:
        varying = run.data.x.float().std(0) > 0.03 * (white - black)
    return Problem(operator, y, truth, noise, white - black, black, varying)


def _levels(run: Run) -> tuple[float, float]:
    """Black and white in the user's units: what the model's scale maps to -1 and 1."""
    scale = run.denoiser.scale
    ends = torch.tensor([-1.0, 1.0])
    if scale is None:
        return -1.0, 1.0
    require(scale.shift.numel() == 1, "this model's images have no common black and white; restore needs them")
    low, high = scale.inverse(ends).flatten().tolist()
    return low, high


def read_images(
    name: str, run: Run, number: int | None, single: tuple[tuple[int, ...], ...] = ()
) -> tuple[list[Tensor], bool]:
    """Images in the user's units, and whether they are known to be clean (a data set's held-out part).

    Args:
        single: shapes of an array that is one image and not several.
    """
    if name.partition(":")[0] in DATASETS and not Path(name).exists():
        data = rd.load_data(name)
        held = data.heldout if data.heldout is not None else data
        return list(held.x.float()[: number or NAMED]), True
    path = Path(name)
    if path.suffix.lower() == ".npy" and path.is_file():
        values = torch.from_numpy(np.load(path, allow_pickle=False)).float()
        return list((values[None] if tuple(values.shape) in single else values)[:number]), False
    files = sorted(f for f in path.iterdir() if f.suffix.lower() in IMAGES) if path.is_dir() else [path]
    require(path.exists(), f"there is no file or folder {name!r}, and no data set of that name")
    require(bool(files), f"the folder {name} has no images: {', '.join(sorted(IMAGES))}")
    return [_picture(file, run) for file in files[:number]], False


def _picture(path: Path, run: Run) -> Tensor:
    """An image file, its black and white put on the model's."""
    from PIL import Image, UnidentifiedImageError

    colours = (run.denoiser.shape or (1,))[0]
    try:
        pixels = np.asarray(Image.open(path).convert("RGB" if colours == 3 else "L"), dtype=np.float32)
    except (UnidentifiedImageError, OSError) as error:
        raise InputError(f"{path} cannot be read ({error}); accepted: images, folders of them, .npy") from None
    image = torch.from_numpy(pixels / 255)
    black, white = _levels(run)
    image = black + (white - black) * image
    return image.permute(2, 0, 1).contiguous() if image.ndim == 3 else image[None]


# -- what is found ----------------------------------------------------------------------------------------------


def solve(run: Run, problem: Problem, i: int, settings: Settings) -> Outcome:
    """Restore image i."""
    begun = time.perf_counter()
    method, options = parse_method(settings.method)
    found = restore(
        run.denoiser,
        problem.y[i],
        problem.operator,
        problem.noise,
        method=method,
        populations=settings.populations,
        particles=settings.particles,
        steps=settings.steps,
        seed=settings.seed + i,
        **options,
    )
    seen = problem.operator(found.draws(min(64, len(found.x)), settings.seed))
    residual = (seen - problem.y[i : i + 1].to(seen)).pow(2).mean().sqrt()
    numbers: dict[str, Any] = {
        "correction": found.correction,
        "method": found.method,
        "ess": found.ess,
        "populations": found.populations,
        "log_evidence": found.log_evidence,
        "residual": float(residual / problem.noise) if problem.noise > 0 else float(residual),
        "spread": _rms(found.spread) / problem.range,
        "seconds": time.perf_counter() - begun,
    }
    if problem.truth is not None:
        truth = problem.truth[i].to(found.x)
        error = _rms(found.mean - truth) / problem.range
        numbers["rmse"], numbers["psnr"] = error, -20 * math.log10(max(error, 1e-12))
        numbers["coverage"] = float(found.covers(truth, LEVEL)[problem.varying].double().mean())
    return Outcome(found, numbers)


def _rms(x: Tensor) -> float:
    return float(x.double().pow(2).mean().sqrt())


def summarise(outcomes: list[Outcome]) -> dict[str, Any]:
    """Means over images, with standard errors where there are at least two."""
    summary: dict[str, Any] = {"images": len(outcomes), "correction": outcomes[0].found.correction}
    for name in ("residual", "spread", "rmse", "psnr", "coverage", "seconds"):
        values = [o.numbers[name] for o in outcomes if name in o.numbers]
        if values:
            summary[name] = float(np.mean(values))
            summary[f"{name}_se"] = float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None
    summary["ess"] = float(np.mean([e for o in outcomes for e in o.found.ess]))
    return summary


def _line(i: int, n: int, outcome: Outcome) -> str:
    numbers = outcome.numbers
    known = f", error {numbers['rmse']:.3f}, coverage {numbers['coverage']:.0%}" if "rmse" in numbers else ""
    return f"{i + 1}/{n}  spread {numbers['spread']:.3f}{known}; {numbers['correction']}, {numbers['seconds']:.1f} s"


# -- the folder -------------------------------------------------------------------------------------------------


def write_folder(
    out: Path, problem: Problem, outcomes: list[Outcome], summary: dict[str, Any], settings: Settings
) -> None:
    """Arrays in the user's units, pictures, and results.json."""
    out.mkdir(parents=True, exist_ok=True)
    draws = torch.stack([o.found.draws(settings.samples, settings.seed) for o in outcomes])
    means, spreads = (torch.stack([getattr(o.found, name) for o in outcomes]) for name in ("mean", "spread"))
    arrays = {"samples": draws, "mean": means, "spread": spreads, "measurement": problem.y}
    for name, value in arrays.items():
        np.save(out / f"{name}.npy", value.cpu().numpy(), allow_pickle=False)
    pictures = {"samples": draws.flatten(0, 1), "mean": means, "spread": problem.black + 2 * spreads}
    for name, value in pictures.items():
        contact_sheet(problem.shades(value)).save(out / f"{name}.png")
    write_json(
        out / "results.json",
        {
            "format": FORMAT,
            "version": rd.__version__,
            "settings": vars(settings),
            "level": LEVEL,
            "summary": summary,
            "images": [o.numbers for o in outcomes],
        },
    )


def _is_ours(out: Path) -> bool:
    return out.is_dir() and (not any(out.iterdir()) or (out / "results.json").is_file())
