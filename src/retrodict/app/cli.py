"""The command `retrodict`: each subcommand is a thin layer over one verb of the library.

Only the standard library and typer are imported here, so ``--help`` answers at once; a command imports what
it needs when it runs.  An error that retrodict raises on purpose is one line on standard error and exit
status 2 (``--debug`` shows its traceback), Ctrl-C is exit status 130, anything else is a bug and shows its
traceback.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from retrodict.core.errors import RetrodictError

F = TypeVar("F", bound=Callable[..., None])

app = typer.Typer(
    name="retrodict",
    help="Describe a stochastic process forward; run it backward.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def command(example: str) -> Callable[[F], F]:
    """Register a subcommand whose help ends with ``example`` and whose errors become exit statuses."""

    def register(function: F) -> F:
        @functools.wraps(function)
        def guarded(*args: object, **kwargs: object) -> None:
            try:
                function(*args, **kwargs)
            except RetrodictError as error:
                if os.environ.get("RETRODICT_DEBUG"):
                    raise
                typer.echo(f"error: {error}", err=True)
                raise typer.Exit(2) from None
            except KeyboardInterrupt as stop:
                typer.echo(f"interrupted: {stop}" if str(stop) else "interrupted", err=True)
                raise typer.Exit(getattr(stop, "exit_code", 130)) from None

        app.command(epilog=f"Example:  {example}")(guarded)
        return function

    return register


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only warnings and errors.")] = False,
) -> None:
    """Describe a stochastic process forward; run it backward."""
    if debug:
        os.environ["RETRODICT_DEBUG"] = "1"
    logging.basicConfig(format="%(message)s", level=logging.WARNING if quiet else logging.INFO)


Out = Annotated[Path, typer.Option("--out", "-o", help="Run folder; an unfinished run in it is resumed.")]
Seed = Annotated[int, typer.Option(help="Seed of every random choice.")]
Device = Annotated[str, typer.Option(help="Where to compute: auto, cpu, cuda, cuda:1, mps.")]
Folder = Annotated[str, typer.Argument(help="A run folder, or the name of a model on the Hugging Face Hub.")]


@command("retrodict demo --out runs/demo")
def demo(
    out: Out = Path("runs/demo"),
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Train on handwritten digits, draw samples in a few evaluations, measure them, and write a report.

    Takes a few minutes on two cores; a second run resumes from what is there.
    """
    from retrodict.app.demo import run

    run(out, seed=seed, device=device)


@command("retrodict train digits --process vp:cosine --out runs/digits --set batch_size=128")
def train(
    data: Annotated[str, typer.Argument(help="A data set by name, or a .npy, .npz or .parquet file, or a folder.")],
    process: Annotated[
        str, typer.Option(help="How noise is added: NAME, NAME:VALUE or NAME:VALUE,OPTION=VALUE.")
    ] = "vp:cosine",
    out: Out = Path("runs/train"),
    steps: Annotated[int | None, typer.Option(min=1, help="Optimiser steps; default: from the data.")] = None,
    network: Annotated[str, typer.Option(help="Network by name; auto chooses by the data's shape.")] = "auto",
    objective: Annotated[str, typer.Option(help="What the network learns to predict.")] = "auto",
    seed: Seed = 0,
    device: Device = "auto",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any other training option, NAME=VALUE; may be repeated."),
    ] = None,
) -> None:
    """Learn the reversal of a process from data, into a run folder."""
    from retrodict.app.commands import train_model

    given = {"network": network, "objective": objective, "steps": steps, "seed": seed, "device": device}
    train_model(data, process, out, given, settings or [])


@command("retrodict sample runs/digits -n 64 --nfe 8 -c label=3,8 --guidance 1.5")
def sample(
    folder: Folder,
    n: Annotated[int, typer.Option("-n", "--number", min=1, help="How many samples.")] = 64,
    nfe: Annotated[int | None, typer.Option(min=1, help="Evaluations of the denoiser per sample.")] = None,
    solver: Annotated[str, typer.Option(help="Solver by name; auto chooses by process and budget.")] = "auto",
    guidance: Annotated[float, typer.Option(help="Classifier-free guidance; 1 is plainly conditional.")] = 1.0,
    condition: Annotated[
        list[str] | None,
        typer.Option("--condition", "-c", help="NAME=VALUE[,VALUE...], values repeated in turn; may be repeated."),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Where to write: .npy, .npz, or .png for images.")] = Path(
        "samples.png"
    ),
    batch_size: Annotated[int | None, typer.Option(min=1, help="Samples computed at a time.")] = None,
    source: Annotated[
        str | None, typer.Option(help="Data of the other end, by name or file, where the path has two.")
    ] = None,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Draw samples from a trained model."""
    from retrodict.app.commands import draw_samples

    given = {"nfe": nfe, "solver": solver, "guidance": guidance, "batch_size": batch_size, "seed": seed}
    draw_samples(folder, n, out, given, condition or [], device, source)


@command("retrodict bench runs/digits --nfe 5,8,10,20 --solver auto,ddim")
def bench(
    folder: Folder,
    nfe: Annotated[str, typer.Option(help="Budgets to compare, separated by commas.")] = "5,8,10,20",
    solver: Annotated[str, typer.Option(help="Solvers to compare, separated by commas.")] = "auto,ddim",
    n: Annotated[int, typer.Option("-n", "--number", min=2, help="Starts shared by all solvers.")] = 128,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Also write the table to this JSON file.")] = None,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Measure solvers on a model: error against a long run from the same starts, and time per sample."""
    from retrodict.app.commands import measure_solvers

    measure_solvers(folder, nfe.split(","), solver.split(","), n, out, seed, device)


@command("retrodict restore digits --operator half:bottom --noise 0.05 --model runs/demo --out runs/restored")
def restore(
    images: Annotated[
        str, typer.Argument(help="An image, a folder of images, a .npy file, or a data set for its held-out images.")
    ],
    operator: Annotated[
        str, typer.Option(help="How they were measured: inpaint:mask.png, blur:5,1.0, half:bottom | downsample:2, ...")
    ],
    model: Annotated[str, typer.Option(help="A run folder, or the name of a model on the Hugging Face Hub.")],
    noise: Annotated[float, typer.Option(help="Standard deviation of the noise; black to white is 1.")] = 0.05,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the results.")] = Path("runs/restored"),
    degrade: Annotated[
        bool, typer.Option("--degrade", help="The images are clean: apply operator and noise first, and check.")
    ] = False,
    number: Annotated[int | None, typer.Option("-n", "--number", min=1, help="At most so many images.")] = None,
    samples: Annotated[int, typer.Option(min=1, help="Posterior draws written for each image.")] = 16,
    method: Annotated[str, typer.Option(help="NAME or NAME:OPTION=VALUE; auto carries weights.")] = "auto",
    populations: Annotated[int, typer.Option(min=1, help="Independent populations, pooled.")] = 4,
    particles: Annotated[int, typer.Option(min=2, help="Particles of each population.")] = 64,
    steps: Annotated[int, typer.Option(min=1, help="Steps from noise to image.")] = 40,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Restore damaged images: posterior samples, their mean, and how sure each pixel is.

    Where the clean images are known, it also checks that intervals cover the truth as often as they say.
    """
    from retrodict.app.restore import Settings, restore_files

    given = Settings(operator, noise, degrade, samples, method, populations, particles, steps, seed, number)
    restore_files(images, model, out, given, device)


@command("retrodict infer config.yaml data.csv --out runs/lynx")
def infer(
    config: Annotated[
        Path | None, typer.Argument(help="A model, the data's columns and a method: YAML or JSON.")
    ] = None,
    data: Annotated[Path | None, typer.Argument(help="A CSV with a first line of column names.")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the results.")] = Path("runs/infer"),
    example: Annotated[
        Path | None, typer.Option("--example", help="Write an example's config.yaml and data.csv to this folder.")
    ] = None,
) -> None:
    """Find the hidden path, the evidence and the open parameters of a model from a file, given a CSV.

    Start from `retrodict infer --example DIR`.
    """
    from retrodict.app.infer import infer_files

    infer_files(config, data, out, example)


@command("retrodict certify --solver unipc --out runs/certificate")
def certify(
    solver: Annotated[str | None, typer.Option(help="A solver: NAME or NAME:OPTION=VALUE,OPTION=VALUE.")] = None,
    diffusers: Annotated[
        Path | None, typer.Option(help="A diffusers scheduler: scheduler_config.json, or a folder with it.")
    ] = None,
    python: Annotated[
        str | None, typer.Option(help="module:function, a sampler f(model, x, sigmas) as in k-diffusion.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Also write text, JSON and HTML to this folder.")
    ] = None,
) -> None:
    """Measure a sampler, ours or anyone's, against closed forms: order, exactness, moments, errors, ends.

    Exit status 1 says that a finding does not hold.
    """
    from retrodict.app.certify import certify_sampler

    certify_sampler(solver, diffusers, python, out)


@command("retrodict tune runs/digits --evaluations 4 5 6 8 10 --guidance 1.5 --out plan.json")
def tune(
    folder: Annotated[str, typer.Argument(help="A run folder, or a folder of diffusers.")],
    more: Annotated[list[str] | None, typer.Argument(hidden=True)] = None,
    evaluations: Annotated[
        str, typer.Option(help="Budgets, separated by spaces or commas.", metavar="N [N ...]")
    ] = "4,5,6,8,10",
    guidance: Annotated[float, typer.Option(help="Classifier-free guidance to tune for.")] = 1.0,
    trajectories: Annotated[int, typer.Option(min=32, help="Held-out runs to learn from.")] = 1024,
    condition: Annotated[
        list[str] | None,
        typer.Option("--condition", "-c", help="NAME=VALUE[,VALUE...], in turn; default: all classes in turn."),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="The plan; figure, report and other plans beside it.")
    ] = Path("plan.json"),
    cache: Annotated[Path | None, typer.Option(help="Folder where the teacher's runs are kept.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Minibatches of the descent on free coefficients.")] = 96,
    candidates: Annotated[int, typer.Option(min=1, help="Plans that the search may try.")] = 160,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Find the best plans for one model at few evaluations: search, compensation and free coefficients.

    Prints errors before and after on held-out trajectories; the plans go to `rd.sample(plan=...)` and `to_diffusers`.
    """
    from retrodict.app.tune import tune_folder

    budgets = [*evaluations.split(","), *(more or [])]
    given = {"guidance": guidance, "trajectories": trajectories, "cache": cache, "seed": seed}
    tune_folder(folder, budgets, out, given, condition or [], device, {"steps": steps, "candidates": candidates})


@command("retrodict report runs/digits")
def report(
    folder: Annotated[Path, typer.Argument(help="A run folder.")],
    nfe: Annotated[
        int | None, typer.Option(min=1, help="Evaluations per sample shown; default 8, for tokens 32.")
    ] = None,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Write report.html in a run folder: samples, the run backward, the loss curve, the plan."""
    from retrodict.app.commands import report_on

    report_on(folder, nfe, seed, device)


@command("retrodict info runs/digits")
def info(
    folder: Annotated[Path | None, typer.Argument(help="A run folder; without it, the installation.")] = None,
) -> None:
    """Say what a run folder holds or, without one, what is installed and which names are known."""
    from retrodict.app.info import print_folder, print_installation

    if folder is None:
        print_installation()
    else:
        print_folder(folder)


def main() -> None:
    """Entry point of the console script."""
    # threads that spin for long while they wait gain a little on an idle machine and lose a factor of fifty on a busy
    # one; the runtime reads this when torch is first imported, which is later
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
