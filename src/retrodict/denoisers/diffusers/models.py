"""Networks of diffusers behind one call: ``adapter(x, timestep, **conditions) -> x-shaped output``.

Each architecture names its inputs in its own way, wants its own layout and may return more than the mean.  An
adapter translates, and declares which conditions a call accepts, each with its null value where one is natural:

==============================  ======================================================  =========================
model                           conditions                                              null values
==============================  ======================================================  =========================
UNet2DModel                     label                                                   none
UNet2DConditionModel            encoder_hidden_states; label; text_embeds, time_ids     the empty prompt, if known
DiTTransformer2DModel           label                                                   the number of classes
SD3Transformer2DModel           encoder_hidden_states, pooled_projections               the empty prompt, if known
FluxTransformer2DModel          encoder_hidden_states, pooled_projections,              the empty prompt, if known
                                guidance_scale
==============================  ======================================================  =========================

The network runs in its own dtype and its output returns in that of the state, so that a half-precision network can
be driven by a float32 plan.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from retrodict.core.errors import InputError, near
from retrodict.core.registry import Registry

# Axes of the conditions that are tensors for each sample, the batch axis included.
_RANKS = {"encoder_hidden_states": 3, "pooled_projections": 2, "text_embeds": 2, "time_ids": 2}

#: Architectures that are understood, by the name of their class in diffusers.
architectures: Registry[type[Adapter]] = Registry("diffusers model")


class Adapter(nn.Module):
    """Base: the model, its conditions and the event shape of its state.

    Args:
        model: a diffusers model.
        nulls: null values that replace the adapter's own, by condition name: one row each, or a batch of one.
        shape: event shape of a state; None takes it from the model's configuration.

    Attributes:
        conditions: names and null values (None: a condition without one).
        required: conditions that every call must give.
    """

    required: tuple[str, ...] = ()

    def __init__(self, model: Any, nulls: dict[str, Any] | None = None, shape: tuple[int, ...] | None = None) -> None:
        super().__init__()
        self.model: Any = model
        self.conditions = self.declare()
        for name, null in (nulls or {}).items():
            if name not in self.conditions:
                known, hint = ", ".join(self.conditions) or "none", near(name, self.conditions)
                raise InputError(f"{name!r} is no condition of {type(model).__name__}; it has: {known}.{hint}")
            # a null is one row; a batch of one, as the text encoders return it, is that row
            self.conditions[name] = null[0] if isinstance(null, Tensor) and null.ndim == _RANKS.get(name) else null
        self.shape = shape if shape is not None else self.event_shape()

    def declare(self) -> dict[str, Any]:
        """Condition names with their null values."""
        return {}

    def event_shape(self) -> tuple[int, ...] | None:
        """Channels and size of a state, from the configuration."""
        size = self.config.get("sample_size")
        if size is None:
            return None
        return (self.channels, *(size if isinstance(size, (tuple, list)) else (size, size)))

    @property
    def config(self) -> Any:
        """The model's configuration."""
        return self.model.config

    @property
    def channels(self) -> int:
        """Channels of a state."""
        return int(self.config["in_channels"])

    def forward(self, x: Tensor, timestep: Tensor, **condition: Any) -> Tensor:
        missing = [name for name in self.required if condition.get(name) is None]
        if missing:
            raise InputError(
                f"{type(self.model).__name__} needs {', '.join(missing)}: pass tensors with a leading batch axis as "
                "conditions (for prompts, encode_prompt(pipe, prompt) makes them)"
            )
        dtype = self.model.dtype
        given = {k: v.to(dtype) if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in condition.items()}
        return self.call(x.to(dtype), timestep, given).to(x.dtype)

    def call(self, x: Tensor, timestep: Tensor, condition: dict[str, Any]) -> Tensor:
        """The model's mean output for a state in the model's dtype."""
        raise NotImplementedError


def mean_channels(output: Tensor, channels: int) -> Tensor:
    """The mean, where a network returns it stacked with a learned variance on axis 1."""
    return output[:, :channels] if output.shape[1] == 2 * channels else output


def adapt(
    model: nn.Module, nulls: dict[str, Any] | None = None, shape: tuple[int, ...] | None = None, **options: Any
) -> Adapter:
    """The adapter of a diffusers model.

    Raises:
        InputError: an architecture that is not understood (the accepted ones are named).
    """
    names = [c.__name__ for c in type(getattr(model, "_orig_mod", model)).__mro__]  # seen through torch.compile
    name = next((n for n in names if n in architectures), names[0])
    return architectures[name](model, nulls, shape, **options)


def _same_channels(adapter: Adapter) -> None:
    outputs = int(adapter.config.get("out_channels") or adapter.channels)
    if outputs not in (adapter.channels, 2 * adapter.channels):
        raise InputError(
            f"the model takes {adapter.channels} channels and returns {outputs}: models that see an image or a mask "
            "beside the state (inpainting, depth, upscaling) are not supported"
        )


@architectures.register("UNet2DModel")
class _UNet(Adapter):
    def declare(self) -> dict[str, Any]:
        _same_channels(self)
        classes = self.config.get("class_embed_type") or self.config.get("num_class_embeds")
        self.required = ("label",) if classes else ()
        return {"label": None} if classes else {}

    def call(self, x: Tensor, timestep: Tensor, condition: dict[str, Any]) -> Tensor:
        output = self.model(x, timestep, class_labels=condition.get("label"), return_dict=False)[0]
        return mean_channels(output, self.channels)


@architectures.register("UNet2DConditionModel")
class _TextUNet(Adapter):
    required = ("encoder_hidden_states",)
    _added = ("text_embeds", "time_ids")

    def declare(self) -> dict[str, Any]:
        _same_channels(self)
        added = self.config.get("addition_embed_type")
        if added not in (None, "text_time"):
            raise InputError(f"addition_embed_type={added!r} is not supported; None and 'text_time' are")
        names = ["encoder_hidden_states", "encoder_attention_mask"]
        if self.config.get("class_embed_type") or self.config.get("num_class_embeds"):
            names.append("label")
            self.required = (*self.required, "label")
        if added:
            names += self._added
            self.required = (*self.required, *self._added)
        if self.config.get("time_cond_proj_dim"):
            names.append("timestep_cond")
        return dict.fromkeys(names)

    def call(self, x: Tensor, timestep: Tensor, condition: dict[str, Any]) -> Tensor:
        added = {name: condition[name] for name in self._added if name in condition}
        output = self.model(
            x,
            timestep,
            encoder_hidden_states=condition["encoder_hidden_states"],
            encoder_attention_mask=condition.get("encoder_attention_mask"),
            class_labels=condition.get("label"),
            timestep_cond=condition.get("timestep_cond"),
            added_cond_kwargs=added or None,
            return_dict=False,
        )[0]
        return mean_channels(output, self.channels)


@architectures.register("DiTTransformer2DModel", "Transformer2DModel")
class _DiT(Adapter):
    def declare(self) -> dict[str, Any]:
        if self.config.get("norm_type") != "ada_norm_zero" or not self.config.get("num_embeds_ada_norm"):
            raise InputError("a DiT has norm_type='ada_norm_zero' and class labels; this transformer has not")
        _same_channels(self)
        return {"label": int(self.config["num_embeds_ada_norm"])}

    def call(self, x: Tensor, timestep: Tensor, condition: dict[str, Any]) -> Tensor:
        output = self.model(x, timestep=timestep, class_labels=condition["label"], return_dict=False)[0]
        return mean_channels(output, self.channels)


@architectures.register("SD3Transformer2DModel")
class _SD3(Adapter):
    required = ("encoder_hidden_states", "pooled_projections")

    def declare(self) -> dict[str, Any]:
        return dict.fromkeys(self.required)

    def call(self, x: Tensor, timestep: Tensor, condition: dict[str, Any]) -> Tensor:
        return self.model(hidden_states=x, timestep=timestep, return_dict=False, **condition)[0]


@architectures.register("FluxTransformer2DModel")
class _Flux(Adapter):
    """The state is an image ``(batch, C, h, w)``; the transformer sees its 2x2 patches as tokens of 4C channels.

    Args:
        guidance_scale: the distilled guidance of "dev" models, unless a call gives its own.
    """

    required = ("encoder_hidden_states", "pooled_projections")

    def __init__(
        self,
        model: nn.Module,
        nulls: dict[str, Any] | None = None,
        shape: tuple[int, ...] | None = None,
        guidance_scale: float = 3.5,
    ) -> None:
        super().__init__(model, nulls, shape)
        self.guidance_scale = float(guidance_scale)

    @property
    def channels(self) -> int:
        return int(self.config["in_channels"]) // 4

    def declare(self) -> dict[str, Any]:
        names = [*self.required, "guidance_scale"] if self.config.get("guidance_embeds") else [*self.required]
        return dict.fromkeys(names)

    def call(self, x: Tensor, timestep: Tensor, condition: dict[str, Any]) -> Tensor:
        batch, _, height, width = x.shape
        if height % 2 or width % 2:
            raise InputError(f"Flux sees 2x2 patches of the state: height and width are even, got {height} and {width}")
        guidance = None
        if "guidance_scale" in self.conditions:
            default = torch.full((batch,), self.guidance_scale, device=x.device)
            guidance = condition.get("guidance_scale", default).to(x.dtype)
        text = condition["encoder_hidden_states"]
        tokens = self.model(
            hidden_states=pack(x),
            timestep=(timestep / 1000).to(x.dtype),
            guidance=guidance,
            pooled_projections=condition["pooled_projections"],
            encoder_hidden_states=text,
            txt_ids=torch.zeros(text.shape[1], 3, device=x.device, dtype=x.dtype),
            img_ids=positions(height // 2, width // 2, x),
            return_dict=False,
        )[0]
        return unpack(tokens, height, width)


def pack(x: Tensor) -> Tensor:
    """An image ``(batch, C, h, w)`` as tokens ``(batch, h w / 4, 4C)`` of 2x2 patches, channels slowest."""
    patches = x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2))  # batch, C, h/2, 2, w/2, 2
    return patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """The inverse of `pack`."""
    patches = tokens.unflatten(2, (-1, 2, 2)).unflatten(1, (height // 2, width // 2))
    return patches.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)


def positions(height: int, width: int, like: Tensor) -> Tensor:
    """``(height width, 3)``: zero, row and column of each token, as rotary embeddings take them."""
    rows = torch.arange(height, device=like.device).repeat_interleave(width)
    columns = torch.arange(width, device=like.device).repeat(height)
    return torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).to(like.dtype)
