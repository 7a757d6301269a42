"""``invert`` and what it returns: round trips, files, and words that cannot be."""

from __future__ import annotations

import pytest
import torch
from sklearn.datasets import load_digits

import retrodict as rd
from retrodict.core.errors import InputError, InputTypeError
from retrodict.exact import GaussianMixture
from retrodict.processes import VP

LAW = GaussianMixture([0.4, 0.6], [[-1.0, 0.5], [1.0, -0.5]], [0.1, 0.2], labels=[0, 1])
DATA = LAW.sample(8, seed=1)


@pytest.fixture
def denoiser():
    return LAW.denoiser(VP())


def test_bdia_returns_the_data(denoiser):
    found = rd.invert(denoiser, DATA)
    again = rd.sample(denoiser, 8, init=found, progress=False)
    assert float((again.x - DATA).abs().max()) < 1e-12
    assert found.errors["carried"] < 1e-12 < found.errors["start alone"]
    assert found.errors["ddim"] > 1e-3
    assert again.nfe == 19 and found.states.shape == (8, 2, 2)


def test_labels_and_guidance(denoiser):
    labels = torch.tensor([0, 1] * 4)
    found = rd.invert(denoiser, DATA, label=labels, guidance=2.0)
    again = rd.sample(denoiser, 8, init=found, label=labels, guidance=2.0, batch_size=3, progress=False)
    assert float((again.x - DATA).abs().max()) < 1e-11
    other = rd.sample(denoiser, 8, init=found, label=1 - labels, guidance=2.0, progress=False)
    assert float((other.x - DATA).abs().max()) > 0.1


def test_one_label_stands_for_all_and_must_exist(denoiser):
    one, each = (rd.invert(denoiser, DATA, label=label).states for label in (1, torch.ones(8, dtype=torch.long)))
    assert torch.equal(one, each)
    with pytest.raises(InputError, match="label"):
        rd.invert(denoiser, DATA, label=5)
    with pytest.raises(InputError, match="3 values of 'label' for 8 data"):
        rd.invert(denoiser, DATA, label=[0, 1, 0])


def test_images_of_a_rugged_model():
    """Handwritten digits, each blurred by .15: nearly discrete data, in both precisions; DDIM's encoding misses them,
    and so does the first state of the pair alone."""
    data = torch.from_numpy(load_digits(return_X_y=True)[0][:150]) / 8 - 1
    law = GaussianMixture(torch.ones(150), data, torch.full((150,), 0.15**2))
    for dtype, bound in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        found = rd.invert(law.denoiser(VP()).to(dtype), law.sample(8, seed=2).to(dtype))
        assert found.errors["carried"] < bound
        assert found.errors["ddim"] > 0.05 and found.errors["start alone"] > 0.05


@pytest.mark.parametrize("solver", ["ddim", "unipc"])
def test_fixed_point_of_other_solvers(denoiser, solver):
    found = rd.invert(denoiser, DATA, solver=solver)
    assert found.residual is not None and found.states.shape == (8, 1, 2)
    assert float(found.residual.max()) < 1e-12
    again = rd.sample(denoiser, 8, init=found, progress=False)
    assert float((again.x - DATA).abs().max()) < 1e-11


def test_a_float32_network_gives_the_data_back_in_float32():
    """States are carried in float64: the network is asked twice about the same ones, and its roundings cancel.  In
    other batches its answers are rounded differently, which the way back multiplies by some hundreds."""
    torch.manual_seed(0)
    x = LAW.sample(512, seed=2).float()
    network = rd.fit(VP("cosine"), x, steps=60, batch_size=64, seed=0, progress=False)
    found = rd.invert(network, x[:16])
    assert found.states.dtype == torch.float64 and found.errors["carried"] < 1e-7
    again = rd.sample(network, 16, init=found, progress=False).x
    assert again.dtype == torch.float32 and float((again - x[:16]).norm() / x[:16].norm()) < 2e-7
    apart = rd.sample(network, 16, init=found, batch_size=5, progress=False).x
    assert float((apart - x[:16]).norm() / x[:16].norm()) < 1e-4


def test_encoding_is_an_approximation(denoiser):
    found = rd.invert(denoiser, DATA, solver="ddim", method="encode", check=False)
    again = rd.sample(denoiser, 8, init=found, progress=False)
    assert 1e-3 < float((again.x - DATA).abs().max()) < 2.0
    assert found.errors == {}


def test_files(denoiser, tmp_path):
    found = rd.invert(denoiser, DATA)
    found.save(tmp_path / "found.safetensors")
    loaded = rd.Inversion.load(tmp_path / "found.safetensors")
    assert torch.equal(loaded.states, found.states) and loaded.plan == found.plan and loaded.errors == found.errors
    assert float((rd.sample(denoiser, 8, init=loaded, progress=False).x - DATA).abs().max()) < 1e-12
    assert "pairs" in repr(loaded)
    (tmp_path / "broken.safetensors").write_bytes(b"no")
    with pytest.raises(InputError, match="not a readable"):
        rd.Inversion.load(tmp_path / "broken.safetensors")
    with pytest.raises(InputError, match="safetensors"):
        found.save(tmp_path / "found.pt")


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ({"method": "exakt"}, "exact"),
        ({"solver": "ddim", "method": "exact"}, "no exact inverse"),
        ({"solver": "ddpm"}, "noise"),
        ({"end": 0.0}, "sigma = 0"),
    ],
)
def test_words_that_cannot_be(denoiser, words, match):
    with pytest.raises(InputError, match=match):
        rd.invert(denoiser, DATA, **words)


def test_shapes_and_plans_are_checked(denoiser):
    with pytest.raises(InputTypeError, match="tensor"):
        rd.invert(denoiser, [[1.0, 2.0]])  # type: ignore[arg-type]
    with pytest.raises(InputTypeError, match="Plan or a file"):
        rd.invert(denoiser, DATA, plan=3)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="iterations"):
        rd.invert(denoiser, DATA, solver="ddim", iterations=0)
    with pytest.raises(InputError, match="shape"):
        rd.invert(denoiser, DATA[:, :1])
    found = rd.invert(denoiser, DATA, check=False)
    with pytest.raises(InputError, match="brings its own plan"):
        rd.sample(denoiser, 8, init=found, plan=found.plan)
    with pytest.raises(InputError, match="length 8"):
        rd.sample(denoiser, 5, init=found)
