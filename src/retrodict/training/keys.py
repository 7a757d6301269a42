"""Seeds that are a function of where one is, not of how one got there.

Resuming is exact only if step k draws the same numbers whether or not the run was interrupted before it.  So
nothing here keeps a position: the seed of a draw is a hash of ``(seed, stream, ...)`` and the step,

    seed(step) = mix32(h(seed, stream, rank) + step  mod 2^32).

``mix32`` is a bijection on 32 bits (PyTorch's CPU generator reads no more of a seed), so the steps of one
rank never share a seed.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch

_M32, _M64 = (1 << 32) - 1, (1 << 64) - 1


def _mix64(z: int) -> int:
    """The SplitMix64 finaliser (Steele, Lea, Flood 2014): every input bit reaches every output bit."""
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _M64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _M64
    return z ^ (z >> 31)


def _mix32(z: int) -> int:
    """MurmurHash3's 32-bit finaliser (Appleby 2011), a bijection."""
    z = ((z ^ (z >> 16)) * 0x85EBCA6B) & _M32
    z = ((z ^ (z >> 13)) * 0xC2B2AE35) & _M32
    return z ^ (z >> 16)


def key(seed: int, *parts: int | str) -> int:
    """A 64-bit hash of a seed and any number of integers and names."""
    state = _mix64((int(seed) + 0x9E3779B97F4A7C15) & _M64)
    for part in parts:
        word = int.from_bytes(part.encode(), "little") % _M64 if isinstance(part, str) else int(part)
        state = _mix64((state * 0xD1342543DE82EF95 + word + 0x9E3779B97F4A7C15) & _M64)
    return state


class StepKeys:
    """The seeds of one stream on one rank: ``StepKeys(seed, "noise", rank)(step)``."""

    def __init__(self, seed: int, stream: str, rank: int) -> None:
        self.base = key(seed, stream, rank)

    def __call__(self, step: int) -> int:
        return _mix32((self.base + step) & _M32)


class StepNoise:
    """The random state of a step: PyTorch's own generators, reseeded before each.

    Loss and module draw from one keyed stream, whether a draw names its generator (noise) or not (dropout).
    Reseeding takes a microsecond, where `torch.manual_seed` takes a hundred.

    Attributes:
        generator: the generator of the device, which a loss is handed.
    """

    def __init__(self, keys: StepKeys, device: torch.device) -> None:
        self.keys = keys
        if device.type == "cpu":
            self.generator = torch.default_generator
        elif device.type == "cuda":
            self.generator = torch.cuda.default_generators[device.index or 0]
        else:
            self.generator = torch.Generator(device)
        self._all = {id(g): g for g in (torch.default_generator, self.generator)}.values()

    def start(self, step: int) -> None:
        """Put all generators where step ``step`` begins."""
        seed = self.keys(step)
        for generator in self._all:
            generator.manual_seed(seed)


@contextlib.contextmanager
def keyed_globals(seed: int) -> Iterator[None]:
    """Run user code (a data set that augments) with the global generators seeded, and put them back after."""
    saved = torch.get_rng_state(), np.random.get_state(), random.getstate()
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed & _M32)
    random.seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(saved[0])
        np.random.set_state(saved[1])
        random.setstate(saved[2])
