"""What the smaller studies share: the law of the digits, a distance, bars, and how results are written down."""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import retrodict as rd
from retrodict.exact import GaussianMixture

RESULTS = Path(__file__).resolve().parent / "results"
BLUR = 0.15


def digits_law(dtype: torch.dtype = torch.float64) -> GaussianMixture:
    """The training digits in [-1, 1] as vectors of 64, each blurred by .15: a law whose denoiser is known exactly."""
    x = rd.load_data("digits").x.to(dtype).flatten(1) / 8 - 1
    return GaussianMixture(torch.ones(len(x), dtype=dtype), x, torch.full((len(x),), BLUR**2, dtype=dtype))


def energy_distance(a: Tensor, b: Tensor) -> float:
    """Unbiased, without the test and the interval that the library's measure adds."""
    inside = [torch.cdist(v, v).sum() / (len(v) * (len(v) - 1)) for v in (a, b)]
    return float(2 * torch.cdist(a, b).mean() - sum(inside))


def parse(document: str | None, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """``--quick`` measures a little and writes nothing."""
    parser = argparse.ArgumentParser(description=document, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small run; nothing is written")
    parser.add_argument("--results", type=Path, default=RESULTS)
    torch.set_num_threads(1)
    return parser.parse_args(argv)


def finish(
    name: str,
    what: str,
    rows: Sequence[Mapping[str, Any]],
    bars: Mapping[str, tuple[float, float]],
    given: argparse.Namespace,
) -> None:
    """Print, write ``NAME.json``, and leave with an error where a value exceeds its bar.

    Args:
        bars: ``what it is -> (measured, at most)``; the table of bars is written after the rows.
    """
    for row in rows:
        print(json.dumps(row))
    judged = [
        {"bar": text, "measured": value, "at most": most, "holds": bool(value <= most)}
        for text, (value, most) in bars.items()
    ]
    for row in judged:
        print(json.dumps(row))
    if not given.quick:
        facts = {"machine": platform.processor() or platform.machine(), "torch": torch.__version__, "threads": 1}
        content = {"what": what, **facts, "rows": list(rows), "bars": judged}
        given.results.mkdir(parents=True, exist_ok=True)
        (given.results / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        (given.results / f"{name}.md").write_text(_page(rows, judged), encoding="utf-8")
    missed = [row["bar"] for row in judged if not row["holds"]]
    if missed:
        sys.exit("bars missed: " + "; ".join(missed))


def _page(rows: Sequence[Mapping[str, Any]], judged: Sequence[Mapping[str, Any]]) -> str:
    from collect import table

    return f"{table(rows)}\n\n{table(judged)}\n"
