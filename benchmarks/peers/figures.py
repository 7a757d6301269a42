"""Figures of the benchmarks, for the documentation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

# An accessible pair of hues for us, greys and dashes for the others.
_STYLES = {
    "auto": {"color": "#b4004e", "marker": "o", "linewidth": 2.2, "zorder": 5},
    "best of ours": {"color": "#b4004e", "marker": ".", "linewidth": 1.0, "linestyle": ":"},
    "diffusers": {"color": "#1f5fa8", "marker": "s", "linewidth": 1.2},
    "azula": {"color": "#2b8a57", "marker": "^", "linewidth": 1.2},
    "k-diffusion": {"color": "#8a6d1f", "marker": "D", "linewidth": 1.2},
}


def frontier_figure(rows: list[dict[str, Any]], path: Path) -> None:
    """Error against network passes, one panel a problem, the best of each library at each budget."""
    problems = list(dict.fromkeys(r["problem"] for r in rows))
    fig, axes = plt.subplots(1, len(problems), figsize=(4.6 * len(problems), 4.2), squeeze=False)
    for axis, problem in zip(axes[0], problems):
        part = [r for r in rows if r["problem"] == problem]
        lines: dict[str, list[tuple[int, float]]] = {
            "auto": [(r["nfe"], r["auto"]) for r in part],
            "best of ours": [(r["nfe"], r["ours"]) for r in part],
        }
        for r in part:
            for library, best in r["best_of_libraries"].items():
                lines.setdefault(library, []).append((r["nfe"], best["error"]))
        for name, points in lines.items():
            axis.plot(*zip(*points), label=name, markersize=5, **_STYLES[name])
        if problem == "mixture":
            bars = [(r["nfe"], r["bar"]) for r in part if r["bar"] is not None]
            axis.plot(*zip(*bars), linestyle="", marker="_", markersize=16, color="0.35", label="bar for auto")
        axis.set(title=problem, xlabel="network evaluations", xscale="log", yscale="log")
        axis.set_xticks([r["nfe"] for r in part], [str(r["nfe"]) for r in part], minor=False)
        axis.minorticks_off()
        axis.grid(True, alpha=0.25)
    axes[0][0].set_ylabel("rms distance to the exact flow")
    axes[0][0].legend(frameon=False, fontsize=9)
    fig.tight_layout()
    fig.savefig(path, metadata={"Date": None})
    plt.close(fig)
