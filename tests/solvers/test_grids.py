"""Grids: exact end points, decreasing times, published formulas, and the discrete spacings of diffusers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import retrodict as rd
from retrodict.core.errors import InputError
from retrodict.solvers import grids, regrid
from retrodict.solvers.grids import as_grid, make_levels
from solvers.solver_cases import ONE_ENDED, interpolant

DISCRETE = ("leading", "linspace", "trailing")


@pytest.mark.parametrize("process", ONE_ENDED)
@pytest.mark.parametrize("grid", [g for g in grids if g not in ("times", "log-odds", "survival")])
def test_end_points_are_exact_and_times_decrease(grid, process):
    path = ONE_ENDED[process]
    for n in (1, 2, 7, 40):
        levels = make_levels(grid, path, n)
        assert len(levels) == n + 1 and levels.sigma[-1] == 0 and np.isinf(levels.lam[-1])
        assert levels.t[-1] == 0 and (grid in ("leading", "linspace", "trailing") or levels.t[0] == 1)
        assert (np.diff(levels.t)[:-1] < 0).all() and (
            np.diff(levels.sigma[:-1] / np.maximum(levels.alpha[:-1], 1e-300)) < 0
        ).all()
        if grid not in DISCRETE:
            inner = make_levels(grid, path, n, 0.8, 0.2)
            assert inner.t[0] == 0.8 and inner.t[-1] == 0.2 and (np.diff(inner.t) < 0).all()


@pytest.mark.parametrize("process", ONE_ENDED)
def test_time_at_inverts_log_snr(process):
    path = ONE_ENDED[process]
    t = torch.linspace(0.01, 0.99, 33, dtype=torch.float64)
    assert float((path.time_at(path.log_snr(t)) - t).abs().max()) < 1e-10


def test_karras_formula():
    """sigma_i = (s_max^{1/7} + i/(n-1) (s_min^{1/7} - s_max^{1/7}))^7, and then 0."""
    path, n = ONE_ENDED["edm"], 10
    i = np.arange(n) / (n - 1)
    sigma = (80 ** (1 / 7) + i * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    for grid in ("karras", "uniform"):  # the EDM path is that curve, so that its own times are uniform
        assert np.allclose(make_levels(grid, path, n).sigma, [*sigma, 0], rtol=1e-9)


def test_uniform_in_log_snr_angle_and_flow_time():
    path = ONE_ENDED["vp-linear"]
    lam = make_levels("logsnr", path, 20).lam[:-1]
    assert np.allclose(np.diff(lam), np.diff(lam)[0], atol=1e-9)
    angle = make_levels("angle", path, 20).coordinate("angle")
    assert np.allclose(np.diff(angle), np.diff(angle)[0], atol=1e-9)
    flow = make_levels("flow", path, 20).coordinate("flow")
    assert np.allclose(np.diff(flow), np.diff(flow)[0], atol=1e-9)


@pytest.mark.parametrize("shift", [0.5, 3.0])
def test_flow_shift(shift):
    """On the straight path: sigma' = m sigma/(1 + (m - 1) sigma)."""
    path = ONE_ENDED["rectified-flow"]
    u = np.linspace(1, 0, 13)
    levels = make_levels({"name": "flow", "shift": shift}, path, 12)
    assert np.allclose(levels.sigma, shift * u / (1 + (shift - 1) * u), atol=1e-12)


@pytest.mark.parametrize("spacing", DISCRETE)
def test_discrete_spacings_are_those_of_diffusers(spacing):
    diffusers = pytest.importorskip("diffusers")
    for n in (5, 7, 10, 50):
        theirs = diffusers.DDIMScheduler(timestep_spacing=spacing)
        theirs.set_timesteps(n)
        ours = make_levels(spacing, rd.DDPM(), n).t[:-1]
        assert np.array_equal(np.round(ours * 1000).astype(int) - 1, theirs.timesteps.numpy()), n


def test_arcsine_grid_is_dense_at_both_ends():
    t = make_levels("arcsine", interpolant(), 10).t
    assert np.allclose(t, np.sin(np.linspace(np.pi / 2, 0, 11)) ** 2) and t[0] == 1 and t[-1] == 0
    assert rd.plan("ddim", interpolant(), steps=4).meta["grid"] == "arcsine"


def test_a_grid_is_a_name_an_object_options_or_times():
    path = ONE_ENDED["edm"]
    for grid in (
        "karras",
        {"name": "karras", "rho": 5.0},
        as_grid("karras"),
        [1.0, 0.5, 0.0],
        torch.tensor([1.0, 0.0]),
    ):
        plan = rd.plan(
            "ddim",
            path,
            grid=grid,
            **({} if not isinstance(grid, (str, dict)) and hasattr(grid, "__len__") else {"steps": 4}),
        )
        assert plan.times[0] == 1 and plan.times[-1] == 0
        assert make_levels(as_grid(plan.meta["grid"]), path, plan.steps).t.tolist() == list(plan.times)


def test_regrid_keeps_the_solver():
    plan = rd.plan("unipc", rd.VP(), steps=5, order=3)
    other = regrid(plan, "karras", 9)
    assert other.steps == 9 and other.meta["solver"] == "unipc" and other.meta["options"]["order"] == 3
    assert regrid(plan, [0.9, 0.4, 0.1]).times == (0.9, 0.4, 0.1)


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ("karas", "Did you mean 'karras'"),
        ([0.2, 0.5, 0.0], "times of a grid decrease; times 0 and 1 are 0.2 and 0.5"),
        ([1.0, 0.5, 0.5], "decrease"),
        ([1.2, 0.5], "times lie in"),
        ([1.0, float("nan")], "times lie in"),
        ([1.0], "at least two times"),
    ],
)
def test_bad_grids_say_what_is_wrong(grid, message):
    with pytest.raises(InputError, match=message):
        rd.plan("ddim", rd.VP(), grid=grid, steps=3 if isinstance(grid, str) else None)


def test_log_odds_are_for_discrete_states():
    with pytest.raises(InputError, match="discrete processes"):
        rd.plan("ddim", rd.VP(), grid="log-odds", steps=3)


@pytest.mark.parametrize("grid", ["leading", "linspace", "trailing"])
def test_a_discrete_grid_ends_at_the_clean_end_only(grid):
    assert rd.plan("ddim", rd.VP(), grid=grid, steps=3).nfe == 3
    with pytest.raises(InputError, match="ends at the clean end"):
        rd.plan("ddim", rd.VP(), grid=grid, steps=3, end=0.2)
