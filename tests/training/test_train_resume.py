"""A run that is killed and taken up again ends bit for bit as one that was left alone."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from retrodict.training import Checkpoints, keys, read_metrics
from training import resume_child

CHILD = Path(__file__).with_name("resume_child.py")
STEPS, EVERY = 60, 7


def play(scenarios: list[dict]) -> list[dict]:
    """Run the scenarios one after the other, each in its own process."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(CHILD), json.dumps(scenarios)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> str:
    """The digest of weights, averages, optimiser and loss of a run that nobody disturbed."""
    (answer,) = play([{"out": str(tmp_path_factory.mktemp("run") / "whole")}])
    return answer["digest"]


def check_metrics(folder: Path) -> None:
    steps = [record["step"] for record in read_metrics(folder / "metrics.jsonl")]
    assert steps == sorted(set(steps)) and steps[-1] == STEPS
    assert set(range(5, STEPS + 1, 5)) <= set(steps)


def test_killed_in_the_middle_of_steps(tmp_path, unbroken):
    random.seed(3)
    moments = sorted(random.sample(range(1, STEPS), 6))
    out = str(tmp_path / "run")
    answers = play([{"out": out, "kill": ["step", k]} for k in moments] + [{"out": out}])
    assert [a["killed"] for a in answers] == [signal.SIGKILL] * 6 + [False], answers
    assert answers[-1]["digest"] == unbroken
    check_metrics(tmp_path / "run")


def test_killed_in_the_middle_of_writing_checkpoints(tmp_path, unbroken):
    """Eleven kills spread over the calls of the first checkpoints: tensors, JSON, sync, rename, clean-up."""
    out = str(tmp_path / "run")
    counts = [1, 4, 7, 11, 15, 20, 26, 33, 41, 52, 67]
    answers = play([{"out": out, "kill": ["write", k]} for k in counts] + [{"out": out}])
    assert [a["killed"] for a in answers] == [signal.SIGKILL] * len(counts) + [False], answers
    assert answers[-1]["digest"] == unbroken
    check_metrics(tmp_path / "run")
    assert not list((tmp_path / "run" / "checkpoints").glob(".writing*"))


def test_killed_at_any_time(tmp_path, unbroken):
    random.seed(4)
    out = str(tmp_path / "run")
    moments = [random.uniform(0.0, 0.25) for _ in range(8)]
    answers = play([{"out": out, "kill": ["time", s]} for s in moments] + [{"out": out}])
    assert answers[-1]["digest"] == unbroken, answers
    check_metrics(tmp_path / "run")


@pytest.mark.slow
def test_killed_at_every_call_that_writes_a_checkpoint(tmp_path, unbroken):
    scenarios = []
    for count in range(1, 90):
        out = str(tmp_path / str(count))
        scenarios += [{"out": out, "kill": ["write", count]}, {"out": out}]
    answers = play(scenarios)
    assert {a["killed"] for a in answers[::2]} == {signal.SIGKILL}
    assert {a["digest"] for a in answers[1::2]} == {unbroken}


def test_a_polite_signal_finishes_the_step_and_writes_a_checkpoint(tmp_path, unbroken):
    scenarios = []
    for number in (signal.SIGINT, signal.SIGTERM):
        out = str(tmp_path / str(int(number)))
        scenarios += [{"out": out, "kill": ["step", 30], "signal": number}, {"out": out}]
    answers = play(scenarios)
    for stopped, ended, code in [(*answers[:2], 130), (*answers[2:], 143)]:
        assert stopped == {"killed": False, "interrupted": True, "step": 31, "code": code}
        assert ended["digest"] == unbroken
    for scenario in scenarios[1::2]:
        assert Checkpoints(Path(scenario["out"]) / "checkpoints").steps()[0] == STEPS
        check_metrics(Path(scenario["out"]))


def test_a_damaged_last_checkpoint_only_costs_steps(tmp_path, unbroken):
    out = tmp_path / "run"
    damaged = str(Checkpoints(out / "checkpoints").path(35) / "optimizer.safetensors")
    killed, ended = play([{"out": str(out), "kill": ["step", 40]}, {"out": str(out), "truncate": damaged}])
    assert killed["killed"] == signal.SIGKILL
    assert "using the checkpoint of step 28" in ended["warned"]
    assert "optimizer.safetensors has 100 bytes" in ended["warned"]
    assert ended["digest"] == unbroken
    check_metrics(out)


def test_the_digest_notices_one_step_with_other_noise(tmp_path, unbroken, monkeypatch):
    """The comparison above could fail: one changed step changes it."""
    original = keys.StepKeys.__call__
    monkeypatch.setattr(keys.StepKeys, "__call__", lambda self, k: original(self, k + (k == 40)))
    with torch.random.fork_rng():  # the child seeds the global generator to build its module
        assert resume_child.run(str(tmp_path / "run"), None, 0) != unbroken
