"""Functions and networks of the user, called in the precision that they are written for.

States, messages and log-weights are float64.  A network with float32 parameters cannot take such states; `precise`
wraps it so that it is called with states of its own precision, and what it returns comes back in that of the caller.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

_OTHER = {torch.float64: torch.float32, torch.float32: torch.float64}
_CLASH = ("dtype", "scalar type")  # what torch's messages about mixed precisions have in common


@dataclass(eq=False)
class Precise:
    """``f(x, ...)`` for states of any precision; tensors that it returns have that of x, laws keep their own.

    Attributes:
        f: the function; dtype: the precision that it asks for, found at the first call that fails without; None: any.
    """

    f: Callable[..., Any]
    dtype: torch.dtype | None = field(default=None, repr=False)

    def __call__(self, x: Tensor, *rest: Any) -> Any:
        try:
            return self._called(self.dtype, x, *rest)
        except RuntimeError as error:
            other = _OTHER.get(self.dtype or x.dtype)
            if other is None or not any(word in str(error) for word in _CLASH):
                raise
            out = self._called(other, x, *rest)
        self.dtype = other
        return out

    def _called(self, dtype: torch.dtype | None, x: Tensor, *rest: Any) -> Any:
        if dtype is None or not x.is_floating_point():
            return self.f(x, *rest)
        cast = [v.to(dtype) if isinstance(v, Tensor) and v.is_floating_point() else v for v in (x, *rest)]
        out = self.f(*cast)
        return out.to(x.dtype) if isinstance(out, Tensor) else out


def precise(f: Any) -> Any:
    """``f`` for states of any precision, if it is a function; anything else as it is."""
    if isinstance(f, (Precise, Tensor)) or not callable(f):
        return f
    return Precise(f)
