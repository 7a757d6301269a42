"""The user's own data: every source gives the same `Data`, and what cannot be used is refused."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from retrodict.core.errors import InputError, InputTypeError
from retrodict.data import load_data

RNG = np.random.default_rng(0)
POINTS = RNG.normal(size=(12, 3)).astype(np.float32)
LABEL = np.arange(12) % 4
PIXELS = RNG.integers(0, 256, size=(12, 3, 8, 6), dtype=np.uint8)  # height 8, width 6


# -- layouts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "x, layout, shape, levels",
    [
        (POINTS, "vector", (12, 3), None),
        (POINTS[:, 0].astype(np.float64), "vector", (12, 1), None),
        (POINTS.reshape(6, 2, 3), "series", (6, 2, 3), None),
        (PIXELS, "image", (12, 3, 8, 6), 256),
        (PIXELS[:, 0], "image", (12, 1, 8, 6), 256),
        (PIXELS.astype(np.float32) / 255, "image", (12, 3, 8, 6), None),
        (PIXELS.astype(np.int64) // 16, "image", (12, 3, 8, 6), 16),
        (PIXELS.transpose(0, 2, 3, 1), "image", (12, 3, 8, 6), 256),
        (LABEL.reshape(4, 3), "tokens", (4, 3), 4),
        (LABEL.reshape(4, 3) > 1, "tokens", (4, 3), 2),
        (torch.zeros(5, 3, 3, 3), "image", (5, 3, 3, 3), None),
        (torch.zeros(5, 16, 8, 8), "image", (5, 16, 8, 8), None),
        ([[1.0, 2.0], [3.0, 4.0]], "vector", (2, 2), None),
        (np.arange(6, dtype=np.uint16).reshape(3, 2), "tokens", (3, 2), 6),
    ],
)
def test_layouts_are_inferred(x, layout, shape, levels):
    data = load_data(x)
    assert (data.layout, tuple(data.x.shape), data.levels) == (layout, shape, levels)
    assert data.x.dtype == (torch.int64 if layout == "tokens" else torch.float32)
    expected = np.asarray(x)
    if expected.shape == (12, 8, 6, 3):
        expected = expected.transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(
        data.x.numpy().reshape(-1), expected.astype(np.float64).reshape(-1).astype(np.float32)
    )


def test_layouts_can_be_named():
    grey = load_data(torch.rand(5, 8, 8), layout="image")
    assert grey.x.shape == (5, 1, 8, 8) and grey.layout == "image"
    assert load_data(torch.rand(5, 8), layout="series").x.shape == (5, 8, 1)
    assert load_data(torch.ones(5, 8), layout="tokens").x.dtype == torch.int64
    assert load_data(LABEL.reshape(4, 3), layout="vector").layout == "vector"
    assert load_data(LABEL.reshape(4, 3), levels=9).levels == 9
    assert load_data(POINTS, dtype=torch.float64).x.dtype == torch.float64


def test_channels_that_cannot_be_told_are_asked_for():
    with pytest.raises(InputError, match="channels='first' or channels='last'"):
        load_data(torch.rand(5, 4, 4, 3))
    assert load_data(torch.rand(5, 4, 4, 3), channels="last").x.shape == (5, 3, 4, 4)
    assert load_data(torch.rand(5, 4, 4, 3), channels="first").x.shape == (5, 4, 4, 3)


def test_the_users_array_is_not_shared():
    mine = POINTS.copy()
    data = load_data(mine)
    mine[:] = 0
    assert not (data.x == 0).any()
    tensor = torch.ones(3, 2)
    data = load_data(tensor)
    tensor.zero_()
    assert (data.x == 1).all()


# -- conditions and the held-out part ------------------------------------------------------------------------


def test_conditions():
    names = np.array(["cat", "ant", "bee"])[np.arange(12) % 3]
    data = load_data(
        POINTS,
        conditions={"label": LABEL, "kind": names.tolist(), "size": POINTS[:, :2], "on": LABEL > 1},
        classes={"label": 9},
    )
    assert data.classes == {"label": 9, "kind": 3, "on": 2}
    assert data.class_names == {"kind": ["ant", "bee", "cat"]}
    assert data.conditions["kind"][:3].tolist() == [2, 0, 1]
    assert data.conditions["size"].dtype == torch.float32 and data.conditions["size"].shape == (12, 2)
    assert list(data.tensors()) == ["x", "label", "kind", "size", "on"]


@pytest.mark.parametrize("heldout, counts", [(8, [4, 2, 2]), (0.2, [2, 1, 1]), (7, [3, 2, 2])])
def test_the_held_out_part_is_drawn_evenly(heldout, counts):
    x = torch.arange(20.0)[:, None]
    label = torch.tensor([0] * 10 + [1] * 5 + [2] * 5)
    data = load_data({"x": x, "label": label}, heldout=heldout)
    assert torch.bincount(data.heldout.conditions["label"]).tolist() == counts
    assert sorted(torch.cat([data.x, data.heldout.x])[:, 0].tolist()) == list(range(20))
    assert torch.equal(data.x[:, 0] // 5 >= 2, data.conditions["label"] >= 1)  # each its own label
    again, other = (load_data({"x": x, "label": label}, heldout=heldout, seed=s) for s in (0, 1))
    assert torch.equal(again.heldout.x, data.heldout.x) and not torch.equal(other.heldout.x, data.heldout.x)


def test_the_other_end():
    paired = load_data(POINTS, x1=POINTS + 1, heldout=2)
    assert "x1" in paired.tensors()
    torch.testing.assert_close(paired.x1, paired.x + 1)
    torch.testing.assert_close(paired.heldout.x1, paired.heldout.x + 1)
    loose = load_data({"x": POINTS, "x1": POINTS[:5]})
    assert len(loose.x1) == 5 and "x1" not in loose.tensors()


# -- sources -------------------------------------------------------------------------------------------------


def test_arrays_on_disk(tmp_path):
    np.save(tmp_path / "a.npy", POINTS)
    np.savez(tmp_path / "a.npz", x=POINTS, label=LABEL)
    np.savez(tmp_path / "b.npz", points=POINTS, y=LABEL)
    assert torch.equal(load_data(tmp_path / "a.npy").x, torch.tensor(POINTS))
    for name, key in [("a.npz", "label"), ("b.npz", "y")]:
        data = load_data(str(tmp_path / name))
        assert torch.equal(data.x, torch.tensor(POINTS)) and data.classes == {key: 4}
    assert load_data(tmp_path / "b.npz", column="points", conditions="y").classes == {"y": 4}


def test_tables(tmp_path):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    frame = pandas.DataFrame(POINTS, columns=["a", "b", "c"])
    frame["label"] = pandas.Categorical(np.array(["u", "v", "w", "z"])[LABEL])
    frame["extra"] = np.arange(12) / 2
    frame.to_csv(tmp_path / "t.csv", index=False)
    frame.to_parquet(tmp_path / "t.parquet")
    for source in (frame, tmp_path / "t.csv", tmp_path / "t.parquet"):
        data = load_data(source, conditions=["label", "extra"])
        torch.testing.assert_close(data.x, torch.tensor(POINTS))
        assert data.classes == {"label": 4} and data.class_names == {"label": ["u", "v", "w", "z"]}
        assert torch.equal(data.conditions["label"], torch.tensor(LABEL))
        assert torch.equal(data.conditions["extra"], torch.arange(12) / 2)
    nested = pandas.DataFrame({"series": [p.reshape(3, 1).tolist() for p in POINTS], "y": LABEL})
    nested.to_parquet(tmp_path / "n.parquet")
    for source in (nested, tmp_path / "n.parquet"):
        data = load_data(source)
        assert data.layout == "series" and data.x.shape == (12, 3, 1) and data.classes == {"y": 4}
        torch.testing.assert_close(data.x[:, :, 0], torch.tensor(POINTS))


def make_folder(root, images, names):
    for number, (image, name) in enumerate(zip(images, names)):
        (root / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(root / name / f"{number:03}.png")


def test_image_folders(tmp_path):
    channels_last = PIXELS.transpose(0, 2, 3, 1)
    make_folder(tmp_path / "classes", channels_last, np.array(["cat", "ant"])[np.arange(12) % 2])
    data = load_data(tmp_path / "classes")
    assert data.classes == {"label": 2} and data.class_names == {"label": ["ant", "cat"]}
    assert data.levels == 256
    assert torch.equal(data.x, torch.tensor(np.concatenate([PIXELS[1::2], PIXELS[::2]])).float())
    make_folder(tmp_path, channels_last[:, :, :, 0], ["flat"] * 12)
    grey = load_data(tmp_path / "flat")
    assert grey.x.shape == (12, 1, 8, 6) and grey.conditions == {}
    assert torch.equal(grey.x[:, 0], torch.tensor(PIXELS[:, 0]).float())
    assert load_data(tmp_path / "flat", size=4).x.shape == (12, 1, 4, 4)


def test_datasets_objects():
    datasets = pytest.importorskip("datasets")
    label = datasets.ClassLabel(names=["no", "yes"])
    features = datasets.Features({"picture": datasets.Image(), "label": label})
    rows = {"picture": [Image.fromarray(p.transpose(1, 2, 0)) for p in PIXELS], "label": (LABEL % 2).tolist()}
    pictures = datasets.Dataset.from_dict(rows, features=features)
    data = load_data(pictures)
    assert torch.equal(data.x, torch.tensor(PIXELS).float()) and data.levels == 256
    assert data.classes == {"label": 2} and data.class_names == {"label": ["no", "yes"]}
    both = load_data(datasets.DatasetDict({"train": pictures, "test": pictures.select(range(4))}))
    assert len(both) == 12 and len(both.heldout) == 4
    assert len(load_data(datasets.DatasetDict({"train": pictures, "test": pictures}), split="test")) == 12
    numbers = datasets.Dataset.from_dict({"a": POINTS[:, 0], "b": POINTS[:, 1], "target": LABEL})
    data = load_data(numbers)
    torch.testing.assert_close(data.x, torch.tensor(POINTS[:, :2]))
    assert data.classes == {"target": 4}
    vectors = datasets.Dataset.from_dict({"emb": POINTS.tolist(), "id": list(range(12))})
    torch.testing.assert_close(load_data(vectors, column="emb").x, torch.tensor(POINTS))
    with pytest.raises(InputTypeError, match="streamed"):
        load_data(numbers.to_iterable_dataset())
    with pytest.raises(InputError, match=r"parts \['train'\], not 'test'"):
        load_data(datasets.DatasetDict({"train": numbers}), split="test")


def test_hub_ids_go_to_the_hub(monkeypatch):
    datasets = pytest.importorskip("datasets")
    asked = []

    def load_dataset(name):
        asked.append(name)
        points = datasets.Dataset.from_dict({"a": POINTS[:, 0], "label": LABEL})
        return datasets.DatasetDict({"train": points})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert len(load_data("someone/points")) == 12 and asked == ["someone/points"]


# -- bad input -----------------------------------------------------------------------------------------------


def with_value(value, *place):
    x = POINTS.copy()
    x[place] = value
    return x


@pytest.mark.parametrize(
    "what, options, message",
    [
        (with_value(math.nan, 7, 1), {}, r"nan at row 7 \(index \(7, 1\)\); 1 of 12 rows"),
        (with_value(math.inf, slice(3, 5), 0), {}, r"inf at row 3 \(index \(3, 0\)\); 2 of 12 rows"),
        (POINTS, {"conditions": {"w": np.full(12, math.nan)}}, r"condition w.* nan at row 0"),
        (POINTS, {"conditions": {"label": LABEL[:-1]}}, "11 entries for 12 samples"),
        (
            POINTS,
            {"conditions": {"label": LABEL}, "classes": {"label": 3}},
            "is 3 at row 3, out of range for 3 classes",
        ),
        (POINTS, {"conditions": {"label": LABEL - 1}}, "is -1 at row 0, out of range"),
        (POINTS, {"conditions": {"label": 3}}, "give one entry for each sample"),
        (POINTS, {"conditions": {"label": np.zeros((12, 2), int)}}, "one whole number a sample"),
        (POINTS, {"conditions": {"label": POINTS[:, 0]}, "classes": {"label": 3}}, "give integers"),
        (POINTS, {"conditions": {"x": LABEL}}, "cannot name a condition"),
        (POINTS, {"classes": {"lable": 3}}, "which are no conditions"),
        (POINTS, {"conditions": 5}, "arrays by name"),
        (POINTS[:1], {}, "has 1 sample of shape"),
        (np.zeros((0, 3)), {}, "has 0 samples"),
        (np.zeros((4, 0)), {}, "hold no value"),
        (np.array([{}, []], dtype=object), {}, "dtype object"),
        ([[1.0], [1.0, 2.0]], {}, "one shape"),
        (np.array(["a", "b"]), {}, "turn text into numbers"),
        (np.zeros((2, 3, 4, 5, 6)), {}, "no layout that can be told apart"),
        (np.zeros((2, 3, 4), int), {}, "no layout that can be told apart"),
        (POINTS, {"layout": "image"}, "layout 'image' is"),
        (POINTS, {"layout": "picture"}, "layout='picture'; accepted"),
        (POINTS, {"layout": "tokens"}, "holds fractions"),
        (LABEL.reshape(4, 3) - 1, {}, "the token -1"),
        (LABEL.reshape(4, 3), {"levels": 2}, "out of range for a vocabulary of 2"),
        (PIXELS.astype(int), {"levels": 17}, "out of range for levels=17"),
        (PIXELS, {"channels": "middle"}, "channels='middle'"),
        (POINTS, {"heldout": 11}, "accepted: 0 to 10"),
        (POINTS, {"heldout": -1}, "accepted: 0 to 10"),
        (POINTS, {"heldout": 2.5}, "accepted: 0 to 10"),
        (POINTS, {"x1": PIXELS}, "x1"),
        (POINTS, {"x1": with_value(math.nan, 0, 0)}, "other end x1"),
        (POINTS, {"noise": 3}, "unknown options"),
        (POINTS, {"column": "a"}, "an array has no columns"),
        ({"points": POINTS, "more": POINTS}, {}, "no entry named 'x'"),
        ({"points": POINTS, "more": POINTS}, {"column": "point"}, "Did you mean 'points'"),
        (3.5, {}, "data is a float"),
        ("nowhere/file.npy", {}, "does not exist"),
        ("/nowhere/at/all", {}, "does not exist"),
    ],
)
def test_bad_data_is_refused(what, options, message):
    with pytest.raises((InputError, InputTypeError), match=message):
        load_data(what, **options)


def test_bad_files_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    class Bomb:
        def __reduce__(self):
            return (open, ("exploded", "w"))

    np.save(tmp_path / "o.npy", np.array([Bomb()], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "o.npz", x=np.array([Bomb()], dtype=object))
    (tmp_path / "p.npy").write_bytes(pickle.dumps(Bomb()))
    (tmp_path / "p.pt").write_bytes(pickle.dumps(Bomb()))
    (tmp_path / "cut.npy").write_bytes(b"\x93NUMPY\x01")
    (tmp_path / "notes.doc").write_text("")
    (tmp_path / "empty").mkdir()
    (tmp_path / "one" / "a").mkdir(parents=True)
    for name, message in [
        ("o.npy", "never opened"),
        ("o.npz", "never opened"),
        ("p.npy", "never opened"),
        ("p.pt", "is a pickle"),
        ("cut.npy", "cannot be read"),
        ("notes.doc", r"ending '\.doc'; accepted: \.csv, \.md, \.npy, \.npz, \.parquet"),
        ("empty", "holds no images"),
        ("one", "in its 1 subfolders"),
    ]:
        with pytest.raises(InputError, match=message):
            load_data(tmp_path / name)
    assert not (tmp_path / "exploded").exists()


def test_bad_image_folders_are_refused(tmp_path):
    make_folder(tmp_path, PIXELS.transpose(0, 2, 3, 1)[:4], ["a", "a", "b", "b"])
    Image.fromarray(PIXELS[0, 0, :5]).save(tmp_path / "b" / "odd.png")
    with pytest.raises(InputError, match=r"differ in size: .*a/000\.png is 6x8, .*b/odd\.png is 6x5.*size=6"):
        load_data(tmp_path)
    (tmp_path / "b" / "odd.png").write_text("no image")
    with pytest.raises(InputError, match=r"odd\.png cannot be read"):
        load_data(tmp_path)
    (tmp_path / "b" / "odd.png").unlink()
    (tmp_path / "c").mkdir()
    with pytest.raises(InputError, match=r"classes without images: \['c'\]"):
        load_data(tmp_path)


def test_bad_tables_are_refused():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"a": [1.0, math.nan, 2.0], "label": [0, 1, 0]})
    with pytest.raises(InputError, match="nan at row 1"):
        load_data(frame)
    with pytest.raises(InputError, match=r"no column 'lable'.*Did you mean 'label'"):
        load_data(frame, conditions=["lable"])
    with pytest.raises(InputError, match=r"\['name'\] that hold no numbers"):
        load_data(pandas.DataFrame({"a": [1.0, 2.0], "name": ["u", "v"]}))
    with pytest.raises(InputTypeError, match="unequal shape"):
        load_data(pandas.DataFrame({"s": [[1.0], [1.0, 2.0]]}))
