"""The same samples as diffusers' own solvers, from plans inside its loops and its pipelines.

Two kinds of parity.  *Stepping*: a smooth network that depends on the timestep is driven through ``step`` in float64
by diffusers' scheduler and by the plan of the same solver; diffusers keeps its noise levels in float32, which bounds
the agreement near 1e-6.  *Pipelines*: whole pipelines with tiny networks run end to end on both.
"""

from __future__ import annotations

from typing import Any

import diffusers as hf
import numpy as np
import pytest
import torch
from torch import Tensor

import retrodict as rd
from retrodict.denoisers.diffusers import from_diffusers, read
from tiny_pipelines import (
    SD,
    close,
    dit,
    drive,
    flux,
    noise,
    quiet,
    seeded,
    stable_diffusion,
    stable_diffusion_3,
    states,
    unet,
)

FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}


def start(dtype: torch.dtype = torch.float64) -> Tensor:
    return noise(4, 3, 4, 4, dtype=dtype)


# -- stepping: every solver that both libraries have --------------------------------------------------------------

PARITY = [
    (hf.DDIMScheduler(clip_sample=False), "ddim", {}),
    (hf.DDIMScheduler(clip_sample=False, timestep_spacing="trailing", prediction_type="v_prediction"), "ddim", {}),
    (hf.DDIMScheduler(clip_sample=False, prediction_type="sample"), "ddim", {}),
    (hf.DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1, **SD), "ddim", {}),
    (hf.DDPMScheduler(), "ddpm", {}),
    (hf.DDPMScheduler(clip_sample=False, variance_type="fixed_large"), "ddpm", {"variance": "large"}),
    (hf.DDPMScheduler(clip_sample=False, thresholding=True, sample_max_value=1e6), "ddpm", {}),
    (hf.DPMSolverMultistepScheduler(**SD), "dpm++2m", {"final": True}),
    (hf.DPMSolverMultistepScheduler(solver_type="heun"), "adams", {"order": 2, "final": True}),
    (
        hf.DPMSolverMultistepScheduler(solver_order=3),
        "dpm-solver++",
        {"order": 3, "weights": "official", "final": True},
    ),
    (hf.DPMSolverSinglestepScheduler(), "dpm-solver++-2s", {"nodes": "grid"}),
    (hf.DEISMultistepScheduler(), "deis", {"degree": 1, "variant": "logrho", "final": True}),
    (hf.UniPCMultistepScheduler(), "unipc", {"order": 2, "variant": "bh2", "final": True}),
    (
        hf.UniPCMultistepScheduler(solver_order=3, solver_type="bh1", final_sigmas_type="sigma_min"),
        "unipc",
        {"order": 3, "variant": "bh1", "final": True},
    ),
    (hf.EulerDiscreteScheduler(timestep_spacing="leading", steps_offset=1), "ddim", {}),
    (hf.EulerDiscreteScheduler(timestep_spacing="trailing"), "ddim", {}),
    (hf.EulerDiscreteScheduler(use_karras_sigmas=True), "ddim", {}),
    (hf.EulerAncestralDiscreteScheduler(timestep_spacing="trailing"), "euler-ancestral", {}),
    (hf.HeunDiscreteScheduler(timestep_spacing="trailing"), "heun", {}),
    (hf.LMSDiscreteScheduler(timestep_spacing="trailing"), "lms", {}),
    (hf.FlowMatchEulerDiscreteScheduler(shift=3.0), "ddim", {}),
    (hf.FlowMatchHeunDiscreteScheduler(), "rho-rk", {"tableau": "heun2", "kind": "flow"}),
    (hf.EDMEulerScheduler(), "ddim", {}),
    (hf.EDMDPMSolverMultistepScheduler(), "dpm++2m", {"final": True}),
]


def name_of(case: Any) -> str | None:
    return type(case).__name__.removesuffix("Scheduler") if hasattr(case, "config") else None


@pytest.mark.parametrize(("scheduler", "solver", "options"), PARITY, ids=name_of)
def test_same_solver_same_samples(scheduler: Any, solver: str, options: dict[str, Any]) -> None:
    """On the scheduler's own timesteps, ten steps, at equal noise.  Agreement is near 1e-7, DDPM's clipping 2e-6."""
    convention = read(scheduler)
    plan = rd.plan(solver, convention.process, grid=convention.times(10), end=convention.end, **options)
    ours = plan.to_diffusers(scheduler)
    theirs = drive(scheduler, start(), 10, seeded())
    close(drive(ours, start(), 10, seeded()), theirs, 5e-6)
    assert len(ours.timesteps) == len(scheduler.timesteps)
    whole = scheduler.config.get("use_karras_sigmas")  # there diffusers' own interpolation is linear in sigma
    assert torch.allclose(ours.timesteps.double(), scheduler.timesteps.double(), atol=0.02 if whole else 1e-4)
    assert ours.order == scheduler.order


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_stochastic_dpm_solver(prediction: str) -> None:
    """SDE-DPM-Solver++ 2M draws its noise in float32 whatever the state is, so the comparison is in float32."""
    scheduler = hf.DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++", prediction_type=prediction)
    convention = read(scheduler)
    plan = rd.plan("dpm++2m-sde", convention.process, grid=convention.times(10), final=True)
    x = start(torch.float32)
    close(drive(plan.to_diffusers(scheduler), x, 10, seeded()), drive(scheduler, x, 10, seeded()), 2e-5)


@pytest.mark.parametrize(
    "scheduler",
    [
        hf.UniPCMultistepScheduler(**FLOW),
        hf.DPMSolverMultistepScheduler(**FLOW),
    ],
    ids=name_of,
)
def test_flow_schedulers_that_cut_the_clock(scheduler: Any) -> None:
    """These two tell the network a timestep cut to an integer, so it is kept from looking; UniPC also starts at
    sigma = 1 - 1e-6, which a state of pure noise does not see."""
    convention = read(scheduler)
    solver = {"UniPCMultistepScheduler": "unipc", "DPMSolverMultistepScheduler": "dpm++2m"}[convention.name]
    plan = rd.plan(solver, convention.process, grid=convention.times(10), final=True)
    theirs = drive(scheduler, start(), 10, clock=False)
    close(drive(plan.to_diffusers(scheduler), start(), 10, clock=False), theirs, 5e-6)


def test_zero_terminal_snr() -> None:
    """A last beta of one is floored at alpha^2 = 2^-24, where diffusers' Euler floors it and its DDIM does not."""
    options = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing", **SD}
    euler, ddim = hf.EulerDiscreteScheduler(**options), hf.DDIMScheduler(clip_sample=False, **options)
    convention = read(euler)
    ours = drive(rd.plan("ddim", convention.process, grid=convention.times(10)).to_diffusers(euler), start(), 10)
    close(ours, drive(euler, start(), 10), 5e-6)
    close(ours, drive(ddim, start(), 10), 1e-3)


def test_clipping_is_consistent() -> None:
    """Clipped means imply clipped noise here, which DDIM does when asked; ``clip=False`` does not clip."""
    scheduler = hf.DDIMScheduler(clip_sample=True, clip_sample_range=0.7)
    plan = rd.plan("ddim", read(scheduler).process, steps=10, grid="leading")
    theirs = drive(scheduler, start(), 10, use_clipped_model_output=True)
    assert float(theirs.abs().max()) < 0.71
    close(drive(plan.to_diffusers(scheduler), start(), 10), theirs, 5e-6)
    free = hf.DDIMScheduler(clip_sample=False)
    close(drive(plan.to_diffusers(scheduler, clip=False), start(), 10), drive(free, start(), 10), 5e-6)


def test_eta_in_between() -> None:
    """DDIM's own eta, which shares its noise with ours draw by draw."""
    scheduler = hf.DDIMScheduler(clip_sample=False)
    plan = rd.plan("ddim", read(scheduler).process, steps=10, grid="leading", eta=0.6)
    theirs = drive(scheduler, start(), 10, seeded(5), eta=0.6)
    close(drive(plan.to_diffusers(scheduler), start(), 10, seeded(5), eta=0.6), theirs, 5e-6)


# -- pipelines ----------------------------------------------------------------------------------------------------


def last_state(pipe: Any, **call: Any) -> Tensor:
    return states(pipe, **call)[1]


def ddpm_pipe() -> Any:
    return quiet(hf.DDPMPipeline(unet(), hf.DDPMScheduler()))


def ddim_pipe() -> Any:
    return quiet(hf.DDIMPipeline(unet(), hf.DDIMScheduler(clip_sample=False)))


TEXT = {"prompt": "a red cat", "negative_prompt": "blue", "height": 16, "width": 16, "output_type": "latent"}
PIPELINES = [
    ("ddpm", ddpm_pipe, "ddpm", {}, {"batch_size": 2}),
    ("ddim", ddim_pipe, "ddim", {}, {"batch_size": 2}),
    ("ddim-eta", ddim_pipe, "ddim", {"eta": 1.0}, {"batch_size": 2, "eta": 1.0}),
    (
        "sd-ddim",
        lambda: stable_diffusion(hf.DDIMScheduler(clip_sample=False, steps_offset=1, set_alpha_to_one=False, **SD)),
        "ddim",
        {},
        TEXT,
    ),
    (
        "sd-dpm++",
        lambda: stable_diffusion(hf.DPMSolverMultistepScheduler(steps_offset=1, **SD)),
        "dpm++2m",
        {"final": True},
        TEXT,
    ),
    (
        "sd-unipc",
        lambda: stable_diffusion(hf.UniPCMultistepScheduler(steps_offset=1, **SD)),
        "unipc",
        {"final": True},
        TEXT,
    ),
    (
        "sd-euler",
        lambda: stable_diffusion(hf.EulerDiscreteScheduler(steps_offset=1, timestep_spacing="leading", **SD)),
        "ddim",
        {},
        TEXT,
    ),
    (
        "sd-euler-a",
        lambda: stable_diffusion(hf.EulerAncestralDiscreteScheduler(steps_offset=1, timestep_spacing="leading", **SD)),
        "euler-ancestral",
        {},
        TEXT,
    ),
    (
        "sd-heun",
        lambda: stable_diffusion(hf.HeunDiscreteScheduler(steps_offset=1, timestep_spacing="leading", **SD)),
        "heun",
        {},
        TEXT,
    ),
    ("dit", dit, "ddim", {}, {"class_labels": [3, 5], "guidance_scale": 3.0}),
    ("dit-unguided", dit, "ddim", {}, {"class_labels": [3, 5], "guidance_scale": 1.0}),
    ("sd3", stable_diffusion_3, "ddim", {}, TEXT),
    ("sd3-dynamic", lambda: stable_diffusion_3(use_dynamic_shifting=True, shift=1.0), "ddim", {}, TEXT),
]


@pytest.mark.parametrize(
    ("make", "solver", "options", "call"), [p[1:] for p in PIPELINES], ids=[p[0] for p in PIPELINES]
)
def test_pipeline_gives_the_same_picture(make: Any, solver: str, options: dict[str, Any], call: dict[str, Any]) -> None:
    """The pipeline with its own scheduler and with the plan of the same solver, on its scheduler's timesteps."""
    pipe, steps = make(), 8
    call = call | {"num_inference_steps": steps}
    if "class_labels" not in call:
        call["generator"] = seeded()
    else:
        torch.manual_seed(0)  # DiTPipeline runs on the generator only for its start
        call["generator"] = seeded()
    theirs = last_state(pipe, **call)
    process = from_diffusers(pipe).process
    plan = rd.plan(solver, process, steps=steps, grid="uniform", **options)
    pipe.scheduler = plan.to_diffusers(pipe.scheduler, grid="like")
    ours = last_state(pipe, **(call | {"generator": seeded()}))
    assert float(theirs.std()) > 0.05
    close(ours, theirs, 2e-5)


@pytest.mark.parametrize(("guidance", "dynamic"), [(True, True), (False, False)], ids=["dev", "schnell"])
def test_flux(guidance: bool, dynamic: bool) -> None:
    """Flux passes its own sigmas and a mu from the resolution: a plan on the uniform grid follows both by itself."""
    pipe = flux(guidance, dynamic)
    call = {"prompt": "a cat", "height": 16, "width": 32, "max_sequence_length": 8, "output_type": "latent"}
    call |= {"num_inference_steps": 6}
    theirs = last_state(pipe, **call, generator=seeded())
    plan = rd.plan("ddim", rd.RectifiedFlow(), steps=6, grid="uniform")
    pipe.scheduler = plan.to_diffusers(pipe.scheduler)
    close(last_state(pipe, **call, generator=seeded()), theirs, 2e-5)
    uniform = np.linspace(1, 0, 7)[:-1] * 1000
    assert np.allclose(pipe.scheduler.timesteps, uniform, atol=1e-3) is not dynamic


def image(size: int = 16) -> Tensor:
    return torch.rand((1, 3, size, size), generator=seeded(9))


@pytest.mark.parametrize("strength", [0.3, 0.7, 1.0])
@pytest.mark.parametrize(
    ("theirs", "solver", "options"),
    [
        (hf.DDIMScheduler(clip_sample=False, steps_offset=1, set_alpha_to_one=False, **SD), "ddim", {}),
        (hf.DPMSolverMultistepScheduler(steps_offset=1, **SD), "dpm++2m", {"final": True}),
        (hf.UniPCMultistepScheduler(steps_offset=1, **SD), "unipc", {"final": True}),
        (hf.HeunDiscreteScheduler(steps_offset=1, timestep_spacing="leading", **SD), "heun", {}),
    ],
    ids=["ddim", "dpm++2m", "unipc", "heun"],
)
def test_image_to_image(theirs: Any, solver: str, options: dict[str, Any], strength: float) -> None:
    """A start in the middle begins the solver there, without history, as diffusers does."""
    parts = {k: v for k, v in stable_diffusion(theirs).components.items()}
    pipe = quiet(hf.StableDiffusionImg2ImgPipeline(**parts, requires_safety_checker=False))
    call = {
        "prompt": "a cat",
        "image": image(),
        "strength": strength,
        "num_inference_steps": 10,
        "output_type": "latent",
    }
    expected = last_state(pipe, **call, generator=seeded())
    plan = rd.plan(solver, from_diffusers(pipe).process, steps=10, grid="uniform", **options)
    pipe.scheduler = plan.to_diffusers(pipe.scheduler, grid="like")
    close(last_state(pipe, **call, generator=seeded()), expected, 2e-5)


def test_image_to_image_flow() -> None:
    pipe = quiet(
        hf.StableDiffusion3Img2ImgPipeline(
            **{
                k: v
                for k, v in stable_diffusion_3().components.items()
                if k not in ("image_encoder", "feature_extractor")
            }
        )
    )
    call = {"prompt": "a cat", "image": image(), "strength": 0.6, "num_inference_steps": 10, "output_type": "latent"}
    expected = last_state(pipe, **call, generator=seeded())
    pipe.scheduler = rd.plan("ddim", rd.RectifiedFlow(), steps=10, grid="flow").to_diffusers(
        pipe.scheduler, grid="like"
    )
    close(last_state(pipe, **call, generator=seeded()), expected, 2e-5)


def test_pipeline_of_a_folder(tmp_path: Any) -> None:
    """Saved and loaded, with the plan inside: the scheduler comes back as it was, and diffusers' own fits again."""
    made = ddim_pipe()
    plan = rd.plan("adams", from_diffusers(made).process, steps=6, grid="logsnr")
    made.scheduler = plan.to_diffusers(clip=True, seed=7)
    expected = last_state(made, num_inference_steps=6, generator=seeded())
    made.save_pretrained(tmp_path)
    pipe = quiet(hf.DDPMPipeline.from_pretrained(tmp_path))
    assert pipe.scheduler.plan == plan and pipe.scheduler.seed == 7
    close(last_state(pipe, num_inference_steps=6, generator=seeded()), expected, 1e-5)
    pipe.scheduler = hf.DDIMScheduler.from_config(pipe.scheduler.config)
    assert pipe.scheduler.config.beta_end == 0.02 and not pipe.scheduler.config.clip_sample
    assert from_diffusers(tmp_path).convention.name == "DDIMScheduler"
