"""Data sets by name: the digits against scikit-learn's, the toys against the geometry that they claim."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn.datasets import load_digits

from retrodict.core.errors import InputError
from retrodict.data import DATASETS, Data, load_data

TOYS = [name for name in DATASETS if "digits" not in name]


def whole(data: Data, key: str = "x") -> torch.Tensor:
    parts = [data.heldout, data]
    return torch.cat([part.x if key == "x" else part.conditions[key] for part in parts])


@pytest.mark.parametrize("seed", [0, 5])
def test_the_digits_are_those_of_scikit_learn_each_once(seed):
    data = load_data("digits", seed=seed)
    bunch = load_digits()
    assert data.x.shape == (1497, 1, 8, 8) and data.x.dtype == torch.float32
    assert (data.levels, data.classes, data.layout) == (17, {"label": 10}, "image")
    pairs = {(*x.int().flatten().tolist(), int(y)) for x, y in zip(whole(data), whole(data, "label"))}
    expected = {(*x.astype(int).flatten().tolist(), int(y)) for x, y in zip(bunch.images, bunch.target)}
    assert pairs == expected and len(whole(data)) == 1797


def test_the_held_out_digits_never_change():
    """A change of the split is a breaking change: numbers measured on it could no longer be compared."""
    data, bunch = load_data("digits"), load_digits()
    expected = []
    for digit in range(10):
        mine = [i for i, label in enumerate(bunch.target) if label == digit]
        expected += [mine[(2 * k + 1) * len(mine) // 60] for k in range(30)]
    assert torch.equal(data.heldout.x[:, 0], torch.tensor(bunch.images[sorted(expected)]).float())
    assert torch.equal(data.heldout.x, load_data("digits", seed=9).heldout.x)


def test_another_held_out_part_on_request():
    data = load_data("digits", heldout=100, seed=3)
    assert len(data) == 1397 and len(data.heldout) == 100


def test_binary_digits_are_the_digits_thresholded():
    tokens, grey = load_data("binary-digits"), load_data("digits")
    assert tokens.x.dtype == torch.int64 and tokens.levels == 2 and tokens.layout == "tokens"
    assert torch.equal(tokens.x.view(-1, 1, 8, 8), (grey.x > 7).long())
    assert torch.equal(tokens.heldout.x.view(-1, 1, 8, 8), (grey.heldout.x > 7).long())
    assert torch.equal(tokens.conditions["label"], grey.conditions["label"])


def test_some_classes_of_a_data_set():
    data = load_data("digits:3,8")
    assert set(data.conditions["label"].tolist()) == {3, 8} and data.classes == {"label": 10}
    assert len(data.heldout) == 60 and set(data.heldout.conditions["label"].tolist()) == {3, 8}
    assert data.name == "digits:3,8"


@pytest.mark.parametrize("name", TOYS)
def test_toys_are_fixed_by_their_seed(name):
    a, b, c = load_data(name, n=50), load_data(name, n=50), load_data(name, n=50, seed=1)
    assert torch.equal(a.x, b.x) and not torch.equal(a.x, c.x)
    assert len(a) == 50 and torch.isfinite(a.x).all()
    torch.manual_seed(0)
    before = torch.get_rng_state()
    load_data(name, n=5)
    assert torch.equal(before, torch.get_rng_state())


def clean(name: str, **options):
    data = load_data(name, n=4000, noise=0.0, **options)
    return data.x, data.conditions.get("label")


def test_moons_lie_on_two_half_circles():
    x, label = clean("moons")
    centre = torch.stack([label.float(), 0.5 * label], 1)
    torch.testing.assert_close((x - centre).norm(dim=1), torch.ones(4000))
    assert ((x[:, 1] >= -1e-6) == (label == 0))[(x[:, 1] < -0.01) | (x[:, 1] > 0.51)].all()


def test_rings_lie_on_three_circles():
    x, label = clean("rings")
    torch.testing.assert_close(x.norm(dim=1), label + 1.0)
    assert load_data("circles", n=10).classes == {"label": 3}


def test_eight_gaussians_have_the_stated_means_and_deviation():
    data = load_data("eight-gaussians", n=40_000)
    for c in range(8):
        mine = data.x[data.conditions["label"] == c]
        mean = 2 * torch.tensor([math.cos(c * math.pi / 4), math.sin(c * math.pi / 4)])
        # 5 standard errors of a mean (0.2 / sqrt 5000) and of a deviation: 32 looks, false alarm below 1e-4
        assert (mine.mean(0) - mean).abs().max() < 5 * 0.2 / 70
        assert (mine.std(0) - 0.2).abs().max() < 5 * 0.2 / 98


def test_spirals_are_one_another_turned_by_half_a_turn():
    x, label = clean("spirals")
    along = x.norm(dim=1) / 3
    angle = 3 * math.pi * along + math.pi * label
    torch.testing.assert_close(x, 3 * along[:, None] * torch.stack([angle.cos(), angle.sin()], 1), atol=1e-4, rtol=0)


def test_the_swissroll_lies_on_its_spiral():
    x, label = clean("swissroll")
    t = 5 * x.norm(dim=1)
    torch.testing.assert_close(x, t[:, None] / 5 * torch.stack([t.cos(), t.sin()], 1), atol=1e-4, rtol=0)
    assert label is None and t.min() >= 1.5 * math.pi - 1e-3 and t.max() <= 4.5 * math.pi + 1e-3


def test_the_checkerboard_fills_its_dark_squares_evenly():
    x = load_data("checkerboard", n=16_000).x
    square = (x + 2).floor().long()
    assert ((square >= 0) & (square < 4)).all() and (square.sum(1) % 2 == 0).all()
    counts = torch.bincount(4 * square[:, 0] + square[:, 1], minlength=16)
    filled = counts[counts > 0]
    assert len(filled) == 8 and (filled - 2000).abs().max() < 5 * math.sqrt(2000 * 7 / 8)  # 5 standard errors


def test_the_pinwheel_has_five_equal_arms():
    data = load_data("pinwheel", n=50_000)
    turn = 2 * math.pi / 5
    rotation = torch.tensor([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    arms = [data.x[data.conditions["label"] == c].mean(0) for c in range(5)]
    for a, b in zip(arms, [*arms[1:], arms[0]]):
        assert (rotation @ a - b).abs().max() < 0.05  # 5 standard errors of the difference of two means


def test_shapes_have_the_area_of_their_label():
    """The share of the bounding box that is filled tells the classes apart."""
    data = load_data("shapes", n=600)
    assert data.x.shape == (600, 3, 32, 32) and data.levels == 256
    assert torch.equal(data.x, data.x.round()) and data.x.min() >= 0 and data.x.max() <= 255
    assert data.class_names["label"] == ["disc", "square", "triangle", "cross", "ring", "diamond"]
    fill = {0: math.pi / 4, 1: 1.0, 2: 0.5, 3: 0.51, 4: math.pi / 4 * 0.75, 5: 0.5}
    lit = data.x.mean(1) > 95  # between the brightest ground (64) and the darkest colour (128)
    for label, expected in fill.items():
        shares = []
        for image in lit[data.conditions["label"] == label]:
            rows, columns = image.any(1).nonzero(), image.any(0).nonzero()
            box = (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)
            shares.append(float(image.sum() / box))
        assert sum(shares) / len(shares) == pytest.approx(expected, abs=0.06), label


def test_sines_have_the_frequency_of_their_label():
    data = load_data("sines", n=400)
    assert data.x.shape == (400, 64, 2) and data.layout == "series"
    peak = torch.fft.rfft(data.x, dim=1).abs().argmax(1)
    assert torch.equal(peak, (data.conditions["label"] + 1)[:, None].expand(-1, 2))


@pytest.mark.parametrize(
    "what, options, message",
    [
        ("digit", {}, "Did you mean 'digits'"),
        ("digits:3,x", {}, "written as numbers"),
        ("digits:12", {}, "accepted: 0 to 9"),
        ("swissroll:1", {}, "no classes"),
        ("moons", {"n": 1}, "at least 2 samples"),
        ("moons", {"nose": 1}, "cannot be made with"),
        ("digits", {"n": 5}, "cannot be made with"),
        ("digits", {"conditions": {"label": [1]}}, "brings its own"),
        ("digits", {"heldout": 1797}, "accepted: 0 to 1495"),
    ],
)
def test_bad_names_and_options(what, options, message):
    with pytest.raises(InputError, match=message):
        load_data(what, **options)
