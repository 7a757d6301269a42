"""Pictures of a fit: the draws of each parameter, or the likelihood on the way to an estimate."""

from __future__ import annotations

from typing import Any

import torch

from retrodict.inference.parameters.result import Fit


def fit(found: Fit, *, ax: Any = None, bins: int = 30) -> Any:
    """Traces (left) and histograms (right) of each parameter's draws, an array of Axes; without draws one Axes."""
    import matplotlib.pyplot as plt

    if found.draws is None:
        ax = plt.subplots(figsize=(6, 3))[1] if ax is None else ax
        ax.plot(torch.as_tensor(found.history["log_likelihood"]).numpy(), marker=".")
        ax.set_xlabel("iteration")
        ax.set_ylabel("log likelihood")
        return ax
    rows = [(name, value.reshape(*value.shape[:2], -1)) for name, value in found.draws.items()]
    lines = [(name if v.shape[-1] == 1 else f"{name}[{j}]", v[..., j]) for name, v in rows for j in range(v.shape[-1])]
    if ax is None:
        ax = plt.subplots(len(lines), 2, figsize=(9, 1.8 * len(lines)), squeeze=False)[1]
    for (left, right), (name, values) in zip(ax, lines):
        left.plot(values.T.numpy(), lw=0.6)
        left.set_ylabel(name)
        right.hist([chain.numpy() for chain in values], bins=bins, density=True, histtype="step")
        right.set_yticks([])
    ax[-1][0].set_xlabel("draw")
    return ax
