"""The demonstration's hidden paths: the bands keep their word, and the report of a demonstration stays its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import retrodict as rd
from retrodict.app import commands, demo, hidden
from retrodict.app.report import Code, LineChart, Text
from retrodict.core.errors import InputError


@pytest.fixture(scope="module")
def found() -> dict:
    """As the ledger keeps it: through JSON."""
    kept = hidden.REPLICATES, hidden.PARTICLES, hidden.STEPS
    hidden.REPLICATES, hidden.PARTICLES, hidden.STEPS = 12, 150, 5
    try:
        return json.loads(json.dumps(hidden.measure(seed=5)))
    finally:
        hidden.REPLICATES, hidden.PARTICLES, hidden.STEPS = kept


def test_bands_cover_what_they_promise(found: dict) -> None:
    """Within four standard errors (at least .02) of 90%: a right smoother fails once in ten thousand seeds or so."""
    for share, se in zip(found["coverage"], found["coverage_se"]):
        assert abs(share - hidden.LEVEL) < 4 * max(se, 0.02)
    assert found["ess"][1] > 75, "half of the particles count in the median replicate"


def test_the_section_shows_truth_bands_and_numbers(found: dict) -> None:
    section = hidden.section(found)
    seen, unseen = (block for block in section.blocks if isinstance(block, LineChart))
    assert [s.name for s in seen.series] == ["smoothed, 90% band", "truth", "seen"]
    assert [s.name for s in unseen.series] == ["smoothed, 90% band", "truth"]
    truth, smoothed = torch.tensor(unseen.series[1].y), torch.tensor(unseen.series[0].y)
    assert float((truth - smoothed).std()) < 0.7 * float(truth.std()), "what was never seen is found"
    assert all(value != value for value in seen.series[2].y[16:22]), "the gap was seen"
    text = next(block.text for block in section.blocks if isinstance(block, Text))
    assert f"{found['coverage'][1]:.1%}" in text and f"{found['log_evidence']:.2f}" in text
    code = next(block.text for block in section.blocks if isinstance(block, Code))
    times = torch.tensor(found["times"], dtype=torch.float64)
    names = {"rd": rd, "y": [float("nan") if v is None else v for v in found["first"]["y"]], "times": times}
    exec(code.replace("steps=10", "steps=3").replace("particles=400", "particles=50"), names)


def test_the_report_of_a_demonstration_is_written_by_the_demonstration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrote = []
    monkeypatch.setattr(demo, "report", lambda folder, device: wrote.append("demo"))
    monkeypatch.setattr(commands, "open_run", lambda folder, device: None)
    monkeypatch.setattr(commands, "write_run_report", lambda *_: wrote.append("plain"))
    commands.report_on(tmp_path, None, 0, "cpu")
    (tmp_path / demo.MEASURES).write_text("{}")
    commands.report_on(tmp_path, None, 0, "cpu")
    assert wrote == ["plain", "demo"]
    with pytest.raises(InputError, match="leave out --nfe"):
        commands.report_on(tmp_path, 4, 0, "cpu")
