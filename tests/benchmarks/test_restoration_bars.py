"""The restoration benchmark: its bars fall on what they should, and its blind operator is the convolution it means."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import retrodict as rd

KERNEL = "kernel unknown"
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def bench() -> Any:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        spec = importlib.util.spec_from_file_location("bench_restoration", BENCHMARKS / "bench_restoration.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(BENCHMARKS))
    return module


def table(bench: Any, coverage: float, error: float, success: float) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for task in bench.TASKS:
        rows.append({"task": task, "method": "weights", "correction": "weighted", "error": error, "coverage": coverage})
        for method in ("dps", "diffpir", "daps"):
            rows.append({"task": task, "method": method, "correction": "none", "error": 0.2, "coverage": 0.1})
    for task, method in ((KERNEL, "pigdm"), (f"{KERNEL}, exact prior", "weights")):
        kernel = {"kernel_named": success, "kernel_distance": 1 - success, "mean_to_exact": 0.05}
        rows.append({"task": task, "method": method, "correction": "weighted", "coverage": 0.9, **kernel})
    return [*rows, {"task": "phases lost", "method": "daps", "correction": "none", "success": success}]


@pytest.mark.parametrize(
    ("numbers", "missed"),
    [((0.9, 0.2, 1.0), 0), ((0.81, 0.2, 0.75), 0), ((0.78, 0.2, 1.0), 4), ((0.98, 0.2, 1.0), 4), ((0.9, 0.22, 0.4), 7)],
)
def test_bars(bench: Any, numbers: tuple[float, float, float], missed: int) -> None:
    judged = bench.bars(table(bench, *numbers))
    assert sum(value > most for value, most in judged.values()) == missed


def test_an_unknown_kernel_blurs_as_a_known_one_does(bench: Any) -> None:
    """Every kernel of the family, beside its image in a joint state."""
    family = bench.kernels()
    assert family.shape == (8, 25) and torch.allclose(family.sum(1), torch.ones(8).double())
    x = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    seen = bench.blurred(torch.cat([x.flatten(1), family.float()], 1))
    for image, kernel, found in zip(x, family, seen):
        known = rd.operators.convolve(kernel.reshape(5, 5))(image[None])[0, 0]
        torch.testing.assert_close(found, known, atol=1e-5, rtol=1e-5)


def test_the_exact_posterior_of_an_unknown_kernel(bench: Any) -> None:
    """Against 40,000 draws of the prior, weighted by their likelihood: kernels within .003, the mean within .05."""
    law, family = bench.digits_law(), bench.kernels()
    means, n = law.means[:3], 40_000
    g = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)  # noqa: E731
    a, k = (torch.randint(0, m, (n,), generator=g) for m in (3, 8))
    v = torch.cat([means[a] + bench.BLUR * draw(n, 64), family[k] + bench.WIDTH * draw(n, 25)], 1)
    y = bench.blurred(v[:1])[0] + 0.35 * draw(8, 8)
    seen = torch.cat([bench.blurred(part) for part in v.split(2_000)])
    weights = torch.softmax(-0.5 * ((y - seen) / 0.35).square().sum((1, 2)), 0)
    assert 1 / float(weights.square().sum()) > 200
    known = bench.blind_posterior(means, family, y, 0.35)
    found = torch.zeros(8, dtype=torch.float64).index_add_(0, k, weights)
    assert float(known.kernels.max()) < 0.9
    torch.testing.assert_close(found, known.kernels, atol=0.003, rtol=0)
    torch.testing.assert_close(weights @ v[:, :64], known.mean, atol=0.05, rtol=0)
