"""A CSV as observations: the columns that the configuration names, with the column of times as their index."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import retrodict as rd
from retrodict.app.infer.fields import Fields, quote
from retrodict.core.errors import InputError, near, optional_import, require
from retrodict.inference.axis import TimeAxis


@dataclass(frozen=True)
class Source:
    """What of a CSV is observed.

    Attributes:
        observed: columns; time: the column of times, or None for 0, 1, 2, ...
        log: whether logarithms are taken.
    """

    observed: tuple[str, ...]
    time: str | None
    log: bool

    @staticmethod
    def of(given: Any) -> Source:
        """From the section ``data``."""
        fields = Fields(given, "data")
        columns = fields.take("observed")
        columns = columns if isinstance(columns, list) else [columns]
        if not columns or not all(isinstance(name, str | int) for name in columns):
            raise InputError(f"data.observed is {quote(columns)}; give the name of a column, or a list of names")
        log = fields.take("log", False)
        if not isinstance(log, bool):
            raise InputError(f"data.log is {quote(log)}; give true or false")
        source = Source(tuple(map(str, columns)), fields.text("time", None), log)
        fields.done()
        return source


def read_table(path: Path) -> Any:
    """A CSV as a DataFrame."""
    pandas: Any = optional_import("pandas", "inference")
    require(path.is_file(), f"{path} is not a file; give a CSV with a first line of column names")
    try:
        table = pandas.read_csv(path, skipinitialspace=True)
    except (ValueError, UnicodeDecodeError) as error:  # pandas' own errors are among them
        raise InputError(f"{path} cannot be read as a CSV: {error}") from None
    table.columns = [str(name) for name in table.columns]
    require(len(table) > 0, f"{path} has no rows below its first line")
    return table


def frame(table: Any, source: Source) -> Any:
    """The observed columns as floats, NaN where missing, indexed by time."""
    pandas: Any = optional_import("pandas", "inference")
    for name in (*source.observed, *([source.time] if source.time else [])):
        if name not in table.columns:
            known = ", ".join(map(str, table.columns))
            raise InputError(f"the data have no column {name!r}; they have: {known}.{near(name, table.columns)}")
    values = pandas.DataFrame({name: _numbers(table[name], name, source.log) for name in source.observed})
    if source.time is not None:
        values.index = _index(table[source.time], source.time)
    return values


def _numbers(column: Any, name: str, log: bool) -> np.ndarray:
    pandas: Any = optional_import("pandas", "inference")
    numbers = pandas.to_numeric(column, errors="coerce").to_numpy(dtype=float)
    bad = np.isnan(numbers) & column.notna().to_numpy()
    if bad.any():
        row = int(bad.argmax())
        raise InputError(f"column {name!r} holds {quote(column.iloc[row])} in row {row + 1}; give numbers, or nothing")
    if log:
        if (numbers <= 0).any():
            row = int((numbers <= 0).argmax())
            raise InputError(
                f"column {name!r} holds {numbers[row]:g} in row {row + 1}; data.log needs positive numbers"
            )
        numbers = np.log(numbers)
    return numbers


def _index(column: Any, name: str) -> Any:
    """Numbers as they are; text as ISO dates."""
    pandas: Any = optional_import("pandas", "inference")
    if column.isna().any():
        row = int(column.isna().to_numpy().argmax())
        raise InputError(f"column {name!r} has no time in row {row + 1}; every row has one")
    if pandas.api.types.is_numeric_dtype(column):
        return pandas.Index(column.to_numpy(dtype=float), name=name)
    try:
        return pandas.DatetimeIndex(pandas.to_datetime(column, format="ISO8601"), name=name)
    except (ValueError, TypeError) as error:
        raise InputError(f"column {name!r} holds neither numbers nor dates as in 2024-01-31: {error}") from None


def ahead(values: Any, forecast: Any) -> Any:
    """``values`` with blank rows at the times of a forecast: so many more of the usual distance, or a list of times."""
    pandas: Any = optional_import("pandas", "inference")
    index = values.index
    if forecast is None:
        return values
    dated = isinstance(index, pandas.DatetimeIndex)
    if isinstance(forecast, list):
        try:
            later = pandas.DatetimeIndex(forecast) if dated else pandas.Index([float(v) for v in forecast])
        except (ValueError, TypeError) as error:
            raise InputError(f"infer.forecast is {quote(forecast)}; give times as in the data ({error})") from None
        require(
            bool(later.is_monotonic_increasing and later[0] > index[-1]),
            f"infer.forecast is {quote(forecast)}; its times increase and lie after the last one, {index[-1]}",
        )
    else:
        require(
            isinstance(forecast, int) and not isinstance(forecast, bool) and forecast > 0 and len(index) > 1,
            f"infer.forecast is {quote(forecast)}; give a number of steps, or a list of times",
        )
        frequency = TimeAxis.of(index).freq
        if frequency is not None:
            later = pandas.date_range(index[-1], periods=forecast + 1, freq=frequency)[1:]
        else:
            gaps = index[1:] - index[:-1]
            typical = gaps.to_series().median() if dated else float(np.median(gaps.to_numpy(dtype=float)))
            later = pandas.Index([index[-1] + (k + 1) * typical for k in range(forecast)])
    blank = pandas.DataFrame(np.nan, index=later, columns=values.columns)
    extended = pandas.concat([values, blank])
    extended.index.name = index.name
    return extended


def observed(values: Any, categories: bool) -> rd.Observed:
    """The rows as `Observed`: floats, or whole numbers with -1 for missing."""
    if not categories:
        return rd.Observed(values)
    column = values.iloc[:, 0].to_numpy()
    given = column[~np.isnan(column)]
    if ((given != np.round(given)) | (given < 0)).any():
        raise InputError(
            f"column {values.columns[0]!r} holds {given[(given != np.round(given)) | (given < 0)][0]:g}; "
            "categories are whole numbers 0, 1, 2, ..."
        )
    whole = np.where(np.isnan(column), -1, column).astype(np.int64)
    return rd.Observed(whole, times=values.index)
