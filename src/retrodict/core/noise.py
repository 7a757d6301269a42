"""Keyed randomness: the noise of sample ``i`` is a function of ``(seed, i, stream)`` and of nothing else.

A batch that draws from one generator makes every sample depend on its neighbours.  Here each *slot* of a batch
owns a generator whose state is hashed from ``(seed, slot, stream name)``; rows are consumed in program order.
The batch size, the number of processes and the order of slots then leave the noise of slot ``i`` bitwise the
same.  `Noise` is the interface that every room draws from; `KeyedNoise` is the sampling source, and
`GeneratorNoise` wraps one `torch.Generator` for training, where a key per sample would cost throughput.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from retrodict.core.errors import InputError, InputTypeError

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_BLOCK = 16  # torch fills normals in blocks of 16 on the CPU: padded rows make any grouping of draws identical
_MT_WORDS = 624
_MT_OFFSET = 24  # bytes before the state words in a CPU generator's serialised state


class Noise:
    """A source of standard normals, uniforms and categorical draws for a batch of slots.

    Attributes:
        batch: number of slots; every draw has shape ``(batch, *shape)``.
        dtype, device: of the draws.
    """

    batch: int
    dtype: torch.dtype
    device: torch.device

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Independent standard normals ``(batch, *shape)``."""
        return self.normals(1, shape)[0]

    def normals(self, rows: int, shape: Sequence[int]) -> list[Tensor]:
        """The next ``rows`` draws of `normal`, in one pass; element m equals the m-th separate draw."""
        raise NotImplementedError

    def uniform(self, shape: Sequence[int] = ()) -> Tensor:
        """Independent uniforms on [0, 1) in float64, ``(batch, *shape)``."""
        raise NotImplementedError

    def stream(self, name: str) -> Noise:
        """The independent source ``name`` of the same slots; asked for again it continues where it was."""
        raise NotImplementedError

    def categorical(self, log_p: Tensor) -> Tensor:
        """Draw class indices from ``log_p (batch, ..., classes)``, by inversion of one uniform each."""
        return inverted(log_p, self.uniform(log_p.shape[1:-1]).to(log_p.device))


def inverted(log_p: Tensor, u: Tensor) -> Tensor:
    """Class indices from ``log_p (..., classes)``, up to a constant, by inversion of one uniform each ``(...)``."""
    p = torch.softmax(log_p.double(), dim=-1)
    # p sums to 1 only within rounding: a uniform above the last cumulative sum belongs to the last class
    return (u.unsqueeze(-1) >= p.cumsum(-1)[..., :-1]).sum(-1)


class KeyedNoise(Noise):
    """Noise keyed by ``(seed, index, stream)``.

    Args:
        seed: any integer.
        index: slot numbers, one a batch element (an int n means slots 0..n-1).
        dtype: of normals; device: where they land; source: the device that draws ("cpu" gives the same
            numbers on every device).

    >>> a = KeyedNoise(0, 4).normal((3,)); b = KeyedNoise(0, [2, 3]).normal((3,))
    >>> bool((a[2:] == b).all())
    True
    """

    def __init__(
        self,
        seed: int,
        index: int | Sequence[int] | np.ndarray,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        source: torch.device | str | None = None,
        name: str = "",
    ) -> None:
        if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)):
            raise InputTypeError(f"seed is an integer, got {type(seed).__name__}")
        self.seed, self.name = int(seed), name
        self.index = np.arange(index) if isinstance(index, (int, np.integer)) else np.asarray(index, dtype=np.int64)
        self.batch = len(self.index)
        self.dtype, self.device = dtype, torch.device(device)
        self.source = torch.device(source) if source is not None else self.device
        self._generators: list[torch.Generator] | None = None
        self._streams: dict[str, KeyedNoise] = {}

    @property
    def generators(self) -> list[torch.Generator]:
        """One generator a slot, made at the first draw."""
        if self._generators is None:
            make = _cpu_generators if self.source.type == "cpu" else _device_generators
            self._generators = make(_hash64(self.seed, self.index, self.name), self.source)
        return self._generators

    def normals(self, rows: int, shape: Sequence[int]) -> list[Tensor]:
        size = int(np.prod(shape, dtype=np.int64))
        padded = -(-size // _BLOCK) * _BLOCK
        block = torch.empty((self.batch, rows, padded), dtype=self.dtype, device=self.source)
        for slot, generator in zip(block.view(self.batch, -1), self.generators):
            slot.normal_(generator=generator)
        block = block.to(self.device)
        return [block[:, m, :size].unflatten(1, tuple(shape)) if len(shape) else block[:, m, 0] for m in range(rows)]

    def uniform(self, shape: Sequence[int] = ()) -> Tensor:
        size = int(np.prod(shape, dtype=np.int64))
        block = torch.empty((self.batch, size), dtype=torch.float64, device=self.source)
        for slot, generator in zip(block, self.generators):
            slot.uniform_(generator=generator)
        return block.to(self.device).reshape(self.batch, *shape)

    def stream(self, name: str) -> KeyedNoise:
        if name not in self._streams:
            self._streams[name] = self._like(self.index, f"{self.name}/{name}")
        return self._streams[name]

    def shared(self, groups: int) -> KeyedNoise:
        """One slot for each of ``groups`` equal runs of consecutive slots (a population's common draws)."""
        size = self.batch // groups
        return self._like(self.index[::size] // size, f"{self.name}/shared")

    def _like(self, index: np.ndarray, name: str) -> KeyedNoise:
        return KeyedNoise(self.seed, index, dtype=self.dtype, device=self.device, source=self.source, name=name)


class GeneratorNoise(Noise):
    """Noise for a whole batch from one `torch.Generator`: fast, and dependent on the batch."""

    def __init__(
        self,
        generator: torch.Generator,
        batch: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        self.generator, self.batch, self.dtype = generator, batch, dtype
        self.device = torch.device(device) if device is not None else generator.device

    def normals(self, rows: int, shape: Sequence[int]) -> list[Tensor]:
        kwargs = {"generator": self.generator, "dtype": self.dtype, "device": self.generator.device}
        return [torch.randn((self.batch, *shape), **kwargs).to(self.device) for _ in range(rows)]

    def uniform(self, shape: Sequence[int] = ()) -> Tensor:
        device = self.generator.device
        u = torch.rand((self.batch, *shape), generator=self.generator, dtype=torch.float64, device=device)
        return u.to(self.device)

    def stream(self, name: str) -> GeneratorNoise:
        return self

    def shared(self, groups: int) -> GeneratorNoise:
        return GeneratorNoise(self.generator, groups, dtype=self.dtype, device=self.device)


class Cells:
    """Uniforms for draws in unknown number: draw ``e`` of a cell is a hash of the cell's key and e, and of no more.

    Args:
        keys: ``(S,)`` uniforms on [0, 1), one a slot; particles: cells of each slot.
    """

    def __init__(self, keys: Tensor, particles: int) -> None:
        words = _splitmix((keys.numpy() * 2.0**53).astype(np.uint64))
        with np.errstate(over="ignore"):
            self._base = _splitmix(words[:, None] + np.arange(particles, dtype=np.uint64) * _GOLDEN).ravel()

    def uniform(self, e: int, cells: Tensor) -> Tensor:
        """Uniforms on [0, 1) in float64, draw ``e`` of the flat ``cells (n,)``."""
        with np.errstate(over="ignore"):
            words = _splitmix(self._base[cells.numpy()] + np.uint64(e) * _GOLDEN)
        return torch.from_numpy((words >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def as_noise(source: int | torch.Generator | Noise, batch: int, **kwargs: object) -> Noise:
    """A `Noise` from a seed, a `torch.Generator` or a `Noise`; ``kwargs`` are dtype and device."""
    if isinstance(source, Noise):
        return source
    if isinstance(source, torch.Generator):
        return GeneratorNoise(source, batch, **kwargs)  # type: ignore[arg-type]
    if isinstance(source, (int, np.integer)):
        return KeyedNoise(int(source), batch, **kwargs)  # type: ignore[arg-type]
    raise InputError(f"noise is a seed, a torch.Generator or a Noise, got {type(source).__name__}")


def _hash64(seed: int, index: np.ndarray, name: str) -> np.ndarray:
    """A 64-bit key for each slot; the name and the seed are digested once, the slots are mixed in bulk."""
    digest = hashlib.blake2b(f"{seed}|{name}".encode(), digest_size=8).digest()
    base = np.frombuffer(digest, dtype=np.uint64)[0]
    return _splitmix(base + index.astype(np.uint64) * _GOLDEN)


def _splitmix(x: np.ndarray) -> np.ndarray:
    """SplitMix64 finaliser (Steele, Lea and Flood 2014): a bijection of 64-bit words with good avalanche."""
    with np.errstate(over="ignore"):
        x = x + _GOLDEN
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def _cpu_generators(keys: np.ndarray, device: torch.device) -> list[torch.Generator]:
    """Mersenne twisters whose whole state is hashed from the 64-bit keys.

    ``manual_seed`` of a CPU generator keeps 32 bits only, so that among 60,000 samples two would share their
    noise with probability one third; a state hashed from 64 bits does not.
    """
    counter = np.arange(1, _MT_WORDS + 1, dtype=np.uint64) * np.uint64(0xD1342543DE82EF95)
    with np.errstate(over="ignore"):
        words = _splitmix(keys[:, None] ^ counter[None, :]) >> np.uint64(32)
    template = torch.Generator().manual_seed(0).get_state().numpy()
    states = np.repeat(template[None, :], len(keys), axis=0)
    states[:, _MT_OFFSET : _MT_OFFSET + 8 * _MT_WORDS] = words.view(np.uint8).reshape(len(keys), -1)
    return [_with_state(torch.from_numpy(state)) for state in states]


def _with_state(state: Tensor) -> torch.Generator:
    generator = torch.Generator()
    generator.set_state(state)
    return generator


def _device_generators(keys: np.ndarray, device: torch.device) -> list[torch.Generator]:
    # Philox generators of accelerators take the whole 64-bit seed; torch wants it as a signed integer
    return [torch.Generator(device).manual_seed(int(key) >> 1) for key in keys]
