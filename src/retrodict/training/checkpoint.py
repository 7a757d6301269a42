"""Checkpoints that are whole or absent.

A checkpoint is a folder ``step-00001000`` that holds, for each part of the run (module, ema, optimizer, ...),
its tensors in ``<part>.safetensors``; everything else in ``state.json``; and ``manifest.json`` with the size
and the SHA-256 of every file.  It is written under a temporary name, forced to the disk and renamed, so a
process that is killed at any instant leaves the previous checkpoint intact; and it is verified against its
manifest before it is used, so a damaged one is noticed and the previous one taken.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from retrodict.core.errors import InputError, InputTypeError
from retrodict.training.files import read_json, stamp, sync_file, sync_folder
from retrodict.training.weights import read_tensors, write_tensors

_NAME = re.compile(r"step-(\d{8,})")
_MANIFEST, _STATE = "manifest.json", "state.json"


class CheckpointWarning(UserWarning):
    """A checkpoint could not be written or read, and the run goes on with another one."""


@dataclass(frozen=True)
class Checkpoint:
    """What was read: the step, and each part as the nested state that was saved."""

    path: Path
    step: int
    parts: dict[str, Any] = field(repr=False)


class Checkpoints:
    """The checkpoints of one run, in one folder.

    Args:
        folder: made when first written to.
        keep: how many of the latest to keep, at least 1.
    """

    def __init__(self, folder: str | Path, keep: int = 2) -> None:
        if keep < 1:
            raise InputError(f"keep={keep} checkpoints; accepted: at least 1")
        self.folder, self.keep = Path(folder), keep

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, newest first."""
        if not self.folder.is_dir():
            return []
        names = (_NAME.fullmatch(entry.name) for entry in self.folder.iterdir() if entry.is_dir())
        return sorted((int(match[1]) for match in names if match), reverse=True)

    def path(self, step: int) -> Path:
        """The folder of the checkpoint of ``step``."""
        return self.folder / f"step-{step:08d}"

    def save(self, step: int, parts: Mapping[str, Any]) -> Path:
        """Write the checkpoint of ``step`` and drop all but the latest ``keep``.

        Args:
            step: number of finished steps.
            parts: for each part a nested state of dicts, lists, tuples, numbers, strings and tensors.

        Raises:
            OSError: it could not be written (disk full); every older checkpoint is untouched.
        """
        target = self.path(step)
        if self._is_whole(step):  # stopped again at the step that it resumed from: the state is the same
            return target
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / f".writing-{step:08d}"
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            temporary.mkdir()
            _write_parts(temporary, step, parts)
            if target.exists():  # damaged, see above
                shutil.rmtree(target)
            os.replace(temporary, target)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        sync_folder(self.folder)
        for old in self.steps()[self.keep :]:
            shutil.rmtree(self.path(old), ignore_errors=True)
        return target

    def _is_whole(self, step: int) -> bool:
        try:
            return self.path(step).is_dir() and self.load(step).step == step
        except InputError:
            return False

    def load(self, step: int) -> Checkpoint:
        """Read and verify the checkpoint of ``step``.

        Raises:
            InputError: it is damaged, incomplete, or of a newer format.
        """
        return _read(self.path(step), step)

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint that is whole; a damaged one is skipped with a `CheckpointWarning`.

        Raises:
            InputError: there are checkpoints and none of them can be read.
        """
        reasons = []
        for step in self.steps():
            try:
                found = self.load(step)
            except InputError as error:
                reasons.append(str(error))
                continue
            if reasons:
                warnings.warn(
                    f"using the checkpoint of step {step}, because a later one is damaged: {'; '.join(reasons)}",
                    CheckpointWarning,
                    stacklevel=2,
                )
            return found
        if reasons:
            raise InputError(
                f"no checkpoint in {self.folder} can be read: {'; '.join(reasons)}; restore one, or start "
                "over with resume=False"
            )
        return None

    def tidy(self) -> None:
        """Remove what a killed process left half-written."""
        for entry in self.folder.glob(".writing-*"):
            shutil.rmtree(entry, ignore_errors=True)

    def clear(self) -> None:
        """Remove every checkpoint of this folder: a new run starts from nothing."""
        self.tidy()
        for step in self.steps():
            shutil.rmtree(self.path(step))


def _write_parts(folder: Path, step: int, parts: Mapping[str, Any]) -> None:
    state: dict[str, Any] = {}
    for part, content in parts.items():
        tensors: dict[str, Tensor] = {}
        state[part] = flatten(content, tensors, part)
        if tensors:
            write_tensors(folder / f"{part}.safetensors", tensors)
    _write_now(folder / _STATE, {"step": step, "parts": state})
    files = {entry.name: {"size": entry.stat().st_size, "sha256": _sha256(entry)} for entry in sorted(folder.iterdir())}
    _write_now(folder / _MANIFEST, {"step": step, "files": files})
    sync_folder(folder)


def _write_now(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(stamp(content), indent=1), encoding="utf-8")
    sync_file(path)


def _read(folder: Path, step: int) -> Checkpoint:
    manifest = read_json(folder / _MANIFEST, "checkpoint manifest")
    files = manifest.get("files", {})
    for name, facts in files.items():
        path = folder / name
        if not path.is_file():
            raise InputError(f"checkpoint {folder}: {name} is missing")
        if path.stat().st_size != facts["size"]:
            raise InputError(f"checkpoint {folder}: {name} has {path.stat().st_size} bytes, not {facts['size']}")
        if _sha256(path) != facts["sha256"]:
            raise InputError(f"checkpoint {folder}: {name} does not match its SHA-256")
    if _STATE not in files or manifest.get("step") != step:
        raise InputError(f"checkpoint {folder}: its manifest is incomplete or belongs to another step")
    parts = {}
    for part, skeleton in read_json(folder / _STATE, "checkpoint state")["parts"].items():
        name = f"{part}.safetensors"
        parts[part] = unflatten(skeleton, read_tensors(folder / name) if name in files else {})
    return Checkpoint(folder, step, parts)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flatten(content: Any, tensors: dict[str, Tensor], where: str) -> Any:
    """The JSON skeleton of a nested state; its tensors go to ``tensors`` under the path where they were
    found.

    Dictionaries become lists of pairs, which keeps integer keys; tuples are told from lists.
    """
    if isinstance(content, Tensor):
        tensors[where] = content
        return {"tensor": where}
    if isinstance(content, Mapping):
        return {"dict": [[_key(k, where), flatten(v, tensors, f"{where}/{k}")] for k, v in content.items()]}
    if isinstance(content, list | tuple):
        kind = "list" if isinstance(content, list) else "tuple"
        return {kind: [flatten(v, tensors, f"{where}/{i}") for i, v in enumerate(content)]}
    if content is None or isinstance(content, bool | int | float | str):
        return content
    raise InputTypeError(
        f"the state at {where} is a {type(content).__name__}, which a checkpoint cannot hold; accepted: "
        "tensors, numbers, strings, None, and dicts, lists and tuples of them"
    )


def unflatten(skeleton: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of `flatten`."""
    if not isinstance(skeleton, dict):
        return skeleton
    ((kind, value),) = skeleton.items()
    if kind == "tensor":
        return tensors[value]
    if kind == "dict":
        return {k: unflatten(v, tensors) for k, v in value}
    items = [unflatten(v, tensors) for v in value]
    return tuple(items) if kind == "tuple" else items


def _key(name: Any, where: str) -> str | int:
    if isinstance(name, str | int):
        return name
    raise InputTypeError(f"the state at {where} has the key {name!r}; a checkpoint holds strings and integers")
