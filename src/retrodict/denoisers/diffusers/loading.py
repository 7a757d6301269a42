"""`from_diffusers`: a pipeline or a model of diffusers, from memory, a folder or the Hub, as a `Denoiser`.

Only the network and the scheduler's configuration are read.  Weights are safetensors; a pickle is refused, and so is
code that a file names: classes come from the lists of accepted names, and nothing else is imported.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from retrodict.core.errors import InputError, InputTypeError, near, optional_import
from retrodict.denoisers.denoiser import Denoiser
from retrodict.denoisers.diffusers.convention import Convention, read, remember
from retrodict.denoisers.diffusers.models import Adapter, adapt, architectures
from retrodict.denoisers.diffusers.prompts import empty_prompt

_HUB = (
    "cache_dir",
    "force_download",
    "local_files_only",
    "proxies",
    "revision",
    "token",
    "subfolder",
    "variant",
)
_ADAPTER = ("guidance_scale",)
_PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl", ".pickle")
_COMPONENTS = ("unet", "transformer")


class FromDiffusers(Denoiser):
    """A diffusers network on the path that it was trained on.

    Attributes:
        convention: the reading of its scheduler.
        grid, end: the scheduler's spacing and end, as `retrodict.plan` takes them.
    """

    def __init__(self, network: Adapter, convention: Convention, clip: bool | None = None) -> None:
        super().__init__(convention.process, network.shape, network.conditions)
        wrapped = Denoiser.wrap(
            network,
            convention.process,
            convention.predicts,
            data_std=convention.data_std,
            shape=network.shape,
            conditions=network.conditions,
            time=convention.clock,
        )
        self.denoiser, self.convention = convention.thresholded(wrapped, clip), convention
        self.grid, self.end = convention.grid, convention.end
        remember(convention)

    def forward(self, x: Tensor, t: float | Tensor, **condition: Any) -> Tensor:
        return self.denoiser(x, t, **condition)

    def times(self, steps: int | None = None, **custom: Any) -> tuple[float, ...]:
        """The decreasing times that the model's own scheduler visits in ``steps`` steps, for ``plan(grid=...)``.

        Args:
            custom: what else its ``set_timesteps`` takes, such as ``mu`` or ``sigmas`` of a flow model.
        """
        return self.convention.times(steps, **custom)

    @property
    def dtype(self) -> torch.dtype:
        """Of states: float32 for a network in half precision, else the network's own."""
        return torch.promote_types(super().dtype, torch.float32)


def from_diffusers(
    source: Any,
    *,
    scheduler: Any = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    clip: bool | None = None,
    nulls: dict[str, Any] | None = None,
    shape: tuple[int, ...] | None = None,
    **options: Any,
) -> FromDiffusers:
    """A denoiser from diffusers.

    Args:
        source: a pipeline or a model in memory; or the folder or Hub id of one, of which only the network and the
            scheduler's configuration are loaded.
        scheduler: for a single model: the scheduler it was trained with, as an object, a configuration or the folder
            of one; for a pipeline it replaces the pipeline's own.
        device, dtype: where the network goes, and its precision; states stay in float32 at least.
        clip: whether the mean is clipped; None does as the scheduler is configured (``clip_sample``,
            ``thresholding``).
        nulls: null values of conditions, which guidance needs, by condition name; those of prompts are the empty
            prompt's if ``source`` is a pipeline in memory with its text encoders.
        shape: event shape of a state where the model's configuration does not say it (Flux: latent channels,
            height and width).
        options: ``guidance_scale`` of guidance-distilled Flux models; of the Hub: ``revision``, ``variant``,
            ``subfolder``, ``token``, ``cache_dir``, ``local_files_only``, ``force_download``, ``proxies``.

    Returns:
        `FromDiffusers`, in evaluation mode.

    Raises:
        InputError: unknown architectures, schedulers or options; pickles; weights that do not fit their
            configuration; MissingExtraError without diffusers.

    Source of the parameterisations: Ho et al. (2020), eq. (15); Salimans and Ho (2022), eq. (11); Karras et al.
    (2022), table 1; Liu et al. (2023), eq. (1).
    """
    for name in options:
        if name not in _HUB + _ADAPTER:
            known = ", ".join(_HUB + _ADAPTER)
            raise InputError(f"unknown option {name!r}; known: {known}.{near(name, _HUB + _ADAPTER)}")
    hub = {k: v for k, v in options.items() if k in _HUB}
    own = {k: v for k, v in options.items() if k in _ADAPTER}
    optional_import("diffusers", "diffusers")
    if isinstance(source, (str, Path)):
        model, config = _load(str(source), scheduler, dtype, hub)
    elif hub:
        raise InputError(f"{', '.join(hub)} go with a folder or Hub id, got {type(source).__name__}")
    else:
        model, config, empty = _in_memory(source, scheduler)
        nulls = empty | (nulls or {})
    model = model.to(device=device, dtype=dtype) if device is not None or dtype is not None else model
    convention = read(_configuration(config, hub) if isinstance(config, (str, Path)) else config)
    return FromDiffusers(adapt(model.eval(), nulls, shape, **own), convention, clip)


def _in_memory(source: Any, scheduler: Any) -> tuple[nn.Module, Any, dict[str, Any]]:
    """``(network, scheduler, null prompt)`` of a pipeline or a model object."""
    network = next((getattr(source, c) for c in _COMPONENTS if getattr(source, c, None) is not None), None)
    if network is not None and hasattr(source, "scheduler"):
        return network, scheduler if scheduler is not None else source.scheduler, empty_prompt(source)
    if not isinstance(source, nn.Module):
        raise InputTypeError(f"a pipeline, a model, a folder or a Hub id is needed, got {type(source).__name__}")
    if scheduler is None:
        raise InputError(f"{type(source).__name__} alone does not say how it was trained: pass scheduler=")
    return source, scheduler, {}


def _load(source: str, scheduler: Any, dtype: torch.dtype | None, hub: dict[str, Any]) -> tuple[nn.Module, Any]:
    """``(network, scheduler or its configuration)`` from a folder or Hub id."""
    _refuse_files(source)
    index = _json(source, "model_index.json", hub) if "subfolder" not in hub else None
    if index is not None:
        component = next((c for c in _COMPONENTS if index.get(c, [None])[0] is not None), None)
        if component is None:
            raise InputError(f"{source} is a {index.get('_class_name')} without {' or '.join(_COMPONENTS)}")
        library, name = index[component]
        if library != "diffusers":
            raise InputError(
                f"the {component} of {source} is code of its own ({library}.{name}); only diffusers' classes are loaded"
            )
        network = _weights(source, name, dtype, hub | {"subfolder": component})
        return network, scheduler if scheduler is not None else _configuration(source, hub)
    config = _json(source, "config.json", hub)
    if config is None:
        raise InputError(
            f"{source} is neither a pipeline nor a model of diffusers: no model_index.json or config.json was found"
        )
    network = _weights(source, config.get("_class_name", ""), dtype, hub)
    return network, scheduler if scheduler is not None else _beside(source, hub)


def _refuse_files(source: str) -> None:
    path = Path(source)
    if path.suffix.lower() in _PICKLES:
        raise InputError(f"{source} is a pickle, which can run code when it is read, and is refused; {_RESAVE}")
    if path.is_file():
        raise InputError(f"{source} is a single file; give the folder that diffusers' save_pretrained writes")


_RESAVE = "save the model as safetensors (save_pretrained(folder, safe_serialization=True)) where you trust it"


def _weights(source: str, name: str, dtype: torch.dtype | None, hub: dict[str, Any]) -> nn.Module:
    """The network of class ``name``, with every weight accounted for."""
    import diffusers

    architectures[name]  # raises on a name that is not accepted
    try:
        network, report = getattr(diffusers, name).from_pretrained(
            source, use_safetensors=True, output_loading_info=True, torch_dtype=dtype, **hub
        )
    except (OSError, ValueError, RuntimeError) as error:
        folder = Path(source) / hub.get("subfolder", "")
        if any(p.suffix in _PICKLES for p in folder.glob("*")) and not any(folder.glob("*.safetensors*")):
            raise InputError(f"{folder} holds pickles only, which can run code and are refused; {_RESAVE}") from error
        raise InputError(f"the weights of {name} in {source} cannot be loaded: {error}") from error
    wrong = {kind: keys for kind, keys in report.items() if keys}
    if wrong:
        told = "; ".join(f"{kind}: {', '.join(map(str, list(keys)[:3]))}" for kind, keys in wrong.items())
        raise InputError(f"the weights of {name} in {source} do not match its config.json ({told})")
    return network


def _beside(source: str, hub: dict[str, Any]) -> Any:
    """The scheduler configuration that goes with a single model: in its folder, or in the pipeline around it."""
    places = [(source, hub), (source, hub | {"subfolder": "scheduler"})]
    if Path(source).is_dir():
        places.append((str(Path(source).parent), {"subfolder": "scheduler"}))
    for place, words in places:
        config = _scheduler_config(place, words)
        if config is not None:
            return config
    raise InputError(
        f"no scheduler_config.json was found in or beside {source}: pass scheduler=, the one the model was trained with"
    )


def _configuration(source: str | Path, hub: dict[str, Any]) -> dict[str, Any]:
    """The scheduler configuration of a pipeline, or of the scheduler's own folder."""
    config = _scheduler_config(str(source), hub | {"subfolder": "scheduler"})
    if config is None:
        raise InputError(f"{source} has no scheduler_config.json; pass scheduler=")
    return config


def _scheduler_config(source: str, hub: dict[str, Any]) -> dict[str, Any] | None:
    return _json(source, "scheduler_config.json", hub)


def _json(source: str, name: str, hub: dict[str, Any]) -> dict[str, Any] | None:
    """A configuration file of a folder or Hub repository, read by diffusers' own reader; None where there is none."""
    diffusers: Any = optional_import("diffusers", "diffusers")
    reader: Any = type("_Reader", (diffusers.ConfigMixin,), {"config_name": name})
    try:
        return dict(reader.load_config(source, **{k: v for k, v in hub.items() if k != "variant"}))
    except (OSError, ValueError) as error:
        if (Path(source) / hub.get("subfolder", "") / name).is_file():
            raise InputError(f"{name} in {source} cannot be read: {error}") from error
        return None
