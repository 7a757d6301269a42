"""The feature classifier: accurate on digits, deterministic, bounded, and saved without surprises."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits

from retrodict.core.errors import InputError, InputTypeError
from retrodict.diagnostics.classifier import FeatureClassifier, feature_classifier


@pytest.fixture(scope="module")
def split():
    data = load_digits()
    x, y = torch.tensor(data.images, dtype=torch.float32)[:, None], torch.tensor(data.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    return x[order[300:]], y[order[300:]], x[order[:300]], y[order[:300]]


@pytest.fixture(scope="module")
def trained(split):
    return feature_classifier(split[0], split[1])


@pytest.fixture(scope="module")
def small():
    """Two blobs, far apart, as vectors."""
    g = torch.Generator().manual_seed(0)
    y = torch.arange(100) % 2
    return torch.randn(100, 4, generator=g) + 4.0 * y[:, None], y


def test_it_recognises_held_out_digits(split, trained):
    accuracy = trained.accuracy(split[2], split[3])
    assert accuracy.value >= 0.985 and accuracy.low < accuracy.value < accuracy.high + 1e-12
    assert accuracy.n == (300, 300)


def test_features_are_bounded_standardised_and_not_saturated(split, trained):
    features = trained.features(split[0])
    assert features.shape == (1497, 32)
    assert features.mean(0).abs().max() < 1e-4 and (features.std(0) - 1).abs().max() < 1e-3
    assert features.abs().max() < 6.0
    lifted = features * trained.std + trained.mean
    assert (lifted.abs() > 0.95).float().mean() < 0.05
    far = trained.features(1e6 * split[0][:9])
    assert far.abs().max() <= ((1 + trained.mean.abs()) / trained.std).max()


def test_the_features_see_noise_that_leaves_the_class_alone(split, trained):
    noisy = split[2] + 1.6 * torch.randn(split[2].shape, generator=torch.Generator().manual_seed(0))
    shift = (trained.features(noisy) - trained.features(split[2])).norm(dim=1).mean()
    assert trained.accuracy(noisy, split[3]).value > 0.9 and shift > 1.0


def test_the_seed_decides_and_the_global_generator_does_not(small):
    x, y = small
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = feature_classifier(x, y, seed=5, epochs=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(feature_classifier(x, y, seed=5, epochs=3).features(x), first.features(x))
    assert not torch.equal(feature_classifier(x, y, seed=6, epochs=3).features(x), first.features(x))


def test_vectors_and_arrays_work_and_reloading_changes_nothing(small, tmp_path):
    x, y = small
    model = feature_classifier(x.numpy(), y.numpy(), epochs=20)
    assert model.accuracy(x, y).value > 0.97
    model.save(tmp_path / "new" / "folder")
    again = FeatureClassifier.load(tmp_path / "new" / "folder")
    assert torch.equal(again.features(x), model.features(x)) and torch.equal(again.predict(x), model.predict(x))


def test_bad_files_are_refused(small, tmp_path):
    model = feature_classifier(*small, epochs=1)
    with pytest.raises(InputError, match="no classifier"):
        FeatureClassifier.load(tmp_path)
    model.save(tmp_path)
    weights = load_file(tmp_path / "classifier.safetensors")
    save_file({k: v for k, v in weights.items() if k != "mean"}, tmp_path / "classifier.safetensors")
    with pytest.raises(InputError, match="mean"):
        FeatureClassifier.load(tmp_path)
    saved = json.loads((tmp_path / "classifier.json").read_text())
    (tmp_path / "classifier.json").write_text(json.dumps(saved | {"format": 99}))
    with pytest.raises(InputError, match="format 99"):
        FeatureClassifier.load(tmp_path)
    (tmp_path / "classifier.json").write_text("not json")
    with pytest.raises(InputError, match="no classifier"):
        FeatureClassifier.load(tmp_path)


def test_bad_data_is_refused(small):
    x, y = small
    with pytest.raises(InputTypeError, match="integers"):
        feature_classifier(x, y.float())
    with pytest.raises(InputTypeError, match="integers"):
        feature_classifier(x, y[:9])
    with pytest.raises(InputError, match="channel, height, width"):
        feature_classifier(x[:, :, None], y)
    with pytest.raises(InputError, match="two classes"):
        feature_classifier(x, torch.zeros(100, dtype=torch.int64))
    with pytest.raises(InputError, match="NaN"):
        feature_classifier(x * torch.nan, y)
    model = feature_classifier(x, y, epochs=1)
    with pytest.raises(InputError, match="trained on"):
        model.features(x[:, :3])
    with pytest.raises(InputError, match="NaN"):
        model.predict(x * torch.nan)
    with pytest.raises(InputError, match="labels for 100"):
        model.accuracy(x, y[:99])
