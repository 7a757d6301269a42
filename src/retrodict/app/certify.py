"""`retrodict certify`: the certificate of a sampler by name, and where it is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer

from retrodict.core.errors import InputError


def certify_sampler(solver: str | None, diffusers: Path | None, python: str | None, out: Path | None) -> None:
    """Print a certificate; exit status 1 if it has a finding that does not hold.

    Args:
        solver: the name of one of our solvers, NAME or NAME:OPTION=VALUE,OPTION=VALUE; diffusers: the
            configuration of a diffusers scheduler, or its folder; python: "module:function".  One of the three.
        out: a folder for certificate.txt, .json and .html.
    """
    from retrodict.diagnostics.certificate import certify

    if sum(given is not None for given in (solver, diffusers, python)) != 1:
        raise InputError("say what to certify: one of --solver NAME, --diffusers CONFIG, --python module:function")
    if solver is not None:
        name, _, words = solver.partition(":")
        certificate = certify(name, **_options(words))
    else:
        certificate = certify(_configuration(diffusers) if diffusers is not None else python)
    typer.echo(certificate.text())
    if out is not None:
        certificate.save(out)
        typer.echo(f"\nwrote {out}/certificate.txt, .json and .html")
    if not certificate:
        raise typer.Exit(1)


def _options(words: str) -> dict[str, Any]:
    """``NAME=VALUE,NAME=VALUE`` with values as JSON reads them, or text."""
    options: dict[str, Any] = {}
    for word in filter(None, words.split(",")):
        name, equals, value = word.partition("=")
        if not equals:
            raise InputError(f"an option of a solver is written NAME=VALUE, got {word!r}")
        try:
            options[name] = json.loads(value)
        except json.JSONDecodeError:
            options[name] = value
    return options


def _configuration(path: Path) -> dict[str, Any]:
    """The configuration of a diffusers scheduler: its file, the folder of it, or of a pipeline."""
    own = "scheduler_config.json"  # diffusers' name
    names = (own, f"{own.partition('_')[0]}/{own}")
    found = next((path / n for n in names if (path / n).is_file()), path)
    try:
        config = json.loads(found.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path} is no configuration of a diffusers scheduler ({own}): {error}") from error
    if not isinstance(config, dict) or "_class_name" not in config:
        raise InputError(f"{found} does not name a diffusers scheduler: it has no _class_name")
    return config
