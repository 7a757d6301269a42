"""Write docs/benchmarks.md from the tables in benchmarks/results: one section a study, nothing computed here.

A study ``NAME.json`` has ``what``, a sentence, and rows; ``NAME.md`` beside it, where a study writes one, is taken as
it is.  Rows are a mapping of names to flat mappings of numbers, or a list of such mappings; lists inside a row are
the raw measurements and are left out of the page.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "docs" / "benchmarks.md"
HEAD = """\
# Benchmarks

Every table is written by a script in `benchmarks/` and was measured on the machine that its line names. `make bench`
measures again. Comparisons are at equal numbers of network passes; a ratio belongs to the problem that is written
beside it.
"""
FACTS = ("machine", "torch", "device", "threads", "cpu", "seed", "batch_size")


def shown(value: Any) -> str:
    """A cell: four significant digits for numbers, text as it is."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: ""}[value]
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """The plain values of a row."""
    return {key: value for key, value in row.items() if not isinstance(value, (list, dict))}


def table(rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows as a table; a column for every key that any of them has, in the order of appearance."""
    rows = [flat(row) for row in rows]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    heads = [column.replace("_", " ") for column in columns]
    lines = [heads, ["---"] * len(columns), *([shown(row.get(c)) for c in columns] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def section(path: Path) -> str:
    """One study."""
    study = json.loads(path.read_text(encoding="utf-8"))
    rows = study.get("rows", [])
    if isinstance(rows, Mapping):
        rows = [{"case": name, **row} for name, row in rows.items()]
    facts = ", ".join(f"{key.replace('_', ' ')} {study[key]}" for key in FACTS if key in study)
    written = path.with_suffix(".md")
    body = written.read_text(encoding="utf-8").strip() if written.is_file() else table(rows)
    what = str(study.get("what", "")).strip().rstrip(".").replace("_", " ")
    parts = [f"## {path.stem.replace('_', ' ').capitalize()}", what and f"{what[:1].upper()}{what[1:]}.", body]
    return "\n\n".join(filter(None, [*parts, facts and f"*{facts}*"]))


def main() -> None:
    """Renew the page."""
    sections = [section(path) for path in sorted((HERE / "results").glob("*.json"))]
    PAGE.write_text("\n".join([HEAD, *(s.rstrip() + "\n" for s in sections)]), encoding="utf-8")


if __name__ == "__main__":
    main()
