"""Texts, categories and graphs as tokens: nothing is lost on the way there and back, and what is wrong is named."""

from __future__ import annotations

import importlib.util
import string

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import retrodict as rd
from retrodict.core.errors import InputError, InputTypeError
from retrodict.data import BytePairs, Categories, Characters, Graphs, codecs, graphs, make_codec, node_count, text

RHYME = "one two three four five, once I caught a fish alive. six seven eight nine ten, then I let it go again!\n" * 4
needs_tokenizers = pytest.mark.skipif(importlib.util.find_spec("tokenizers") is None, reason="extra text")


# -- texts -------------------------------------------------------------------------------------------------------


def test_windows_are_the_text():
    data = text(RHYME, length=16)
    assert "".join(data.decode(data.x)) == RHYME[: len(RHYME) // 16 * 16]
    assert data.layout == "tokens" and data.levels == len(set(RHYME)) and data.decode(data.x[0]) == RHYME[:16]
    steps = text(RHYME, length=16, stride=5)
    assert all(steps.decode(steps.x[k]) == RHYME[5 * k : 5 * k + 16] for k in range(len(steps)))
    assert len(steps) == (len(RHYME) - 16) // 5 + 1


def test_what_is_held_out_is_the_end_of_the_text():
    """No window of the training part reaches into it, whatever the stride."""
    data = text(string.ascii_letters, length=4, stride=1, heldout=3)
    assert data.heldout is not None
    assert "".join(data.heldout.decode(data.heldout.x)) == string.ascii_letters[-12:]
    assert set(data.x.flatten().tolist()).isdisjoint(data.heldout.x.flatten().tolist())
    assert len(text(RHYME, length=16, heldout=0.25).heldout) == round(0.25 * (len(RHYME) // 16))


@given(st.text(min_size=2).filter(lambda s: len(set(s)) > 1))
@settings(max_examples=60, deadline=None)
def test_characters_there_and_back(words):
    codec = Characters(words)
    assert codec.decode(codec.encode(words)) == words
    assert make_codec(codec.config()) == codec
    assert sorted(codec.encode(codec.symbols).tolist()) == list(range(codec.size))


def test_masks_are_shown_as_holes():
    codec = Characters("abc")
    assert codec.decode(torch.tensor([[0, 3, 2], [3, 3, 1]])) == ["a_c", "__b"]


@needs_tokenizers
def test_byte_pairs(tmp_path):
    """A learned vocabulary writes any text, in fewer tokens than bytes; from a file and from a configuration too."""
    codec = BytePairs.learn(RHYME, 300)
    assert codec.size == 300
    for words in (RHYME, "häßlich 漢字 \n\t🙂", "zzz"):
        assert codec.decode(codec.encode(words)) == words
    assert len(codec.encode(RHYME)) < 0.6 * len(RHYME)
    (tmp_path / "tokenizer.json").write_text(codec.tokenizer)
    (tmp_path / "rhyme.txt").write_text(RHYME)
    data = rd.load_data(tmp_path / "rhyme.txt", length=8, vocabulary=str(tmp_path / "tokenizer.json"))
    assert data.levels == 300 and data.codec == codec == make_codec(codec.config())
    assert RHYME.startswith("".join(data.decode(data.x)))
    again = text(RHYME, 8, vocabulary=data.codec)
    assert torch.equal(again.x, data.x)
    assert codec.decode(torch.tensor([int(codec.encode("o")[0]), 300])) == "o_"


def test_text_files_and_folders(tmp_path):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "b.txt").write_text("world " * 10)
    (tmp_path / "texts" / "a.txt").write_text("hello " * 10)
    both = text(tmp_path / "texts", length=6)
    assert both.decode(both.x) == ["hello "] * 10 + ["world "] * 10
    one = rd.load_data(str(tmp_path / "texts" / "a.txt"), length=6, heldout=2)
    assert len(one) == 8 and one.heldout is not None and one.name == "a.txt"
    joined = text([tmp_path / "texts" / "b.txt", "hello " * 10], length=6)
    assert joined.decode(joined.x)[-1] == "hello "


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda p: text("abc", 4), InputError, "3 tokens, too few for two windows of 4"),
        (lambda p: text(RHYME, 0), InputError, "length of the windows .* got 0"),
        (lambda p: text(RHYME, 8, stride=-1), InputError, "stride .* got -1"),
        (lambda p: text(RHYME, 8, vocabulary=Characters("abc")), InputError, "'o' at position 0 is not in"),
        (lambda p: text(RHYME, 8, heldout=1000), InputError, "heldout=1000 of"),
        (lambda p: text(3), InputTypeError, "got int"),
        (lambda p: text(RHYME, 8, vocabulary=2.5), InputTypeError, "vocabulary is a float"),
        (lambda p: text(RHYME, 8, vocabulary="nowhere.json"), InputError, "nowhere.json is no file"),
        (lambda p: text(p / "bad.txt", 8), InputError, "no UTF-8 text: byte 0xff at 2"),
        (lambda p: text(p / "none.txt", 8), InputError, "cannot be read"),
        (lambda p: rd.load_data(p / "bad.txt", lenght=8), InputError, "Did you mean 'length'"),
        (lambda p: rd.load_data(p / "bad.txt", levels=8), InputError, "levels cannot be given for a text"),
        (lambda p: Characters("aaa"), InputError, "at least 2 characters"),
        (lambda p: Characters("abc").decode(torch.tensor([0, 5])), InputError, r"token 5 at \(1,\)"),
        (lambda p: Characters("abc").decode(torch.tensor([0.5])), InputTypeError, "tokens are integers"),
        (lambda p: make_codec({"name": "charactors"}), InputError, "Did you mean 'characters'"),
        (lambda p: rd.load_data(torch.zeros(4, 2)).decode(torch.zeros(1, 2).long()), InputError, "no meaning"),
    ],
)
def test_texts_that_cannot_be_used(make, error, message, tmp_path):
    (tmp_path / "bad.txt").write_bytes(b"ab\xffcd")
    with pytest.raises(error, match=message):
        make(tmp_path)


@needs_tokenizers
def test_byte_pairs_that_cannot_be_used():
    with pytest.raises(InputError, match="no tokenizer in the JSON"):
        BytePairs("{}")
    with pytest.raises(InputError, match="got size 100"):
        BytePairs.learn(RHYME, 100)


# -- categories --------------------------------------------------------------------------------------------------


def test_a_table_of_categories(tmp_path):
    pytest.importorskip("pandas")
    table = tmp_path / "pets.csv"
    table.write_text("colour,size,legs,label\nred,small,4,1\nblue,large,2,0\nred,large,4,1\n")
    data = rd.load_data(table, layout="tokens")
    assert data.layout == "tokens" and data.x.shape == (3, 3) and data.levels == 6 and data.classes == {"label": 2}
    assert data.decode(data.x[:1]) == [{"colour": "red", "size": "small", "legs": "4"}]
    assert isinstance(data.codec, Categories) and make_codec(data.codec.config()) == data.codec
    assert torch.equal(data.codec.encode([["red", "large", 4]]), data.x[2:])
    with pytest.raises(InputError, match="'green' in row 0 of column 'colour'"):
        data.codec.encode([["green", "large", 4]])
    table.write_text("colour,size\nred,small\n,large\nred,large\n")
    with pytest.raises(InputError, match=r"column 'colour' of pets\.csv has no value in row \[1\]"):
        rd.load_data(table, layout="tokens")
    table.write_text("colour,weight\nred,1.5\nblue,2.5\n")
    with pytest.raises(InputError, match=r"'weight' of pets\.csv holds real numbers"):
        rd.load_data(table, layout="tokens")
    with pytest.raises(InputError, match="layout='tokens'"):
        rd.load_data(table)


# -- integer images ----------------------------------------------------------------------------------------------


def test_integer_images_and_their_tokens():
    images = np.arange(2 * 3 * 3).reshape(2, 1, 3, 3)
    data = rd.load_data(images)
    assert data.layout == "image" and data.levels == 18
    flat = data.as_tokens()
    assert flat.layout == "tokens" and flat.x.tolist() == [list(range(9)), list(range(9, 18))]
    digits = rd.load_data("digits").as_tokens()
    assert digits.heldout is not None and digits.heldout.x.shape == (300, 64) and digits.levels == 17
    with pytest.raises(InputError, match="has the layout 'vector'"):
        rd.load_data(torch.randn(4, 2)).as_tokens()


# -- graphs ------------------------------------------------------------------------------------------------------


@given(st.integers(2, 6), st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_graphs_there_and_back(n, seed):
    g = torch.Generator().manual_seed(seed)
    upper = torch.randint(0, 3, (4, n, n), generator=g).triu(1)
    edges, nodes = upper + upper.mT, torch.randint(0, 2, (4, n), generator=g)
    data = graphs(edges, nodes, node_types=2, edge_types=3)
    assert data.x.shape == (4, n * (n + 1) // 2) and data.levels == 5 and node_count(data.x.shape[1]) == n
    assert all(torch.equal(a, b) for a, b in zip(data.decode(data.x), (nodes, edges)))
    assert make_codec(data.codec.config()) == data.codec and "graphs" in codecs


def test_graphs_keep_their_labels_through_the_door():
    edges = torch.ones(6, 3, 3).long() - torch.eye(3).long()
    data = rd.load_data(graphs(edges, conditions={"label": torch.arange(6) % 2}), heldout=2)
    assert data.classes == {"label": 2} and data.codec == data.heldout.codec and len(data) == 4


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: graphs([[[0, 1], [0, 0]]] * 2), r"type 1 at \(0, 0, 1\) is not that of the reverse pair"),
        (lambda: graphs([[[0, 1], [1, 2]]] * 2), r"type 2 at \(0, 1, 1\) is a loop"),
        (lambda: graphs([[[0, -1], [-1, 0]]] * 2), r"got -1 at \(0, 0, 1\)"),
        (lambda: graphs([[[0, 1], [1, 0]]] * 2, [[0, 0, 0]] * 2), r"nodes have shape \(2, 3\)"),
        (lambda: graphs([[[0, 2], [2, 0]]] * 2, edge_types=2), "edge type 2 occurs, out of range for edge_types=2"),
        (lambda: graphs(torch.zeros(2, 3)), r"\(n, N, N\)"),
        (lambda: Graphs(2, 1, 2).decode(torch.tensor([[0, 1, 1]])), r"token 1 at \(0, 1\) is an edge type at a node"),
        (lambda: Graphs(2, 1, 2).decode(torch.tensor([[0, 0, 0]])), r"token 0 at \(0, 2\) is a node type at an edge"),
        (lambda: node_count(5), "got 5"),
    ],
)
def test_graphs_that_cannot_be_used(make, message):
    with pytest.raises(InputError, match=message):
        make()
