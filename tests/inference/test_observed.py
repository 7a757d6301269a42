"""`Observed`: every accepted form of data becomes one padded batch; bad input is told apart and named."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

from retrodict.core.errors import InputError, InputTypeError
from retrodict.inference import Observed

NAN = float("nan")


@pytest.mark.parametrize(
    ("y", "shape", "single"),
    [
        (np.zeros(5), (1, 5, 1), True),
        ([0.0, 1.0, NAN], (1, 3, 1), True),
        (torch.zeros(5, 2), (1, 5, 2), True),
        ([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], (1, 3, 2), True),
        (np.zeros((3, 5, 2), dtype=np.float32), (3, 5, 2), False),
        ([np.zeros((2, 3)), np.zeros((4, 3))], (2, 4, 3), False),
        ([np.zeros(2), torch.zeros(4)], (2, 4, 1), False),
        (np.array([0, 1, 2]), (1, 3), True),
        (np.array([[0, 1, 2], [1, 1, -1]]), (2, 3), False),
        ([np.array([0, 1]), np.array([1])], (2, 2), False),
        (np.array([True, False]), (1, 2), True),
    ],
)
def test_shapes(y: object, shape: tuple[int, ...], single: bool) -> None:
    data = Observed(y)
    assert tuple(data.y.shape) == shape and data.single is single
    assert data.y.dtype == (torch.int64 if len(shape) == 2 else torch.float64)


def test_padding_is_neither_a_time_nor_an_observation() -> None:
    data = Observed([np.array([1.0, 2.0]), np.array([3.0, NAN, 5.0])], times=[[0.0, 0.5], [1.0, 1.0, 4.0]])
    assert data.lengths.tolist() == [2, 3]
    assert data.real.tolist() == [[True, True, False], [True, True, True]]
    assert data.seen[..., 0].tolist() == [[True, True, False], [True, False, True]]
    assert torch.isnan(data.times[0, 2]) and data.times[1].tolist() == [1.0, 1.0, 4.0]
    assert Observed([np.array([1]), np.array([0, 1])]).y[0].tolist() == [1, -1]
    one = data.series(1)
    assert one.single and one.y.shape == (1, 3, 1) and one.times.tolist() == [[1.0, 1.0, 4.0]]


def test_pandas_and_xarray_bring_their_times() -> None:
    numbers = Observed(pd.Series([1.0, 2.0], index=[0.5, 2.5]))
    assert numbers.times.tolist() == [[0.5, 2.5]]
    months = pd.date_range("2020-01-01", periods=4, freq="MS", name="month")
    frame = pd.DataFrame({"a": [1.0, NAN, 3.0, 4.0], "b": 2.0}, index=months)
    data = Observed(frame)
    assert data.times.tolist() == [[0.0, 1.0, 2.0, 3.0]] and data.columns == ["a", "b"]
    assert data.axis.labels(data.times[0].numpy()).equals(months)
    odd = pd.DatetimeIndex(["2020-01-01", "2020-01-02 12:00", "2020-02-01"])
    assert Observed(pd.Series(1.0, index=odd)).times.tolist() == [[0.0, 1.5, 31.0]]
    periods = pd.period_range("2020Q1", periods=3, freq="Q")
    assert Observed(pd.Series(1.0, index=periods)).times.tolist() == [[0.0, 1.0, 2.0]]
    array = xr.DataArray(np.zeros((4, 2, 3)), dims=("time", "coordinate", "series"), coords={"time": [0, 1, 3, 4]})
    data = Observed(array)
    assert tuple(data.y.shape) == (3, 4, 2) and data.times[2].tolist() == [0.0, 1.0, 3.0, 4.0]
    pair = Observed([frame["a"], frame["b"].iloc[:2]])
    assert pair.lengths.tolist() == [4, 2] and pair.times[1, :2].tolist() == [0.0, 1.0]


def test_dates_and_numbers_convert_both_ways() -> None:
    axis = Observed(pd.Series(1.0, index=pd.date_range("2021-03-01", periods=5, freq="B"))).axis
    later = pd.DatetimeIndex(["2021-03-08", "2021-03-15"])
    assert axis.numbers(later).tolist() == [5.0, 10.0]
    assert axis.labels(np.array([5.0, 10.0])).equals(pd.DatetimeIndex(later))
    with pytest.raises(InputError, match="not a multiple of the frequency"):
        axis.numbers(pd.DatetimeIndex(["2021-03-07"]))
    with pytest.raises(InputTypeError, match="give numbers"):
        Observed(np.zeros(3)).axis.numbers(later)


def test_gradients_flow_into_y() -> None:
    y = torch.randn(4, 2, requires_grad=True)
    Observed(y).y.sum().backward()
    assert y.grad is not None and bool((y.grad == 1).all())


def test_noise_is_a_deviation_and_covariance_a_matrix() -> None:
    data = Observed(np.zeros((3, 2)), noise=[2.0, 3.0], operator=torch.eye(2))
    assert data.covariance is not None and data.covariance.value.tolist() == [[4.0, 0.0], [0.0, 9.0]]
    assert Observed(np.zeros(3), covariance=4.0).covariance.value.tolist() == [[4.0]]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"y": np.zeros(3), "times": [0.0, 2.0, 1.0]}, "times go back in series 0: 1 at position 2 follows 2"),
        ({"y": np.zeros(3), "times": [0.0, NAN, 1.0]}, "not finite at position 1"),
        ({"y": np.zeros(3), "times": [0.0, 1.0]}, "3 observations and 2 times"),
        ({"y": np.zeros((2, 3, 1)), "times": np.zeros((3, 3))}, "3 rows and there are 2 series"),
        ({"y": [np.zeros((2, 1)), np.zeros((3, 2))]}, "one number of coordinates each, got .1, 2."),
        ({"y": [1.0, NAN], "missing": "error"}, "missing in series 0 at time 1"),
        ({"y": [1.0, NAN], "missing": "eror"}, "'nan' .* or 'error'"),
        ({"y": [1.0, math.inf]}, "infinite at position 1"),
        ({"y": np.array([0, -2])}, "category -2"),
        ({"y": np.zeros((4, 1), dtype=int)}, "may be one series or 4"),
        ({"y": []}, "no "),
        ({"y": np.zeros(3), "operator": [[NAN]]}, "operator has entries that are not finite"),
        ({"y": np.zeros(3), "operator": torch.eye(2)}, "operator has the shape .2, 2. and y has 1"),
        ({"y": np.zeros(3), "noise": -1.0}, "at least 0"),
        ({"y": np.zeros(3), "noise": NAN}, "not NaN"),
        ({"y": np.zeros(3), "noise": torch.eye(1)}, "use covariance="),
        ({"y": np.zeros(3), "noise": 1.0, "covariance": 1.0}, "give one"),
        ({"y": np.zeros((3, 2)), "covariance": [[1.0, 2.0], [2.0, 1.0]]}, "smallest eigenvalue is -1"),
        ({"y": np.zeros((3, 2)), "covariance": [[1.0, 0.5], [0.0, 1.0]]}, "not symmetric"),
        ({"y": np.array([0, 1]), "noise": 1.0}, "integers were observed"),
        ({"y": np.zeros((2, 2, 2, 2))}, "has the shape"),
    ],
)
def test_bad_input_is_named(arguments: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Observed(**arguments)


def test_wrong_kinds() -> None:
    with pytest.raises(InputTypeError, match="accepted: numbers"):
        Observed(["a", "b"])
    with pytest.raises(InputError, match="some series are integers"):
        Observed([np.zeros(2), np.array([1, 2])])
