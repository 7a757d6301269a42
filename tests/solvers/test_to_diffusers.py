"""A plan as a diffusers scheduler: grids, noise, state, starts in the middle, and what is refused."""

from __future__ import annotations

from typing import Any

import diffusers as hf
import numpy as np
import pytest
import torch
from torch import Tensor

import retrodict as rd
from retrodict.core.errors import InputError, InputTypeError
from retrodict.denoisers.diffusers import from_diffusers
from retrodict.solvers import Plan
from tiny_pipelines import close, drive, noise, seeded, smooth, unet


def start(dtype: torch.dtype = torch.float64) -> Tensor:
    return noise(4, 3, 4, 4, dtype=dtype)


# -- grids ---------------------------------------------------------------------------------------------------------

CHAIN = rd.DDPM()


def stepper(solver: str = "adams", steps: int = 8, process: Any = CHAIN, **options: Any) -> Any:
    words = {k: options.pop(k) for k in ("prediction_type", "like", "shift_by_mu", "clip", "seed") if k in options}
    if "like" not in words:
        words.setdefault("prediction_type", "flow_prediction" if isinstance(process, rd.RectifiedFlow) else "epsilon")
    return rd.plan(solver, process, steps=steps, **options).to_diffusers(**words)


@pytest.mark.parametrize("grid", ["logsnr", "karras", "uniform", "leading", "trailing", "angle"])
def test_another_number_of_steps_generates_anew(grid: str) -> None:
    ours = stepper(steps=8, grid=grid)
    ours.set_timesteps(5)
    expected = rd.plan("adams", CHAIN, steps=5, grid=grid)
    told = [1000 * c.t - 1 for c in expected.code if hasattr(c, "alpha")]
    assert np.allclose(ours.timesteps, told, atol=1e-3)
    assert ours.num_inference_steps == 5 and len(ours.sigmas) == 6 and float(ours.sigmas[-1]) == 0
    ours.set_timesteps(8)
    assert ours._current is ours.plan


def test_free_coefficients_have_one_length() -> None:
    made = rd.plan("ddim", CHAIN, steps=6)
    free = Plan(made.code, made.out, made.times, made.process, {"end": None})
    ours = free.to_diffusers(prediction_type="epsilon")
    theirs = made.to_diffusers(prediction_type="epsilon")
    assert torch.equal(drive(ours, start(), 6), drive(theirs, start(), 6))
    for call in ({"num_inference_steps": 5}, {"timesteps": [900, 500, 100]}):
        with pytest.raises(InputError, match="free coefficients"):
            ours.set_timesteps(**call)
    ours.set_timesteps(6)
    with pytest.raises(InputError, match="free coefficients"):
        ours.set_begin_index(2)


def test_times_of_ones_own_have_one_length() -> None:
    ours = rd.plan("ddim", CHAIN, grid=[1.0, 0.6, 0.2, 0.0]).to_diffusers(prediction_type="epsilon")
    ours.set_timesteps(3)
    with pytest.raises(InputError, match="times of its own"):
        ours.set_timesteps(4)


def test_custom_timesteps_are_the_grid() -> None:
    ours, times = stepper(), [0.96, 0.51, 0.124, 0.0]
    ours.set_timesteps(timesteps=[959, 509, 123])
    assert ours.timesteps.tolist() == [959, 509, 123] and ours.timesteps.dtype == torch.int64
    assert ours._current.equivalent(rd.plan("adams", CHAIN, grid=times))


def test_custom_sigmas_are_the_grid() -> None:
    """sigma/alpha on a table, with or without the final zero; sigma on a flow path."""
    theirs = hf.EulerDiscreteScheduler()
    levels = [float(((1 - a) / a) ** 0.5) for a in theirs.alphas_cumprod[[959, 509, 123]].double()]
    ours = stepper(like=theirs)
    for sigmas in (levels, [*levels, 0.0]):
        ours.set_timesteps(sigmas=sigmas)
        assert np.allclose(ours.timesteps, [959, 509, 123], atol=0.02)
        assert np.allclose(ours.sigmas[:-1], levels, rtol=1e-4) and float(ours.sigmas[-1]) == 0
    flow = stepper(process=rd.RectifiedFlow(), grid="logsnr")
    flow.set_timesteps(sigmas=[1.0, 0.7, 0.2])
    assert np.allclose(flow.timesteps, [1000, 700, 200])


def test_the_default_sigmas_of_flow_pipelines_leave_the_grid_to_the_plan() -> None:
    flow = stepper(process=rd.RectifiedFlow(), grid={"name": "flow", "shift": 3.0}, steps=4)
    flow.set_timesteps(sigmas=np.linspace(1, 1 / 5, 5))
    assert np.allclose(
        flow._current.times, rd.plan("adams", rd.RectifiedFlow(), steps=5, grid={"name": "flow", "shift": 3.0}).times
    )


@pytest.mark.parametrize("kind", ["exponential", "linear"])
def test_mu_shifts_the_log_snr(kind: str) -> None:
    """sigma' = m sigma/(1 + (m - 1) sigma) with m = e^mu, or m = mu: diffusers' two formulas, and lambda' - lambda."""
    theirs = hf.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type=kind)
    sigmas, mu = np.linspace(1, 1 / 6, 6), 0.9
    theirs.set_timesteps(sigmas=sigmas, mu=mu)
    ours = stepper(process=rd.RectifiedFlow(), grid="uniform", like=theirs)
    ours.set_timesteps(sigmas=sigmas, mu=mu)
    assert np.allclose(ours.sigmas, theirs.sigmas, atol=1e-6)
    lam = np.log((1 - ours.sigmas[1:-1]) / ours.sigmas[1:-1])
    assert np.allclose(
        lam, np.log((1 - sigmas[1:]) / sigmas[1:]) - (mu if kind == "exponential" else np.log(mu)), atol=1e-5
    )


def test_mu_counts_only_where_the_model_was_trained_so() -> None:
    static = stepper(process=rd.RectifiedFlow(), grid="uniform", like=hf.FlowMatchEulerDiscreteScheduler())
    static.set_timesteps(4, mu=1.0)
    assert np.allclose(static.timesteps, [1000, 750, 500, 250])
    forced = stepper(
        process=rd.RectifiedFlow(), grid="uniform", like=hf.FlowMatchEulerDiscreteScheduler(), shift_by_mu=True
    )
    forced.set_timesteps(4, mu=1.0)
    assert not np.allclose(forced.timesteps, static.timesteps)
    with pytest.raises(InputError, match="flow models"):
        stepper(grid="uniform", shift_by_mu=True).set_timesteps(8, mu=3.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({}, "give num_inference_steps"),
        ({"num_inference_steps": 0}, "at least 1"),
        ({"timesteps": [10, 500]}, "decrease"),
        ({"timesteps": [5000, 500]}, "lie in"),
        ({"timesteps": [500], "sigmas": [1.0]}, "one of the two"),
    ],
)
def test_bad_grids(call: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        stepper().set_timesteps(**call)


# -- evaluations and noise -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("solver", "options", "calls"),
    [
        ("ddim", {}, 1),
        ("adams", {"order": 3}, 1),
        ("heun", {}, 2),
        ("rk4", {}, 4),
        ("dpm-solver++-2s", {}, 2),
        ("step", {}, 1),
    ],
)
def test_a_step_of_k_calls_is_k_timesteps(solver: str, options: dict[str, Any], calls: int) -> None:
    """Every evaluation of the plan is a timestep, and the loop ends where the plan's own runtime does."""
    plan = rd.plan(solver, CHAIN, steps=5, grid="uniform", **options)
    ours = plan.to_diffusers(prediction_type="epsilon")
    assert len(ours.timesteps) == plan.nfe and ours.order == calls
    wrapped = rd.Denoiser.wrap(Plain(), CHAIN, "noise", time=lambda t: (1000 * t - 1).clamp_min(0))
    expected = rd.sample(wrapped, 4, plan=plan, init=start(), progress=False).x
    # the sample verb runs in the denoiser's dtype
    close(drive(ours, start(torch.float32), 5).float(), expected.float(), 2e-5)


class Plain(torch.nn.Module):
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return smooth(x, t[0])


@pytest.mark.parametrize("solver", ["ddpm", "step", "pc", "edm"])
def test_the_generator_seeds_the_rows(solver: str) -> None:
    """Equal seeds give equal samples, other seeds others, and a generator a sample makes samples independent of the
    batch."""
    options = {"eta": 1.0} if solver == "step" else {}
    ours = rd.plan(solver, CHAIN, steps=5, grid="uniform", **options).to_diffusers(prediction_type="epsilon")
    first = drive(ours, start(), 5, seeded(3))
    assert torch.equal(first, drive(ours, start(), 5, seeded(3)))
    assert not torch.allclose(first, drive(ours, start(), 5, seeded(4)), atol=1e-2)
    both = drive(ours, start(), 5, [seeded(i) for i in range(4)])
    alone = drive(ours, start()[2:3], 5, [seeded(2)])
    if solver != "pc":  # its Langevin step averages norms over the batch
        assert torch.allclose(both[2:3], alone, atol=1e-12)


def test_without_a_generator_runs_differ_and_the_seed_repeats_them() -> None:
    """DiT, SD3 and Flux hand none on.  Runs must not share noise; global state must not matter."""
    draw = lambda ours: [drive(ours, start(), 5) for _ in range(2)]  # noqa: E731
    torch.manual_seed(1)
    a, b = draw(stepper("ddpm", grid="uniform", steps=5))
    torch.manual_seed(2)
    c, d = draw(stepper("ddpm", grid="uniform", steps=5))
    assert torch.equal(a, c) and torch.equal(b, d) and not torch.allclose(a, b, atol=1e-2)
    assert not torch.allclose(a, drive(stepper("ddpm", grid="uniform", steps=5, seed=1), start(), 5), atol=1e-2)


# -- state -----------------------------------------------------------------------------------------------------------


def test_one_object_serves_two_pipelines_in_turn() -> None:
    """UniPC carries the longest history; a run leaves nothing behind, even one that was broken off."""
    ours = stepper("unipc", steps=6)
    first = drive(ours, start(), 6)
    other = drive(ours, start()[:2] * 0.7, 4)
    assert torch.equal(drive(ours, start(), 6), first)
    ours.set_timesteps(6)
    ours.step(smooth(start(), 1), ours.timesteps[0], start())
    assert torch.equal(drive(ours, start()[:2] * 0.7, 4), other)


def test_interleaved_use_is_detected() -> None:
    ours = stepper(steps=6)
    ours.set_timesteps(6)
    a, b = start(), start() + 1
    ours.step(smooth(a, 1), ours.timesteps[0].clone(), a)
    with pytest.raises(InputError, match="two pipelines"):
        ours.step(smooth(b, 1), ours.timesteps[0].clone(), b)


def test_steps_are_neither_left_out_nor_repeated() -> None:
    ours = stepper(steps=3)
    x, told = start(), ours.timesteps.clone()
    x = ours.step(smooth(x, 1), told[0], x).prev_sample
    with pytest.raises(InputError, match="left out or repeated"):
        ours.step(smooth(x, 1), told[2], x)
    for t in told[1:]:
        x = ours.step(smooth(x, 1), t, x, return_dict=False)[0]
    with pytest.raises(InputError, match="run is over"):
        ours.step(smooth(x, 1), told[2], x)
    ours.set_timesteps(3)
    x = ours.step(smooth(start(), 1), told[0], start()).prev_sample
    with pytest.raises(InputError, match="has begun"):
        ours.set_begin_index(1)
    with pytest.raises(InputError, match="state had shape"):
        ours.step(smooth(x[:2], 1), told[1], x[:2])


def test_a_start_in_the_middle_that_is_not_announced() -> None:
    """A loop over a tail of the timesteps begins there, as ``set_begin_index`` would."""
    ours = stepper("unipc", steps=8, grid="uniform")
    ours.set_timesteps(8)
    x = start()
    for t in ours.timesteps[3:]:
        x = ours.step(smooth(x, t), t, x).prev_sample
    assert ours.begin_index == 3
    alone = ours.plan.between(ours.plan.times[3]).to_diffusers(prediction_type="epsilon")
    close(x, drive(alone, start() / alone.init_noise_sigma, 5), 1e-12)


def test_a_start_inside_a_step_is_refused() -> None:
    ours = stepper("dpm-solver++-2s", steps=8)
    ours.set_timesteps(8)
    ours.set_begin_index(4)
    with pytest.raises(InputError, match="multiple of 2"):
        ours.set_begin_index(3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_changed_state_is_taken(dtype: torch.dtype) -> None:
    """Inpainting overwrites a part of the state between steps, in place or not; the plan goes on from what it is
    shown.  DDIM has no memory, so stepping from the changed state is a run from there."""
    for in_place in (False, True):
        ours = stepper("ddim", steps=4, grid="uniform")
        x = start(dtype)
        x = ours.step(smooth(x, 1), ours.timesteps[0], x).prev_sample
        x = x.mul_(0.5) if in_place else x * 0.5
        changed = x.clone()
        got = ours.step(smooth(x, 1), ours.timesteps[1], x).prev_sample
        alone = ours.plan.between(ours.plan.times[1]).to_diffusers(prediction_type="epsilon")
        assert torch.equal(got, alone.step(smooth(changed, 1), alone.timesteps[0], changed).prev_sample)


def test_half_precision_keeps_a_float32_state() -> None:
    """Rounding enters through the network only: the state between steps is not rounded to eight bits."""
    ours, x = stepper("ddim", steps=40, grid="uniform", clip=False), start(torch.bfloat16)
    exact = start(torch.bfloat16).float()
    reference = stepper("ddim", steps=40, grid="uniform", clip=False)
    for t, s in zip(ours.timesteps, reference.timesteps):
        out = torch.zeros_like(x)  # a network that says nothing: only the state's own rounding is seen
        x = ours.step(out, t, x).prev_sample
        exact = reference.step(out.float(), s, exact).prev_sample
    assert x.dtype == torch.bfloat16
    assert float(((x.float() - exact).abs() / exact.abs()).max()) < 2**-8


def test_add_noise_is_diffusers() -> None:
    for theirs, ours in (
        (hf.DDPMScheduler(), stepper()),
        (hf.FlowMatchEulerDiscreteScheduler(), stepper(process=rd.RectifiedFlow(), grid="uniform")),
    ):
        x0, z = start(torch.float32), start(torch.float32).flip(0)
        if hasattr(theirs, "add_noise"):
            t = torch.tensor([0, 10, 500, 999])
            assert torch.allclose(ours.add_noise(x0, z, t), theirs.add_noise(x0, z, t), atol=1e-5)
        else:
            theirs.set_timesteps(4)
            t = theirs.timesteps
            assert torch.allclose(ours.scale_noise(x0, t, z), theirs.scale_noise(x0, t, z), atol=1e-6)
        one = ours.add_noise(x0, z, t[:1])
        assert torch.allclose(one[0], ours.add_noise(x0, z, t)[0])


def test_learned_variances_are_dropped() -> None:
    ours, x = stepper(), start()
    out = smooth(x, 5)
    other = stepper().step(torch.cat([out, out * 9], 1), ours.timesteps[0], x).prev_sample
    assert torch.equal(ours.step(out, ours.timesteps[0], x).prev_sample, other)


# -- what is refused -------------------------------------------------------------------------------------------------


def test_what_the_network_predicts_must_be_known() -> None:
    plan = rd.plan("ddim", rd.DDPM(), steps=4)
    with pytest.raises(InputError, match="prediction_type="):
        plan.to_diffusers()
    with pytest.raises(InputError, match="Did you mean 'epsilon'"):
        plan.to_diffusers(prediction_type="epsilonn")
    with pytest.raises(InputError, match="pass like=pipe"):
        rd.plan("ddim", rd.VP(), steps=4).to_diffusers(prediction_type="epsilon")
    process = from_diffusers(unet(), scheduler=hf.DDIMScheduler(prediction_type="v_prediction")).process
    assert rd.plan("ddim", process, steps=4).to_diffusers().convention.predicts == "velocity"
    over = rd.plan("ddim", process, steps=4).to_diffusers(prediction_type="sample")
    assert over.convention.predicts == "data"


def test_another_process_than_the_networks_is_refused() -> None:
    with pytest.raises(InputError, match="was trained with"):
        rd.plan("ddim", rd.VP("cosine"), steps=4).to_diffusers(hf.DDIMScheduler())
    with pytest.raises(InputError, match="was trained with"):
        rd.plan("ddim", rd.DDPM(), steps=4).to_diffusers(hf.FlowMatchEulerDiscreteScheduler())
    continuous = rd.plan("ddim", rd.VP("linear"), steps=4, grid="uniform")  # the limit of the table, within a percent
    with pytest.raises(InputError, match="was trained with"):
        continuous.to_diffusers(hf.DDIMScheduler())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: rd.plan("step", rd.Masked(5), steps=4).to_diffusers(prediction_type="epsilon"), "scalar Gaussian"),
        (
            lambda: rd.plan("ddim", rd.RectifiedFlow(), steps=4, grid="flow").to_diffusers(prediction_type="epsilon"),
            "alpha = 0",
        ),
        (
            lambda: rd.plan("ddim", CHAIN, steps=4).to_diffusers(prediction_type="epsilon", grid="lik"),
            "Did you mean 'like'",
        ),
        (lambda: rd.plan("ddim", CHAIN, steps=4).to_diffusers(hf.LCMScheduler()), "unknown diffusers scheduler"),
        (lambda: type(stepper()).from_config(dict(hf.DDIMScheduler().config)), "has no plan"),
    ],
)
def test_refused(make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_step_refuses_what_it_would_ignore() -> None:
    x = start()
    with pytest.raises(InputError, match=r"eta=0.5"):
        stepper().step(x, stepper().timesteps[0], x, eta=0.5)
    with pytest.raises(InputTypeError, match="s_churn"):
        stepper().step(x, stepper().timesteps[0], x, s_churn=1.0)
    with pytest.raises(InputError, match="the network returned"):
        stepper().step(x[:, :, :2], stepper().timesteps[0], x)
