"""Solvers that are one solver under two names, and formulas that are printed in papers: equality of normal forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import retrodict as rd
from retrodict.core.errors import InputError
from retrodict.core.noise import KeyedNoise
from retrodict.exact import GaussianMixture
from retrodict.solvers.general import calls
from solvers.solver_cases import ONE_ENDED, interpolant

VP = ONE_ENDED["vp-linear"]
FLOW = ONE_ENDED["rectified-flow"]
WORDS = {"steps": 7, "grid": "logsnr", "end": 1e-3}


def _same(a: tuple[str, dict], b: tuple[str, dict], process=VP, tol: float = 1e-12, **words) -> bool:
    words = words or WORDS
    return rd.plan(a[0], process, **words, **a[1]).equivalent(rd.plan(b[0], process, **words, **b[1]), tol)


@pytest.mark.parametrize("grid", ["logsnr", "uniform", "karras", "angle"])
@pytest.mark.parametrize(
    "other",
    [
        ("adams", {"order": 1}),
        ("adams", {"order": 1, "kind": "noise"}),
        ("adams", {"order": 1, "kind": "flow"}),
        ("dpm-solver", {"order": 1}),
        ("deis", {"degree": 0}),
        ("rho-rk", {"tableau": "euler"}),
        ("rho-rk", {"tableau": "euler", "kind": "flow"}),
        ("flow-euler", {}),
        ("plms", {"order": 1}),
    ],
    ids=str,
)
def test_first_order_is_ddim(other, grid):
    for words in ({"end": 1e-3}, {}):
        assert _same(("ddim", {}), other, steps=6, grid=grid, **words)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        # UniPC without its corrector
        (("dpm++2m", {}), ("unipc", {"disable_corrector": range(9), "variant": "bh2"})),
        (("dpm-solver++", {"weights": "heun"}), ("unipc", {"disable_corrector": range(9), "variant": "exact"})),
        (("dpm-solver++", {"order": 3}), ("unipc", {"order": 3, "disable_corrector": range(9), "variant": "exact"})),
        (("unipc", {"variant": "exact", "order": 3}), ("adams", {"order": 3, "corrector": True})),
        (("sde-dpm-solver++", {"order": 1}), ("ddpm", {})),
        (("euler-ancestral", {"eta": 0.4}), ("ddim", {"eta": 0.4})),
        (("euler-a", {}), ("ddpm", {})),
        (("lms", {"order": 4}), ("deis", {"variant": "rhoab", "degree": 3})),
        (("dpm-solver", {"order": 3}), ("deis", {"variant": "logrho", "degree": 2, "final": False})),
        (("edm", {"s_churn": 0.0}), ("heun", {})),
        (("heun", {}), ("rho-rk", {"tableau": "heun2"})),
        (("adams", {"eta": 1.0, "order": 2}), ("sde-dpm-solver++", {"order": 2})),
        (("pc", {"corrections": 0}), ("ddpm", {})),
        (("pc", {"corrections": 0, "predictor": "none"}), ("ddim", {})),
        (("flow-ab", {"order": 3}), ("adams", {"order": 3, "kind": "flow"})),
    ],
    ids=str,
)
def test_two_names_one_solver(a, b):
    assert _same(a, b)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (("dpm++2m", {}), ("dpm-solver++", {})),
        (("dpm-solver++", {"order": 3}), ("dpm-solver++", {"order": 3, "weights": "official"})),
        (("unipc", {"variant": "bh1"}), ("unipc", {"variant": "bh2"})),
        (("unipc", {}), ("unipc", {"disable_corrector": [1]})),
        (("plms", {}), ("lms", {})),
    ],
    ids=str,
)
def test_equivalence_can_tell_solvers_apart(a, b):
    assert not _same(a, b)


def test_euler_on_a_straight_path_is_ddim():
    assert _same(("euler", {}), ("ddim", {}), FLOW, steps=5, grid="uniform")
    assert not _same(("euler", {}), ("ddim", {}), VP, steps=5, grid="uniform")


def test_heun_on_a_straight_path_is_heun_in_time():
    """x <- x + dt (v_1 + v_2)/2 with v = (x - D)/t, written out."""
    plan = rd.plan("flow-heun", FLOW, steps=2, grid=[1.0, 0.6, 0.0])
    form = plan.normal_form()
    t, s = 1.0, 0.6
    guess = np.array([s / t, 1 - s / t])  # coefficients of x and D_0
    x1 = np.array([1.0, 0, 0]) + (s - t) / 2 * (
        np.array([1 / t, -1 / t, 0]) + np.array([guess[0] / s, guess[1] / s, -1 / s])
    )
    assert np.allclose(form.inputs[2][[0, 1, 2]], x1, atol=1e-14)
    assert np.allclose(form.output[[0, 1, 2, 3]], [0, 0, 0, 1])  # the step to t = 0 is the denoiser's answer


def test_adams_bashforth_on_equal_steps_of_sigma_is_plms():
    """On a path with alpha = 1 and equal steps of sigma the pseudo weights are the true ones."""
    process = ONE_ENDED["ve"]
    sigma = torch.linspace(10.0, 1.0, 9, dtype=torch.float64)
    times = process.time_at(-sigma.log()).tolist()
    assert _same(("plms", {"order": 3}), ("lms", {"order": 3}), process, 1e-10, grid=times)


def test_second_order_singlestep_drops_the_first_evaluation():
    """With the node in the middle, DPM-Solver++(2S) is the exponential midpoint rule."""
    plan = rd.plan("dpm-solver++-2s", VP, steps=1, end=0.01)
    assert abs(plan.normal_form().data_weights[0]) < 1e-14


def test_published_multistep_formulas():
    """2M and 3M of Lu et al. (2022) as printed, on uneven steps."""
    times = [0.9, 0.7, 0.55, 0.3]
    alpha, sigma, lam = VP.schedule(np.array(times))
    h, h0, h1 = lam[3] - lam[2], lam[2] - lam[1], lam[1] - lam[0]
    ratio, phi = sigma[3] / sigma[2], np.expm1(-h)
    row = rd.plan("dpm++2m", VP, grid=times, final=False).code[-1]
    r = h0 / h
    assert np.isclose(row.x[2], ratio) and np.isclose(row.d[2], -alpha[3] * phi * (1 + 1 / (2 * r)))
    assert np.isclose(row.d[1], alpha[3] * phi / (2 * r))
    row = rd.plan("dpm-solver++", VP, grid=times, order=3, weights="official", final=False).code[-1]
    r0, r1 = h0 / h, h1 / h
    D10, D11 = np.array([1, -1, 0]) / r0, np.array([0, 1, -1]) / r1
    D1, D2 = D10 + r0 / (r0 + r1) * (D10 - D11), (D10 - D11) / (r0 + r1)
    w = -alpha[3] * (phi * np.array([1, 0, 0]) - (phi / h + 1) * D1 + ((phi + h) / h**2 - 0.5) * D2)
    assert np.allclose([row.d[2], row.d[1], row.d[0]], w, atol=1e-13)
    exact = rd.plan("dpm-solver++", VP, grid=times, order=3, final=False).code[-1]
    w = -alpha[3] * (phi * np.array([1, 0, 0]) - (phi / h + 1) * D1 + 2 * ((phi + h) / h**2 - 0.5) * D2)
    assert np.allclose([exact.d[2], exact.d[1], exact.d[0]], w, atol=1e-13)


def test_predictor_corrector_rows():
    """Langevin's step and reverse diffusion's, as in the paper, on a variance-exploding path."""
    process = ONE_ENDED["ve"]
    plan = rd.plan("pc", process, grid=[0.8, 0.5], snr=0.16, predictor="reverse-diffusion")
    s, t = (float(process.sigma(v)) for v in (0.8, 0.5))
    langevin, predictor = plan.code[1], plan.code[3]
    e = 2 * 0.16**2 * s**2
    assert np.isclose(langevin.x[0], 1 - e / s**2) and np.isclose(langevin.d[0], e / s**2)
    assert np.isclose(langevin.z[0] ** 2, 2 * e)
    G2 = s**2 - t**2
    assert np.isclose(predictor.x[1], 1 - G2 / s**2) and np.isclose(predictor.d[1], G2 / s**2)
    assert np.isclose(predictor.z[1] ** 2, G2)


def test_langevin_step_with_measured_norms():
    """x + e score + sqrt(2 e) z with e = 2 a (snr |z|/|score|)^2, each sample by itself, from the same noise."""
    process = ONE_ENDED["ve"]
    law = GaussianMixture([1.0], [[0.5, -1.0, 0.2]], [0.4])
    denoiser = law.denoiser(process)
    plan = rd.plan("pc", process, grid=[0.6, 0.5], snr=0.2, step="norm", predictor="none")
    step = plan.code[1]
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    belief = denoiser.belief(x, 0.6)
    moved = calls["langevin"](denoiser, x, belief, step, KeyedNoise(0, 5, dtype=torch.float64), {})
    z = KeyedNoise(0, 5, dtype=torch.float64).stream("rows").normal((3,))
    score = (belief.mean - x) / float(process.sigma(0.6)) ** 2
    e = 2 * step.options["damping"] * (0.2 * z.norm(dim=1) / score.norm(dim=1)) ** 2
    assert torch.allclose(moved, x + e[:, None] * score + (2 * e[:, None]).sqrt() * z, atol=1e-12)
    assert step.options["damping"] == 1.0  # alpha is 1 on this path


def test_noise_levels_of_the_flow_sde():
    """The retention is exp(-int eps/S^2): in closed form where S^2 = t (1 - t), and e^{-eta^2 h} where eps is half of
    g^2, as it is for the family of SDEs that DDPM belongs to."""
    path = interpolant()
    times = [0.9, 0.6, 0.2]
    logit = np.log(times) - np.log1p(-np.array(times))
    plan = rd.plan("flow-sde", path, grid=times, end=0.2, epsilon=0.3)
    for row, (s, t), gap in zip(plan.code[1::2], [(0.9, 0.6), (0.6, 0.2)], -np.diff(logit)):
        ratio = np.sqrt(t * (1 - t) / (s * (1 - s)))
        assert np.isclose(next(iter(row.x.values())), ratio * np.exp(-0.3 * gap), rtol=1e-10)
    half = lambda t: 0.5 * float(VP.dispersion2(t))  # noqa: E731
    plan = rd.plan("flow-sde", VP, grid=[0.9, 0.6], end=0.6, epsilon=half)
    _, sigma, lam = VP.schedule(np.array([0.9, 0.6]))
    assert np.isclose(plan.code[1].x[0], sigma[1] / sigma[0] * np.exp(-(lam[1] - lam[0])), rtol=1e-4)


@pytest.mark.parametrize("kind", ["data", "noise", "flow", "velocity"])
@pytest.mark.parametrize("tau", ["lambda", "rho", "flow", "angle", "t"])
def test_polynomials_are_integrated_exactly(kind, tau):
    """A prediction of degree two in the coordinate: three nodes are exact, corrector included, and two are not."""
    from retrodict.diagnostics.certificate import polynomial_exactness

    words = {"steps": 6, "end": 0.02, "kind": kind, "tau": tau}
    found = polynomial_exactness(rd.plan("adams", VP, order=3, corrector=True, **words), 2, kind, tau)
    assert found, found
    assert polynomial_exactness(rd.plan("adams", VP, order=2, **words), 1, kind, tau).value < 1e-9
    with pytest.raises(InputError, match="no row"):
        polynomial_exactness(rd.plan("adams", VP, order=2, **words), 2, kind, tau)
