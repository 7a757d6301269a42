"""What is installed, which names are known, and what a run folder holds, printed for a person.

Nothing here loads a model: a run folder is read as the JSON and the file names in it.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
import platform
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rich.console import Console
from rich.table import Table

from retrodict.core.errors import InputError, MissingExtraError, require
from retrodict.core.registry import Registry

PACKAGES = (
    "retrodict",
    "torch",
    "numpy",
    "scipy",
    "safetensors",
    "accelerate",
    "diffusers",
    "datasets",
    "POT",
)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide about results; absent ones say so."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def devices() -> list[str]:
    """The devices that torch can compute on, each in words."""
    import torch

    found = [f"cpu ({torch.get_num_threads()} threads)"]
    found += [f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        found.append("mps")
    return found


def registries() -> dict[str, list[str]]:
    """Every name registry of the package, as kind -> names: the words that commands and configs accept."""
    import retrodict

    for module in pkgutil.walk_packages(retrodict.__path__, "retrodict."):
        try:
            importlib.import_module(module.name)
        except MissingExtraError:
            continue
    modules = [module for name, module in sorted(sys.modules.items()) if name.startswith("retrodict.")]
    values = [value for module in modules for value in vars(module).values()]
    return {value.kind: sorted(value) for value in values if isinstance(value, Registry)}


def print_installation(console: Console | None = None) -> None:
    """Print versions, devices and registered names."""
    console = console or Console()
    table = Table("package", "version", title="Installed", title_justify="left", box=None)
    for package, number in versions().items():
        table.add_row(package, number)
    console.print(table)
    console.print(f"\nDevices: {', '.join(devices())}", highlight=False)
    for kind, names in sorted(registries().items()):
        console.print(f"\n[bold]{kind}[/bold]: {', '.join(names)}", highlight=False)


def read_json(path: Path) -> dict[str, object]:
    """The object in a JSON file, or an `InputError` that says which file is broken and how."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(
            f"{path} cannot be read as JSON: {error}; a run folder's files are written whole, so "
            f"take it from a backup or train again"
        ) from error
    require(isinstance(value, dict), f"{path} holds a JSON {type(value).__name__}; an object is expected")
    return value


def flatten(value: object, name: str = "") -> Iterator[tuple[str, str]]:
    """Dotted names and printed values of nested JSON.

    >>> list(flatten({"a": {"b": 1, "c": [2, 3]}}))
    [('a.b', '1'), ('a.c', '[2, 3]')]
    """
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from flatten(inner, f"{name}.{key}" if name else str(key))
    else:
        text = value if isinstance(value, str) else json.dumps(value)
        yield name, text if len(text) <= 100 else text[:97] + "..."


def size(path: Path) -> str:
    """The size of a file in words."""
    number = float(path.stat().st_size)
    for unit in ("B", "kB", "MB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} GB"


def print_folder(folder: Path, console: Console | None = None) -> None:
    """Print the configuration, the metrics and the files of a run folder.

    Raises `InputError` if ``folder`` is not a run folder (a folder with ``config.json``).
    """
    console = console or Console()
    require(folder.is_dir(), f"{folder} is not a folder; give a run folder, such as the --out of retrodict train")
    require(
        (folder / "config.json").is_file(),
        f"{folder} has no config.json, so it is not a run folder; accepted is the --out of retrodict train",
    )
    for name in ("config.json", "metrics.json"):
        path = folder / name
        if path.is_file():
            table = Table(show_header=False, title=name, title_justify="left", box=None)
            for key, value in flatten(read_json(path)):
                table.add_row(key, value)
            console.print(table)
            console.print()
    table = Table(show_header=False, title="files", title_justify="left", box=None)
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        table.add_row(path.relative_to(folder).as_posix(), size(path))
    console.print(table)
