"""Prompts as conditions: a pipeline's own text encoders, under the names that a denoiser's conditions have."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from retrodict.core.errors import InputError

#: What ``encode_prompt`` of a pipeline returns, by the model that it prompts: positions and condition names.
_OUTPUTS = {
    "UNet2DConditionModel": {0: "encoder_hidden_states"},
    "SD3Transformer2DModel": {0: "encoder_hidden_states", 2: "pooled_projections"},
    "FluxTransformer2DModel": {0: "encoder_hidden_states", 1: "pooled_projections"},
}


@torch.no_grad()
def encode_prompt(pipe: Any, prompt: str | list[str], **options: Any) -> dict[str, Any]:
    """The conditions that say ``prompt`` to the denoiser of a pipeline.

    Args:
        pipe: a StableDiffusion-, StableDiffusion3- or Flux-type pipeline with its text encoders.
        prompt: one prompt, shared by all samples, or one a sample.
        options: what else the pipeline's ``encode_prompt`` takes, such as ``max_sequence_length`` or ``clip_skip``.

    Returns:
        Tensors with a leading axis of one a prompt, to be passed on as ``sample(denoiser, n, **conditions)``.
    """
    model = getattr(pipe, "transformer", None) or getattr(pipe, "unet", None)
    names = _OUTPUTS.get(type(model).__name__)
    if model is None or names is None or not hasattr(pipe, "encode_prompt") or model.config.get("addition_embed_type"):
        raise InputError(
            f"prompts of {type(pipe).__name__} are not encoded here; call its encode_prompt and pass the tensors it "
            "returns as conditions"
        )
    known = inspect.signature(pipe.encode_prompt).parameters
    # the second and third encoders of a pipeline read the first one's prompt unless told otherwise
    words = {"prompt_2": None, "prompt_3": None, "num_images_per_prompt": 1, "do_classifier_free_guidance": False}
    words = {k: v for k, v in words.items() if k in known} | options
    outputs = pipe.encode_prompt(prompt, device=pipe._execution_device, **words)
    return {name: outputs[position] for position, name in names.items()}


def empty_prompt(pipe: Any) -> dict[str, Any]:
    """The conditions of the empty prompt, as null values; nothing where the pipeline has no text encoder."""
    try:
        return encode_prompt(pipe, "") if getattr(pipe, "text_encoder", None) is not None else {}
    except InputError:
        return {}
