"""fit, load and save: runs that resume, files that match, and errors before any work."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

import retrodict as rd
from retrodict.core.errors import InputError

TINY = {"network_options": {"hidden": 16, "depth": 1}, "batch_size": 64, "progress": False}


def _points(n: int = 200) -> torch.Tensor:
    """Two clusters far from the origin, in units that need scaling."""
    generator = torch.Generator().manual_seed(0)
    side = torch.where(torch.rand(n, 1, generator=generator) < 0.5, -1.0, 1.0)
    return torch.randn(n, 2, generator=generator) + torch.cat([100 + 10 * side, -50 + 0 * side], 1)


def test_samples_come_back_in_the_users_units():
    """A network that has seen 300 steps knows the data's place and width, which lie far from its own units."""
    x = _points(1000)
    denoiser = rd.fit(rd.VP(), x, steps=300, lr=5e-3, network_options={"hidden": 64}, batch_size=128, progress=False)
    samples = rd.sample(denoiser, 500, nfe=10, progress=False).x
    assert torch.allclose(samples.mean(0), x.mean(0), atol=2.0)
    assert torch.allclose(samples.std(0), x.std(0), rtol=0.35)


def test_a_finished_run_is_returned_and_another_configuration_is_refused(tmp_path):
    x, label = _points(), torch.arange(200) % 3
    words = {"conditions": {"label": label}, "steps": 4, "out": tmp_path / "run", **TINY}
    first = rd.fit(rd.VP("cosine"), x, **words)
    stamp = (tmp_path / "run" / "model.safetensors").stat().st_mtime_ns
    again = rd.fit(rd.VP("cosine"), x, **words)
    assert (tmp_path / "run" / "model.safetensors").stat().st_mtime_ns == stamp
    probe = torch.randn(5, 2)
    assert torch.equal(first(probe, 0.4, label=1), again(probe, 0.4, label=1))
    assert not torch.equal(first(probe, 0.4, label=1), first(probe, 0.4, label=2))
    with pytest.raises(InputError, match=r"steps.*4.*5"):
        rd.fit(rd.VP("cosine"), x, **{**words, "steps": 5})
    with pytest.raises(InputError, match="digest"):
        rd.fit(rd.VP("cosine"), x + 1, **words)
    loaded = rd.load(tmp_path / "run")
    assert torch.equal(loaded(probe, 0.4, label=1), first(probe, 0.4, label=1))
    assert repr(loaded.process) == repr(rd.VP("cosine")) and loaded.conditions == {"label": 3}
    assert rd.sample(loaded, 4, plan=tmp_path / "run" / "plan.json", progress=False).x.shape == (4, 2)


def test_transport_between_two_data_sets():
    """An interpolant learns both ends: samples started at x1 land on the law of x0."""
    x0 = rd.exact.GaussianMixture([0.5, 0.5], [[-2.0, 0.0], [2.0, 0.0]], [0.1, 0.1]).sample(800).float()
    x1 = rd.exact.GaussianMixture([1.0], [[0.0, 6.0]], [0.3]).sample(500).float()
    process = rd.Interpolant("linear")
    denoiser = rd.fit(
        process,
        x0,
        x1=x1,
        scale="none",
        steps=400,
        lr=5e-3,
        network_options={"hidden": 64},
        batch_size=128,
        progress=False,
    )
    start = rd.exact.GaussianMixture([1.0], [[0.0, 6.0]], [0.3]).sample(400, seed=9).float()
    run = rd.sample(denoiser, 400, init=start, solver="ddim", eta=1.0, steps=40, progress=False)
    assert float(run.x[:, 1].abs().mean()) < 0.6  # x1 lies at height 6
    right = float((run.x[:, 0] > 0).float().mean())
    assert 0.35 < right < 0.65 and float((run.x[:, 0].abs() - 2).abs().mean()) < 0.6


def test_a_real_valued_condition_is_learned():
    y = torch.rand(600, 1) * 2 - 1
    x = torch.cat([3 * y, -3 * y], 1) + 0.1 * torch.randn(600, 2)
    denoiser = rd.fit(
        rd.RectifiedFlow(),
        x,
        conditions={"y": y},
        steps=300,
        lr=5e-3,
        network_options={"hidden": 64},
        batch_size=128,
        progress=False,
    )
    samples = rd.sample(denoiser, 100, nfe=8, y=torch.full((100, 1), 0.8), guidance=1.2, progress=False).x
    assert abs(float(samples[:, 0].mean()) - 2.4) < 0.7 and abs(float(samples[:, 1].mean()) + 2.4) < 0.7


def test_weights_that_do_not_match_the_configuration_are_named(tmp_path):
    denoiser = rd.fit(rd.VP(), _points(), steps=2, **TINY)
    folder = rd.save(denoiser, tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    name = next(k for k in tensors if tensors[k].ndim == 2)
    save_file({**tensors, name: torch.zeros(3, 3)}, folder / "model.safetensors")
    with pytest.raises(InputError, match="shape"):
        rd.load(folder)


def test_a_configuration_names_registered_things_only(tmp_path):
    folder = rd.save(rd.fit(rd.VP(), _points(), steps=2, **TINY), tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["network"]["name"] = "os.system"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="unknown network"):
        rd.load(folder)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: rd.fit(rd.VP(), "diggits"), "digits"),
        (lambda: rd.fit("vp", "digits"), "takes a process first"),
        (lambda: rd.fit(rd.VP(), _points(), step=3), "Did you mean"),
        (lambda: rd.fit(rd.VP(), _points(), steps=0, **TINY), "steps"),
        (lambda: rd.fit(rd.VP(), _points(), predicts="noize", steps=2, **TINY), "Did you mean 'noise'"),
        (lambda: rd.fit(rd.VP(), torch.full((10, 2), math.nan), steps=2), "nan"),
        (lambda: rd.fit(rd.VP(), torch.zeros(1, 2), steps=2), "at least 2"),
        (lambda: rd.fit(rd.VP(), _points(), conditions={"label": torch.arange(7)}, steps=2), "7 entries"),
        (lambda: rd.fit(rd.Interpolant("linear"), _points(), steps=2), "needs x1="),
        (lambda: rd.fit(rd.VP(), _points(), x1=_points(), steps=2), "leave out x1"),
        (lambda: rd.fit(rd.Masked(4), torch.tensor([[0, 1], [2, 7]]), steps=2), r"7 at \(1, 1\)"),
        (lambda: rd.fit(rd.Masked(4), _points(), steps=2), "tokens"),
        (lambda: rd.load("nowhere/at/all"), "neither a run folder nor a Hub id"),
    ],
)
def test_bad_input_raises_before_any_work(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_an_unfinished_run_cannot_be_loaded(tmp_path):
    folder = rd.save(rd.fit(rd.VP(), _points(), steps=2, **TINY), tmp_path / "model")
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match="not finished"):
        rd.load(folder)


def test_a_repository_of_the_hub_loads_as_a_folder_does(tmp_path, monkeypatch):
    """Through the hub's own code and a cache as it lays one out; nothing is fetched."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    commit = "0123456789abcdef0123456789abcdef01234567"
    cached = tmp_path / "models--someone--points"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text(commit)
    denoiser = rd.fit(rd.VP(), _points(), steps=2, **TINY)
    rd.save(denoiser, cached / "snapshots" / commit)
    words = {"seed": 3, "nfe": 4, "progress": False}
    assert torch.equal(rd.sample(rd.load("someone/points"), 5, **words).x, rd.sample(denoiser.eval(), 5, **words).x)
    with pytest.raises(InputError, match=r"no folder runs/nothing under .* no such repository could be fetched"):
        rd.load("runs/nothing")
    with pytest.raises(InputError, match="could be fetched from the Hub: Repo id must"):
        rd.load("runs/no thing")
