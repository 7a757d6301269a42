"""Time shift: the measured level, the plan that asks for it, and where it cannot be known."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import retrodict as rd
from retrodict.core.errors import InputError
from retrodict.core.noise import KeyedNoise
from retrodict.denoisers import Denoiser
from retrodict.solvers import general, time_shifted
from retrodict.solvers.plan import Eval
from retrodict.solvers.time_shift import level_of, spread
from solvers.solver_cases import M8, ONE_ENDED

VP: Any = ONE_ENDED["vp-linear"]
V0, D = 0.3, 1024


def _states(t: float, n: int = 200) -> torch.Tensor:
    """Exact x_t of Gaussian data of variance .3 in 1,024 dimensions."""
    g = torch.Generator().manual_seed(0)
    z = torch.randn(n, D, generator=g, dtype=torch.float64)
    return z * (float(VP.alpha(t)) ** 2 * V0 + float(VP.sigma(t)) ** 2) ** 0.5


@pytest.mark.parametrize(("t", "bound"), [(0.3, 0.06), (0.2, 0.06)])
def test_levels_are_found_where_they_can_be(t, bound):
    """Median relative error over all times; 4.4% and 3.8% in an independent implementation."""
    found = level_of(VP, _states(t), t, 2.0, "corrected", V0)
    assert float(((found - t).abs() / t).median()) <= bound


def test_where_a_level_cannot_be_known():
    """Below t = .1 the estimate is worse than a quarter of t; at unit variance nothing is known anywhere."""
    assert spread(VP, 0.3, D, V0) < 0.075 and spread(VP, 0.2, D, V0) < 0.05
    assert spread(VP, 0.05, D, V0) > 0.05 / 4 and spread(VP, 0.03, D, V0) > 0.03 / 4
    assert spread(VP, 0.5, D, 1.0) == float("inf")
    assert torch.equal(level_of(VP, _states(0.5), 0.5, 0.2, "corrected", 1.0), torch.full((200,), 0.5).double())


def test_the_published_rule_is_biased():
    """sigma^2 alone takes the signal's variance for noise: states seem noisier than they are."""
    x = _states(0.3)
    paper, corrected = (level_of(VP, x, 0.3, 0.4, rule, V0).median() for rule in ("paper", "corrected"))
    assert float(paper) > 0.33 and abs(float(corrected) - 0.3) < 0.01


class _Listener(Denoiser):
    """Keeps the times at which it was asked."""

    def __init__(self, inner: Denoiser) -> None:
        super().__init__(inner.process, inner.shape)
        self.inner, self.asked = inner, []

    def forward(self, x: torch.Tensor, t: Any, **condition: Any) -> torch.Tensor:
        self.asked.append(t)
        return self.inner(x, t)


def test_plans_ask_each_sample_at_its_level():
    plan = rd.plan("ddim", VP, steps=6, grid="uniform", end=0.05)
    shifted = time_shifted(plan, window=0.1, cutoff=0.3, data_variance=0.5)
    denoiser = _Listener(M8.denoiser(VP))
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        general.run(shifted, denoiser, x, KeyedNoise(0, 5, dtype=torch.float64), {})
    assert max(len(v.unique()) for v in denoiser.asked if isinstance(v, torch.Tensor)) > 1
    nominal = [c.t for c in plan.code if isinstance(c, Eval)]
    for asked, t in zip(denoiser.asked, nominal):
        per_sample = isinstance(asked, torch.Tensor)
        assert per_sample == (0.3 < t < 1.0)
        if isinstance(asked, torch.Tensor):
            assert asked.shape == (5,) and float((asked - t).abs().max()) <= 0.05 + 1e-12
    assert shifted.nfe == plan.nfe and shifted.opaque and not shifted.has_density


def test_no_window_is_the_plan_itself(tmp_path):
    plan = rd.plan("unipc", VP, steps=5)
    assert time_shifted(plan, window=0.0) == plan
    shifted = time_shifted(plan, window=0.2)
    shifted.save(tmp_path / "plan.json")
    assert rd.Plan.load(tmp_path / "plan.json") == shifted != plan


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ({"window": -1.0}, "window"),
        ({"cutoff": 2.0}, "cutoff"),
        ({"rule": "papr"}, "paper"),
        ({"data_variance": -1.0}, "v"),
    ],
)
def test_words_that_cannot_be(words, match):
    with pytest.raises(InputError, match=match):
        time_shifted(rd.plan("ddim", VP, steps=4), **words)
