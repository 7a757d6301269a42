"""Pipelines of diffusers that a laptop runs in a second: its own classes, a few thousand random weights, no download;
and the loops that compare two ways of running one.

Weights are drawn from a fixed seed and are scaled up where diffusers starts them at zero, so that an output depends
on every input: a wrong timestep, label or prompt changes the picture.
"""

from __future__ import annotations

import inspect
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from typing import Any

import diffusers
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor

diffusers.utils.logging.set_verbosity_error()
diffusers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()

WORDS = ("a", "cat", "dog", "red", "blue", "photo", "of")
UNET = {
    "sample_size": 8,
    "layers_per_block": 1,
    "block_out_channels": (8, 16),
    "norm_num_groups": 4,
}


def drawn(module: torch.nn.Module, seed: int = 0, scale: float = 0.3) -> Any:
    """``module`` with every parameter drawn anew, biases and zero-initialised layers included."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            fan = max(1, parameter[0].numel()) if parameter.ndim > 1 else 4
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale * 2 / fan**0.5)
        for part in module.modules():  # norms keep their scale
            if isinstance(part, (torch.nn.GroupNorm, torch.nn.LayerNorm)) and part.weight is not None:
                part.weight.fill_(1.0)
    return module.eval()


def unet(**config: Any) -> Any:
    """A UNet2DModel on 3 x 8 x 8 images."""
    blocks = {
        "in_channels": 3,
        "out_channels": 3,
        "attention_head_dim": 4,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    }
    return drawn(diffusers.UNet2DModel(**{**UNET, **blocks, **config}))


def text_unet(**config: Any) -> Any:
    """A UNet2DConditionModel on 4 x 8 x 8 latents, with 8-dimensional text embeddings."""
    blocks = {
        "in_channels": 4,
        "out_channels": 4,
        "cross_attention_dim": 8,
        "attention_head_dim": 2,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    }
    return drawn(diffusers.UNet2DConditionModel(**{**UNET, **blocks, **config}))


def vae(channels: int = 4, **config: Any) -> Any:
    """An AutoencoderKL that shrinks images twofold."""
    blocks = {
        "latent_channels": channels,
        "block_out_channels": (8, 8),
        "norm_num_groups": 4,
        "layers_per_block": 1,
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
    }
    return drawn(diffusers.AutoencoderKL(in_channels=3, out_channels=3, **{**blocks, **config}))


def tokenizer(length: int = 8) -> Any:
    """A word-level tokenizer of a few words, with CLIP's special tokens."""
    special = ["<unk>", "<pad>", "<bos>", "<eos>"]
    words = {word: i for i, word in enumerate([*special, *WORDS])}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", words["<bos>"]), ("<eos>", words["<eos>"])]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=length,
        unk_token="<unk>",
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
    )


def clip(projection: bool = False, seed: int = 1) -> Any:
    """A CLIP text encoder of width 8."""
    config = transformers.CLIPTextConfig(
        vocab_size=16,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=8,
        max_position_embeddings=8,
        bos_token_id=2,
        eos_token_id=3,
        pad_token_id=1,
    )
    kind = transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel
    return drawn(kind(config), seed, 1.0)


def t5() -> Any:
    """A T5 encoder of width 8."""
    config = transformers.T5Config(vocab_size=16, d_model=8, d_ff=16, d_kv=4, num_layers=1, num_heads=2)
    return drawn(transformers.T5EncoderModel(config), 2, 1.0)


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def stable_diffusion(scheduler: Any = None) -> Any:
    """A StableDiffusionPipeline with the scheduler of the 1.x models."""
    scheduler = scheduler or diffusers.PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
    )
    pipe = diffusers.StableDiffusionPipeline(
        vae=vae(),
        text_encoder=clip(),
        tokenizer=tokenizer(),
        unet=text_unet(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return quiet(pipe)


def dit(classes: int = 1000) -> Any:
    """A DiTPipeline with learned variances, as the published models have."""
    transformer = drawn(
        diffusers.DiTTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=4,
            in_channels=4,
            out_channels=8,
            num_layers=2,
            sample_size=8,
            patch_size=2,
            num_embeds_ada_norm=classes,
            norm_num_groups=4,
        )
    )
    scheduler = diffusers.DDIMScheduler(clip_sample=False)
    return quiet(diffusers.DiTPipeline(transformer=transformer, vae=vae(), scheduler=scheduler))


def stable_diffusion_3(**config: Any) -> Any:
    """A StableDiffusion3Pipeline without its T5 encoder, as it may be run."""
    transformer = drawn(
        diffusers.SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            num_layers=2,
            attention_head_dim=4,
            num_attention_heads=2,
            joint_attention_dim=16,
            caption_projection_dim=8,
            pooled_projection_dim=16,
            out_channels=4,
            pos_embed_max_size=8,
        )
    )
    pipe = diffusers.StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(**{"shift": 3.0, **config}),
        vae=vae(shift_factor=0.06),
        text_encoder=clip(True, 1),
        tokenizer=tokenizer(),
        text_encoder_2=clip(True, 3),
        tokenizer_2=tokenizer(),
        text_encoder_3=None,
        tokenizer_3=None,
    )
    return quiet(pipe)


def flux(guidance: bool = True, dynamic: bool = True) -> Any:
    """A FluxPipeline: with guidance embeddings and a shift by resolution as "dev", without as "schnell"."""
    transformer = drawn(
        diffusers.FluxTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=8,
            pooled_projection_dim=8,
            axes_dims_rope=(2, 2, 4),
            guidance_embeds=guidance,
        )
    )
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=dynamic)
    pipe = diffusers.FluxPipeline(
        scheduler=scheduler,
        vae=vae(shift_factor=0.0),
        text_encoder=clip(),
        tokenizer=tokenizer(),
        text_encoder_2=t5(),
        tokenizer_2=tokenizer(),
        transformer=transformer,
    )
    return quiet(pipe)


# -- running and comparing ----------------------------------------------------------------------------------------

#: The schedule of the 1.x text-to-image models.
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def seeded(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """The same normals in every precision."""
    return torch.randn(shape, generator=seeded(0), dtype=torch.float64).to(dtype)


def smooth(x: Tensor, timestep: Any, clock: bool = True) -> Tensor:
    """A smooth network on 3 x 4 x 4 states, which listens to the timestep unless ``clock`` is off."""
    t = float(timestep) / 1000 if clock else 0.4
    w = torch.linspace(-1, 1, 48, dtype=x.dtype).reshape(3, 4, 4)
    return 0.5 * torch.tanh(x * (1 + w) + w) * (0.5 + t) + 0.3 * x * t


def drive(scheduler: Any, x: Tensor, steps: int, generator: Any = None, clock: bool = True, **step: Any) -> Tensor:
    """A pipeline's loop around `smooth`."""
    scheduler.set_timesteps(steps)
    x = x * getattr(scheduler, "init_noise_sigma", 1.0)
    if "generator" in inspect.signature(scheduler.step).parameters:
        step["generator"] = generator
    for t in scheduler.timesteps:
        shown = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(smooth(shown, t, clock), t, x, **step).prev_sample
    return x


def states(pipe: Any, **call: Any) -> tuple[Tensor, Tensor]:
    """The start of a pipeline's run, and the state after its last step, which no decoding or clamping has blurred."""
    step, seen = pipe.scheduler.step, []

    def record(output: Tensor, t: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        out = step(output, t, x, *args, **kwargs)
        seen.extend([x, out[0]])
        return out

    record.__signature__ = inspect.signature(step)  # pipelines look at it to find out what step takes
    pipe.scheduler.step = record
    try:
        pipe(**call)
    finally:
        del pipe.scheduler.step
    return seen[0], seen[-1]


def close(ours: Tensor, theirs: Tensor, tol: float) -> None:
    """Largest difference, relative to the largest value."""
    error = float((ours - theirs).abs().max() / theirs.abs().max())
    assert error < tol, f"relative difference {error:.2e}"
