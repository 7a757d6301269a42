"""`certify` against what is known: plans whose rows say the same, samplers with one thing wrong, and libraries."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

import retrodict as rd
from retrodict.core.errors import InputError
from retrodict.diagnostics import certificate
from retrodict.diagnostics.certificate import as_sampler, blackbox, certify, probes
from retrodict.diagnostics.certificate.samplers import FunctionSampler, PlanSampler
from retrodict.exact import GaussianMixture

FEW = (10, 20, 40)
VP = rd.VP()
GRID: dict[str, Any] = {"use_exponential_sigmas": True}


# -- samplers in k-diffusion's convention, sound and not --------------------------------------------------------------


def euler(model, x, sigmas):
    for s, t in pairwise(sigmas):
        x = x + (t - s) * (x - model(x, s.expand(len(x)))) / s
    return x


def heun(model, x, sigmas):
    for s, t in pairwise(sigmas):
        d = (x - model(x, s.expand(len(x)))) / s
        ahead = x + (t - s) * d
        x = ahead if t == 0 else x + (t - s) * (d + (ahead - model(ahead, t.expand(len(x)))) / t) / 2
    return x


def ancestral(model, x, sigmas, share=1.0):
    """Euler down and noise up, in k-diffusion's way; ``share`` scales the noise."""
    for s, t in pairwise(sigmas):
        up = torch.minimum(t, (t**2 * (s**2 - t**2) / s**2).sqrt())
        down = (t**2 - up**2).sqrt()
        x = x + (down - s) * (x - model(x, s.expand(len(x)))) / s
        x = x + share * up * torch.randn_like(x) if t > 0 else x
    return x


def test_sound_samplers_hold():
    for function, order in ((euler, 1.0), (heun, 2.0)):
        found = certify(function, order=order, budgets=(9,), steps=FEW)
        assert found and abs(found.order - order) < 0.3, found
        assert not found.stochastic and found.declared == order


def test_a_stochastic_function_is_measured_without_sampling():
    """Euler-ancestral's weak order is one, and its variances are those of our plan of the same rows."""
    sampler = FunctionSampler(ancestral, order=1.0)
    assert sampler.stochastic and abs(blackbox.weak_order(sampler, (40, 80, 160)).value - 1) < 0.15
    times = VE.time_at(-probes_levels(12).log()).tolist()
    plan = rd.plan("euler-ancestral", VE, grid=times, end=times[-1])
    ours = certificate.moments(plan, probes.MEAN, probes.VARIANCE)
    theirs = blackbox.gaussian_moments(sampler, 12)
    assert abs(ours.variance / theirs.variance - 1) < 1e-9 and abs(ours.mean - theirs.mean) < 1e-9


VE = rd.VE(0.02, 80.0)


def probes_levels(n: int) -> torch.Tensor:
    """The grid of functions: falling geometric levels."""
    return torch.logspace(math.log10(80.0), math.log10(0.02), n, dtype=torch.float64)


def test_noise_of_the_wrong_size_is_seen():
    """A tenth more noise at every step leaves an error of the variance that steps do not remove."""
    wrong = FunctionSampler(lambda model, x, sigmas: ancestral(model, x, sigmas, 1.1), order=1.0)
    found = blackbox.weak_order(wrong, (40, 80, 160))
    assert not found and found.value < 0.5


class TestSamplersWithOneThingWrong:
    def _fails(self, function, name, **options):
        found = certify(function, budgets=(5,), steps=FEW, **options)
        assert not found and not all(found.find(name)), found
        return found

    def test_order(self):
        assert self._fails(euler, "order", order=2.0).order < 1.2

    def test_constant_denoiser(self):
        def drifting(model, x, sigmas):
            return euler(lambda y, s: 1.001 * model(y, s), x, sigmas)

        self._fails(drifting, "constant denoiser")

    def test_not_finite_at_the_end(self):
        def nan(model, x, sigmas):
            return euler(model, x, sigmas) / sigmas[-1] * sigmas[-1]

        found = self._fails(nan, "ends")
        assert "not finite at 1, 2" in str(found)

    def test_an_index_error(self):
        def reaching(model, x, sigmas):
            return euler(model, x, sigmas) + 0 * sigmas[3]

        found = self._fails(reaching, "ends")
        assert "IndexError" in str(found) and "finite at 3, 4" in str(found)

    def test_a_refusal_is_no_fault(self):
        def careful(model, x, sigmas):
            if len(sigmas) < 5:
                raise ValueError("needs four steps")
            return euler(model, x, sigmas)

        found = certify(careful, budgets=(5,), steps=FEW)
        assert found and "ValueError (needs four steps) at 1, 2, 3 steps" in str(found)

    def test_a_crash_is_no_refusal(self):
        """A ValueError that no one raised on purpose: arrays of two shapes."""

        def crashing(model, x, sigmas):
            return euler(model, x, sigmas) + float((np.ones(min(len(sigmas), 4)) * np.ones(4)).sum() * 0)

        assert "ValueError (operands" in str(self._fails(crashing, "ends"))

    def test_samples_that_depend_on_their_batch(self):
        def mixing(model, x, sigmas):
            return euler(model, x, sigmas) + 1e-3 * x.mean()

        self._fails(mixing, "reproducibility")

    def test_noise_of_one_generator_depends_on_the_batch(self):
        self._fails(ancestral, "reproducibility", order=1.0)

    def test_one_wrong_row_of_a_plan(self):
        def broken(n):
            plan = rd.plan("dpm-solver++", VP, steps=n)
            i = len(plan.code) // 2 | 1
            row = plan.code[i]
            code = [*plan.code[:i], type(row)(row.dst, row.x, {k: 1.1 * v for k, v in row.d.items()}, t=row.t)]
            return plan.with_code([*code, *plan.code[i + 1 :]])

        found = certify(PlanSampler("broken", broken), budgets=(5,), steps=FEW)
        assert not found.find("constant denoiser")[0] and not found.find("order")[0]


class TestAgainstTheRowsOfPlans:
    """The black box and the rows are two roads to the same numbers."""

    @pytest.mark.parametrize(("solver", "options"), [("ddim", {}), ("ddim", {"eta": 1.0}), ("ddim", {"eta": 0.4})])
    def test_moments(self, solver, options):
        whole = rd.plan(solver, VP, steps=9, grid="logsnr", **options)
        part = rd.plan(solver, VP, grid=list(whole.times[:-1]), end=whole.times[-2], **options)
        rows = certificate.moments(part, probes.MEAN, probes.VARIANCE)
        alpha = float(VP.alpha(part.times[-1]))
        seen = blackbox.gaussian_moments(as_sampler(solver, **options), 9)
        assert abs(seen.variance * alpha**2 / rows.variance - 1) < 1e-10
        assert abs(seen.mean * alpha - rows.mean) < 1e-10

    @pytest.mark.parametrize("order", [1, 2, 3, 4])
    def test_polynomials(self, order):
        data = as_sampler("adams", order=order)
        noise = as_sampler("adams", order=order, kind="noise", tau="rho")
        assert blackbox.polynomial_degree(data, "data") == order - 1
        assert blackbox.polynomial_degree(noise, "noise") == order - 1

    @pytest.mark.parametrize(("solver", "options"), [("unipc", {}), ("dpm-solver++", {"order": 3}), ("lms", {})])
    def test_orders(self, solver, options):
        found = blackbox.order(as_sampler(solver, **options), (40, 80, 160))
        assert found and abs(found.value - found.expected) < 0.4

    def test_the_published_third_order_is_second(self):
        found = blackbox.order(as_sampler("dpm-solver++", order=3, weights="official"))
        assert abs(found.value - 2) < 0.15

    def test_evaluations(self):
        assert blackbox.evaluations(as_sampler("heun"), 10).value == rd.plan("heun", VP, steps=10).nfe


class TestProbes:
    def test_the_flow_of_a_gaussian_is_its_closed_form(self):
        law = probes.mixture(GaussianMixture([1.0], [[0.7, -0.2]], [0.3]))
        y = torch.tensor([[5.0, -3.0]], dtype=torch.float64)
        flow = probes.Flow(law, y, 10.0, 0.05)
        centre = torch.tensor([[0.7, -0.2]], dtype=torch.float64)
        for rho in (10.0, 1.0, 0.05):
            exact = centre + math.sqrt((0.3 + rho**2) / (0.3 + 100.0)) * (y - centre)
            assert float((flow(rho) - exact).abs().max()) < 1e-8

    def test_a_basis_reads_the_coefficients_of_noises(self):
        with probes.Basis(2) as basis:
            x = torch.zeros(1, 8, dtype=torch.float64)
            out = 2.0 * torch.randn_like(x) + 0.5 * torch.randn((1, 8), dtype=torch.float64)
        assert basis.draws == 2 and out[0].tolist() == [0, 0, 2.0, 0.5, 0, 0, 0, 0]
        assert float(torch.randn(4).abs().sum()) > 0  # ordinary again
        with pytest.raises(OverflowError), probes.Basis(2):
            [torch.randn(1, 3) for _ in range(2)]

    def test_quantiles_invert_the_distribution(self):
        u = torch.tensor([0.01, 0.3, 0.5, 0.97], dtype=torch.float64)
        for rho in (0.0, 2.0):
            std = (probes.MODES.covariances[:, 0, 0] + rho**2).sqrt()
            x = blackbox.quantiles(u, rho)
            back = torch.special.ndtr((x[:, None] - probes.MODES.means[:, 0]) / std) @ probes.MODES.weights
            assert float((back - u).abs().max()) < 1e-12

    def test_many_steps_have_a_small_marginal_error(self):
        found = blackbox.marginal_error(as_sampler("unipc"), (60,))[0]
        assert found.value < 2e-3 < blackbox.marginal_error(as_sampler("ddim"), (60,))[0].value


class TestLibraries:
    """What diffusers and azula do; a fault that a later version repairs makes its test fail, which is the news."""

    diffusers = pytest.importorskip("diffusers")

    def test_a_third_order_that_is_second(self):
        found = certify(self.diffusers.DPMSolverMultistepScheduler(solver_order=3, **GRID), budgets=(10,))
        assert not found and found.declared == 3 and abs(found.order - 2) < 0.15
        assert [f.name for f in found.findings if not f] == ["order"]

    def test_an_sde_branch_of_first_order(self):
        words = {"solver_order": 3, "algorithm_type": "sde-dpmsolver++", **GRID}
        found = certify(self.diffusers.DPMSolverMultistepScheduler(**words), budgets=(10,))
        assert not found and found.stochastic and abs(found.order - 1) < 0.25

    def test_a_nan(self):
        words = {"solver_type": "bh1", "final_sigmas_type": "zero", **GRID}
        found = certify(self.diffusers.UniPCMultistepScheduler(**words), budgets=(10,), steps=FEW)
        assert not found.find("ends")[0] and "not finite" in found.find("ends")[0].text

    @pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
    def test_predictions_are_read(self, prediction):
        found = certify(self.diffusers.DDIMScheduler(prediction_type=prediction), budgets=(10,), steps=FEW)
        assert found and abs(found.order - 1) < 0.1

    def test_a_configuration_and_flows(self):
        config = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
        found = certify(config, budgets=(10,), steps=FEW)
        assert found and found.name == "FlowMatchEulerDiscrete(shift=3.0)" and abs(found.order - 1) < 0.1

    def test_azula(self):
        sample = pytest.importorskip("azula.sample")
        found = certify(sample.xEABSampler, order=3, budgets=(10,))
        assert found and found.library == "azula" and abs(found.order - 3) < 0.2

    def test_what_cannot_be_read(self):
        with pytest.raises(InputError, match="known schedulers"):
            certify({"_class_name": "DDIMInverseScheduler"})


class TestCertificate:
    found = certify("ddim", budgets=(5,), steps=FEW)

    def test_text_json_and_html_say_the_same(self, tmp_path):
        self.found.save(tmp_path / "new")
        text, page = ((tmp_path / "new" / f"certificate.{k}").read_text() for k in ("txt", "html"))
        data = json.loads((tmp_path / "new" / "certificate.json").read_text())
        assert data["ok"] is True and abs(data["order"] - 1) < 0.1 and data["declared"] == 1
        for finding in data["findings"]:
            assert finding["text"] in text and finding["name"] in page
        assert "http" not in page and page.startswith("<!doctype html>")

    def test_names_of_functions(self):
        assert certify("diagnostics.test_certify:euler", budgets=(5,), steps=FEW).name == "euler"
        with pytest.raises(InputError, match="written module:function"):
            certify("diagnostics.test_certify:nothing")

    def test_plans_on_their_own_grid_and_plans_of_free_coefficients(self):
        found = certify(rd.plan("heun", VP, steps=8, grid="karras"), budgets=(5,), steps=FEW)
        assert found and abs(found.order - 2) < 0.3
        free = rd.plan("heun", VP, steps=4)
        free = rd.Plan(free.code, free.out, free.times, free.process, {"order": 2})
        fixed = certify(free)
        assert fixed and math.isnan(fixed.order) and fixed.find("evaluations")[0].value == 7

    def test_what_it_refuses(self):
        with pytest.raises(InputError, match="certify takes"):
            certify(3)
        with pytest.raises(InputError, match="discrete states"):
            certify("tau-leaping")
        with pytest.raises(InputError, match="depend on data"):
            certify("step")
        with pytest.raises(InputError, match="one end"):
            certify(
                rd.plan("ddim", rd.GaussianPath(lambda t: 1 - t, lambda t: (t * (1 - t)).sqrt(), lambda t: t), steps=4)
            )
