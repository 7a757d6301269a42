"""Codecs: what the tokens of a data set stand for, kept with the data and with every model trained on them.

A codec is plain values (`Codec.config`), so that it is saved in a run's configuration and needs no pickle.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from retrodict.core.errors import InputError, InputTypeError, optional_import, require
from retrodict.core.registry import Registry

#: Every codec by name; a saved model may name nothing else.
codecs: Registry[type[Codec]] = Registry("codec")


class Codec:
    """A vocabulary: tokens 0..size-1 and what they stand for.

    Attributes:
        name: in the registry `codecs`.
        network: name of the network that suits these tokens, "auto" if any will do; ``network_options`` are its.
    """

    name: ClassVar[str]
    network: ClassVar[str] = "auto"

    @property
    def size(self) -> int:
        """Number of tokens."""
        raise NotImplementedError

    @property
    def network_options(self) -> dict[str, Any]:
        """What ``network`` must be told of these tokens."""
        return {}

    def encode(self, value: Any) -> Tensor:
        """What is to be written, as int64 tokens."""
        raise NotImplementedError

    def decode(self, tokens: Tensor) -> Any:
        """What tokens ``(n, length)`` or ``(length,)`` stand for; raises for tokens outside the vocabulary."""
        raise NotImplementedError

    def config(self) -> dict[str, Any]:
        """Plain values from which `make_codec` rebuilds it."""
        raise NotImplementedError

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Codec) and self.config() == other.config()

    def __hash__(self) -> int:
        return hash((self.name, self.size))

    def __repr__(self) -> str:
        return f"{type(self).__name__}(size={self.size})"


def make_codec(config: Mapping[str, Any] | None) -> Codec | None:
    """A codec from its configuration; only registered names load."""
    if config is None:
        return None
    return codecs[config["name"]](**{key: value for key, value in config.items() if key != "name"})


def check_tokens(tokens: Tensor, size: int, holes: bool = False) -> Tensor:
    """Integers in 0..size-1, the first wrong one named with its place; with ``holes`` also ``size``, a mask."""
    if not isinstance(tokens, Tensor) or tokens.is_floating_point() or tokens.ndim not in (1, 2):
        given = f"{tuple(tokens.shape)}, {tokens.dtype}" if isinstance(tokens, Tensor) else type(tokens).__name__
        raise InputTypeError(f"tokens are integers (n, length) or (length,); got {given}")
    wrong = ((tokens < 0) | (tokens >= size + holes)).nonzero()
    if len(wrong):
        place = tuple(wrong[0].tolist())
        raise InputError(f"token {int(tokens[place])} at {place} is outside the vocabulary 0..{size - 1}")
    return tokens


class _Written(Codec):
    """A codec whose tokens are pieces of text."""

    def decode(self, tokens: Tensor, hole: str = "_") -> Any:
        """One text, or a list of them; a mask token, the number ``size``, is written as ``hole``."""
        check_tokens(tokens, self.size, holes=True)
        rows = tokens.cpu().reshape(-1, tokens.shape[-1]).tolist()
        texts = [self._join(row, hole) for row in rows]
        return texts if tokens.ndim == 2 else texts[0]

    def _join(self, row: list[int], hole: str) -> str:
        raise NotImplementedError


@codecs.register("characters")
class Characters(_Written):
    """One token a character.

    Args:
        symbols: the characters; they are numbered in the order of their code points.
    """

    name = "characters"

    def __init__(self, symbols: str) -> None:
        self.symbols = "".join(sorted(set(symbols)))
        require(len(self.symbols) >= 2, f"a vocabulary has at least 2 characters, got {self.symbols!r}")
        self._points = _code_points(self.symbols)

    @property
    def size(self) -> int:
        return len(self.symbols)

    def encode(self, value: str) -> Tensor:
        """A text as tokens ``(length,)``."""
        points = _code_points(_as_text(value))
        place = np.searchsorted(self._points, points).clip(max=self.size - 1)
        wrong = np.flatnonzero(self._points[place] != points)
        if len(wrong):
            at = int(wrong[0])
            raise InputError(
                f"the character {value[at]!r} at position {at} is not in the vocabulary of {self.size} characters; "
                f"{len(wrong)} characters are affected: take the vocabulary of all texts, or leave it out"
            )
        return torch.from_numpy(place.astype(np.int64))

    def _join(self, row: list[int], hole: str) -> str:
        return "".join(self.symbols[token] if token < self.size else hole for token in row)

    def config(self) -> dict[str, Any]:
        return {"name": self.name, "symbols": self.symbols}


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)


def _as_text(value: Any) -> str:
    if not isinstance(value, str):
        raise InputTypeError(f"a text is a str, got {type(value).__name__}")
    return value


@codecs.register("byte-pairs")
class BytePairs(_Written):
    """The vocabulary of a tokenizer of the `tokenizers` package (extra "text").

    Args:
        tokenizer: its JSON, as ``tokenizer.to_str()`` or a file ``tokenizer.json`` has it.
    """

    name = "byte-pairs"

    def __init__(self, tokenizer: str) -> None:
        tokenizers: Any = optional_import("tokenizers", "text")
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(tokenizer)
        except Exception as error:  # the package raises plain Exception
            raise InputError(f"this is no tokenizer in the JSON of the tokenizers package: {error}") from error
        self.tokenizer = tokenizer

    @classmethod
    def read(cls, path: str | Path) -> BytePairs:
        """From a file ``tokenizer.json``."""
        if not Path(path).is_file():
            raise InputError(f"{path} is no file; give the path of a tokenizer.json")
        return cls(Path(path).read_text(encoding="utf-8"))

    @classmethod
    def learn(cls, text: str, size: int) -> BytePairs:
        """Byte-pair merges learned from a text (Sennrich et al. 2016) until there are ``size`` tokens, 257 or more;
        the 256 bytes are tokens, so that any text can be written."""
        tokenizers: Any = optional_import("tokenizers", "text")
        require(size >= 257, f"a byte-pair vocabulary has the 256 bytes and merges of them; got size {size}")
        made = tokenizers.Tokenizer(tokenizers.models.BPE())
        bytes_ = tokenizers.pre_tokenizers.ByteLevel
        made.pre_tokenizer, made.decoder = bytes_(add_prefix_space=False), tokenizers.decoders.ByteLevel()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=size, initial_alphabet=bytes_.alphabet(), show_progress=False
        )
        made.train_from_iterator([_as_text(text)], trainer)
        return cls(made.to_str())

    @property
    def size(self) -> int:
        return self._tokenizer.get_vocab_size()

    def encode(self, value: str) -> Tensor:
        """A text as tokens ``(length,)``."""
        return torch.tensor(self._tokenizer.encode(_as_text(value), add_special_tokens=False).ids, dtype=torch.int64)

    def _join(self, row: list[int], hole: str) -> str:
        parts: list[list[int]] = [[]]
        for token in row:
            if token == self.size:
                parts.append([])
            else:
                parts[-1].append(token)
        return hole.join(self._tokenizer.decode(part, skip_special_tokens=False) for part in parts)

    def config(self) -> dict[str, Any]:
        return {"name": self.name, "tokenizer": self.tokenizer}


@codecs.register("categories")
class Categories(Codec):
    """The columns of a table of categories: one position a column, one token for each distinct value of any of them.

    Args:
        columns: their names.
        values: the distinct values, as text.
    """

    name = "categories"

    def __init__(self, columns: Sequence[str], values: Sequence[str]) -> None:
        self.columns, self.values = [str(c) for c in columns], [str(v) for v in values]
        require(len(set(self.values)) == len(self.values) >= 2, f"at least 2 distinct values, got {self.values[:5]}")
        self._number = {value: k for k, value in enumerate(self.values)}

    @property
    def size(self) -> int:
        return len(self.values)

    def encode(self, value: Sequence[Sequence[Any]]) -> Tensor:
        """Rows of values as tokens ``(n, columns)``."""
        rows = []
        for i, row in enumerate(value):
            require(len(row) == len(self.columns), f"row {i} has {len(row)} values for the {len(self.columns)} columns")
            for name, entry in zip(self.columns, row):
                require(str(entry) in self._number, f"{entry!r} in row {i} of column {name!r} is no known category")
            rows.append([self._number[str(entry)] for entry in row])
        return torch.tensor(rows, dtype=torch.int64)

    def decode(self, tokens: Tensor) -> list[dict[str, str]]:
        """One mapping of column to value a row."""
        check_tokens(tokens, self.size)
        rows = tokens.reshape(-1, tokens.shape[-1]).tolist()
        return [{name: self.values[token] for name, token in zip(self.columns, row)} for row in rows]

    def config(self) -> dict[str, Any]:
        return {"name": self.name, "columns": self.columns, "values": self.values}
