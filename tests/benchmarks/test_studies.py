"""What the smaller studies share: a missed bar is an error, and what is written can be read."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from studies import finish, parse  # pyright: ignore[reportMissingImports]


def test_results_are_written_and_a_missed_bar_is_an_error(tmp_path) -> None:
    given = parse(None, ["--results", str(tmp_path)])
    rows = [{"case": "a", "value": 0.5}]
    finish("study", "What it is", rows, {"value": (0.5, 0.5)}, given)
    written = json.loads((tmp_path / "study.json").read_text())
    assert written["rows"] == rows and written["bars"][0]["holds"] is True
    assert "| a | 0.5 |" in (tmp_path / "study.md").read_text()
    with pytest.raises(SystemExit, match="bars missed: value"):
        finish("study", "What it is", rows, {"value": (0.6, 0.5), "fine": (0.0, 1.0)}, given)
    assert json.loads((tmp_path / "study.json").read_text())["bars"][0]["holds"] is False


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_no_number_holds_a_bar_by_not_being_one(tmp_path, value) -> None:
    with pytest.raises(SystemExit):
        finish("study", "What it is", [], {"value": (value, 1.0)}, parse(None, ["--quick"]))
