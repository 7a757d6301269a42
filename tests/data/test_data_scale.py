"""The map between units: where it sends the data, that it inverts, and what it does to densities."""

from __future__ import annotations

import json
import math

import pytest
import torch

from retrodict.core.errors import InputError, InputTypeError
from retrodict.data import Data, Scale, load_data, make_scale


def series() -> Data:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 9, 2, generator=generator) * torch.tensor([3.0, 0.1]) + torch.tensor([5.0, -1.0])
    return load_data(x)


def test_grey_levels_go_to_minus_one_to_one():
    digits = load_data("digits")
    scale = make_scale(digits)
    z = scale(digits.x)
    assert z.min() == -1 and z.max() == 1 and torch.equal(scale.inverse(z), digits.x)
    assert make_scale(load_data(torch.zeros(3, 1, 4, 4, dtype=torch.uint8))).scale == 127.5


@pytest.mark.parametrize("data, over", [(load_data("pinwheel", n=300), 0), (series(), (0, 1))])
def test_real_data_are_standardised_per_coordinate_or_channel(data, over):
    scale = make_scale(data)
    z = scale(data.x)
    assert z.mean(over).abs().max() < 1e-5 and (z.std(over, correction=0) - 1).abs().max() < 1e-5
    torch.testing.assert_close(scale.inverse(z), data.x)


def test_real_images_are_standardised_per_channel():
    x = torch.rand(20, 3, 4, 4) * torch.tensor([1.0, 5.0, 9.0]).view(3, 1, 1)
    scale = make_scale(load_data(x))
    assert scale.shift.shape == (3, 1, 1)
    assert (scale(x).std((0, 2, 3), correction=0) - 1).abs().max() < 1e-5


def test_tokens_pass_through():
    data = load_data("binary-digits")
    scale = make_scale(data)
    assert scale(data.x) is data.x and scale.inverse(data.x) is data.x and scale.log_det_per_dim() == 0
    for how in ("unit", "standard", Scale(0.0, 2.0)):
        with pytest.raises(InputError, match="tokens"):
            make_scale(data, how)


def test_densities_change_by_the_determinant():
    """log p(x) = log p(z) + d * log_det_per_dim, against the determinant by autograd."""
    for scale in (Scale(1.0, 4.0), Scale([1.0, 2.0, 3.0], [0.5, 2.0, 10.0])):
        x = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64)
        jacobian = torch.autograd.functional.jacobian(scale, x)
        assert torch.linalg.slogdet(jacobian).logabsdet.item() == pytest.approx(3 * scale.log_det_per_dim(), rel=1e-6)
    uniform = make_scale(load_data(torch.zeros(2, 1, 2, 2, dtype=torch.uint8)))
    # density 1/2 a dimension on [-1, 1] is density 1/255 on [0, 255]
    assert math.log(0.5) + uniform.log_det_per_dim() == pytest.approx(-math.log(255))


@pytest.mark.parametrize("data", [load_data("digits"), series(), load_data("binary-digits")])
def test_a_scale_survives_json_and_state_dict(data):
    scale = make_scale(data)
    copy = Scale.from_config(json.loads(json.dumps(scale.config())))
    assert torch.equal(copy.shift, scale.shift) and torch.equal(copy.scale, scale.scale)
    copy.load_state_dict(scale.state_dict())
    if data.layout != "tokens":
        assert torch.equal(copy(data.x), scale(data.x))


def test_precision_follows_what_is_mapped():
    scale = Scale(0.5, 3.0)
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        assert scale(torch.ones(2, dtype=dtype)).dtype == dtype == scale.inverse(torch.ones(2, dtype=dtype)).dtype
    assert scale(torch.ones(2, dtype=torch.uint8)).dtype == torch.float32


def test_unit_and_none_and_given():
    data = load_data("moons", n=100)
    z = make_scale(data, "unit")(data.x)
    assert z.min() == pytest.approx(-1, abs=1e-6) and z.max() == pytest.approx(1, abs=1e-6)
    assert make_scale(data, "none").is_identity
    mine = Scale([0.0, 1.0], 2.0)
    assert make_scale(data, mine) is mine


def test_a_constant_coordinate_is_only_shifted(caplog):
    x = torch.stack([torch.full((30,), 0.1), torch.arange(30.0)], 1)
    scale = make_scale(load_data(x))
    assert scale.scale[0] == 1 and scale(x)[:, 0].abs().max() < 1e-6
    assert "does not vary in 1 of 2" in caplog.text


@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda: Scale(0.0, 0.0), InputError, "scale above 0"),
        (lambda: Scale(math.nan, 1.0), InputError, "finite"),
        (lambda: make_scale(series(), "unti"), InputError, "Did you mean 'unit'"),
        (lambda: make_scale(series(), 3), InputTypeError, "scale is a int"),
        (lambda: make_scale(series(), Scale([1.0, 2.0, 3.0], 1.0)), InputError, "does not fit"),
    ],
)
def test_bad_scales(make, error, message):
    with pytest.raises(error, match=message):
        make()
