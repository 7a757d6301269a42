"""`Observed`: what was seen, when, and how it depends on the state: the evidence that a model is conditioned on.

One series or many, of equal or unequal length, at regular, irregular or repeated times; NaN (-1 for integers) means
that a coordinate is missing.  Inside, everything is one padded tensor with a batch of series in front:

| given | read as |
|---|---|
| real (N,) | one series, one coordinate |
| real (N, m) | one series |
| real (S, N, m) | a batch of series |
| integers (N,), (S, N) | categories or counts, one a time |
| list of arrays | a batch of series of unequal length |
| pandas Series, DataFrame | one series; the index is the times |
| xarray DataArray | dimension "time", perhaps "series", perhaps one other (the coordinates) |
| mapping | vertex of a `Tree` -> number, ``(m,)`` or ``(S, m)``; vertices not named are not seen |
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from retrodict.core.errors import InputError, InputTypeError, require
from retrodict.core.lin import Lin
from retrodict.inference.axis import TimeAxis

_SEMI_DEFINITE = 1e-10  # eigenvalues below minus this share of the largest are not rounding


class Observed:
    """Observations ``y`` at ``times``, of models with a law of observation or of ``y = operator x + noise``.

    Args:
        y: see the table of this module; NaN (-1 for integers) is missing.
        times: ``(N,)``, ``(S, N)`` or a list of ``(N_i,)``; numbers or dates; by default the index of a pandas or
            xarray object, else 0, 1, 2, ...  They may repeat; they may not go back.
        operator: ``L`` of ``y = L x + noise``: a number, a matrix ``(m, d)``, a `Lin`, or a function of x.
        noise: standard deviation of that noise, a number or ``(m,)``; zero is an exact observation.
        covariance: its covariance ``(m, m)``, instead of ``noise``.
        missing: "nan" (NaN and -1 mean missing) or "error" (they raise).

    Attributes:
        y: ``(S, N, m)`` float64 padded with NaN, or ``(S, N)`` int64 padded with -1.
        times: ``(S, N)`` float64, padded with NaN.
        lengths: ``(S,)``.
        single: whether one series was given without a batch axis.
        names: of the vertices, where y was a mapping; else None.

    >>> data = Observed([[1.0, float("nan")], [2.0, 3.0]], times=[0.0, 0.5])
    >>> data.y.shape, data.times.tolist(), data.single
    (torch.Size([1, 2, 2]), [[0.0, 0.5]], True)
    """

    def __init__(
        self,
        y: Any,
        times: Any = None,
        operator: float | Tensor | Lin | Callable[[Tensor], Tensor] | None = None,
        noise: float | Sequence[float] | Tensor | None = None,
        covariance: Any = None,
        *,
        missing: str = "nan",
    ) -> None:
        if missing not in ("nan", "error"):
            raise InputError(f"missing is 'nan' (NaN means not seen) or 'error' (NaN raises), got {missing!r}")
        self.names = list(y) if isinstance(y, Mapping) else None
        y, index, self.columns = _unpack(y)
        times = index if times is None else times
        series, self.single = _series(y)
        self.y, self.lengths = _pad(series)
        self.axis, self.times = _times(times, self.lengths)
        self.operator = _operator(operator, self)
        self.covariance = _covariance(noise, covariance, self)
        self.layouts: dict[tuple[float | None, bool], Any] = {}  # filled by `layout_of`
        if missing == "error":
            self._refuse_missing()

    @property
    def categories(self) -> bool:
        """Whether the observations are integers."""
        return self.y.dtype == torch.int64

    @property
    def real(self) -> Tensor:
        """``(S, N)``: True where there is an observation and not padding."""
        return torch.arange(self.times.shape[1]) < self.lengths[:, None]

    @property
    def seen(self) -> Tensor:
        """``(S, N, m)`` (``(S, N)`` for integers): True where a coordinate was observed."""
        return self.y >= 0 if self.categories else ~torch.isnan(self.y)

    @property
    def filled(self) -> tuple[Tensor, Tensor]:
        """``(y, seen)`` with a value that was seen elsewhere, and so is in the support, where nothing was."""
        y, seen = self.y, self.seen
        if self.categories:
            return torch.where(seen, y, y[seen][0] if bool(seen.any()) else 0), seen
        columns = []
        for c in range(y.shape[-1]):
            some = seen[..., c]
            columns.append(torch.where(some, y[..., c], y[..., c][some][0].detach() if bool(some.any()) else 1.0))
        return torch.stack(columns, -1), seen

    def __len__(self) -> int:
        return self.y.shape[0]

    def as_real(self) -> Observed:
        """Integers as the real numbers that a Gaussian law speaks of; refused where -1 may be a value or missing."""
        if bool((~self.seen & self.real).any()):
            raise InputError(
                "integers were observed of a Gaussian law, and -1 among them may be a number or mean missing; give y "
                "as floats, with NaN for missing"
            )
        other = copy.copy(self)
        other.y = torch.where(self.real, self.y.double(), float("nan")).unsqueeze(-1)
        return other

    def nameless(self) -> Observed:
        """The same rows without the names of vertices."""
        other = copy.copy(self)
        other.names = None
        return other

    def series(self, s: int) -> Observed:
        """Series ``s`` by itself."""
        n = int(self.lengths[s])
        alone = copy.copy(self)
        alone.single, alone.layouts = True, {}
        alone.y, alone.times, alone.lengths = self.y[s : s + 1, :n], self.times[s : s + 1, :n], self.lengths[s : s + 1]
        return alone

    def __repr__(self) -> str:
        what = "categories" if self.categories else f"{self.y.shape[-1]} coordinates"
        share = 1 - float(self.seen[self.real].double().mean())
        lengths = sorted({int(n) for n in self.lengths})
        span = f"{lengths[0]}" if len(lengths) == 1 else f"{lengths[0]} to {lengths[-1]}"
        return f"Observed({len(self)} series of {span} times, {what}, {share:.0%} missing)"

    def _refuse_missing(self) -> None:
        gaps = ~self.seen if self.categories else (~self.seen).any(-1)
        gaps = gaps & self.real
        if bool(gaps.any()):
            s, k = (int(i) for i in gaps.nonzero()[0])
            raise InputError(
                f"y is missing in series {s} at time {float(self.times[s, k]):g} (position {k}) and missing='error' "
                "was asked for; fill it in, or leave missing='nan', with which it counts as not seen"
            )


# --- y --------------------------------------------------------------------------------------------------------


def _unpack(y: Any) -> tuple[Any, Any, list[str] | None]:
    """``(values, labels of time or None, names of coordinates or None)`` of labelled data."""
    if isinstance(y, Mapping):
        return _rows(y), None, None
    room = type(y).__module__.split(".")[0]
    if room == "pandas":
        columns = [str(c) for c in y.columns] if hasattr(y, "columns") else None
        values = y.to_numpy(dtype=None)
        if values.dtype.kind == "O":
            values = y.to_numpy(dtype=float, na_value=np.nan)
        if columns is not None and len(columns) == 1 and values.dtype.kind in "biu":
            values = values[:, 0]
        return values, y.index, columns
    if room == "xarray":
        if "time" not in y.dims:
            raise InputError(f"an xarray DataArray of observations has the dimension 'time', got {tuple(y.dims)}")
        others = [d for d in y.dims if d not in ("series", "time")]
        require(len(others) <= 1, f"observations have one dimension beside 'series' and 'time', got {others}")
        order = [d for d in ("series", "time", *others) if d in y.dims]
        y = y.transpose(*order)
        values = y.values
        if "series" in y.dims and not others and values.dtype.kind == "f":
            values = values[..., None]
        names = [str(c) for c in y.coords[others[0]].values] if others and others[0] in y.coords else None
        labels = y.indexes["time"] if "time" in y.indexes else None
        return values, labels, names
    if isinstance(y, (list, tuple)) and y and type(y[0]).__module__.split(".")[0] in ("pandas", "xarray"):
        parts = [_unpack(one) for one in y]
        labels = [part[1] for part in parts]
        return [part[0] for part in parts], None if any(i is None for i in labels) else labels, parts[0][2]
    return y, None, None


def _rows(named: Mapping[Any, Any]) -> Tensor:
    """The values of a mapping as ``(J,)``, ``(J, m)`` or ``(S, J, m)``, in its order."""
    require(bool(named), "y is an empty mapping; give a value for at least one vertex")
    parts = [_tensor(value, f"y[{name!r}]") for name, value in named.items()]
    shapes = {name: tuple(part.shape) for name, part in zip(named, parts)}
    require(
        len(set(shapes.values())) == 1 and parts[0].ndim <= 2,
        f"the values of y are all numbers, all (m,) or all (S, m); got the shapes {shapes}",
    )
    real = any(part.is_floating_point() for part in parts)
    return torch.stack([part.double() if real else part for part in parts], 1 if parts[0].ndim == 2 else 0)


def _series(y: Any) -> tuple[list[Tensor], bool]:
    """One tensor a series, ``(N, m)`` real or ``(N,)`` integers, and whether there was no batch axis."""
    if isinstance(y, (list, tuple)) and y and not _is_nested_numbers(y):
        parts = [_one(part, f"series {s}") for s, part in enumerate(y)]
        integers = [part.dtype == torch.int64 for part in parts]
        if any(integers) and not all(integers):
            raise InputError("some series are integers (categories) and some are real; give all of them as one kind")
        widths = sorted({part.shape[1] for part in parts if part.ndim == 2})
        require(len(widths) <= 1, f"series have one number of coordinates each, got {widths}")
        return parts, False
    values = _tensor(y, "y")
    if values.dtype == torch.int64:
        if values.ndim == 3 and values.shape[-1] == 1:
            values = values[..., 0]
        if values.ndim == 2 and values.shape[1] == 1 and values.shape[0] > 1:
            raise InputError(
                f"integers of shape {tuple(values.shape)} may be one series or {values.shape[0]} series of one time; "
                "give y[:, 0] for one series, or a list of arrays"
            )
        if values.ndim in (1, 2):
            rows = [values] if values.ndim == 1 else list(values)
            return [_one(row, "y") for row in rows], values.ndim == 1
        values = values.double()
    if values.ndim in (1, 2):
        return [_one(values, "y")], True
    if values.ndim == 3:
        return [_one(v, f"series {s}") for s, v in enumerate(values)], False
    raise InputError(f"y has the shape {tuple(values.shape)}; accepted: (N,), (N, m), (S, N, m), or a list of series")


def _is_nested_numbers(y: Sequence[Any]) -> bool:
    """Lists of numbers, or of lists of numbers of one length: what NumPy makes one array of."""
    if all(isinstance(v, (int, float, np.number)) or getattr(v, "ndim", None) == 0 for v in y):
        return True
    if any(isinstance(v, (np.ndarray, Tensor)) for v in y):
        return False
    try:
        return np.asarray(y).dtype.kind in "biuf"
    except ValueError:
        return False


def _tensor(value: Any, what: str) -> Tensor:
    """float64 or int64; the graph of a tensor is kept."""
    if not isinstance(value, Tensor):
        if isinstance(value, (list, tuple)) and value and isinstance(value[0], Tensor):
            value = torch.stack([torch.as_tensor(v) for v in value])
        else:
            array = np.asarray(value)
            if array.dtype.kind not in "biuf":
                raise InputTypeError(f"{what} holds {array.dtype}; accepted: numbers (floats, integers, booleans)")
            value = torch.from_numpy(np.array(array.astype(np.float64 if array.dtype.kind == "f" else np.int64)))
    return value.double() if value.is_floating_point() else value.long()


def _one(value: Any, what: str) -> Tensor:
    values = _tensor(value, what)
    if values.dtype == torch.int64:
        values = values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values
        require(values.ndim == 1, f"{what} of integers has one number a time, got the shape {tuple(values.shape)}")
        require(
            bool((values >= -1).all()),
            f"{what} has the category {int(values.min()) if values.numel() else 0}; categories are 0, 1, 2, ... and "
            "-1 means missing (give floats if the integers are real values)",
        )
    else:
        values = values[:, None] if values.ndim == 1 else values
        require(values.ndim == 2, f"{what} has the shape {tuple(values.shape)}; accepted: (N,) or (N, m)")
        infinite = torch.isinf(values)
        if bool(infinite.any()):
            raise InputError(f"{what} is infinite at position {int(infinite.nonzero()[0, 0])}; NaN is for missing")
    require(values.shape[0] > 0, f"{what} has no observations; give at least one time (NaN if nothing was seen)")
    return values


def _pad(series: list[Tensor]) -> tuple[Tensor, Tensor]:
    require(bool(series), "y has no series")
    lengths = torch.tensor([len(s) for s in series])
    value = -1 if series[0].dtype == torch.int64 else float("nan")
    padded = torch.nn.utils.rnn.pad_sequence(series, batch_first=True, padding_value=value)
    return padded, lengths


# --- times ----------------------------------------------------------------------------------------------------


def _times(times: Any, lengths: Tensor) -> tuple[TimeAxis, Tensor]:
    """The axis, and times ``(S, N)`` padded with NaN."""
    S, N = len(lengths), int(lengths.max())
    if times is None:
        return TimeAxis(), _mask(torch.arange(N, dtype=torch.float64).expand(S, N), lengths)
    if isinstance(times, (list, tuple)) and len(times) == S and all(hasattr(t, "__len__") for t in times):
        rows = list(times)
    elif getattr(times, "ndim", 1) == 2:
        rows = list(times)
        require(len(rows) == S, f"times has {len(rows)} rows and there are {S} series")
    else:
        rows = [times] * S
    rows = [row.detach().cpu().numpy() if isinstance(row, Tensor) else row for row in rows]
    axis = TimeAxis.of(rows[0])
    padded = torch.full((S, N), float("nan"), dtype=torch.float64)
    for s, row in enumerate(rows):
        n = int(lengths[s])
        numbers = torch.from_numpy(np.array(axis.numbers(row)))
        require(numbers.ndim == 1, f"times of series {s} have the shape {tuple(numbers.shape)}; accepted: ({n},)")
        if len(numbers) > n and bool(torch.isnan(numbers[n:]).all()):
            numbers = numbers[:n]  # a padded row
        require(len(numbers) == n, f"series {s} has {n} observations and {len(numbers)} times; give one time each")
        _check_order(numbers, s)
        padded[s, :n] = numbers
    return axis, padded


def _check_order(times: Tensor, s: int) -> None:
    bad = ~torch.isfinite(times)
    if bool(bad.any()):
        raise InputError(
            f"times of series {s} are not finite at position {int(bad.nonzero()[0])}; every time is a number"
        )
    back = (times.diff() < 0).nonzero()
    if len(back):
        k = int(back[0])
        raise InputError(
            f"times go back in series {s}: {float(times[k + 1]):g} at position {k + 1} follows {float(times[k]):g}; "
            "sort the observations by time (repeated times are accepted)"
        )


def _mask(values: Tensor, lengths: Tensor) -> Tensor:
    real = torch.arange(values.shape[1]) < lengths[:, None]
    return torch.where(real, values, torch.full_like(values, float("nan")))


# --- y = operator x + noise -----------------------------------------------------------------------------------


def _operator(operator: Any, data: Observed) -> Lin | Callable[[Tensor], Tensor] | None:
    if operator is None or isinstance(operator, Lin):
        return operator
    if not isinstance(operator, Tensor) and callable(operator):
        return cast("Callable[[Tensor], Tensor]", operator)
    value = torch.as_tensor(operator, dtype=torch.float64)
    require(bool(torch.isfinite(value).all()), "operator has entries that are not finite; NaN is for y alone")
    if value.ndim == 0:
        return Lin.scalar(value)
    value = value[None] if value.ndim == 1 else value  # one row: one coordinate
    rows = None if data.categories else data.y.shape[-1]
    require(
        value.ndim == 2 and (rows is None or value.shape[0] == rows),
        f"operator has the shape {tuple(value.shape)} and y has {rows} coordinates; give a matrix ({rows}, d)",
    )
    return Lin.dense(value)


def _covariance(noise: Any, covariance: Any, data: Observed) -> Lin | None:
    if noise is None and covariance is None:
        return None
    require(noise is None or covariance is None, "noise is a standard deviation and covariance a matrix; give one")
    require(not data.categories, "integers were observed, and Gaussian noise is of real values; give y as floats")
    m = data.y.shape[-1]
    if noise is not None:
        value = torch.as_tensor(noise, dtype=torch.float64)
        require(
            value.ndim < 2, "noise is a standard deviation, a number or one a coordinate; use covariance= for a matrix"
        )
        require(bool((value >= 0).all()), f"noise is a standard deviation, at least 0 and not NaN, got {noise}")
        require(value.ndim == 0 or len(value) == m, f"noise has {value.numel()} numbers and y has {m} coordinates")
        return Lin.dense(torch.diag_embed(value.expand(m) ** 2))
    value = torch.as_tensor(covariance, dtype=torch.float64)
    value = value.reshape(1, 1) if value.ndim == 0 else value
    require(value.shape == (m, m), f"covariance has the shape {tuple(value.shape)}; y has {m} coordinates: ({m}, {m})")
    require(bool(torch.isfinite(value).all()), "covariance has entries that are not finite; NaN is for y alone")
    require(torch.allclose(value, value.mT), "covariance is not symmetric")
    smallest, largest = torch.linalg.eigvalsh(value.detach())[[0, -1]]
    require(
        bool(smallest >= -_SEMI_DEFINITE * largest.clamp_min(0)),
        f"covariance is not positive semi-definite: its smallest eigenvalue is {float(smallest):.3g}",
    )
    return Lin.dense(value)
