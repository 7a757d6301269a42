"""Operators that are not linear, callables, and physics of another library."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

import retrodict as rd
from retrodict.core.errors import InputError, InputTypeError
from retrodict.steering.operators import Adapted, Matrix, NonLinear, as_operator
from retrodict.steering.operators.quantise import Quantise

O = rd.operators


def draws(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(
    "operator",
    [
        O.phase_retrieval(2.0),
        O.nonlinear_blur(3, 1.0),
        O.clip(1.5, 0.2, 0.9),
        O.affine(-2.0, 3.0),
        O.affine(0.5, 0.5) | O.phase_retrieval(4.0),
    ],
    ids=["phase", "nonlinear-blur", "clip", "affine", "chain"],
)
def test_derivatives_are_those_of_finite_differences(operator) -> None:
    x = draws(1, 1, 8, 8).requires_grad_(True)
    assert not operator.linear
    assert torch.autograd.gradcheck(operator, (x,), eps=1e-7, atol=1e-5)


def test_magnitudes_know_neither_place_nor_side() -> None:
    """Of a padded image: the energy is kept (Parseval), rotation by 180 degrees and shifts are not seen."""
    x, A = draws(2, 1, 8, 8), O.phase_retrieval(2.0)
    y = A(x)
    assert y.shape == (2, 1, 12, 12)
    torch.testing.assert_close((y**2).sum((1, 2, 3)), (x**2).sum((1, 2, 3)))
    torch.testing.assert_close(A(x.flip(-1, -2)), y)
    padded = torch.nn.functional.pad(x, (2, 2, 2, 2))
    torch.testing.assert_close(O.phase_retrieval(0)(padded.roll((3, 1), (-2, -1))), y)
    assert not torch.allclose(A(x.flip(-1)), y, atol=1e-3)


def test_a_blur_behind_a_response_curve() -> None:
    """With gamma = 1 a plain blur; else flat images stay, and bright pixels bleed more than a plain blur lets them."""
    x = 0.1 + 0.8 * draws(1, 1, 8, 8)
    torch.testing.assert_close(O.nonlinear_blur(3, 1.0, gamma=1.0)(x), O.gaussian_blur(3, 1.0)(x))
    flat = torch.full((1, 1, 8, 8), 6.0)
    torch.testing.assert_close(O.nonlinear_blur(3, 1.0, low=0, high=16)(flat), flat)
    assert bool((O.nonlinear_blur(3, 1.0)(x) > O.gaussian_blur(3, 1.0)(x)).all()), "the power mean is above the mean"


def test_clipping() -> None:
    assert O.clip(2.0, -1, 1)(torch.tensor([[-3.0, -0.2, 0.4, 0.7]])).tolist() == [
        [-1, pytest.approx(-0.4), pytest.approx(0.8), 1]
    ]


@pytest.mark.parametrize("quality", [10, 50, 90])
def test_quantisation_is_that_of_jpeg(quality: int) -> None:
    """Against Pillow, whose decoder rounds to whole levels and whose integer cosine transform breaks ties its own way:
    half a level of 255 apart on average, where the image itself is several levels away."""
    levels = torch.from_numpy(_picture())
    buffer = io.BytesIO()
    Image.fromarray(levels.numpy().astype(np.uint8)).save(buffer, "jpeg", quality=quality)
    file = Image.open(buffer)
    theirs = torch.from_numpy(np.asarray(file).astype(np.float64))
    operator = O.quantise(quality, 0, 255)
    assert operator.table.flatten().tolist() == list(file.quantization[0])  # type: ignore[attr-defined]
    ours = operator(levels[None, None])[0, 0].clamp(0, 255)
    assert float((ours - theirs).abs().mean()) < 0.5
    assert float((ours - levels).abs().mean()) > 2.5


def _picture() -> np.ndarray:
    rows, columns = np.mgrid[:64, :64]
    smooth = 120 + 60 * np.sin(rows / 5) * np.cos(columns / 9)
    return (smooth + 30 * (columns > 30) + np.random.default_rng(0).normal(0, 5, (64, 64))).clip(0, 255).round()


def test_quantising_twice_is_quantising_once() -> None:
    A, x = O.quantise(30, -1, 1), 2 * draws(2, 3, 8, 16) - 1
    once = A(x)
    assert float((once - x).abs().max()) > 0.05
    torch.testing.assert_close(A(once), once, rtol=0, atol=1e-10)


def test_gradients_pass_straight_through_rounding() -> None:
    x = draws(1, 1, 8, 8).requires_grad_(True)
    v = draws(1, 1, 8, 8, seed=1)
    (gradient,) = torch.autograd.grad(O.quantise(50)(x), x, v)
    torch.testing.assert_close(gradient, v)


def test_the_table_of_quality_50_is_the_standards() -> None:
    assert Quantise(50, 0, 1).table[0, :3].tolist() == [16, 11, 10]
    assert Quantise(100, 0, 1).table.unique().tolist() == [1]
    assert Quantise(25, 0, 1).table[7, 7] == 198


# -- anything is an operator -----------------------------------------------------------------------------------


class Physics:
    """What a physics of another library looks like: a mask."""

    def __init__(self, mask: torch.Tensor) -> None:
        self.mask = mask

    def A(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.mask

    def A_adjoint(self, y: torch.Tensor) -> torch.Tensor:
        return y * self.mask

    def A_dagger(self, y: torch.Tensor) -> torch.Tensor:
        return y / self.mask.where(self.mask != 0, torch.inf)


class NonLinearPhysics:
    def A(self, x: torch.Tensor) -> torch.Tensor:
        return x**2


def test_a_physics_is_adapted() -> None:
    mask = 2.0 * (draws(1, 1, 4, 4) > 0.5)
    operator = as_operator(Physics(mask))
    assert isinstance(operator, Adapted) and operator.linear
    x = draws(3, 1, 4, 4)
    y = operator(x)
    torch.testing.assert_close(y, x * mask)
    torch.testing.assert_close(operator.adjoint(y, (1, 4, 4)), x * mask**2)
    torch.testing.assert_close(operator.pinv(y, (1, 4, 4)), x * (mask > 0))
    torch.testing.assert_close(operator.matrix((1, 4, 4)), torch.diag(mask.double().flatten()))
    chain = operator | O.downsample(2)
    assert chain.linear and chain.output_shape((1, 4, 4)) == (1, 2, 2)
    assert (O.identity() | NonLinearPhysics()).linear is False
    with pytest.raises(InputError, match="NonLinearPhysics is not linear"):
        Adapted(NonLinearPhysics()).adjoint(x, (1, 4, 4))


def test_a_physics_of_deepinv() -> None:
    try:
        physics = pytest.importorskip("deepinv").physics.Inpainting((1, 4, 4), mask=0.5)
    except (ImportError, RuntimeError) as error:  # its own dependencies may not load
        pytest.skip(str(error))
    operator = as_operator(physics)
    x, y = torch.rand(1, 1, 4, 4), torch.rand(1, 1, 4, 4)
    torch.testing.assert_close((operator(x) * y).sum(), (x * operator.adjoint(y, (1, 4, 4))).sum())  # type: ignore[attr-defined]


def test_what_can_be_an_operator() -> None:
    assert isinstance(as_operator(torch.sin), NonLinear)
    assert isinstance(as_operator([[1.0, 2.0]]), Matrix)
    assert as_operator(O.identity()) is not None
    with pytest.raises(InputTypeError, match="got dict"):
        as_operator({})
    with pytest.raises(InputError, match=r"got shape \(2,\)"):
        as_operator([1.0, 2.0])


@pytest.mark.parametrize(
    ("make", "shape", "part"),
    [
        (lambda: O.phase_retrieval(-1), (1, 8, 8), "at least 0"),
        (lambda: O.phase_retrieval(), (64,), r"\(64,\)"),
        (lambda: O.nonlinear_blur(3, gamma=0), (1, 8, 8), "gamma"),
        (lambda: O.nonlinear_blur(3, low=1, high=1), (1, 8, 8), "low is below high"),
        (lambda: O.clip(low=2, high=1), (1, 8, 8), "low is below high"),
        (lambda: O.affine(0.0), (1, 8, 8), "not 0"),
        (lambda: O.quantise(0), (1, 8, 8), "from 1 to 100"),
        (lambda: O.quantise(50), (1, 8, 12), r"multiples of 8.*\(1, 8, 12\)"),
    ],
)
def test_what_cannot_be_is_named(make, shape: tuple[int, ...], part: str) -> None:
    with pytest.raises(InputError, match=part):
        make().output_shape(shape)
