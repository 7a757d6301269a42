"""Pages that have their text elsewhere: the command line's help, the changelog and the rules for contributions.

A page says what it wants in a comment: ``<!-- help -->`` is replaced by the ``--help`` of every subcommand, and
``<!-- file NAME -->`` by a file of the repository's root.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from typer.main import get_command
from typer.testing import CliRunner

from retrodict.app.cli import app

ROOT = Path(__file__).resolve().parents[2]
BOXES = str.maketrans("", "", "╭╮╰╯")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fill in what the page asks for."""
    if "<!-- help -->" in markdown:
        markdown = markdown.replace("<!-- help -->", "\n\n".join(help_texts()))
    return re.sub(r"<!-- file (\S+) -->", lambda m: (ROOT / m[1]).read_text(encoding="utf-8"), markdown)


def help_texts() -> list[str]:
    """A heading and the help of each subcommand, as a terminal shows it."""
    runner = CliRunner(env={"NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "84"})
    sections = []
    for name in get_command(app).commands:  # type: ignore[attr-defined]
        text = runner.invoke(app, [name, "--help"], prog_name="retrodict").output
        sections.append(f"## retrodict {name}\n\n```text\n{text.strip()}\n```")
    return sections
