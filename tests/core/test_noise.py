"""Keyed noise: a function of (seed, slot, stream) and of nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from retrodict.core.errors import InputError, InputTypeError
from retrodict.core.noise import GeneratorNoise, KeyedNoise, _cpu_generators, _hash64, as_noise

SHAPES = [(), (1,), (5,), (16,), (17,), (100,), (1, 8, 8)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_slot_has_the_same_noise_in_every_batch(shape, dtype):
    whole = KeyedNoise(3, 64, dtype=dtype)
    normal, uniform = whole.normal(shape), whole.uniform(shape)
    for batch in (1, 7, 64):
        start = 64 - batch
        part = KeyedNoise(3, range(start, 64), dtype=dtype)
        assert part.normal(shape).equal(normal[start:])
        assert part.uniform(shape).equal(uniform[start:])


def test_slots_may_come_in_any_order():
    order = [5, 0, 3]
    assert KeyedNoise(1, order).normal((4,)).equal(KeyedNoise(1, 6).normal((4,))[order])


@pytest.mark.parametrize("shape", SHAPES)
def test_rows_drawn_together_equal_rows_drawn_one_by_one(shape):
    together = KeyedNoise(0, 3)
    one_by_one = KeyedNoise(0, 3)
    first = together.normals(5, shape) + together.normals(2, shape)
    second = [one_by_one.normal(shape) for _ in range(7)]
    assert all(a.equal(b) for a, b in zip(first, second))
    assert not first[0].equal(first[1])


def test_streams_are_independent_of_what_other_streams_drew():
    a, b = KeyedNoise(0, 2), KeyedNoise(0, 2)
    a.normal((9,))
    a.stream("x").uniform()
    expected = b.stream("y").normals(2, (3,))
    assert a.stream("y").normal((3,)).equal(expected[0])
    assert a.stream("y").normal((3,)).equal(expected[1])  # asked for again, a stream goes on
    assert not a.stream("z").normal((3,)).equal(expected[0])
    assert not a.stream("y").stream("x").normal((3,)).equal(KeyedNoise(0, 2).stream("x").normal((3,)))


def test_populations_share_draws_whatever_the_split():
    whole = KeyedNoise(0, 48).shared(3).normal((2,))
    part = KeyedNoise(0, range(16, 32)).shared(1).normal((2,))
    assert part.equal(whole[1:2])


def test_keys_do_not_collide():
    """A million slots over streams and seeds have distinct 64-bit keys (chance of a tie: 3e-8)."""
    keys = [_hash64(seed, np.arange(250_000), name) for seed in (0, 2**32) for name in ("", "/rows")]
    assert len(np.unique(np.concatenate(keys))) == 1_000_000


def test_all_64_bits_of_a_key_count():
    """torch's own CPU seeding keeps the low 32 bits: these four would then be one generator."""
    keys = np.array([7, 7 + 2**32, 7 + 2**40, 7 + 2**63], dtype=np.uint64)
    draws = torch.stack([torch.randn(8, generator=g) for g in _cpu_generators(keys, torch.device("cpu"))])
    assert len(draws.unique(dim=0)) == 4


def test_seeds_of_every_size_differ():
    seeds = [0, 1, -1, 2**32, 2**64, 10**30]
    draws = torch.stack([KeyedNoise(seed, 1).normal((4,))[0] for seed in seeds])
    assert len(draws.unique(dim=0)) == len(seeds)


def test_noise_is_standard_and_independent_between_slots():
    """Kolmogorov-Smirnov and correlation tests, each with a false-alarm rate of 1e-4."""
    noise = KeyedNoise(11, 4000, dtype=torch.float64)
    z, u = noise.normals(2, (1,)), noise.uniform().numpy()
    first, second = z[0][:, 0].numpy(), z[1][:, 0].numpy()
    assert stats.kstest(first, "norm").pvalue > 1e-4
    assert stats.kstest(u, "uniform").pvalue > 1e-4
    for a, b in ((first[:-1], first[1:]), (first, second), (first, u)):
        assert stats.pearsonr(a, b).pvalue > 1e-4


def test_categorical_draws_follow_their_law():
    p = torch.tensor([0.5, 0.0, 0.2, 0.3])
    k = KeyedNoise(0, 4000).categorical(p.log().expand(4000, 4))
    counts = torch.bincount(k, minlength=4)
    assert counts[1] == 0
    assert stats.chisquare(counts[[0, 2, 3]].numpy(), (4000 * p[[0, 2, 3]].double()).numpy()).pvalue > 1e-4
    assert KeyedNoise(0, 3).categorical(p.log().expand(3, 2, 4)).shape == (3, 2)


def test_one_generator_for_a_batch():
    draw = lambda: GeneratorNoise(torch.Generator().manual_seed(4), 6, dtype=torch.float64)  # noqa: E731
    assert draw().normal((3,)).equal(draw().normal((3,)))
    assert draw().normal((3,)).dtype == torch.float64 and draw().normal((3,)).shape == (6, 3)
    assert draw().uniform((2,)).equal(draw().stream("any").uniform((2,)))
    noise = draw()
    assert not noise.normal((3,)).equal(noise.normal((3,)))


def test_sources_of_noise():
    generator = torch.Generator().manual_seed(0)
    keyed = KeyedNoise(0, 2)
    assert as_noise(keyed, 2) is keyed
    assert as_noise(5, 2, dtype=torch.float64).normal((1,)).equal(KeyedNoise(5, 2, dtype=torch.float64).normal((1,)))
    assert isinstance(as_noise(generator, 2), GeneratorNoise)
    with pytest.raises(InputError, match=r"seed, a torch.Generator or a Noise, got str"):
        as_noise("0", 2)
    for seed in (True, 1.5):
        with pytest.raises(InputTypeError, match="seed is an integer"):
            KeyedNoise(seed, 2)
