"""Plain loops over time, compiled by numba where it is installed (the extra ``fast``).

A kernel is an ordinary module-level function on NumPy arrays that treats one series.  `compiled` replaces the kernels
of a module by their compiled forms on first use (numba looks globals up when it compiles, so kernels may call each
other), keeps the machine code on disk, and `each` runs a kernel over series on as many threads as torch may use.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from retrodict.core.errors import optional_import


@cache
def installed() -> bool:
    """Whether numba is there."""
    return importlib.util.find_spec("numba") is not None


def compiled(module: dict[str, Any], names: Sequence[str]) -> None:
    """Replace the functions ``names`` of a module's globals by compiled ones, once."""
    if hasattr(module[names[0]], "py_func"):
        return
    numba: Any = optional_import("numba", "fast")
    for name in names:
        module[name] = numba.njit(cache=True, nogil=True, error_model="numpy")(module[name])


def each(kernel: Callable[..., None], series: int, *arrays: Sequence[Any] | np.ndarray) -> None:
    """``kernel(*(array[i] for each array))`` for every series i; shorter arrays (of one, say) are gone round."""

    def share(first: int, step: int) -> None:
        for i in range(first, series, step):
            kernel(*[array[i % len(array)] for array in arrays])

    shared(share, series)


def shared(kernel: Callable[..., None], series: int, *words: Any) -> None:
    """``kernel(first, step, *words)`` on every thread: it treats the series first, first + step, and so on.

    A kernel that goes over its series itself hands the interpreter's lock over once and not once a series.
    """
    threads = min(torch.get_num_threads(), series)
    others = [_pool(threads).submit(kernel, first, threads, *words) for first in range(1, threads)]
    kernel(0, threads, *words)
    for other in others:
        other.result()


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads that wait for work: to start them takes longer than to filter a series."""
    return ThreadPoolExecutor(threads, thread_name_prefix="retrodict")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # a fork has none of its parent's threads


def array(x: Tensor) -> np.ndarray:
    """The tensor's memory as a contiguous array, detached."""
    return np.ascontiguousarray(x.detach().numpy())
