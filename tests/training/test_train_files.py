"""Checkpoints, weights, metrics and run folders: whole or absent, and refused when they do not fit."""

from __future__ import annotations

import json
import os
import pickle
import resource
import signal
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from retrodict.core.errors import InputError, InputTypeError
from retrodict.training import (
    Checkpoints,
    CheckpointWarning,
    Metrics,
    RunFolder,
    SaveError,
    load_weights,
    read_metrics,
    save_weights,
    train,
)
from retrodict.training.checkpoint import flatten, unflatten
from retrodict.training.files import write_json
from training.train_helpers import denoising, network, points, same_state

QUIET = {"progress": False, "device": "cpu", "precision": "fp32"}
PARTS = {"module": {"w": torch.arange(5.0)}, "loop": {"wall": 0.1, "ids": {3: (1, [2, None])}, "on": True}}


# -- checkpoints ---------------------------------------------------------------------------------------------

leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3)
leaves |= st.lists(st.floats(-10, 10), max_size=3).map(torch.tensor)
states = st.recursive(
    leaves,
    lambda s: (
        st.lists(s, max_size=3)
        | st.lists(s, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3) | st.integers(), s, max_size=3)
    ),
    max_leaves=8,
)


def equal(a, b) -> bool:
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


@given(states)
@settings(max_examples=60, deadline=None)
def test_any_plain_state_survives_json_and_tensors(state):
    tensors: dict = {}
    skeleton = json.loads(json.dumps(flatten(state, tensors, "part")))
    assert equal(unflatten(skeleton, tensors), state)


def test_a_state_that_cannot_be_held_is_refused_by_name():
    with pytest.raises(InputTypeError, match=r"part/a/1 is a set"):
        flatten({"a": [1, {2}]}, {}, "part")


def test_checkpoints_round_trip_and_only_the_latest_are_kept(tmp_path):
    store = Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 3):
        store.save(step, PARTS)
    assert store.steps() == [3, 2]
    found = store.latest()
    assert found.step == 3 and found.parts["loop"] == PARTS["loop"]
    assert torch.equal(found.parts["module"]["w"], PARTS["module"]["w"])
    assert Checkpoints(tmp_path / "absent").latest() is None
    manifest = json.loads((store.path(3) / "manifest.json").read_text())
    assert manifest["format"] == 1 and isinstance(manifest["version"], str)


def flip(path):
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def rewrite(path, old, new):
    path.write_text(path.read_text().replace(old, new))


DAMAGE = {
    "one bit": lambda c: flip(c / "module.safetensors"),
    "cut short": lambda c: os.truncate(c / "module.safetensors", 50),
    "a file gone": lambda c: (c / "module.safetensors").unlink(),
    "no manifest": lambda c: (c / "manifest.json").unlink(),
    "empty manifest": lambda c: (c / "manifest.json").write_text(""),
    "state changed": lambda c: rewrite(c / "state.json", "0.1", "0.2"),
    "manifest of another step": lambda c: rewrite(c / "manifest.json", '"step": 2', '"step": 1'),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_checkpoint_is_noticed_and_the_previous_one_used(tmp_path, damage):
    store = Checkpoints(tmp_path)
    store.save(1, PARTS)
    store.save(2, PARTS)
    damage(store.path(2))
    with pytest.warns(CheckpointWarning, match="using the checkpoint of step 1"):
        assert store.latest().step == 1
    damage(store.path(1))
    if store.path(1).joinpath("manifest.json").exists():
        flip(store.path(1) / "state.json")
    with pytest.raises(InputError, match=r"no checkpoint in .* can be read"):
        store.latest()
    store.save(2, PARTS)  # a damaged one is written anew
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert store.latest().step == 2


def test_a_checkpoint_of_a_later_format_names_the_version_that_reads_it(tmp_path):
    store = Checkpoints(tmp_path)
    path = store.save(1, PARTS) / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 2, "version": "7.0"}))
    with pytest.raises(InputError, match=r"format 2; this version reads up to 1.*retrodict 7\.0"):
        store.latest()


class FileLimit:
    """No file of this process may grow past ``size`` bytes: every write beyond fails as on a full disk."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __enter__(self):
        self.old = resource.getrlimit(resource.RLIMIT_FSIZE)
        self.handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self.old[1]))

    def __exit__(self, *_):
        resource.setrlimit(resource.RLIMIT_FSIZE, self.old)
        signal.signal(signal.SIGXFSZ, self.handler)


def full_disk_from(step: int, until: int, limit: FileLimit):
    """A loss that fills the disk at one step and frees it at another."""
    count = [0]

    def loss(module, batch, generator):
        if count[0] == step:
            limit.__enter__()
        if count[0] == until:
            limit.__exit__()
        count[0] += 1
        return denoising(module, batch, generator)

    return loss


def test_a_disk_that_is_full_for_a_while_costs_a_checkpoint_not_the_run(tmp_path):
    limit = FileLimit(400)
    with pytest.warns(CheckpointWarning, match=r"step 10 could not be written .*step 5 stays"):
        result = train(
            network(), full_disk_from(7, 12, limit), {"x": points()}, steps=20, checkpoint_every=5,
            log_every=100, out=tmp_path / "run", **QUIET,
        )  # fmt: skip
    assert Checkpoints(tmp_path / "run" / "checkpoints").steps() == [20, 15]
    assert not list((tmp_path / "run" / "checkpoints").glob(".writing*"))
    assert same_state(result.raw, train(network(), denoising, {"x": points()}, steps=20, **QUIET).raw)


def test_a_disk_that_is_full_at_the_end_loses_nothing(tmp_path):
    limit = FileLimit(400)
    settings = {"steps": 20, "checkpoint_every": 15, "out": tmp_path / "run", **QUIET}
    try:
        with pytest.raises(SaveError, match=r"reached step 20.*free some space") as caught:
            train(network(), full_disk_from(17, -1, limit), {"x": points()}, **settings)
    finally:
        limit.__exit__()
    assert isinstance(caught.value, OSError)
    assert Checkpoints(tmp_path / "run" / "checkpoints").steps() == [15]
    plain = train(network(), denoising, {"x": points()}, steps=20, **QUIET)
    assert same_state(caught.value.result.raw, plain.raw)
    again = train(network(1), denoising, {"x": points()}, **settings)  # the same command, with space
    assert same_state(again.raw, plain.raw) and same_state(again.module, plain.module)


# -- resuming ------------------------------------------------------------------------------------------------


def started(tmp_path, **more):
    given = {"steps": 6, "checkpoint_every": 2, "out": tmp_path / "run", **QUIET, **more}
    return train(network(), denoising, {"x": points()}, **given)


def test_a_finished_run_is_returned_as_it_is(tmp_path):
    first = started(tmp_path)

    def never(module, batch, generator):
        raise AssertionError("trained again")

    again = train(network(9), never, {"x": points()}, steps=6, out=tmp_path / "run", **QUIET)
    assert same_state(first.module, again.module) and same_state(first.raw, again.raw)
    assert again.metrics == first.metrics and again.steps == 6


@pytest.mark.parametrize(
    "change, message",
    [
        ({"lr": 0.5}, r"lr is 0\.001 there and 0\.5 here"),
        ({"data": {"x": points(100)}}, r"data\.x is .*200, 2.*100, 2"),
        ({"module": nn.Linear(2, 2)}, r"does not match the module \(Linear\): 2 missing: weight, bias"),
        ({"optimizer": lambda p: torch.optim.AdamW(p)}, "optimizer is 'adamw' there"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(tmp_path, change, message):
    started(tmp_path)
    given = {
        "module": network(),
        "data": {"x": points()},
        "steps": 6,
        "out": tmp_path / "run",
        **QUIET,
        **change,
    }
    with pytest.raises(InputError, match=message):
        train(given.pop("module"), denoising, given.pop("data"), **given)


def test_resume_true_and_false(tmp_path):
    with pytest.raises(InputError, match="has no checkpoint"):
        started(tmp_path, resume=True)
    first = started(tmp_path)
    over = train(network(), denoising, {"x": points()}, steps=4, lr=0.5, resume=False, out=tmp_path / "run", **QUIET)
    assert over.steps == 4 and not same_state(over.raw, first.raw)
    assert Checkpoints(tmp_path / "run" / "checkpoints").steps()[0] == 4
    assert [r["step"] for r in read_metrics(tmp_path / "run" / "metrics.jsonl")][-1] == 4


def test_starting_over_takes_the_folder(tmp_path):
    folder = RunFolder(tmp_path / "run")
    started(tmp_path, config=CONFIG)
    save_weights(network(), folder.model)
    started(tmp_path, config=CONFIG | {"lr": 2}, resume=False)
    assert folder.config()["lr"] == 2 and not folder.finished
    with pytest.raises(InputError, match="not a run folder"):
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "photo.jpg").touch()
        started(tmp_path, resume=False, out=tmp_path / "mine")
    assert (tmp_path / "mine" / "photo.jpg").exists()


def test_metrics_past_the_checkpoint_are_cut(tmp_path):
    log = Metrics(tmp_path)
    for step in (1, 2, 3):
        log.add(step, {"loss": float(step)})
    log.close()
    with open(log.path, "a") as file:
        file.write('{"step": 4, "lo')  # the line that a killed process was writing
    resumed = Metrics(tmp_path, step=2)
    resumed.add(3, {"loss": 30.0})
    resumed.close()
    assert [(r["step"], r["loss"]) for r in read_metrics(log.path)] == [(1, 1.0), (2, 2.0), (3, 30.0)]


# -- weights -------------------------------------------------------------------------------------------------


def test_weights_round_trip(tmp_path):
    path = save_weights(network(), tmp_path / "w.safetensors")
    assert same_state(load_weights(network(5), path), network())
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]


def test_tied_weights_round_trip(tmp_path):
    class Tied(nn.Module):
        def __init__(self, value):
            super().__init__()
            self.a = nn.Linear(3, 3)
            self.b = nn.Linear(3, 3)
            self.b.weight = self.a.weight
            nn.init.constant_(self.a.weight, value)

    loaded = load_weights(Tied(0.0), save_weights(Tied(1.5), tmp_path / "w.safetensors"))
    assert loaded.a.weight is loaded.b.weight and (loaded.a.weight == 1.5).all()


def test_a_file_that_does_not_match_changes_nothing(tmp_path):
    path = save_weights(network(), tmp_path / "w.safetensors")
    other = nn.Sequential(nn.Linear(2, 8), nn.SiLU(), nn.Linear(8, 2))
    before = {k: v.clone() for k, v in other.state_dict().items()}
    with pytest.raises(InputError) as caught:
        load_weights(other, path)
    message = str(caught.value)
    assert "2 missing: 2.weight, 2.bias" in message and "2 unexpected: 3.bias, 3.weight" in message
    assert "0.weight (16, 2) in the file, (8, 2) in the module" in message
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in before.items())


class Bomb:
    def __reduce__(self):
        return (open, ("exploded", "w"))


@pytest.mark.parametrize("name", ["w.pt", "w.bin", "w.safetensors"])
@pytest.mark.parametrize("how", ["zip", "pickle"])
def test_a_pickle_is_refused_and_never_run(tmp_path, monkeypatch, name, how):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / name
    if how == "zip":
        torch.save({"a": Bomb()}, path)
    else:
        path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(InputError, match=r"pickle.*convert it once with.*weights_only=True"):
        load_weights(network(), path)
    assert not (tmp_path / "exploded").exists()


def test_other_weights_files_are_refused(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        load_weights(network(), tmp_path / "none.safetensors")
    (tmp_path / "text.safetensors").write_text("hello, this is no tensor file")
    with pytest.raises(InputError, match="not a readable safetensors file"):
        load_weights(network(), tmp_path / "text.safetensors")
    with pytest.raises(InputError, match=r"ending in \.safetensors"):
        save_weights(network(), tmp_path / "w.pt")


def test_a_full_disk_keeps_the_old_weights(tmp_path):
    path = save_weights(network(), tmp_path / "w.safetensors")
    with FileLimit(100), pytest.raises(OSError):
        save_weights(network(3), path)
    assert same_state(load_weights(network(5), path), network())
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]


# -- run folders ---------------------------------------------------------------------------------------------

CONFIG = {"process": {"name": "VP", "schedule": "cosine"}, "lr": 1e-3, "betas": (0.9, 0.99)}


def test_a_run_folder_is_new_then_resumed_then_finished(tmp_path):
    folder = RunFolder(tmp_path / "a" / "run")
    assert folder.check(CONFIG) == "new"
    assert folder.check(CONFIG) == "resume"
    save_weights(network(), folder.model)
    assert folder.check(CONFIG) == "finished"
    assert folder.config()["betas"] == [0.9, 0.99]
    assert json.loads(folder.config_file.read_text())["format"] == 1


def test_a_folder_taken_by_another_process_of_the_run_is_resumed(tmp_path, monkeypatch):
    """The other writes ``config.json`` at any call that looks at the folder: never "not a run folder"."""
    for name in ("exists", "is_dir", "mkdir", "iterdir"):
        for number in range(4):
            folder = RunFolder(tmp_path / f"{name}-{number}")
            with monkeypatch.context() as patch:
                patch.setattr(Path, name, _taken_before(folder, getattr(Path, name), number))
                assert folder.check(CONFIG) in ("new", "resume")
            assert folder.check(CONFIG) == "resume"


def _taken_before(folder, look, number):
    """``look``, but before its call of that ``number`` another process takes the folder."""
    calls = iter(range(100))

    def patched(path, *given, **more):
        if path in (folder.path, folder.config_file) and next(calls) == number:
            os.makedirs(folder.path, exist_ok=True)
            write_json(folder.config_file, CONFIG)
        return look(path, *given, **more)

    return patched


def test_another_configuration_is_refused_with_both_values(tmp_path):
    folder = RunFolder(tmp_path)
    folder.check(CONFIG)
    other = {"process": {"name": "VP", "schedule": "linear"}, "lr": 1e-3, "seed": 4}
    with pytest.raises(InputError) as caught:
        folder.check(other)
    message = str(caught.value)
    assert "process.schedule is 'cosine' there and 'linear' here" in message
    assert "betas is [0.9, 0.99] there and 'absent' here" in message and "seed is 'absent' there and 4 here" in message
    assert "lr is" not in message


def test_folders_that_are_not_runs_are_refused(tmp_path):
    (tmp_path / "holiday.jpg").write_text("")
    with pytest.raises(InputError, match=r"holiday\.jpg.*no config\.json"):
        RunFolder(tmp_path).check(CONFIG)
    with pytest.raises(InputError, match="is a file"):
        RunFolder(tmp_path / "holiday.jpg").check(CONFIG)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(InputError, match="not written by retrodict"):
        RunFolder(tmp_path).check(CONFIG)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read as JSON"):
        RunFolder(tmp_path).check(CONFIG)
    (tmp_path / "config.json").write_text('{"format": 99, "version": "9.9"}')
    with pytest.raises(InputError, match=r"format 99.*retrodict 9\.9"):
        RunFolder(tmp_path).check(CONFIG)
    with pytest.raises(InputTypeError, match="'f' is a function"):
        RunFolder(tmp_path / "new").check({"f": lambda: 0})


def test_train_checks_the_configuration_it_is_given(tmp_path):
    started(tmp_path, config=CONFIG)
    with pytest.raises(InputError, match=r"lr is 0\.001 there and 2 here"):
        started(tmp_path, config=CONFIG | {"lr": 2})
