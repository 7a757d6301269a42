"""Writing files so that a reader sees the old content or the new one, never half of either.

A file is written under a temporary name in the same folder, forced to the disk, and renamed over its target;
POSIX makes the rename atomic.  Every JSON file that retrodict writes carries ``format`` (an integer) and the
``version`` that wrote it, so that a later release can still read it or say which one does.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from retrodict.core.errors import InputError

FORMAT = 1
"""The layout of checkpoints, run folders and weights written by this version."""


def version() -> str:
    """The installed version of retrodict, or ``"unknown"`` when it runs from a bare source tree."""
    try:
        return metadata.version("retrodict")
    except metadata.PackageNotFoundError:
        return "unknown"


def stamp(content: Mapping[str, Any]) -> dict[str, Any]:
    """``content`` with the two keys that every file carries in front."""
    return {"format": FORMAT, "version": version(), **content}


def sync_file(path: Path) -> None:
    """Force the bytes of ``path`` to the disk."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Force the names in ``folder`` to the disk, where the platform can."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_bytes(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` atomically; on an `OSError` the old file stays and no trace is left."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        sync_file(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a stamped JSON file atomically."""
    write_bytes(path, (json.dumps(stamp(content), indent=2) + "\n").encode())


def read_json(path: Path, what: str) -> dict[str, Any]:
    """Read a JSON file that `write_json` wrote.

    Raises:
        InputError: the file is not JSON, was not written by retrodict, or has a newer format than this one.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{what} {path} cannot be read as JSON ({error}); restore or delete it") from error
    if not isinstance(content, dict) or not isinstance(content.get("format"), int):
        raise InputError(
            f"{what} {path} has no integer 'format' and so was not written by retrodict; give another path"
        )
    if content["format"] > FORMAT:
        raise InputError(
            f"{what} {path} has format {content['format']}; this version reads up to {FORMAT}; it was "
            f"written by retrodict {content.get('version', 'unknown')}, which reads it"
        )
    return content
