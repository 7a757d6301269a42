"""The demonstration's restorations: from an exact model of the digits, where they have to work."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import retrodict as rd
from retrodict.app import restoration
from retrodict.app.report import Code, Images, Text
from retrodict.data import Scale


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """As the ledger keeps it, for a model that knows 20 digits, the restored ones among them."""
    data = rd.load_data("digits")
    assert data.heldout is not None
    denoiser = rd.exact.Atoms(data.heldout.x[:20].float() / 8 - 1).denoiser(rd.VP("cosine"))
    denoiser.scale = Scale(8.0, 8.0)
    kept = restoration.PARTICLES, restoration.POPULATIONS, restoration.DIGITS
    restoration.PARTICLES, restoration.POPULATIONS, restoration.DIGITS = 32, 2, 2
    try:
        return json.loads(json.dumps(restoration.measure(tmp_path_factory.mktemp("run"), denoiser, data)))
    finally:
        restoration.PARTICLES, restoration.POPULATIONS, restoration.DIGITS = kept


def test_a_model_that_knows_the_digits_restores_them(found: dict) -> None:
    """Half a digit of 20 tells which it is, and so does a blurred one."""
    for name, task in found["tasks"].items():
        columns, pixels = task["columns"], np.asarray(task["pixels"])
        assert columns[:2] == ["truth", "seen"] and columns[-2:] == ["mean", "spread"]
        assert pixels.shape == (2, len(columns), 8, 8)
        gap = pixels[:, columns.index("mean")] - pixels[:, columns.index("truth")]
        assert task["rmse"] == pytest.approx(np.sqrt((gap**2).mean((1, 2))).mean(), abs=0.01)
        assert task["rmse"] < 0.1 < np.sqrt(((pixels[:, 1] - pixels[:, 0]) ** 2).mean()), name
        assert task["correction"] == "weighted"
    hidden = np.asarray(found["tasks"]["Lower half hidden"]["pixels"])[:, 1, 4:]
    assert (hidden == 0.5).all(), "what is hidden is shown grey"


def test_the_section_shows_pictures_and_numbers(found: dict) -> None:
    section = restoration.section(found)
    assert [b.title for b in section.blocks if isinstance(b, Images)] == list(restoration.TASKS)
    text = next(b.text for b in section.blocks if isinstance(b, Text))
    for task in found["tasks"].values():
        assert f"{task['rmse']:.3f}" in text and f"{task['coverage']:.0%}" in text


def test_the_code_of_the_section_runs(found: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    code = next(b.text for b in restoration.section(found).blocks if isinstance(b, Code))
    data = rd.load_data("digits")
    denoiser = rd.exact.Atoms(data.x[:50].float()).denoiser(rd.VP("cosine"))
    monkeypatch.setattr(rd, "load", lambda folder: denoiser)
    names = {"y": rd.operators.half("bottom")(data.x[:1].float())}
    exec(code.replace("64", "4").replace("steps=28", "steps=3"), names)


def test_the_demonstration_has_the_section(tmp_path: Path) -> None:
    source = Path(restoration.__file__).with_name("demo.py").read_text()
    assert "restoration.section(whole)" in source and 'ledger.get("restoration"' in source
