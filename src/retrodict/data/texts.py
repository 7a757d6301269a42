"""Text as windows of tokens: character by character, or by a byte-pair vocabulary.

A text of T tokens becomes the ``(T - length) // stride + 1`` windows of ``length`` tokens that start at multiples of
``stride``; what is left at the end is dropped.  What is held out is the end of the text, never shared with training.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from retrodict.core.errors import InputError, InputTypeError, require
from retrodict.data.codecs import BytePairs, Characters, Codec
from retrodict.data.types import Data, checked

#: Endings of files that are read as text.
TEXTS = (".txt", ".text", ".md", ".rst")


def text(
    source: str | Path | Sequence[str | Path],
    length: int = 64,
    *,
    vocabulary: Any = None,
    stride: int | None = None,
    heldout: int | float | None = None,
    name: str | None = None,
) -> Data:
    """Windows of a text as tokens, with the codec that writes them back.

    Args:
        source: a text as a str; the `Path` of a UTF-8 file, or of a folder, all files of which are read in order; or
            a list of these, one after the other.
        length: tokens of a window.
        vocabulary: None for the characters that occur; a `Codec`, such as ``other.codec`` of another data set; an
            integer of at least 257 for so many byte pairs learned from the text; or the path of a ``tokenizer.json``
            (or a tokenizer of the `tokenizers` package).
        stride: from one window to the next; None is ``length``, windows that do not overlap.
        heldout: how many windows, or which share below 1, to hold out: the end of the text.
        name: what to call it.

    Returns:
        `Data` of layout "tokens", ``levels`` the size of the vocabulary, with ``codec`` and ``decode``.

    Raises:
        InputError: a text too short for two windows, bytes that are no UTF-8 or characters outside a given
            vocabulary (with their place).
        MissingExtraError: byte pairs without the `tokenizers` package.

    >>> data = text("to be or not to be, that is the question", length=4)
    >>> data, data.decode(data.x[:2])
    (Data('text', tokens, (10, 4), levels=14), ['to b', 'e or'])
    """
    stride = length if stride is None else stride
    for what, value in (("length", length), ("stride", stride)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"{what} of the windows of a text is an integer of at least 1, got {value!r}")
    called, whole = _read(source)
    codec = _codec(vocabulary, whole)
    tokens = codec.encode(whole)
    called = name or called
    windows = len(tokens) // length
    require(
        windows >= 2,
        f"{called!r} has {len(tokens)} tokens, too few for two windows of {length}; give more text or a shorter length",
    )
    aside = 0 if heldout is None else _count(heldout, windows)
    split = len(tokens) - aside * length
    data = _windows(tokens[:split], length, stride, codec, called)
    if aside:
        data.heldout = _windows(tokens[split:], length, length, codec, f"{called} held out")
    return checked(data)


def _windows(tokens: Tensor, length: int, stride: int, codec: Codec, name: str) -> Data:
    return Data(tokens.unfold(0, length, stride).clone(), name=name, layout="tokens", levels=codec.size, codec=codec)


def _count(heldout: int | float, windows: int) -> int:
    share = isinstance(heldout, float) and heldout < 1
    count = round(heldout * windows) if share else int(heldout)
    if heldout < 0 or (not share and count != heldout) or windows - count < 2:
        raise InputError(f"heldout={heldout} of {windows} windows; accepted: 0 to {windows - 2}, or a share below 1")
    return count


def _read(source: Any) -> tuple[str, str]:
    """``(name, the whole text)``."""
    if isinstance(source, str):
        return "text", source
    if isinstance(source, Path):
        files = sorted(p for p in source.iterdir() if p.is_file()) if source.is_dir() else [source]
        return source.name, "".join(_file(path) for path in files)
    if isinstance(source, Sequence) and source and all(isinstance(s, str | Path) for s in source):
        return "text", "".join(_read(s)[1] for s in source)
    raise InputTypeError(
        f"a text is a str, the Path of a file or folder, or a list of these; got {type(source).__name__}"
    )


def _file(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no UTF-8 text: byte {error.object[error.start]:#x} at {error.start}") from error


def _codec(vocabulary: Any, whole: str) -> Codec:
    if vocabulary is None:
        return Characters(whole)
    if isinstance(vocabulary, Codec):
        return vocabulary
    if type(vocabulary) is int:
        return BytePairs.learn(whole, vocabulary)
    if isinstance(vocabulary, str | Path):
        return BytePairs.read(vocabulary)
    if hasattr(vocabulary, "to_str"):
        return BytePairs(vocabulary.to_str())
    raise InputTypeError(
        f"vocabulary is a {type(vocabulary).__name__}; accepted: None for characters, a codec, a number of byte pairs, "
        "or the path of a tokenizer.json"
    )
