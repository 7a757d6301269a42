"""Which samples a step sees: an endless shuffled stream, cut into batches.

The stream is the concatenation of one permutation of the data for each epoch, keyed by ``(seed, epoch)``;
step k reads positions ``[k B, (k+1) B)`` of it.  Nothing is dropped at the end of an epoch, a batch may span
two, and step k can be produced without the steps before it, which is what makes a resumed run exact.  With
several processes or accumulation the B positions are cut into equal parts, so the union is the same batch.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from retrodict.core.errors import InputError, InputTypeError
from retrodict.training.keys import StepKeys, key, keyed_globals

Batch = dict[str, Tensor]


class IndexStream:
    """The endless shuffled stream of indices of ``n`` samples.

    Args:
        n: number of samples, at least 1.
        seed: with the epoch, the key of each permutation.
        device: where the indices are wanted.
    """

    def __init__(self, n: int, seed: int, device: torch.device | str = "cpu") -> None:
        self.n, self.seed, self.device = n, seed, torch.device(device)
        self._epochs: dict[int, Tensor] = {}

    def epoch(self, number: int) -> Tensor:
        """The permutation of epoch ``number``, shape (n,); the two latest are kept."""
        if number not in self._epochs:
            generator = torch.Generator().manual_seed(key(self.seed, "epoch", number))
            self._epochs[number] = torch.randperm(self.n, generator=generator).to(self.device)
            while len(self._epochs) > 2:
                del self._epochs[next(iter(self._epochs))]
        return self._epochs[number]

    def read(self, start: int, stop: int) -> Tensor:
        """Positions ``start`` to ``stop`` of the stream, shape (stop - start,)."""
        first, offset = divmod(start, self.n)
        if offset + stop - start <= self.n:
            return self.epoch(first).narrow(0, offset, stop - start)
        pieces = []
        while start < stop:
            number, offset = divmod(start, self.n)
            take = min(self.n - offset, stop - start)
            pieces.append(self.epoch(number).narrow(0, offset, take))
            start += take
        return torch.cat(pieces)


@dataclass(frozen=True)
class Split:
    """How the B samples of a step are shared: ``ranks`` processes, ``parts`` micro-batches on each."""

    batch_size: int
    ranks: int = 1
    rank: int = 0
    parts: int = 1

    def __post_init__(self) -> None:
        pieces = self.ranks * self.parts
        if self.batch_size < 1 or self.batch_size % pieces:
            raise InputError(
                f"batch_size={self.batch_size} cannot be cut into {self.ranks} processes x {self.parts} "
                "accumulated parts; it counts the samples of one update over all of them; give a multiple "
                f"of {pieces}"
            )

    def span(self, step: int, part: int) -> tuple[int, int]:
        """The positions of the stream that this rank reads for micro-batch ``part`` of ``step``."""
        size = self.batch_size // (self.ranks * self.parts)
        start = step * self.batch_size + (part * self.ranks + self.rank) * size
        return start, start + size


class TensorSource:
    """Batches of in-memory tensors by direct indexing: no workers, no collation, no copies but the batch.

    The tensors are moved to ``device`` once when they fit in half of its free memory.
    """

    def __init__(self, tensors: Mapping[str, Tensor], split: Split, seed: int, device: torch.device) -> None:
        self.length = _common_length(tensors)
        self.split, self.device = split, device
        resident = device if _fits(tensors, device) else torch.device("cpu")
        self.tensors = {name: value.detach().to(resident) for name, value in tensors.items()}
        self.stream = IndexStream(self.length, seed, resident)
        self.moves = resident != device

    def describe(self) -> dict[str, Any]:
        """What a checkpoint remembers of the data, to notice that a resumed run has other data."""
        return {name: [str(value.dtype).removeprefix("torch."), *value.shape] for name, value in self.tensors.items()}

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """Every micro-batch of steps ``start`` to ``stop``, in order."""
        for step in range(start, stop):
            for part in range(self.split.parts):
                index = self.stream.read(*self.split.span(step, part))
                batch = {name: value.index_select(0, index) for name, value in self.tensors.items()}
                yield _to(batch, self.device) if self.moves else batch


class DatasetSource:
    """Batches of a map-style `torch.utils.data.Dataset` through a DataLoader.

    Each item is a mapping of names to tensors, or one tensor, which is named ``"x"``.  A batch is one item of
    the loader and its random state is keyed by the step, so that augmentation resumes exactly too, with any
    number of workers.
    """

    def __init__(self, data: Dataset, split: Split, seed: int, device: torch.device, workers: int) -> None:
        self.length = len(data)  # pyright: ignore[reportArgumentType]  # map-style, checked by make_source
        if self.length < 1:
            raise InputError("the data set is empty; give at least one sample")
        self.data, self.split, self.seed, self.device, self.workers = data, split, seed, device, workers

    def describe(self) -> dict[str, Any]:
        """What a checkpoint remembers of the data."""
        return {"samples": self.length}

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """Every micro-batch of steps ``start`` to ``stop``, in order."""
        parts = self.split.parts
        loader = DataLoader(
            _KeyedBatches(self.data, self.length, self.split, self.seed),
            sampler=range(start * parts, stop * parts),
            batch_size=None,
            num_workers=self.workers,
            worker_init_fn=_ignore_interrupts,
            generator=torch.Generator(),  # else the loader draws from the random state of the step
            pin_memory=self.device.type == "cuda",
        )
        for batch in loader:
            yield _to(batch, self.device)


def _ignore_interrupts(worker: int) -> None:
    """Ctrl-C reaches every process of a terminal; the training process decides when the workers end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class _KeyedBatches(Dataset):
    """Item k is the whole micro-batch k, built under the random state that belongs to k."""

    def __init__(self, data: Dataset, length: int, split: Split, seed: int) -> None:
        self.data, self.split = data, split
        self.stream = IndexStream(length, seed)
        self.keys = StepKeys(seed, "data", split.rank)

    def __len__(self) -> int:
        return self.stream.n

    def __getitem__(self, item: int) -> Batch:
        index = self.stream.read(*self.split.span(*divmod(item, self.split.parts)))
        with keyed_globals(self.keys(item)):
            return default_collate([_named(self.data[int(i)]) for i in index])


def make_source(
    data: Mapping[str, Tensor] | Dataset, split: Split, seed: int, device: torch.device, workers: int = 0
) -> TensorSource | DatasetSource:
    """The source for what the user gave: named tensors or a map-style data set."""
    if isinstance(data, Tensor):
        data = {"x": data}
    if isinstance(data, Mapping):
        return TensorSource(data, split, seed, device)
    if hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        return DatasetSource(data, split, seed, device, workers)
    raise InputTypeError(
        f"training data is a {type(data).__name__}; accepted: a mapping of names to tensors of one length, "
        "a tensor, or a map-style torch.utils.data.Dataset (with __len__ and __getitem__)"
    )


def _common_length(tensors: Mapping[str, Tensor]) -> int:
    if not tensors:
        raise InputError("training data is an empty mapping; give at least one named tensor, as {'x': x}")
    for name, value in tensors.items():
        if not isinstance(value, Tensor) or value.ndim == 0:
            raise InputTypeError(
                f"training data {name!r} is "
                f"{type(value).__name__ if not isinstance(value, Tensor) else 'a scalar'}; every entry "
                "must be a tensor with the samples first"
            )
    lengths = {name: len(value) for name, value in tensors.items()}
    if len(set(lengths.values())) > 1 or not min(lengths.values()):
        raise InputError(f"training tensors must have one common length of at least 1; got {lengths}")
    return next(iter(lengths.values()))


def _fits(tensors: Mapping[str, Tensor], device: torch.device) -> bool:
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return sum(value.numel() * value.element_size() for value in tensors.values()) <= free // 2


def _to(batch: Batch, device: torch.device) -> Batch:
    return {name: value.to(device, non_blocking=True) for name, value in batch.items()}


def _named(item: Any) -> Mapping[str, Any]:
    if isinstance(item, Mapping):
        return item
    if isinstance(item, Tensor):
        return {"x": item}
    raise InputTypeError(
        f"an item of the data set is a {type(item).__name__}; accepted: a mapping of names to tensors, or "
        "one tensor "
        "(named 'x'); wrap the data set so that an item reads {'x': image, 'label': label}"
    )
