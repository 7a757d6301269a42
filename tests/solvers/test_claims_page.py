"""The generated page of claims is the registry's present one."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

ROOT = Path(__file__).parents[2]


def _study():
    spec = importlib.util.spec_from_file_location("bench_solvers", ROOT / "benchmarks" / "bench_solvers.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_claims_is_up_to_date():
    """If this fails, run ``python benchmarks/bench_solvers.py``."""
    study = _study()
    page = (ROOT / "docs" / "solver-claims.md").read_text()
    assert study.matrix() in page
    rows = json.loads(study.RESULTS.read_text())["kinds"]
    assert study.orders(rows["pathwise"]) in page and study.orders(rows["weak"]) in page


def test_measured_orders_are_the_declared_ones():
    """As the file has them: within .2, and start-up rows keep the fourth-order multistep between 3.3 and 4."""
    for row in json.loads(_study().RESULTS.read_text())["rows"]:
        if row["plan"].startswith("exponential Adams 4"):
            assert 3.3 <= row["measured"] <= 4.2
        else:
            assert abs(row["measured"] - row["declared"]) <= 0.22, row["plan"]
