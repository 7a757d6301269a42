"""Every linear operator against what defines its parts: the adjoint, A A^T, the singular form, the pseudo-inverse."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import ndimage
from torch import Tensor

import retrodict as rd
from retrodict.core.errors import InputError
from retrodict.steering.operators import Linear, Operator
from retrodict.steering.operators.singular import dense_singular

O = rd.operators
GREY, RGB = (1, 8, 8), (3, 8, 12)
KERNEL = torch.tensor([[0.1, 0.5, -0.2], [0.3, 0.0, 0.05], [0.2, 0.1, 0.4]])

LINEAR: dict[str, tuple[Operator, tuple[int, ...]]] = {
    "identity": (O.identity(), RGB),
    "inpaint": (O.inpaint(torch.eye(8).bool()), GREY),
    "half": (O.half("left"), RGB),
    "box": (O.box(1, 2, 4, 5), RGB),
    "random-mask": (O.random_mask(0.3, seed=1), RGB),
    "random-mask-vector": (O.random_mask(0.3, seed=1), (20,)),
    "gaussian": (O.gaussian_blur(5, 1.3), RGB),
    "motion": (O.motion_blur(5, 30), GREY),
    "convolve": (O.convolve(KERNEL), RGB),
    "convolve-even": (O.convolve(KERNEL[:2]), GREY),
    "reflect": (O.convolve(KERNEL, "reflect"), RGB),
    "replicate": (O.convolve(KERNEL, "replicate"), GREY),
    "zeros": (O.convolve([[1.0, 0.3], [0.2, 0.1]], "zeros"), GREY),
    "valid": (O.convolve(KERNEL, "valid"), GREY),
    "downsample": (O.downsample(4), RGB),
    "bicubic": (O.super_resolution(2), GREY),
    "bilinear": (O.super_resolution(2, "bilinear"), RGB),
    "grayscale": (O.grayscale(), RGB),
    "colour": (O.colour([[1.0, 2.0, 0.0], [0.5, -1.0, 0.3]]), RGB),
    "projections": (O.random_projections(10, seed=3), GREY),
    "matrix": (O.matrix(torch.arange(12.0).reshape(2, 6) ** 0.5), (6,)),
    "reshape": (O.reshape(1, 8, 8), (64,)),
    "chain": (O.reshape(1, 8, 8) | O.gaussian_blur(3, 0.8) | O.downsample(2), (64,)),
    "chain-of-three": (O.grayscale() | O.box(0, 0, 2, 2) | O.random_projections(9), RGB),
    "function": (O.function(lambda x: 2 * x.flip(-1) - x, linear=True), GREY),
}


@pytest.fixture(params=LINEAR, ids=list(LINEAR))
def case(request: pytest.FixtureRequest) -> tuple[Linear, tuple[int, ...]]:
    operator, shape = LINEAR[request.param]
    assert operator.linear and isinstance(operator, Linear)
    return operator, shape


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_adjoint_is_the_adjoint(case: tuple[Linear, tuple[int, ...]]) -> None:
    """<A x, y> = <x, A^T y>, item by item, and the measurement has the shape that was promised."""
    operator, shape = case
    output = operator.output_shape(shape)
    x, y = draws(3, *shape), draws(3, *output, seed=1)
    assert operator(x).shape == y.shape
    assert operator.adjoint(y, shape).shape == x.shape
    left = (operator(x) * y).flatten(1).sum(1)
    right = (x * operator.adjoint(y, shape)).flatten(1).sum(1)
    torch.testing.assert_close(left, right, rtol=1e-10, atol=1e-10)


def test_gram_is_the_diagonal_of_a_diagonal_matrix(case: tuple[Linear, tuple[int, ...]]) -> None:
    operator, shape = case
    gram, A = operator.gram(shape), operator.matrix(shape)
    square = A @ A.T
    if gram is None:
        return
    assert gram.shape == operator.output_shape(shape) and gram.dtype == torch.float64
    torch.testing.assert_close(torch.diag(gram.flatten()), square, rtol=0, atol=1e-12)


def test_gram_is_there_where_the_matrix_is_diagonal() -> None:
    has = {name for name, (operator, shape) in LINEAR.items() if operator.gram(shape) is not None}  # type: ignore[attr-defined]
    diagonal = set()
    for name, (operator, shape) in LINEAR.items():
        A = operator.matrix(shape)  # type: ignore[attr-defined]
        square = A @ A.T
        if torch.allclose(square, torch.diag(square.diagonal()), atol=1e-12):
            diagonal.add(name)
    assert has == diagonal - {"function"} and {"half", "downsample", "grayscale", "projections"} < has


def test_the_singular_form_is_the_operator(case: tuple[Linear, tuple[int, ...]]) -> None:
    """U diag(s) V^T x = A x, U and V have orthonormal columns, and s are the values of a dense decomposition."""
    operator, shape = case
    form = operator.singular(shape)
    x, y = draws(3, *shape), draws(3, *operator.output_shape(shape), seed=1)
    k = len(form.values)
    torch.testing.assert_close(form.measurement(form.values * form.inwards(x)), operator(x), rtol=0, atol=1e-10)
    torch.testing.assert_close(
        form.outwards(form.values * form.measured(y)), operator.adjoint(y, shape), atol=1e-10, rtol=0
    )
    c = draws(k, k, seed=2)
    torch.testing.assert_close(form.inwards(form.outwards(c)), c, rtol=0, atol=1e-10)
    torch.testing.assert_close(form.measured(form.measurement(c)), c, rtol=0, atol=1e-10)
    dense = dense_singular(operator.matrix(shape), shape, tuple(y.shape[1:])).values
    ours = form.values.sort(descending=True).values
    torch.testing.assert_close(ours[: len(dense)], dense, rtol=0, atol=1e-10)
    assert (ours[len(dense) :] < 1e-10).all()


def test_the_pseudo_inverse(case: tuple[Linear, tuple[int, ...]]) -> None:
    operator, shape = case
    A = operator.matrix(shape)
    y = draws(2, *operator.output_shape(shape), seed=1)
    wanted = (y.flatten(1) @ torch.linalg.pinv(A, rtol=1e-9).T).reshape(2, *shape)
    torch.testing.assert_close(operator.pinv(y, shape), wanted, rtol=1e-7, atol=1e-7)


def test_the_dtype_of_the_state_is_kept(case: tuple[Linear, tuple[int, ...]]) -> None:
    operator, shape = case
    x = draws(2, *shape)
    seen = operator(x.float())
    assert seen.dtype == torch.float32
    torch.testing.assert_close(seen.double(), operator(x), rtol=1e-5, atol=1e-5)
    form = operator.singular(shape)
    assert form.outwards(form.inwards(x.float())).dtype == form.measured(seen).dtype == torch.float32


# -- what each one does, against another code ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("padding", "mode"), [("circular", "wrap"), ("reflect", "mirror"), ("replicate", "nearest"), ("zeros", "constant")]
)
@pytest.mark.parametrize("kernel", [KERNEL, KERNEL[:2], KERNEL[:, :2]], ids=["odd", "even-high", "even-wide"])
def test_convolutions_are_those_of_scipy(padding: str, mode: str, kernel: Tensor) -> None:
    x = draws(1, 1, 9, 7)
    wanted = ndimage.convolve(x[0, 0].numpy(), kernel.double().numpy(), mode=mode)
    torch.testing.assert_close(O.convolve(kernel, padding)(x)[0, 0], torch.from_numpy(wanted), rtol=0, atol=1e-12)


def test_blurs_keep_light_and_place() -> None:
    """Kernels sum to one and have their middle in the middle; the Gaussian one is scipy's."""
    point = torch.zeros(1, 1, 31, 31, dtype=torch.float64)
    point[..., 15, 15] = 1
    for blur in (O.gaussian_blur(9, 1.5), O.motion_blur(9, 37.0)):
        spread = blur(point)[0, 0]
        assert float(spread.sum()) == pytest.approx(1)
        assert spread.min() > -1e-15
        rows = torch.arange(31.0, dtype=torch.float64)
        assert float((spread.sum(1) * rows).sum()) == pytest.approx(15, abs=1e-9)
        assert float((spread.sum(0) * rows).sum()) == pytest.approx(15, abs=1e-9)
    wanted = ndimage.gaussian_filter(point[0, 0].numpy(), 1.5, radius=4)
    torch.testing.assert_close(O.gaussian_blur(9, 1.5)(point)[0, 0], torch.from_numpy(wanted), rtol=0, atol=1e-12)
    across = O.motion_blur(7, 0)(point)[0, 0]
    torch.testing.assert_close(across[15, 12:19], torch.full((7,), 1 / 7, dtype=torch.float64))
    upright = O.motion_blur(7, 90)(point)[0, 0]
    torch.testing.assert_close(upright, across.T, rtol=0, atol=1e-9)
    rising = O.motion_blur(7, 45)(point)[0, 0]
    assert rising[13, 17] > 0.1 and rising[17, 17] < 1e-9, "angles turn counter-clockwise, as rows count downwards"


def test_masks_hide_what_they_say() -> None:
    x = torch.arange(24.0).reshape(1, 1, 4, 6)
    assert O.half("bottom")(x).tolist() == [list(range(12))]
    assert O.half("top")(x).tolist() == [list(range(12, 24))]
    assert O.half("right")(x)[0, :4].tolist() == [0, 1, 2, 6]
    assert O.half("left")(x)[0, :4].tolist() == [3, 4, 5, 9]
    assert O.box(1, 1, 3, 5)(x).tolist() == [[0, 1, 2, 3, 4, 5, 6, 12, 18]]
    mask = torch.zeros(4, 6)
    mask[2, 3] = 1
    assert O.inpaint(mask)(x).tolist() == [[15]]
    two = torch.stack([x[0], x[0]], 1)
    random = O.random_mask(0.25, seed=4)
    assert random(two).shape == (1, 36) and bool((random(two)[:, :18] == random(two)[:, 18:]).all())
    assert not torch.equal(random.index((1, 4, 6)), O.random_mask(0.25, seed=5).index((1, 4, 6)))
    shown = O.half("top").place(torch.ones(1, 12), (1, 4, 6), -1)
    assert shown[0, 0, 0].tolist() == [-1] * 6 and shown[0, 0, 3].tolist() == [1] * 6


def test_sizes_and_colours() -> None:
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert O.downsample(2)(x).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    grey = O.grayscale()(torch.tensor([1.0, 10, 100]).reshape(1, 3, 1, 1))
    assert float(grey) == pytest.approx(0.299 + 5.87 + 11.4)
    flat = torch.full((1, 1, 8, 8), 3.0)
    torch.testing.assert_close(O.super_resolution(4)(flat), torch.full((1, 1, 2, 2), 3.0))


def test_projections_are_a_function_of_the_seed_alone() -> None:
    x = draws(2, 12)
    assert torch.equal(O.random_projections(5, seed=2)(x), O.random_projections(5, seed=2)(x))
    assert not torch.allclose(O.random_projections(5, seed=2)(x), O.random_projections(5, seed=3)(x))


def test_a_chain_is_its_parts_in_order() -> None:
    x = draws(2, 1, 8, 8)
    chain = O.gaussian_blur(3) | O.downsample(2) | O.half("top")
    torch.testing.assert_close(chain(x), O.half("top")(O.downsample(2)(O.gaussian_blur(3)(x))))
    mixed = O.gaussian_blur(3) | torch.abs
    assert not mixed.linear
    with pytest.raises(InputError, match="not linear"):
        mixed.adjoint(x, (1, 8, 8))  # type: ignore[attr-defined]


def test_a_large_operator_without_a_fast_form_says_so() -> None:
    operator = O.gaussian_blur(5, padding="reflect")
    with pytest.raises(InputError, match=r"\(3, 128, 128\).*too large"):
        operator.singular((3, 128, 128))
    assert len(O.gaussian_blur(5).singular((3, 128, 128)).values) == 3 * 128**2


@pytest.mark.parametrize(
    ("make", "shape", "part"),
    [
        (lambda: O.inpaint(torch.ones(3, 3)), (1, 8, 8), r"mask has shape \(3, 3\).*\(1, 8, 8\)"),
        (lambda: O.inpaint(torch.zeros(8, 8)), (1, 8, 8), "hides everything"),
        (lambda: O.inpaint(torch.full((8, 8), 0.5)), (1, 8, 8), "other values"),
        (lambda: O.half("botom"), (1, 8, 8), "Did you mean 'bottom'"),
        (lambda: O.half(), (8,), r"got states of shape \(8,\)"),
        (lambda: O.box(0, 0, 9, 2), (1, 8, 8), r"leaves images of shape \(1, 8, 8\)"),
        (lambda: O.box(0, 0, 0, 2), (1, 8, 8), "sides from 1"),
        (lambda: O.random_mask(1.0), (1, 8, 8), "below 1"),
        (lambda: O.gaussian_blur(4), (1, 8, 8), "odd"),
        (lambda: O.gaussian_blur(5, 0), (1, 8, 8), "sigma"),
        (lambda: O.gaussian_blur(5, padding="wrap"), (1, 8, 8), "padding is one of"),
        (lambda: O.gaussian_blur(9), (1, 8, 8), r"9 x 9.*\(1, 8, 8\)"),
        (lambda: O.gaussian_blur(5), (64,), r"shape \(64,\).*reshape"),
        (lambda: O.convolve(torch.ones(3)), (1, 8, 8), r"got shape \(3,\)"),
        (lambda: O.downsample(3), (1, 8, 8), r"multiples.*\(1, 8, 8\)"),
        (lambda: O.downsample(0), (1, 8, 8), "at least 1"),
        (lambda: O.super_resolution(3), (1, 8, 8), r"\(1, 8, 8\)"),
        (lambda: O.super_resolution(2, "nearest"), (1, 8, 8), "bicubic"),
        (lambda: O.grayscale(), (1, 8, 8), r"3 channels.*\(1, 8, 8\)"),
        (lambda: O.colour([1.0, 2.0]), (1, 8, 8), r"got \(2,\)"),
        (lambda: O.random_projections(65), (1, 8, 8), "65.*64"),
        (lambda: O.random_projections(0), (1, 8, 8), "at least 1"),
        (lambda: O.reshape(1, 9, 9), (64,), r"\(64,\) cannot be reshaped to \(1, 9, 9\)"),
        (lambda: O.reshape(-1), (64,), "whole numbers"),
        (lambda: O.matrix(torch.ones(2, 3)), (4,), r"\(2, 3\) does not meet states of shape \(4,\)"),
        (lambda: O.function(lambda x: x + 1, linear=True), (4,), "leave out linear"),
        (lambda: O.gaussian_blur(3) | O.downsample(3), (1, 8, 8), "multiples"),
    ],
)
def test_what_does_not_meet_is_named(make, shape: tuple[int, ...], part: str) -> None:
    with pytest.raises(InputError, match=part):
        make().output_shape(shape)


def test_sizes_of_the_table() -> None:
    assert math.prod(O.half().output_shape(RGB)) == 3 * 4 * 12
