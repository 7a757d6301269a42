"""Two gloo processes train as one would, and the first writes the files."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from retrodict.training import read_metrics
from training import distributed_child as child

SCRIPT = Path(child.__file__)


@pytest.fixture(scope="module")
def answers(tmp_path_factory) -> tuple[Path, list[dict]]:
    """What each of two processes found, launched with the variables that torchrun sets."""
    folder = tmp_path_factory.mktemp("two")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    shared |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(folder)],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    try:
        errors = [process.communicate(timeout=120)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [p.returncode for p in processes] == [0, 0], "\n".join(errors)
    return folder, [json.loads((folder / f"answer-{rank}.json").read_text()) for rank in (0, 1)]


def test_two_processes_take_the_steps_of_one(answers):
    """The same batch, cut in two (or in two times two): equal gradients, so equal weights."""
    alone = child.fit(child.plain, device="cpu")
    for way in ("plain", "parts"):
        for found in answers[1]:
            for name, value in alone.raw.state_dict().items():
                ours = torch.tensor(found[way][name], dtype=torch.float64)
                torch.testing.assert_close(ours, value, rtol=1e-10, atol=1e-12)
    assert answers[1][0]["plain_loss"] == pytest.approx(alone.metrics[-1]["loss"], rel=1e-6)


def test_a_resumed_run_is_exact_with_two_processes(answers):
    first, second = answers[1]
    assert first["died"] == second["died"] == [20, 10]
    assert first["resumed"] == second["resumed"] == first["whole"] == second["whole"]
    assert first["scale"] != second["scale"]  # each process got back its own state of the loss


def test_a_signal_to_one_process_stops_both_at_the_same_step(answers):
    assert [a["stopped"] for a in answers[1]] == [30, 30]  # they agree every ten steps
    assert [a["stopped_at"] for a in answers[1]] == [30, 30]


def test_only_the_first_process_writes(answers):
    for name in ("whole", "resumed"):
        assert [r["step"] for r in read_metrics(answers[0] / name / "metrics.jsonl")] == [10, 20, 30, 40]


def test_a_folder_that_is_refused_is_refused_on_both(answers):
    first, second = (found["refused"] for found in answers[1])
    assert first == second
    assert "belongs to another configuration" in first[0] and "not a run folder" in first[1]


def test_another_number_of_processes_goes_on_with_a_warning(answers):
    with pytest.warns(UserWarning, match="had 2 processes and has 1 now"):
        result = child.fit(child.Noisy(), answers[0] / "stopped", device="cpu")
    assert result.steps == child.STEPS
