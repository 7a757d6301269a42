"""A run folder: what a run was asked to do, how far it is, and what came of it.

    config.json          what was asked: the first file written
    metrics.jsonl        how it went
    checkpoints/         where it can be taken up
    model.safetensors    what came of it: the last file written, so its presence means "finished"

Asking for the same again returns or resumes; asking for something else in the same folder is an error that
names what differs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from retrodict.core.errors import InputError, InputTypeError
from retrodict.training.files import read_json, write_json

_STAMP = ("format", "version")


class RunFolder:
    """The folder of one run.

    Args:
        path: an absent or empty folder, or one that an earlier run made.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @property
    def config_file(self) -> Path:
        return self.path / "config.json"

    @property
    def model(self) -> Path:
        return self.path / "model.safetensors"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def finished(self) -> bool:
        """Whether the run is complete: ``model.safetensors`` is there."""
        return self.model.is_file()

    def config(self) -> dict[str, Any]:
        """The configuration in the folder, without its format and version."""
        content = read_json(self.config_file, "run configuration")
        return {key: value for key, value in content.items() if key not in _STAMP}

    def check(self, config: Mapping[str, Any]) -> Literal["new", "resume", "finished"]:
        """Compare ``config`` with the folder's and say what to do; a new folder is made and gets its
        ``config.json``.

        Args:
            config: plain JSON values; "format" and "version" are added.

        Raises:
            InputError: the folder belongs to another configuration (the message lists the keys that differ
                with both values), or holds files that are not those of a run.
        """
        asked = _as_json(config)
        if self._take():
            write_json(self.config_file, asked)
            return "new"
        lines = differences(self.config(), asked)
        if lines:
            raise InputError(
                f"run folder {self.path} belongs to another configuration: {'; '.join(lines)}; ask for the "
                "same configuration, or give another folder"
            )
        return "finished" if self.finished else "resume"

    def restart(self, config: Mapping[str, Any]) -> None:
        """Give the folder to a new run: its ``config.json`` is replaced, and it is finished no more."""
        asked = _as_json(config)
        self._take()
        self.model.unlink(missing_ok=True)
        write_json(self.config_file, asked)

    def _take(self) -> bool:
        """Whether the folder is new to runs; it is then made.

        One listing answers, because another process of the same run may write ``config.json`` meanwhile.
        """
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"run folder {self.path} is a file; give a folder")
        self.path.mkdir(parents=True, exist_ok=True)
        found = sorted(entry.name for entry in self.path.iterdir() if not entry.name.startswith("."))
        if self.config_file.name in found:
            return False
        if found:
            raise InputError(
                f"folder {self.path} holds {len(found)} entries "
                f"({', '.join(found[:3])}{', ...' if len(found) > 3 else ''}) but no config.json, so it is "
                "not a run folder; give an empty or a new folder"
            )
        return True


def differences(old: Mapping[str, Any], new: Mapping[str, Any], where: str = "") -> list[str]:
    """One line for each key, nested keys joined by dots, whose value differs between two configurations."""
    lines = []
    for key in [*old, *(k for k in new if k not in old)]:
        a, b = old.get(key, "absent"), new.get(key, "absent")
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            lines += differences(a, b, f"{where}{key}.")
        elif a != b:
            lines.append(f"{where}{key} is {a!r} there and {b!r} here")
    return lines


def _as_json(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration as it will be read back (tuples become lists), or an error that names the key."""
    clean = {}
    for key, value in config.items():
        try:
            clean[str(key)] = json.loads(json.dumps(value))
        except TypeError as error:
            raise InputTypeError(
                f"configuration {key!r} is a {type(value).__name__}, which JSON cannot hold ({error}); "
                "give numbers, strings, booleans, None, lists and dicts of them"
            ) from error
    return {key: value for key, value in clean.items() if key not in _STAMP}
