"""Words of the command line as values: processes, settings, conditions, devices.

A process is written ``NAME``, ``NAME:VALUE`` or ``NAME:VALUE,OPTION=VALUE,...``, as in ``vp:cosine``, ``edm``,
``ve:sigma_max=20`` or ``masked:2,cosine``: values without a name fill the constructor's parameters in order.
Names come from the registry of processes, so nothing that is typed can run code.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from retrodict.core.errors import InputError, first_line, near, require
from retrodict.core.registry import Registry
from retrodict.processes import Process, processes


def name_of_process(text: str) -> str:
    """The name in ``text``, which is registered."""
    name = text.strip().partition(":")[0]
    processes[name]  # raises, with the nearest name
    return name


def parse_process(text: str, known: Mapping[str, Any] | None = None) -> Process:
    """The process that ``text`` names; options that it needs and leaves out are taken from what is ``known``.

    >>> parse_process("vp:cosine")
    VP(schedule='cosine')
    >>> parse_process("masked:2")
    Masked(vocabulary=2, schedule='linear')
    >>> parse_process("edn")
    Traceback (most recent call last):
    ...
    retrodict.core.errors.InputError: unknown process 'edn'; known: ... Did you mean 'edm'?
    """
    return parse_call(text, processes, known or {})


def parse_call(text: str, registry: Registry[Any], known: Mapping[str, Any]) -> Any:
    """What a function of a registry makes, from ``NAME:VALUE,OPTION=VALUE,...``; a colon separates values as well.

    Args:
        known: values of options that the function needs and the text leaves out.
    """
    kind = registry.kind
    name, _, rest = text.strip().partition(":")
    make = registry[name]
    parameters = inspect.signature(make).parameters
    words: dict[str, Any] = {}
    for position, part in enumerate(filter(None, (p.strip() for p in rest.replace(":", ",").split(",")))):
        option, equals, value = part.partition("=")
        if not equals:
            require(
                position < len(parameters),
                f"{kind} {text!r} has more values than {name!r} has options: {_names(parameters)}",
            )
            option, value = list(parameters)[position], part
        if option not in parameters:
            raise InputError(
                f"{kind} {name!r} has no option {option!r}; its options: {_names(parameters)}."
                f"{near(option, parameters)}"
            )
        require(option not in words, f"{kind} {text!r} gives {option!r} twice")
        words[option] = _typed(value, str(parameters[option].annotation), f"{option} of {kind} {name!r}")
    needed = {p.name for p in parameters.values() if p.default is p.empty}
    words |= {k: v for k, v in known.items() if k in needed and k not in words and v is not None}
    missing = [p.name for p in parameters.values() if p.default is p.empty and p.name not in words]
    require(not missing, f"{kind} {name!r} needs {', '.join(missing)}; write it as {name}:VALUE, for example {name}:2")
    return make(**words)


def _names(parameters: Mapping[str, inspect.Parameter]) -> str:
    return ", ".join(parameters) or "none"


def _typed(value: str, annotation: str, what: str) -> Any:
    """The value as the annotation asks: a whole number, a number, or text."""
    annotation = annotation.removesuffix(" | None")
    if annotation not in ("int", "float"):
        return value
    try:
        return int(value) if annotation == "int" else float(value)
    except ValueError:
        kind = "a whole number" if annotation == "int" else "a number"
        raise InputError(f"{what} is {value!r}; it must be {kind}") from None


def parse_settings(settings: Iterable[str], taken: Iterable[str]) -> dict[str, Any]:
    """``NAME=VALUE`` words as options; a value is JSON where it reads as such, else text.

    >>> parse_settings(["batch_size=128", "decay=constant", "ema=null"], taken=["steps"])
    {'batch_size': 128, 'decay': 'constant', 'ema': None}
    """
    found: dict[str, Any] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        require(bool(equals and name), f"--set {setting!r}; write it as NAME=VALUE, for example --set batch_size=128")
        require(name not in taken, f"--set {name}=...: it has an option of its own; write it as --{name} {value}")
        require(name not in found, f"--set gives {name!r} twice")
        try:
            found[name] = json.loads(value)
        except json.JSONDecodeError:
            found[name] = value
    return found


def parse_conditions(texts: Iterable[str], conditions: Mapping[str, Any], n: int) -> dict[str, Tensor]:
    """``NAME=VALUE[,VALUE...]`` words as one entry a sample, the values repeated in turn.

    Args:
        conditions: what a denoiser declares, name -> null: a number K where classes are 0..K-1, a tensor ``(d,)``
            where a condition is d real numbers.
    """
    found: dict[str, Tensor] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        require(bool(equals and value), f"--condition {text!r}; write it as NAME=VALUE, for example -c label=3,8")
        if name not in conditions:
            known = ", ".join(conditions) or "none"
            raise InputError(f"unknown condition {name!r}; this model has: {known}.{near(name, conditions)}")
        found[name] = _repeated(name, value.split(","), conditions[name], n)
    return found


def _repeated(name: str, values: list[str], null: Any, n: int) -> Tensor:
    kind, words = (int, "whole numbers") if isinstance(null, int) else (float, "numbers")
    try:
        given = torch.tensor([kind(v) for v in values])
    except ValueError:
        raise InputError(f"condition {name!r} is {','.join(values)!r}; give {words}, separated by commas") from None
    if isinstance(null, Tensor) and null.ndim:
        width = null.numel()
        require(
            len(given) % width == 0,
            f"condition {name!r} has {width} numbers a sample, got {len(given)}; give {width}, or a multiple of that",
        )
        given = given.view(-1, *null.shape)
    return given[torch.arange(n) % len(given)]


def parse_numbers(texts: Iterable[str], what: str) -> list[int]:
    """Whole numbers of at least 1."""
    numbers = []
    for text in texts:
        require(
            text.strip().isdigit() and int(text) >= 1,
            f"{what} {text!r}; accepted: whole numbers of at least 1, separated by commas",
        )
        numbers.append(int(text))
    return numbers


def parse_device(text: str) -> str:
    """A device that is there; "auto" is the accelerator where there is one."""
    if text == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.zeros(1, device=text)
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"device {text!r} cannot be used ({first_line(error)}); accepted: auto, cpu, cuda, cuda:1, mps"
        ) from None
    return text
