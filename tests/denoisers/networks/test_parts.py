"""The parts of the networks against closed forms: time features, attention, pooling, patches, positions."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from retrodict.core.errors import InputError
from retrodict.denoisers.networks.attention import WRITTEN_OUT, Attention, attend
from retrodict.denoisers.networks.embedding import FourierTime
from retrodict.denoisers.networks.transformer import Transformer
from retrodict.denoisers.networks.unet import UNet, default_attention, group_norm, halve


def test_time_features_tell_every_pair_of_times_apart():
    """Over [-6, 6] no two times share their features, and a hundredth of the unit clock is a visible step."""
    t = torch.linspace(-6.0, 6.0, 1201, dtype=torch.float64)
    phi = FourierTime(32)(t, torch.float64)
    distance = torch.cdist(phi, phi)
    assert distance.diagonal(1).min() > 0.3  # neighbours, 0.01 apart; the largest possible distance is 2 sqrt(32)
    far = (t[:, None] - t).abs() > 0.1
    assert distance[far].min() > distance.diagonal(1).max()
    torch.testing.assert_close(phi.square().mean(1), torch.ones(1201, dtype=torch.float64))


def test_time_features_keep_their_digits_in_low_precision():
    t = torch.linspace(-6.0, 6.0, 100)
    exact = FourierTime(64)(t.double(), torch.float64)
    assert (FourierTime(64)(t, torch.float32) - exact).abs().max() < 1e-4
    module = FourierTime(64).to(torch.bfloat16)
    assert (module(t, torch.bfloat16) - exact).abs().max() < 0.01


def test_attention_is_equivariant_and_equal_to_the_fused_kernel():
    torch.manual_seed(0)
    layer = Attention(16, 4).double()
    x = torch.randn(2, 10, 16, dtype=torch.float64)
    order = torch.randperm(10)
    torch.testing.assert_close(layer(x[:, order]), layer(x)[:, order])
    q, k, v = torch.randn(3, 2, 4, 10, 8, dtype=torch.float64)
    torch.testing.assert_close(attend(q, k, v), F.scaled_dot_product_attention(q, k, v))


def test_long_attention_has_forward_derivatives_too():
    q, k, v = torch.randn(3, 1, 2, WRITTEN_OUT + 1, 4, dtype=torch.float64)
    dq = torch.randn_like(q)
    value, slope = torch.func.jvp(lambda q: attend(q, k, v), (q,), (dq,))
    torch.testing.assert_close(value, attend(q, k, v))
    difference = (attend(q + 1e-6 * dq, k, v) - attend(q - 1e-6 * dq, k, v)) / 2e-6
    torch.testing.assert_close(slope, difference, rtol=1e-6, atol=1e-8)


def test_halving_averages_pairs_and_leaves_an_odd_last_one():
    h = torch.tensor([1.0, 3.0, 5.0, 7.0, 10.0])
    assert halve(h.reshape(1, 1, 5)).flatten().tolist() == [2.0, 6.0, 10.0]
    assert halve(torch.ones(1, 2, 7, 3)).unique().tolist() == [1.0]
    assert halve(h.reshape(1, 1, 5, 1)).flatten().tolist() == [2.0, 6.0, 10.0]


def test_each_way_up_is_handed_what_the_way_down_had_at_its_size():
    network = UNet((1, 7, 5), channels=[8, 16, 16], blocks=1).eval()
    seen: dict[str, torch.Tensor] = {}
    for name, module in network.named_modules():
        if name in ("down.0.0", "down.1.0", "down.2.0"):
            module.register_forward_hook(lambda m, given, out, name=name: seen.update({name: out}))
        if name in ("up.0.0", "up.1.0", "up.2.0"):
            module.register_forward_pre_hook(lambda m, given, name=name: seen.update({name: given[0]}))
    network(torch.randn(2, 1, 7, 5), torch.rand(2))
    for down, up in (("down.0.0", "up.2.0"), ("down.1.0", "up.1.0"), ("down.2.0", "up.0.0")):
        assert torch.equal(seen[up][:, -seen[down].shape[1] :], seen[down])


def test_group_sizes_and_attention_levels():
    assert [group_norm(c).num_groups for c in (1, 7, 8, 32, 96, 512)] == [1, 1, 1, 4, 12, 32]
    assert default_attention([8, 8], 2) == []
    assert default_attention([32, 32], 3) == [1]
    assert default_attention([64, 64], 4) == [2]


def test_patches_are_blocks_of_neighbours_and_come_back():
    network = Transformer((2, 5, 3), patch=2, hidden=8, heads=2, depth=1)
    x = torch.arange(30.0).reshape(1, 2, 5, 3)
    patches = network.to_patches(x.movedim(1, -1))
    assert patches.shape == (1, 6, 8)
    assert patches[0, 0].tolist() == [0, 15, 1, 16, 3, 18, 4, 19]  # (row, column, channel), the corner
    assert torch.equal(network.unpatch(patches), x)


def test_a_token_equals_its_one_hot_vector():
    torch.manual_seed(0)
    for patch in (1, 2, 4):
        network = Transformer((8,), vocabulary=5, patch=patch, hidden=16, heads=2, depth=1, time=False).double()
        torch.nn.init.normal_(network.leave.weight)
        x = torch.randint(5, (3, 8))
        torch.testing.assert_close(network(x), network(F.one_hot(x, 5).double()))


def test_without_positions_the_transformer_commutes_with_permutations_of_tokens():
    torch.manual_seed(0)
    order = torch.randperm(6)
    x, t = torch.randint(5, (3, 6)), torch.rand(3, dtype=torch.float64)
    for position in (False, True):
        network = Transformer((6,), vocabulary=5, patch=1, hidden=16, heads=2, depth=2, position=position).double()
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        same = torch.allclose(network(x[:, order], t), network(x, t)[:, order])
        assert same is not position


def test_small_vocabularies_are_grouped_and_large_ones_are_not():
    for length, vocabulary, patch in ((64, 3, 4), (64, 5, 2), (63, 5, 3), (64, 27, 1), (7, 3, 1), (64, 300, 1)):
        assert Transformer((length,), vocabulary=vocabulary, hidden=8, heads=1, depth=1).patch == patch


def test_an_entry_hears_its_neighbours_and_no_others():
    """Before attention has opened, a token reaches as many outputs as the convolution is wide; none but its own
    without."""
    torch.manual_seed(0)
    x = torch.randint(5, (1, 9))
    other = x.clone()
    other[0, 4] = (x[0, 4] + 1) % 5
    for near, reach in ((0, [4]), (3, [3, 4, 5]), (5, [2, 3, 4, 5, 6]), (None, [3, 4, 5])):
        network = Transformer((9,), vocabulary=5, patch=1, hidden=16, heads=2, depth=2, time=False, near=near).double()
        torch.nn.init.normal_(network.leave.weight)
        moved = (network(x, None) - network(other, None)).abs().sum(-1)[0] > 1e-9
        assert moved.nonzero().flatten().tolist() == reach
    assert Transformer((8, 2), hidden=16, heads=2).near is None


@pytest.mark.parametrize(("shape", "near"), [((6,), 2), ((6,), -1), ((6,), 2.5), ((1, 8, 8), 3)])
def test_neighbours_are_an_odd_number(shape, near):
    vocabulary = 4 if len(shape) == 1 else None
    with pytest.raises(InputError, match=f"near={near}; accepted: an odd number"):
        Transformer(shape, vocabulary=vocabulary, near=near)


def test_positions_of_a_grid_are_all_different():
    for shape, patches in (((1, 16, 16), 64), ((200, 1), 200)):
        place = Transformer(shape, hidden=32, heads=2, depth=1).place
        assert place is not None and place.shape == (patches, 32)
        assert torch.pdist(place).min() > 0.1
