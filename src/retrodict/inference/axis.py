"""The time axis of data: labels of the user outside, float64 numbers inside.

Numbers stay as they are.  Dates that follow a calendar frequency (months, business days, hours) are counted in
steps of it, so that a transition kernel is one step; other dates are days since the first one.  `TimeAxis` converts
both ways, and knows nothing of models.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from retrodict.core.errors import InputError, InputTypeError, optional_import

_DAY = np.timedelta64(1, "D") / np.timedelta64(1, "ns")


@dataclass(frozen=True)
class TimeAxis:
    """How numbers of time read as labels.

    Attributes:
        kind: "number", "date" (counted from ``origin``) or "period" (ordinals of a pandas PeriodIndex).
        origin: the label of 0.
        freq: the pandas frequency of one unit of time; None: the unit is a day.
        name: of the axis, kept for results.
    """

    kind: str = "number"
    origin: Any = None
    freq: Any = None
    name: str | None = None

    @staticmethod
    def of(labels: Any) -> TimeAxis:
        """The axis that a pandas index, an array of ``datetime64`` or plain numbers imply."""
        if not _is_dated(labels):
            return TimeAxis(name=getattr(labels, "name", None))
        pandas: Any = optional_import("pandas", "inference")
        if isinstance(labels, pandas.PeriodIndex):
            return TimeAxis("period", labels[0], labels.freq, labels.name)
        index = pandas.DatetimeIndex(labels)
        freq = index.freq
        if freq is None and len(index) > 2 and index.is_monotonic_increasing and index.is_unique:
            with warnings.catch_warnings():  # of the return type that pandas will change; to_offset takes both
                warnings.simplefilter("ignore", DeprecationWarning)
                freq = pandas.tseries.frequencies.to_offset(pandas.infer_freq(index))
        return TimeAxis("date", index[0], freq, index.name)

    def numbers(self, labels: Any) -> np.ndarray:
        """Labels as float64."""
        if self.kind == "number":
            if _is_dated(labels):
                raise InputTypeError("dates were given beside data whose times are numbers; give numbers")
            array = np.asarray(labels)
            if array.dtype.kind not in "biuf":
                raise InputTypeError(f"times are numbers or dates, got {array.dtype}")
            return array.astype(np.float64)
        if not _is_dated(labels):
            return np.asarray(labels, dtype=np.float64)  # numbers on a dated axis: already counted from the origin
        pandas: Any = optional_import("pandas", "inference")
        if self.kind == "period":
            index = pandas.PeriodIndex(labels, freq=self.freq)
            return np.asarray(index.asi8 - self.origin.ordinal, dtype=np.float64)
        index = pandas.DatetimeIndex(labels)
        if self.freq is None:
            return np.asarray((index - self.origin) / pandas.Timedelta(1, "D"), dtype=np.float64)
        known = pandas.date_range(self.origin, max(index.max(), self.origin), freq=self.freq)
        position = known.get_indexer(index)
        if (position < 0).any():
            odd = index[position < 0][0]
            raise InputError(
                f"{odd} is not a multiple of the frequency {self.freq.freqstr!r} after {self.origin}; "
                "give times on that grid, or numbers"
            )
        return position.astype(np.float64)

    def labels(self, numbers: np.ndarray) -> Any:
        """Numbers as what the user gave: an array of float64, or a pandas index."""
        numbers = np.asarray(numbers, dtype=np.float64)
        if self.kind == "number":
            return numbers
        pandas: Any = optional_import("pandas", "inference")
        if self.kind == "period":
            ordinals = [self.origin + int(n) for n in np.round(numbers)]
            return pandas.PeriodIndex(ordinals, freq=self.freq, name=self.name)
        if self.freq is None:
            moments = self.origin + pandas.to_timedelta(np.round(numbers * _DAY), unit="ns")
            return pandas.DatetimeIndex(moments, name=self.name).round("us")
        whole = np.floor(numbers).astype(int)
        known = pandas.date_range(self.origin, periods=int(whole.max(initial=0)) + 2, freq=self.freq)
        share = numbers - whole
        return pandas.DatetimeIndex(known[whole] + share * (known[whole + 1] - known[whole]), name=self.name)


def _is_dated(labels: Any) -> bool:
    if type(labels).__name__ == "PeriodIndex":
        return True
    dtype = getattr(labels, "dtype", None)
    if dtype is None and isinstance(labels, (list, tuple)) and labels:
        return type(labels[0]).__name__ in ("datetime", "date", "datetime64", "Timestamp", "Period")
    return str(dtype).startswith("datetime64")
