"""Models of diffusers as denoisers: schedulers read as diffusers means them, networks called as pipelines call them.

The references are diffusers' own: its ``alphas_cumprod`` and sigmas for the path, ``pred_original_sample`` for the
mean, and the models themselves, called by hand.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import diffusers as hf
import numpy as np
import pytest
import torch

import retrodict as rd
from retrodict.core.errors import InputError
from retrodict.denoisers.diffusers import encode_prompt, from_diffusers, read
from retrodict.denoisers.diffusers.models import adapt, pack, positions, unpack
from tiny_pipelines import SD, close, dit, drawn, flux, noise, text_unet, unet

# -- schedulers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "scheduler",
    [
        hf.DDPMScheduler(),
        hf.DDIMScheduler(**SD),
        hf.PNDMScheduler(beta_schedule="squaredcos_cap_v2"),
        hf.DDPMScheduler(num_train_timesteps=100, beta_end=0.2),
        hf.DDPMScheduler(trained_betas=np.linspace(0.01, 0.3, 20)),
        hf.EulerDiscreteScheduler(rescale_betas_zero_snr=True, **SD),
    ],
    ids=["linear", "scaled", "cosine", "100", "trained", "zero-snr"],
)
def test_tables_are_the_levels_of_the_scheduler(scheduler: Any) -> None:
    """alpha^2 is ``alphas_cumprod`` at every level, up to diffusers' float32; the clock says which level it is."""
    convention = read(scheduler)
    levels = torch.arange(len(scheduler.alphas_cumprod))
    t = convention.time_of(levels)
    assert torch.allclose(convention.clock(t), levels.double(), atol=1e-9)
    assert torch.allclose(convention.process.alpha(t) ** 2, scheduler.alphas_cumprod.double(), rtol=2e-4, atol=1e-9)
    assert float(convention.clock(torch.zeros((), dtype=torch.float64))) == 0  # never a negative timestep
    assert torch.equal(convention.process.sigma(t[-1:] * 0), torch.zeros(1, dtype=torch.float64))


def test_flow_clock_is_sigma() -> None:
    scheduler = hf.FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(7)
    convention = read(scheduler)
    t = convention.time_of(scheduler.timesteps)
    assert torch.allclose(convention.process.sigma(t), scheduler.sigmas[:-1].double(), atol=1e-7)
    assert torch.allclose(convention.clock(t), scheduler.timesteps.double())


@pytest.mark.parametrize("schedule", ["karras", "exponential"])
def test_preconditioned_clock_and_path(schedule: str) -> None:
    scheduler = hf.EDMEulerScheduler(sigma_schedule=schedule)
    scheduler.set_timesteps(9)
    convention = read(scheduler)
    t = convention.time_of(scheduler.timesteps)
    assert torch.allclose(convention.process.sigma(t), scheduler.sigmas[:-1].double(), rtol=1e-5)
    assert torch.allclose(torch.tensor(convention.times(9)[:-1], dtype=torch.float64), t, atol=1e-6)
    assert np.allclose(np.diff(convention.times(9)[:-1]), -1 / 8, atol=1e-6)  # both paths are uniform in t


SPACED = [
    hf.DDIMScheduler(steps_offset=1),
    hf.DDIMScheduler(timestep_spacing="trailing"),
    hf.DDPMScheduler(),
    hf.DDIMScheduler(timestep_spacing="linspace"),
    hf.DDIMScheduler(set_alpha_to_one=False, steps_offset=1),
    hf.DPMSolverMultistepScheduler(),
    hf.DPMSolverMultistepScheduler(final_sigmas_type="sigma_min"),
    hf.UniPCMultistepScheduler(timestep_spacing="trailing"),
    hf.DEISMultistepScheduler(),
    hf.HeunDiscreteScheduler(timestep_spacing="leading"),
    hf.KDPM2DiscreteScheduler(timestep_spacing="trailing"),
    hf.PNDMScheduler(skip_prk_steps=True, steps_offset=1),
]


@pytest.mark.parametrize("scheduler", SPACED, ids=lambda s: type(s).__name__.removesuffix("Scheduler"))
@pytest.mark.parametrize("steps", [7, 20])
def test_times_are_the_schedulers_timesteps(scheduler: Any, steps: int) -> None:
    """Every level once, and the end: sigma = 0, or the first level of schedulers that stop there."""
    convention = read(scheduler)
    times = convention.times(steps)
    scheduler.set_timesteps(steps)
    told = torch.unique_consecutive(scheduler.timesteps.double())
    if type(scheduler) is hf.KDPM2DiscreteScheduler:
        told = told[::2]
    told = told[told > 0] if convention.end else told
    assert np.allclose([1000 * t - 1 for t in times[:-1]], told, atol=1e-4)
    stops = [hf.DEISMultistepScheduler, hf.PNDMScheduler]
    stays = type(scheduler) in stops or scheduler.config.get("set_alpha_to_one") is False
    stays = stays or scheduler.config.get("final_sigmas_type") == "sigma_min"
    assert times[-1] == (0.001 if stays else 0.0) and convention.end == (0.001 if stays else None)
    assert all(a > b for a, b in pairwise(times))
    plan = rd.plan("ddim", convention.process, grid=times, end=convention.end)
    assert plan.steps == len(times) - 1


@pytest.mark.parametrize(
    ("scheduler", "grid"),
    [
        (hf.DDIMScheduler(steps_offset=1), {"name": "leading", "levels": 1000, "offset": 1}),
        (hf.DDIMScheduler(timestep_spacing="trailing"), {"name": "trailing", "levels": 1000}),
        (hf.EulerDiscreteScheduler(use_karras_sigmas=True), "karras"),
        (hf.EulerDiscreteScheduler(use_exponential_sigmas=True), "logsnr"),
        (hf.FlowMatchEulerDiscreteScheduler(shift=3.0), {"name": "flow", "shift": 3.0}),
        (hf.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), "flow"),
        (hf.EDMEulerScheduler(), "karras"),
    ],
)
def test_spacing_is_a_grid_of_ours(scheduler: Any, grid: Any) -> None:
    convention = read(scheduler)
    assert convention.grid == grid
    plan = rd.plan("ddim", convention.process, steps=10, grid=convention.grid)
    if isinstance(grid, dict) and "levels" in grid:
        assert np.allclose(plan.times, convention.times(10), atol=1e-12)


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("clip", [False, True])
def test_mean_is_diffusers_prediction_of_the_clean_sample(prediction: str, clip: bool) -> None:
    """`pred_original_sample` of DDIM at several levels, clipped where the configuration clips."""
    scheduler = hf.DDIMScheduler(prediction_type=prediction, clip_sample=clip, **SD)
    network, denoiser = unet(), from_diffusers(unet(), scheduler=scheduler)
    scheduler.set_timesteps(20)
    x = noise(2, 3, 8, 8)
    for n in (950, 500, 50):
        with torch.no_grad():
            output, mean = network(x, n).sample, denoiser(x, (n + 1) / 1000)
        close(mean, scheduler.step(output, n, x).pred_original_sample, 2e-5)


def test_edm_network_sees_scaled_states() -> None:
    scheduler = hf.EDMEulerScheduler(sigma_data=0.7)
    network, denoiser = unet(), from_diffusers(unet(), scheduler=scheduler)
    scheduler.set_timesteps(5)
    t, x = scheduler.timesteps[2], 3 * noise(2, 3, 8, 8)
    with torch.no_grad():
        output = network(scheduler.scale_model_input(x, t), t).sample
        mean = denoiser(x, denoiser.convention.time_of(t))
    close(mean, scheduler.step(output, t, x).pred_original_sample, 1e-5)


def test_score_network_of_an_exploding_path() -> None:
    """x + sigma^2 score, with the network told sigma."""
    network = unet(time_embedding_type="fourier")
    denoiser = from_diffusers(network, scheduler=hf.ScoreSdeVeScheduler(sigma_min=0.01, sigma_max=50.0))
    x, t = noise(2, 3, 8, 8) * 5, 0.6
    sigma = 0.01 * 5000**t
    with torch.no_grad():
        expected = x + sigma**2 * network(x, torch.full((2,), sigma)).sample
        close(denoiser(x, t), expected, 1e-4)
    assert len(denoiser.times(6)) == 7


@pytest.mark.parametrize("top", [1.0, 1e6])
def test_dynamic_thresholding(top: float) -> None:
    """diffusers' quantile clip; its default ``sample_max_value`` of one makes it a clip at one."""
    scheduler = hf.DDPMScheduler(
        thresholding=True, sample_max_value=top, clip_sample=False, dynamic_thresholding_ratio=0.8
    )
    network, denoiser = unet(), from_diffusers(unet(), scheduler=scheduler)
    x, n = 2 * noise(2, 3, 8, 8), 400
    with torch.no_grad():
        close(denoiser(x, 0.401), scheduler.step(network(x, n).sample, n, x).pred_original_sample, 1e-5)
        assert not torch.allclose(denoiser(x, 0.401), from_diffusers(unet(), scheduler=scheduler, clip=False)(x, 0.401))


def test_clipping_belongs_to_the_class() -> None:
    """A scheduler converted from another carries its entries along; those that it does not know do nothing."""
    converted = hf.DPMSolverMultistepScheduler.from_config(hf.DDPMScheduler(clip_sample=True).config)
    assert converted.config["clip_sample"]
    x = 9 * noise(1, 3, 8, 8)
    with torch.no_grad():
        free = from_diffusers(unet(), scheduler=converted)(x, 0.9)
        forced = from_diffusers(unet(), scheduler=converted, clip=True)(x, 0.9)
    assert float(free.abs().max()) > 2 and float(forced.abs().max()) == 1


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        (hf.LCMScheduler(), "unknown diffusers scheduler 'LCMScheduler'; accepted: DDIM"),
        ({"_class_name": "DDIMSchedule"}, "unknown diffusers scheduler 'DDIMSchedule'"),
        ({"_class_name": "os.system"}, "unknown diffusers scheduler"),
        (hf.EulerDiscreteScheduler(timestep_type="continuous"), "continuous"),
        (hf.EDMEulerScheduler(prediction_type="v_prediction"), "epsilon"),
        (hf.FlowMatchEulerDiscreteScheduler(invert_sigmas=True), "invert_sigmas"),
        (torch.nn.Linear(1, 1), "scheduler or its configuration"),
    ],
)
def test_schedulers_that_are_not_understood(scheduler: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        from_diffusers(unet(), scheduler=scheduler)


# -- networks --------------------------------------------------------------------------------------------------------


def test_unconditional_network() -> None:
    denoiser = from_diffusers(unet(), scheduler=hf.DDPMScheduler())
    assert denoiser.shape == (3, 8, 8) and denoiser.conditions == {}
    with pytest.raises(InputError, match="unknown condition"):
        denoiser(noise(1, 3, 8, 8), 0.5, label=1)


def test_labels_of_a_unet() -> None:
    network = unet(num_class_embeds=4)
    denoiser = from_diffusers(network, scheduler=hf.DDIMScheduler(clip_sample=False))
    x, label = noise(2, 3, 8, 8), torch.tensor([1, 3])
    with torch.no_grad():
        output = network(x, 499, class_labels=label).sample
        ours = denoiser(x, 0.5, label=label)
    alpha, sigma = denoiser.process.alpha(0.5), denoiser.process.sigma(0.5)
    close(ours, (x - sigma.float() * output) / alpha.float(), 1e-5)
    with pytest.raises(InputError, match="needs label"):
        denoiser(x, 0.5)
    with pytest.raises(InputError, match="Did you mean 'label'"):
        denoiser(x, 0.5, class_label=label)
    assert from_diffusers(network, scheduler=hf.DDIMScheduler(), nulls={"label": 0}).conditions == {"label": 0}
    with pytest.raises(InputError, match="no condition"):
        from_diffusers(network, scheduler=hf.DDIMScheduler(), nulls={"lable": 0})


def test_learned_variances_are_dropped() -> None:
    network = unet(out_channels=6)
    x = noise(2, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(adapt(network)(x, torch.full((2,), 7.0)), network(x, 7).sample[:, :3])


def test_dit_labels_and_null() -> None:
    pipe = dit(classes=10)
    denoiser = from_diffusers(pipe)
    assert denoiser.conditions == {"label": 10} and denoiser.shape == (4, 8, 8)
    x = noise(2, 4, 8, 8)
    with torch.no_grad():
        null = pipe.transformer(x, timestep=torch.tensor([499, 499]), class_labels=torch.tensor([10, 10])).sample
        assert torch.equal(denoiser(x, 0.5), denoiser(x, 0.5, label=10))
        alpha, sigma = denoiser.process.alpha(0.5).float(), denoiser.process.sigma(0.5).float()
        close(denoiser(x, 0.5), (x - sigma * null[:, :4]) / alpha, 1e-5)
    with pytest.raises(InputError, match="out of range"):
        rd.sample(denoiser, 2, nfe=2, label=11, progress=False)


def test_added_conditions_of_larger_text_unets() -> None:
    """The pooled embedding and the sizes that SDXL-type networks see besides the prompt."""
    network = text_unet(
        addition_embed_type="text_time", addition_time_embed_dim=4, projection_class_embeddings_input_dim=32
    )
    denoiser = from_diffusers(network, scheduler=hf.EulerDiscreteScheduler(prediction_type="v_prediction", **SD))
    x, text, pooled, sizes = (
        noise(2, 4, 8, 8),
        noise(2, 5, 8),
        noise(2, 8),
        torch.tensor([[16.0, 16, 0, 0, 16, 16]] * 2),
    )
    conditions = {"encoder_hidden_states": text, "text_embeds": pooled, "time_ids": sizes}
    with torch.no_grad():
        added = {"text_embeds": pooled, "time_ids": sizes}
        output = network(x, 299, encoder_hidden_states=text, added_cond_kwargs=added).sample
        alpha, sigma = denoiser.process.alpha(0.3).float(), denoiser.process.sigma(0.3).float()
        close(denoiser(x, 0.3, **conditions), alpha * x - sigma * output, 1e-5)
    with pytest.raises(InputError, match="needs text_embeds, time_ids"):
        denoiser(x, 0.3, encoder_hidden_states=text)


def test_packing_is_flux_packing() -> None:
    x = noise(2, 4, 6, 10)
    theirs = hf.FluxPipeline._pack_latents(x, 2, 4, 6, 10)
    assert torch.equal(pack(x), theirs)
    assert torch.equal(unpack(pack(x), 6, 10), x)
    assert torch.equal(positions(3, 5, x), hf.FluxPipeline._prepare_latent_image_ids(2, 3, 5, "cpu", torch.float32))


def test_flux_conditions() -> None:
    pipe = flux()
    denoiser = from_diffusers(pipe, shape=(4, 8, 8), guidance_scale=2.0)
    words = encode_prompt(pipe, ["a cat", "a dog"])
    x = noise(2, 4, 8, 8)
    with torch.no_grad():
        assert torch.equal(denoiser(x, 0.5, **words), denoiser(x, 0.5, **words, guidance_scale=2.0))
        assert not torch.allclose(denoiser(x, 0.5, **words), denoiser(x, 0.5, **words, guidance_scale=5.0), atol=1e-4)
        assert torch.equal(
            denoiser(x, 0.5, **encode_prompt(pipe, "")), denoiser(x, 0.5)
        )  # the null is the empty prompt
    with pytest.raises(InputError, match="even"):
        denoiser(noise(2, 4, 7, 8), 0.5)
    assert "guidance_scale" not in from_diffusers(flux(guidance=False)).conditions


def test_half_precision_network_with_a_float32_state() -> None:
    network = unet()
    half = from_diffusers(unet(), scheduler=hf.DDIMScheduler(clip_sample=False), dtype=torch.bfloat16)
    full = from_diffusers(network, scheduler=hf.DDIMScheduler(clip_sample=False))
    assert half.dtype == torch.float32 and next(half.parameters()).dtype == torch.bfloat16
    x = noise(2, 3, 8, 8)
    with torch.no_grad():
        mean = half(x, 0.2)
        assert mean.dtype == torch.float32
        close(mean, full(x, 0.2), 0.05)
        assert full(x.double(), 0.2).dtype == torch.float64
    assert rd.sample(half, 2, nfe=3, progress=False).x.dtype == torch.float32


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (lambda: text_unet(in_channels=9), "image or a mask"),
        (
            lambda: drawn(hf.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4)),
            "unknown diffusers model 'AutoencoderKL'",
        ),
        (lambda: torch.nn.Linear(2, 2), "unknown diffusers model 'Linear'; known: DiT"),
    ],
)
def test_networks_that_are_not_understood(source: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        from_diffusers(source(), scheduler=hf.DDIMScheduler())


def test_tiny_networks_listen() -> None:
    """The fixtures of this file: a network deaf to its timestep would hide every mistake in the clock."""
    network, x = unet(), noise(1, 3, 8, 8)
    with torch.no_grad():
        assert not torch.allclose(network(x, 500).sample, network(x, 501).sample, atol=1e-5)
