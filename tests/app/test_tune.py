"""`retrodict tune` on a tiny run: files that the library reads, and words that cannot be used."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import retrodict as rd
from app.console import run
from retrodict.solvers.tuning import candidates


@pytest.fixture(scope="module")
def moons(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "moons"
    words = {"steps": 20, "batch_size": 16, "progress": False, "device": "cpu"}
    rd.fit(rd.VP("cosine"), "moons", out=folder, **words)
    return folder


def test_tune_writes_plans_a_table_a_figure_and_a_report(
    moons: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retrodict.solvers.tuning.tune.candidates", lambda *words: candidates(*words)[::12])
    out = tmp_path / "deep" / "plan.json"
    short = ["--trajectories", 32, "--steps", 6, "--candidates", 8, "--device", "cpu", "--guidance", 1.5]
    status, text = run("tune", moons, "--evaluations", "3", "4", "--out", out, *short)
    assert status == 0 and "ratio" in text and "guidance 1.5" in text
    names = {path.name for path in out.parent.iterdir()}
    assert names == {"plan.json", "plan-3.json", "plan-4.json", "plan.png", "plan.html"}
    for name, nfe in (("plan.json", 4), ("plan-3.json", 3)):
        note = json.loads((out.parent / name).read_text())["meta"]["tuned"]
        assert note["guidance"] == 1.5 and note["evaluations"] == nfe
        label = torch.tensor([0, 1])
        drawn = rd.sample(rd.load(moons), 2, plan=out.parent / name, label=label, guidance=1.5, progress=False)
        assert drawn.nfe == nfe and torch.isfinite(drawn.x).all()
    page = (out.parent / "plan.html").read_text()
    assert "Before and after" in page and "The plans" in page


def test_a_folder_of_diffusers_is_tuned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    diffusers = pytest.importorskip("diffusers")
    from tiny_pipelines import unet

    monkeypatch.setattr("retrodict.solvers.tuning.tune.candidates", lambda *words: candidates(*words)[::24])
    pipe = diffusers.DDPMPipeline(unet=unet(), scheduler=diffusers.DDPMScheduler())
    pipe.save_pretrained(tmp_path / "pipe")
    out = tmp_path / "plan.json"
    short = ["--trajectories", 32, "--steps", 2, "--candidates", 4, "--device", "cpu"]
    status, text = run("tune", tmp_path / "pipe", "--evaluations", "2", "--out", out, *short)
    assert status == 0, text
    plan = rd.Plan.load(out)
    pipe.scheduler = plan.to_diffusers(pipe.scheduler)
    pipe.set_progress_bar_config(disable=True)
    assert pipe(num_inference_steps=plan.steps, output_type="np").images.shape[0] == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "plan.txt"], "ends with .json"),
        (["--evaluations", "few"], "whole numbers"),
        (["--evaluations", "1"], "at least 2"),
        (["-c", "colour=1"], "unknown condition"),
    ],
)
def test_words_that_cannot_be_used(moons: Path, words: list[str], message: str) -> None:
    status, text = run("tune", moons, "--device", "cpu", *words)
    assert status == 2 and message in text
