"""DPM-Solver-v3 and its statistics: limits, exactness on Gaussian data, and what it gains on a mixture."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import retrodict as rd
from retrodict.core.errors import InputError, InputTypeError
from retrodict.core.noise import KeyedNoise
from retrodict.diagnostics import certificate
from retrodict.exact import GaussianMixture
from retrodict.solvers import Statistics, statistics
from retrodict.solvers.inversion import run
from retrodict.solvers.statistics import exact_gaussian
from solvers.solver_cases import M8, ONE_ENDED, PAIR, starts

VP: Any = ONE_ENDED["vp-linear"]
WORDS: dict[str, Any] = {"steps": 7, "grid": "logsnr", "end": 1e-3}
LAM = np.linspace(-6, 8, 30)
NOISE = Statistics(LAM, np.zeros(30), -np.ones(30), np.zeros(30))
FINE = np.linspace(-6, 8, 400)
SMOOTH, SMOOTH_FINE = (
    Statistics(lam, 0.5 - 0.5 * np.tanh(lam), -0.5 - 0.5 * np.tanh(lam), 0.2 * np.exp(-(lam**2))) for lam in (LAM, FINE)
)
NARROW = PAIR[0]


def _out(plan: rd.Plan, denoiser: Any, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return run(plan, denoiser, x, {})[0]


@pytest.mark.parametrize("order", [1, 2, 3])
def test_its_limits_are_data_and_noise_prediction(order):
    free = {"order": order, "corrector": False}
    data = rd.plan("dpm-solver++", VP, order=order, **WORDS)
    noise = rd.plan("dpm-solver", VP, order=order, **WORDS)
    assert rd.plan("dpm-solver-v3", VP, **free, **WORDS).equivalent(data)
    assert rd.plan("dpm-solver-v3", VP, statistics=NOISE, **free, **WORDS).equivalent(noise)


def test_gaussian_data_in_one_step():
    """With the exact statistics of N(.7, .25) a single step of first order is exact; DDIM's is off by .8."""
    denoiser = GaussianMixture([1.0], [[0.7]], [0.25]).denoiser(VP)
    x = torch.randn(32, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    exact = certificate.flow_map(denoiser, x, 1.0, 1e-3)
    known = exact_gaussian(np.linspace(-6, 5, 1200), 0.7, 0.25)
    words: dict[str, Any] = {"steps": 1, "grid": "logsnr", "end": 1e-3}
    v3 = rd.plan("dpm-solver-v3", VP, order=1, statistics=known, **words)
    assert float((_out(v3, denoiser, x) - exact).abs().max()) < 1e-10
    assert float((_out(rd.plan("ddim", VP, **words), denoiser, x) - exact).abs().max()) > 0.5


def test_measured_statistics_of_gaussian_data():
    """l is known to rounding from any data; b too, since f does not vary."""
    law = GaussianMixture([1.0], [[0.7, -0.2]], [0.25])
    for dtype, bound in ((torch.float64, 1e-7), (torch.float32, 2e-2)):
        found = statistics(law.denoiser(VP), law.sample(256, seed=0).to(dtype), levels=120, elementwise=True)
        share = 0.25 / (0.25 + np.exp(-2 * found.lam))
        assert np.abs(found.l - (1 - share)[:, None]).max() < bound
        if dtype == torch.float64:
            drift = 2 * (share * (1 - share))[:, None] * np.array([0.7, -0.2])
            assert np.abs(found.s).max() < 1e-6 and np.abs(found.b - drift).max() < 1e-4


@pytest.mark.parametrize(
    ("options", "samples"),
    [
        ({"order": 3, "pseudo": True, "corrector": "pseudo"}, [[-1.7401356, -1.7009031], [-0.5223460, -0.3780230]]),
        ({"order": 3, "pseudo": True}, [[-1.7759755, -1.9074243], [-0.5534183, -0.5738742]]),
        ({"order": 3, "pseudo": True, "corrector": False}, [[-1.7909022, -2.1470155], [-0.5585214, -0.7973205]]),
        ({"order": 2, "corrector": "pseudo"}, [[-1.7370044, -1.7257002], [-0.5321819, -0.4136881]]),
    ],
    ids=str,
)  # fmt: skip
def test_numbers_of_the_official_code(options, samples):
    """Two samples of the authors' implementation (commit ba16871, in float64, with these statistics on 6,001 levels):
    six steps uniform in log-SNR with the order dropped at the end.  Its integrals are trapezoids, good to 1e-7."""
    plan = rd.plan("dpm-solver-v3", VP, steps=6, grid="logsnr", end=1e-3, statistics=SMOOTH_FINE, final=True, **options)
    out = _out(plan, M8.denoiser(VP), starts("vp-linear")[:2])
    assert torch.allclose(out, torch.tensor(samples, dtype=torch.float64), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "order"),
    [
        ({"order": 2, "corrector": False}, 2),
        ({"order": 3, "corrector": False}, 3),
        ({"order": 3, "pseudo": True, "corrector": False}, 2),
        ({"order": 3, "pseudo": True}, 3),
        ({"order": 3, "pseudo": True, "corrector": "pseudo"}, 2),
        ({"order": 1, "corrector": "pseudo"}, 2),
    ],
    ids=str,
)
def test_orders_with_any_smooth_statistics(options, order):
    """The order is that of the interpolation, whatever l, s and b are; at high noise, where the ramp of the first steps
    must not matter, these are data prediction."""
    x = starts("vp-linear")
    denoiser = M8.denoiser(VP)
    exact = certificate.flow_map(denoiser, x, 1.0, 1e-3)
    found = certificate.convergence_order(
        lambda n: rd.plan("dpm-solver-v3", VP, steps=n, grid="logsnr", end=1e-3, statistics=SMOOTH, **options),
        exact,
        expected=order,
        tol=0.25,
        steps=(40, 80, 160),
        denoiser=denoiser,
        x=x,
    )
    assert found, found
    assert rd.plan("dpm-solver-v3", VP, steps=3, **options).order == order


def test_elementwise_rows_are_the_rows_of_numbers():
    """The same statistics for every element, and as numbers: one result."""
    wide = Statistics(LAM, *(np.repeat(v[:, None], 2, 1) for v in (SMOOTH.l, SMOOTH.s, SMOOTH.b)))
    x = starts("vp-linear")
    plans = [rd.plan("dpm-solver-v3", VP, statistics=s, order=3, **WORDS) for s in (SMOOTH, wide)]
    a, b = (_out(plan, M8.denoiser(VP), x) for plan in plans)
    assert float((a - b).abs().max()) < 1e-12 and all(plan.opaque for plan in plans)
    assert not plans[0].has_density


def test_it_beats_unipc_on_uniform_times():
    """Scalar statistics of 1,024 samples on a narrow mixture, order 3 with corrector and order drop: at most .75 of
    the best of three UniPC plans (an independent implementation: .33 to .70)."""
    denoiser, x = NARROW.denoiser(VP), starts("vp-linear", 256)
    known = statistics(denoiser, NARROW.sample(1024, seed=1), levels=80)
    exact = certificate.flow_map(denoiser, x, 1.0, 1e-3)

    def error(name: str, n: int, **options: Any) -> float:
        plan = rd.plan(name, VP, steps=n, grid="uniform", end=1e-3, final=True, **options)
        return float((_out(plan, denoiser, x) - exact).square().mean().sqrt())

    for n in (5, 8, 10):
        others = [{"order": 2}, {"order": 3}, {"order": 3, "kind": "noise"}]
        best = min(error("unipc", n, **options) for options in others)
        assert error("dpm-solver-v3", n, order=3, statistics=known) <= 0.75 * best
        first = error("dpm-solver-v3", n, order=1, statistics=known, corrector=False)
        ddim = rd.plan("ddim", VP, steps=n, grid="uniform", end=1e-3)
        assert first <= 0.7 * float((_out(ddim, denoiser, x) - exact).square().mean().sqrt())


def test_files(tmp_path):
    path = tmp_path / "statistics.safetensors"
    SMOOTH.save(path)
    assert Statistics.load(path).config() == SMOOTH.config()
    plans = [rd.plan("dpm-solver-v3", VP, statistics=s, **WORDS) for s in (SMOOTH, str(path), SMOOTH.config())]
    assert plans[0].code == plans[1].code == plans[2].code
    SMOOTH.save(tmp_path)  # the folder of a model: the same file
    assert Statistics.load(tmp_path).config() == SMOOTH.config()
    assert rd.plan("dpm-solver-v3", VP, statistics=tmp_path, **WORDS).code == plans[0].code
    plans[0].save(tmp_path / "plan.json")
    loaded = rd.Plan.load(tmp_path / "plan.json")
    assert loaded == plans[0]
    x = starts("vp-linear")[:4]
    noise = KeyedNoise(0, 4, dtype=torch.float64)
    assert torch.equal(*(certificate.execute(p, M8.denoiser(VP), x, noise) for p in (loaded, plans[0])))
    assert loaded.between(0.5, 1e-3).nfe == sum(0.5 >= t > 1e-3 for t in loaded.times) + (0.5 not in loaded.times)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Statistics(LAM[::-1], LAM, LAM, LAM), "increases"),
        (lambda: Statistics(LAM, LAM, LAM[1:], LAM), "one shape"),
        (lambda: rd.plan("dpm-solver-v3", VP, steps=3, statistics=3.0), "statistics are"),
        (lambda: rd.plan("dpm-solver-v3", VP, steps=3, order=0), "order"),
        (lambda: rd.plan("dpm-solver-v3", VP, steps=3, corrector="psuedo"), "corrector"),
        (lambda: rd.plan("dpm-solver-v3", VP, steps=3, statistics="/no/such.safetensors"), "no statistics"),
        (lambda: statistics(M8.denoiser(VP), M8.sample(1)), "two data"),
        (lambda: statistics(M8, M8.sample(8)), "of a Denoiser"),  # type: ignore[arg-type]
    ],
)
def test_bad_words(make, match):
    with pytest.raises((InputError, InputTypeError), match=match):
        make()
