"""The commands end to end on tiny runs, as a user types them; words that cannot be used; Ctrl-C."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import retrodict as rd
from app.console import run
from retrodict.app import cli
from retrodict.app.blocks import contact_sheet, interval
from retrodict.app.options import parse_conditions, parse_process
from retrodict.app.report import with_interval
from retrodict.core.errors import InputError
from retrodict.diagnostics.distances import Measure
from retrodict.processes import from_config
from retrodict.processes import processes as registry

TINY = ["--set", "batch_size=16", "--set", "progress=false", "--device", "cpu"]
SMALL_UNET = 'network_options={"channels":[8,8],"blocks":1,"attention":[]}'
SMALL_TRANSFORMER = 'network_options={"hidden":16,"depth":1,"heads":2}'


@pytest.fixture(scope="module")
def moons(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "moons"
    assert run("train", "moons", "--steps", "20", "--out", folder, *TINY)[0] == 0
    return folder


def test_train_leaves_a_run_that_the_library_loads(moons: Path) -> None:
    config = json.loads((moons / "config.json").read_text())
    assert config["process"] == {"name": "vp", "schedule": "cosine"} and config["data"]["name"] == "moons"
    assert rd.load(moons).shape == (2,)
    page = (moons / "report.html").read_text()
    for title in ("Samples", "The run backward", "Quality", "Training", "The plan", "Configuration"):
        assert f"<h2>{title}</h2>" in page
    weights = (moons / "model.safetensors").stat().st_mtime_ns
    assert run("train", "moons", "--steps", "20", "--out", moons, *TINY)[0] == 0
    assert (moons / "model.safetensors").stat().st_mtime_ns == weights, "a finished run was trained again"


def test_another_configuration_is_refused(moons: Path) -> None:
    status, text = run("train", "moons", "--steps", "21", "--out", moons, *TINY)
    assert status == 2 and text.startswith("error: run folder") and "training.steps is 20 there and 21 here" in text


def test_samples_are_those_of_the_verb(moons: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "x.npz"
    assert run("sample", moons, "-n", 6, "--nfe", 4, "-c", "label=1,0", "-o", out, "--seed", 3)[0] == 0
    label = torch.tensor([1, 0] * 3)
    wanted = rd.sample(rd.load(moons), 6, nfe=4, label=label, seed=3, progress=False).x
    with np.load(out, allow_pickle=False) as file:
        assert np.array_equal(file["label"], label.numpy())
        assert np.allclose(file["x"], wanted.numpy(), atol=1e-6)
    assert run("sample", moons, "-n", 6, "--nfe", 4, "-o", tmp_path / "x.npy")[0] == 0
    assert np.load(tmp_path / "x.npy", allow_pickle=False).shape == (6, 2)


def test_bench_measures_what_it_says(moons: Path, tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    status, text = run("bench", moons, "--nfe", "4,32", "--solver", "auto,ddim", "-n", 8, "-o", out)
    assert status == 0 and "ms a sample" in text
    rows = json.loads(out.read_text())["rows"]
    errors = {(row["solver"], row["nfe"]): row["error"] for row in rows}
    assert errors["ddim", 32] < errors["ddim", 4] and errors["auto", 32] < errors["ddim", 32]
    start = {"nfe": 32, "seed": 0, "label": torch.arange(8) % 2, "progress": False}
    long = rd.sample(rd.load(moons), 8, **start | {"nfe": 200})
    short = rd.sample(rd.load(moons), 8, **start, solver="ddim")
    scale = rd.load(moons).scale
    gap = (scale(long.x) - scale(short.x)).double().pow(2).mean(1).sqrt().mean()
    assert errors["ddim", 32] == pytest.approx(float(gap), rel=1e-4)


@pytest.mark.parametrize(
    ("data", "process", "setting", "shown"),
    [
        ("digits", "edm:sigma_max=20", SMALL_UNET, "Film strip of 4 samples"),
        ("binary-digits", "masked:2,cosine", SMALL_TRANSFORMER, "a dot is a token still hidden"),
        ("sines", "rectified-flow", SMALL_UNET, "channel 0"),
    ],
)
def test_every_layout_has_a_report(data: str, process: str, setting: str, shown: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    words = ["--process", process, "--steps", "2", "--out", folder, "--set", setting, *TINY]
    status, text = run("train", data, *words)
    assert status == 0, text
    (folder / "report.html").unlink()
    assert run("report", folder, "--nfe", 4)[0] == 0
    assert shown in (folder / "report.html").read_text()
    assert run("info", folder)[0] == 0


def test_a_path_with_two_ends(tmp_path: Path) -> None:
    folder, out = tmp_path / "run", tmp_path / "x.npy"
    words = ["--process", "interpolant", "--set", "x1=circles", "--steps", "2", "--out", folder, *TINY]
    status, text = run("train", "moons", *words)
    assert status == 0, text
    assert run("sample", folder, "-n", 4, "--nfe", 4, "--source", "rings", "-o", out)[0] == 0
    assert np.load(out, allow_pickle=False).shape == (4, 2)


def test_images_are_written_as_a_sheet() -> None:
    pixels = np.zeros((3, 8, 8))
    pixels[1, 0, 7] = 1
    sheet = np.asarray(contact_sheet(pixels))
    assert sheet.shape == (64, 64) and sheet.sum() == 255 * 16
    assert (sheet[:4, 60:] == 255).all()
    assert np.asarray(contact_sheet(np.ones((1, 40, 40, 3)))).shape == (40, 40, 3)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["train", "moonz"], "Did you mean 'moons'?"),
        (["train", "moons", "--process", "vpp"], "Did you mean 'vp'?"),
        (["train", "moons", "--process", "vp:cosin"], "Did you mean 'cosine'?"),
        (["train", "moons", "--process", "vp:beta_mix=2"], "Did you mean 'beta_min'?"),
        (["train", "moons", "--process", "edm:sigma_max=big"], "it must be a number"),
        (["train", "moons", "--process", "masked"], "needs vocabulary"),
        (["train", "moons", "--process", "masked:2"], "has tokens as states and the data are vector"),
        (["train", "moons", "--process", "rectified-flow:1"], "more values than"),
        (["train", "moons", "--process", "interpolant"], "needs x1="),
        (["train", "moons", "--set", "batch_size"], "NAME=VALUE"),
        (["train", "moons", "--set", "batchsize=3"], "Did you mean 'batch_size'?"),
        (["train", "moons", "--set", "seed=3"], "--seed 3"),
        (["train", "moons", "--device", "tpu9"], "tpu9"),
        (["sample", "nowhere"], "neither a run folder nor"),
        (["sample", "MOONS", "-o", "x.jpg"], ".npy, .npz, .png"),
        (["sample", "MOONS", "-o", "x.png"], "no images"),
        (["sample", "MOONS", "-o", "x.npy", "-c", "lable=1"], "Did you mean 'label'?"),
        (["sample", "MOONS", "-o", "x.npy", "-c", "label=up"], "whole numbers"),
        (["sample", "MOONS", "-o", "x.npy", "-c", "label=7"], "out of range"),
        (["sample", "MOONS", "-o", "x.npy", "--solver", "dim"], "Did you mean 'ddim'?"),
        (["bench", "MOONS", "--nfe", "5,x"], "--nfe 'x'"),
        (["bench", "MOONS", "--solver", "dim"], "Did you mean 'ddim'?"),
        (["report", "nowhere"], "neither a run folder nor"),
    ],
)
def test_bad_words_are_one_line(arguments: list[str], part: str, moons: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RETRODICT_DEBUG", raising=False)
    given = [str(moons) if word == "MOONS" else word for word in arguments]
    result = CliRunner().invoke(cli.app, given)
    lines = [line for line in result.output.splitlines() if line.strip()]
    assert result.exit_code == 2 and len(lines) == 1 and lines[0].startswith("error: "), result.output
    assert part in lines[0]
    assert not [path for path in tmp_path.rglob("*") if path.is_file()], "something was written before the error"


@pytest.mark.parametrize(
    "text", ["vp:cosine", "vp:linear,beta_max=10", "edm", "ve:0.1,20", "interpolant:mirror", "masked:3"]
)
def test_processes_as_words_are_those_of_their_configuration(text: str) -> None:
    process = parse_process(text)
    assert from_config(process.config()).config() == process.config()
    assert process.config()["name"] == text.partition(":")[0] in registry


def test_conditions_repeat_in_turn() -> None:
    nulls = {"label": 10, "place": torch.full((2,), torch.nan)}
    found = parse_conditions(["label=3,8", "place=1,2,3,4"], nulls, 3)
    assert found["label"].tolist() == [3, 8, 3]
    assert found["place"].tolist() == [[1, 2], [3, 4], [1, 2]]
    with pytest.raises(InputError, match="2 numbers a sample, got 3"):
        parse_conditions(["place=1,2,3"], nulls, 3)


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ((1.0, 1.0, 1.0), "1"),
        ((0.0, -0.0001, 0.01), "0.000 [0.000, 0.010]"),
        ((-0.5, -0.75, -0.25), "-0.50 [-0.75, -0.25]"),
    ],
)
def test_intervals_read_well(numbers: tuple[float, float, float], text: str) -> None:
    assert with_interval(*numbers) == text


def test_shares_lie_between_0_and_1() -> None:
    assert interval(Measure("coverage_features", 0.05, -0.1, 1.2)) == (0.0, 1.0)
    assert interval(Measure("density", 1.1, -0.1, 1.2)) == (0.0, 1.2)
    assert interval(Measure("energy", 0.0, -0.1, 0.1)) == (-0.1, 0.1)


def test_ctrl_c_while_training_keeps_the_run(tmp_path: Path) -> None:
    """A real SIGINT: status 130, a checkpoint on disk, and a run that says that it is not finished."""
    folder = tmp_path / "run"
    command = [
        sys.executable,
        "-c",
        "from retrodict.app.cli import main; main()",
        "train",
        "moons",
        "--out",
        str(folder),
    ]
    command += [*TINY, "--set", "log_every=1", "--steps"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*command, "100000"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    metrics, patience = folder / "metrics.jsonl", time.monotonic() + 120
    while not (metrics.is_file() and metrics.read_text().count("\n") >= 3):
        assert process.poll() is None and time.monotonic() < patience, process.communicate()[1]
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130 and "Traceback" not in errors
    stopped = int(re.search(r"interrupted: stopped after step (\d+) of 100000", errors)[1])
    assert (folder / "checkpoints" / f"step-{stopped:08d}" / "manifest.json").is_file()
    assert not (folder / "model.safetensors").exists()
    status, text = run("sample", folder, "-o", tmp_path / "x.npy")
    assert status == 2 and "not finished" in text


def test_a_text_is_trained_on_and_samples_are_written_as_text(tmp_path):
    """The vocabulary is counted, not typed; samples come back as lines."""
    from retrodict.app.commands import draw_samples, train_model
    from retrodict.core.errors import InputError

    (tmp_path / "rhyme.txt").write_text("one two three " * 30)
    given = {"network": "auto", "objective": "auto", "steps": 2, "seed": 0, "device": "cpu"}
    settings = ["length=7", 'network_options={"hidden":16,"depth":1,"heads":2}', "batch_size=8", "progress=false"]
    run = tmp_path / "run"
    train_model(str(tmp_path / "rhyme.txt"), "masked", run, given, settings)
    draw_samples(str(run), 3, tmp_path / "out.txt", {"seed": 0, "progress": False}, [], "cpu")
    lines = (tmp_path / "out.txt").read_text().splitlines()
    assert len(lines) == 3 and all(len(line) == 7 and set(line) <= set("one two three ") for line in lines)
    with pytest.raises(InputError, match="needs vocabulary"):
        train_model("moons", "masked", tmp_path / "other", given, [])
