"""Running plans the other way: rows solved for their oldest state, and the fixed point for all others."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import retrodict as rd
from retrodict.core.errors import InputError
from retrodict.solvers.inversion import encoder, fixed_point, inverse, relative, run
from solvers.solver_cases import M8, ONE_ENDED

VP: Any = ONE_ENDED["vp-linear"]
DENOISER = M8.denoiser(VP)
DATA = M8.sample(48, seed=3)


def _round_trip(steps: int, dtype: torch.dtype, **options) -> float:
    """Relative L2 error of data that are encoded and generated again from the pair of states."""
    encode, generate = inverse(rd.plan("bdia", VP, steps=steps, end=1e-3, **options))
    x, denoiser = DATA.to(dtype), M8.denoiser(VP).to(dtype)
    with torch.no_grad():
        back = run(generate, denoiser, torch.stack(run(encode, denoiser, x, {}), 1), {})[0]
    assert back.dtype == dtype
    return float(relative(back - x, x).square().mean().sqrt())


class TestBdia:
    @pytest.mark.parametrize("options", [{}, {"transfer": "heun"}, {"form": "edm"}, {"gamma": 0.9}], ids=str)
    @pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-7)])
    def test_round_trip_of_twenty_steps(self, options, dtype, bound):
        """x/alpha is 150 times larger than x at the noisy end of this path, and so are its roundings.  States are
        float64 in both, so that what a float32 denoiser adds is the rounding of its last answer."""
        growth = 150 if options == {"form": "edm"} else 10 if "gamma" in options else 1
        assert _round_trip(20, dtype, **options) < growth * bound

    def test_round_trip_of_a_hundred_steps(self):
        assert _round_trip(100, torch.float64) < 1e-12

    def test_rounding_grows_by_one_over_gamma_a_step(self):
        """At gamma = 1/2 fifty steps multiply a rounding by 2^49: the pair is then no inversion."""
        assert _round_trip(50, torch.float64, gamma=0.5) > 1e6 * _round_trip(50, torch.float64)

    def test_gamma_zero_is_the_one_step_method(self):
        words = {"steps": 7, "grid": "logsnr", "end": 1e-3}
        assert rd.plan("bdia", VP, gamma=0.0, **words).equivalent(rd.plan("ddim", VP, **words))
        heun = rd.plan("rho-rk", VP, kind="flow", **words)
        assert rd.plan("bdia", VP, gamma=0.0, transfer="heun", **words).equivalent(heun)

    def test_the_published_row(self):
        """x_2 = g x_0 + (sigma_2 - g sigma_0)/sigma_1 x_1 + [...] D_1, the row written out, in normal form."""
        g, plan = 0.7, rd.plan("bdia", VP, grid=[1.0, 0.6, 0.3], end=0.3, gamma=0.7)
        (a0, a1, a2), (s0, s1, s2) = ([float(c(t)) for t in plan.times] for c in (VP.alpha, VP.sigma))
        on_x1 = (s2 - g * s0) / s1
        on_d1 = a2 - a1 * s2 / s1 - g * (a0 - a1 * s0 / s1)
        first = [s1 / s0, a1 - a0 * s1 / s0]  # x_1 over (x_0, D_0)
        expected = [g + on_x1 * first[0], on_x1 * first[1], on_d1]
        assert plan.normal_form().output[:3] == pytest.approx(expected, rel=1e-13)

    def test_edm_form_does_not_see_the_scale(self):
        """In x/alpha and sigma/alpha the path's scale is gone: VP and EDM through the same levels of sigma/alpha are
        one solver, which the form in x is not."""
        lam = torch.linspace(-3, 3, 8, dtype=torch.float64)
        edm = ONE_ENDED["edm"]

        def output(process, form):
            times = process.time_at(lam).tolist()
            plan = rd.plan("bdia", process, grid=times, end=times[-1], start=times[0], form=form)
            return torch.from_numpy(plan.normal_form().data_weights / float(process.alpha(times[-1])))

        assert torch.allclose(output(VP, "edm"), output(edm, "edm"), rtol=1e-9)
        assert not torch.allclose(output(VP, "path"), output(edm, "path"), rtol=1e-2)

    def test_beats_ddim_on_a_smooth_problem(self):
        """Error at ten steps on uniform log-SNR: at most a fifth of DDIM's (an independent implementation: .13)."""
        from retrodict.diagnostics import certificate
        from solvers.solver_cases import starts

        x = starts("vp-linear")
        exact = certificate.flow_map(DENOISER, x, 1.0, 1e-3)
        errors = {}
        for name in ("ddim", "bdia"):
            plan = rd.plan(name, VP, steps=10, grid="logsnr", end=1e-3)
            with torch.no_grad():
                errors[name] = float((run(plan, DENOISER, x, {})[0] - exact).norm(dim=1).mean())
        assert errors["bdia"] <= 0.2 * errors["ddim"]


class TestStructure:
    def test_inverse_evaluates_as_often_as_the_plan(self):
        plan = rd.plan("bdia", VP, steps=9, end=1e-3)
        encode, generate = inverse(plan)
        assert encode.nfe == 9 and generate.nfe == 8
        assert len(encode.starts) == 1 and len(encode.also) == 1 and len(generate.starts) == 2

    @pytest.mark.parametrize("name", ["ddim", "dpm-solver++", "unipc", "heun", "plms"])
    def test_rows_that_cannot_be_solved_are_told(self, name):
        with pytest.raises(InputError, match="no exact inverse"):
            inverse(rd.plan(name, VP, steps=5, end=1e-3))

    @pytest.mark.parametrize(
        ("plan", "match"),
        [
            (lambda: rd.plan("bdia", VP, steps=5), "sigma = 0"),
            (lambda: rd.plan("ddpm", VP, steps=5, end=1e-3), "fresh noise"),
            (lambda: rd.plan("pc", VP, steps=5, end=1e-3, step="norm"), "depend on data"),
        ],
    )
    def test_what_has_no_inverse(self, plan, match):
        with pytest.raises(InputError, match=match):
            inverse(plan())

    def test_paired_plans_are_saved_whole(self, tmp_path):
        encode, generate = inverse(rd.plan("bdia", VP, steps=4, end=1e-3))
        for plan in (encode, generate):
            plan.save(tmp_path / "plan.json")
            assert rd.Plan.load(tmp_path / "plan.json") == plan
        assert generate != rd.plan("bdia", VP, steps=4, end=1e-3)

    def test_paired_plans_have_no_form_over_one_start(self):
        with pytest.raises(InputError, match="pair"):
            inverse(rd.plan("bdia", VP, steps=4, end=1e-3))[1].normal_form()


class TestFixedPoint:
    @pytest.mark.parametrize("name", ["ddim", "dpm-solver++", "unipc", "heun", "plms"])
    def test_any_deterministic_plan(self, name):
        plan = rd.plan(name, VP, steps=12, end=1e-3)
        with torch.no_grad():
            start, residual = fixed_point(plan, DENOISER, DATA[:16], {})
            back = run(plan, DENOISER, start, {})[0]
        assert float(residual.max()) < 1e-12
        assert float(relative(back - DATA[:16], DATA[:16]).max()) < 1e-12

    def test_encoding_by_ddim_is_first_order(self):
        """Encoding and generating by DDIM: the error halves where the steps double."""
        errors = []
        for steps in (80, 160, 320):
            plan = rd.plan("ddim", VP, steps=steps, grid="logsnr", end=1e-3)
            with torch.no_grad():
                start = run(encoder(plan, "ddim"), DENOISER, DATA, {})[0]
                errors.append(float((run(plan, DENOISER, start, {})[0] - DATA).norm()))
        assert math.log2(errors[0] / errors[2]) / 2 == pytest.approx(1.0, abs=0.15)

    def test_the_best_iterate_is_kept(self):
        plan = rd.plan("ddim", VP, steps=6, end=1e-3)
        with torch.no_grad():
            _, few = fixed_point(plan, DENOISER, DATA, {}, iterations=2)
            _, more = fixed_point(plan, DENOISER, DATA, {}, iterations=6)
        assert bool((more <= few).all()) and float(more.median()) < 0.1 * float(few.median())
