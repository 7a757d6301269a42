"""What a data set is once it is loaded: samples in one of four layouts, their conditions, and what is held
out.

| layout | samples | dtype |
|---|---|---|
| vector | (n, d) | float |
| image | (n, channels, height, width) | float, in the units of the source (0..255 for bytes) |
| series | (n, time, channels) | float |
| tokens | (n, length) | int64, 0..levels-1 |
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from retrodict.core.errors import InputError, require
from retrodict.data.codecs import Codec

Layout = Literal["vector", "image", "series", "tokens"]
LAYOUTS: dict[str, str] = {
    "vector": "(n, d)",
    "image": "(n, channels, height, width)",
    "series": "(n, time, channels)",
    "tokens": "(n, length)",
}


@dataclass(repr=False)
class Data:
    """A data set in memory.

    Attributes:
        x: the samples, in the user's units; see the table above.
        conditions: what may be conditioned on, one entry a sample: class numbers (n,) int64, or real (n,
            ...).
        classes: for each condition that is a class number, how many classes there are.
        name: what it was loaded from.
        layout: "vector", "image", "series" or "tokens".
        levels: values lie on 0, 1, ..., levels - 1 (256 for bytes, 17 for the digits; for tokens the size of
            the vocabulary); None for continuous values.
        heldout: samples kept aside for measuring, of the same kind, or None.
        x1: the other end of a process between two data sets, or None.
        class_names: for each class condition that had names, the names in order.
        codec: what tokens stand for, where that is known.
    """

    x: Tensor
    conditions: dict[str, Tensor] = field(default_factory=dict)
    classes: dict[str, int] = field(default_factory=dict)
    name: str = "data"
    layout: Layout = "vector"
    levels: int | None = None
    heldout: Data | None = None
    x1: Tensor | None = None
    class_names: dict[str, list[str]] = field(default_factory=dict)
    codec: Codec | None = None

    def __len__(self) -> int:
        return len(self.x)

    def __repr__(self) -> str:
        facts = [f"{self.name!r}", self.layout, str(tuple(self.x.shape))]
        facts += [f"{name}: {self.classes.get(name, 'real')}" for name in self.conditions]
        if self.levels:
            facts.append(f"levels={self.levels}")
        if self.heldout is not None:
            facts.append(f"heldout={len(self.heldout)}")
        return f"Data({', '.join(facts)})"

    @property
    def paired(self) -> bool:
        """Whether ``x1`` goes with ``x`` sample by sample."""
        return self.x1 is not None and len(self.x1) == len(self.x)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample."""
        return tuple(self.x.shape[1:])

    def tensors(self) -> dict[str, Tensor]:
        """The samples and their conditions by name, as `retrodict.training.train` takes them."""
        ends = {"x": self.x} if self.x1 is None or not self.paired else {"x": self.x, "x1": self.x1}
        return ends | self.conditions

    def take(self, index: Tensor) -> Data:
        """The samples of ``index``, without what is held out."""
        return replace(
            self,
            x=self.x[index],
            conditions={name: value[index] for name, value in self.conditions.items()},
            x1=self.x1[index] if self.x1 is not None and self.paired else self.x1,
            heldout=None,
        )

    def decode(self, tokens: Tensor) -> Any:
        """What tokens ``(n, length)`` stand for: a list of texts, rows of categories, or graphs."""
        if self.codec is None:
            raise InputError(f"{self.name!r} knows no meaning of its values; text, categories and graphs have one")
        return self.codec.decode(tokens)

    def as_tokens(self) -> Data:
        """Images of whole numbers as sequences of tokens, row by row; held-out ones too."""
        require(
            self.layout in ("image", "tokens") and self.levels is not None,
            f"{self.name!r} has the layout {self.layout!r}; images of whole numbers with levels can be tokens",
        )
        part = None if self.heldout is None else self.heldout.as_tokens()
        return checked(replace(self, x=self.x.flatten(1).long(), layout="tokens", heldout=part))

    def select(self, classes: list[int], condition: str = "label") -> Data:
        """Only the samples of some classes, held-out ones too; class numbers keep their meaning."""
        if condition not in self.classes:
            raise InputError(f"{self.name!r} has no classes {condition!r}, so none can be selected")
        wrong = [c for c in classes if not 0 <= c < self.classes[condition]]
        require(
            bool(classes) and not wrong,
            f"classes {wrong or classes} of {self.name!r}; accepted: 0 to {self.classes[condition] - 1}",
        )
        chosen = torch.isin(self.conditions[condition], torch.tensor(classes)).nonzero()[:, 0]
        part = self.take(chosen)
        part.name = f"{self.name}:{','.join(map(str, classes))}"
        part.heldout = self.heldout.select(classes, condition) if self.heldout is not None else None
        return checked(part)


def checked(data: Data) -> Data:
    """The data set itself, once everything that a training run relies on has been verified.

    Raises:
        InputError: fewer than two samples, values that are not finite (with their place), tokens or labels
            out of range, or conditions of another length.
    """
    x = data.x
    require(
        len(x) >= 2,
        f"{data.name!r} has {len(x)} sample{'s' if len(x) != 1 else ''} of shape {data.shape}; at least 2 "
        "are needed, with the samples along the first axis (for one sample, repeat it)",
    )
    require(x.numel() > 0, f"{data.name!r} has samples of shape {data.shape}, which hold no value")
    require_finite(x, data.name)
    if data.layout == "tokens":
        low, high = int(x.min()), int(x.max())
        require(low >= 0, f"{data.name!r} has the token {low}; tokens are numbers from 0 up")
        require(
            data.levels is None or high < data.levels,
            f"{data.name!r} has the token {high}, out of range for a vocabulary of {data.levels}: 0 to "
            f"{(data.levels or 0) - 1}",
        )
    for name, value in data.conditions.items():
        require(
            len(value) == len(x),
            f"condition {name!r} has {len(value)} entries for {len(x)} samples of {data.name!r}; give one "
            "entry for each sample, in the same order",
        )
        require_finite(value, f"{data.name}, condition {name}")
        if name in data.classes:
            _require_labels(value, data.classes[name], name)
    if data.x1 is not None:
        require_finite(data.x1, f"{data.name}, other end x1")
    return data


def require_finite(x: Tensor, what: str) -> None:
    """Raise with the place of the first value that is NaN or infinite."""
    if not x.is_floating_point():
        return
    finite = torch.isfinite(x)
    if bool(finite.all()):
        return
    place = tuple((~finite).nonzero()[0].tolist())
    rows = int((~finite).flatten(1).any(1).sum()) if x.ndim > 1 else int((~finite).sum())
    raise InputError(
        f"{what!r} holds {x[place].item()} at row {place[0]} (index {place}); {rows} of {len(x)} rows are "
        "affected; values must be finite: drop those rows or fill them in"
    )


def _require_labels(value: Tensor, count: int, name: str) -> None:
    wrong = ((value < 0) | (value >= count)).nonzero()[:, 0]
    if len(wrong):
        row = int(wrong[0])
        raise InputError(
            f"condition {name!r} is {int(value[row])} at row {row}, out of range for {count} classes: "
            f"accepted 0 to {count - 1}; {len(wrong)} rows are affected"
        )
