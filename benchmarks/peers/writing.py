"""How a study is written down: JSON for machines, and the same table as a page for the documentation."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from retrodict.app.info import versions


def content(
    name: str, what: str, columns: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str]
) -> dict[str, Any]:
    """What every study's JSON holds: the sentence, the table as rows of named cells, the notes and the machine."""
    return {
        "name": name,
        "what": what,
        "columns": list(columns),
        "rows": [dict(zip(columns, row)) for row in rows],
        "notes": list(notes),
        "threads": torch.get_num_threads(),
        "machine": platform.processor() or platform.machine(),
        "versions": versions(),
    }


def page(study: dict[str, Any], figure: str, caption: str) -> str:
    """The study as Markdown: figure, table, notes."""
    columns = study["columns"]
    lines = [columns, ["---"] * len(columns), *([row[c] for c in columns] for row in study["rows"])]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    notes = "\n".join(f"- {note}" for note in study["notes"])
    return f"![{caption}](assets/{figure})\n\n{table}\n\n{notes}\n"


def write(study: dict[str, Any], text: str, folder: Path, figure: str, caption: str) -> None:
    """``NAME.json`` (``text``, the study as JSON) and ``NAME.md`` in a folder, which is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{study['name']}.json").write_text(text, encoding="utf-8")
    (folder / f"{study['name']}.md").write_text(page(study, figure, caption), encoding="utf-8")
