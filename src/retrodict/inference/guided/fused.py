"""Steps of one coordinate and one series in a single pass over memory, compiled by numba (the extra ``fast``).

The drift stays a function of the user on tensors; what follows it (mean, weight, bent step) is one loop over the
particles, on innovations of either precision.  `walk` drives it and falls back, by returning None, where autograd has
to pass through the drift.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from retrodict.inference.guided.steps import Steps
from retrodict.kernels.scans import native

KERNELS = ("move_all",)


def move_all(a, b, x, f, z, slope, shift, spread, weigh, early, loss, late, gain, log_w, out):  # type: ignore[no-untyped-def]
    """``out = slope m + shift + spread z`` with ``m = a x + b f``; two squares are added to the log-weights."""
    if weigh:
        for i in range(len(x)):
            m = a * x[i] + b * f[i]
            p, q = x[i] - early, m - late
            log_w[i] += loss * p * p + gain * q * q
            out[i] = slope * m + shift + spread * z[i]
    else:
        for i in range(len(x)):
            out[i] = slope * (a * x[i] + b * f[i]) + shift + spread * z[i]


Coefficients = tuple[float, float, float, float, float, float, float]


def usable(*tensors: Tensor) -> bool:
    """Whether these tensors can be read by compiled loops."""
    return native.installed() and all(v.device.type == "cpu" and not v.requires_grad for v in tensors)


def walk(
    steps: Steps,
    first: int,
    x: Tensor,
    z: Tensor,
    coefficients: Sequence[Coefficients],
    log_w: Tensor | None,
    whole: bool,
) -> Tensor | None:
    """States ``(m|1, 1, N, 1)`` from ``x (1, N, 1)`` and innovations ``z (m, 1, N, 1)``; None: a gradient is asked for.

    Args:
        coefficients: of each step: slope, shift and spread, then centre and factor of the squares before and after.
        log_w: ``(1, N)``, added to in place; None: the paths have no weight.
        whole: whether all states are asked for.
    """
    native.compiled(globals(), KERNELS)
    out = torch.empty((len(z) if whole else 2, *x.shape), dtype=x.dtype)
    rows, noise = out.numpy()[:, 0, :, 0], z.numpy()[:, 0, :, 0]
    weights = np.empty(0) if log_w is None else log_w.numpy()[0]
    x = x.contiguous()
    here = x.numpy()[0, :, 0]
    for i, row in enumerate(coefficients):
        a, b, f = steps.split_mean(first + i, x)
        if f.requires_grad:
            return None
        if f.shape != x.shape or f.dtype != x.dtype or not f.is_contiguous():
            f = f.to(x.dtype).expand_as(x).contiguous()
        value = f.numpy()[0, :, 0]
        k = i if whole else i % 2
        slope, shift, spread, early, loss, late, gain = row
        move_all(
            a, b, here, value, noise[i], slope, shift, spread, log_w is not None, early, loss, late, gain, weights,
            rows[k],
        )  # fmt: skip
        x, here = out[k], rows[k]
    return out if whole else x.unsqueeze(0)
