"""Weights of a module in a safetensors file, and nothing else: no pickle is read or written.

`save_weights` and `load_weights` are the pair.  Loading checks names and shapes before it touches the module,
so a module is either fully loaded or unchanged.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from retrodict.core.errors import InputError
from retrodict.training.files import FORMAT, sync_file, sync_folder, version

_PICKLE_SUFFIXES = {".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt"}
_SHOWN = 5


def save_weights(module: nn.Module | Mapping[str, Tensor], path: str | Path) -> Path:
    """Write the parameters and buffers of ``module`` to ``path``, atomically.

    Args:
        module: a module, or a mapping of names to tensors.
        path: a file name ending in ``.safetensors``.

    Raises:
        InputError: another file ending.
        OSError: the disk is full or not writable; an older file of that name stays as it was.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise InputError(f"weights file {path.name!r}; accepted: a name ending in .safetensors")
    tensors = module.state_dict() if isinstance(module, nn.Module) else module
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write_tensors(temporary, tensors)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)
    return path


def load_weights(module: nn.Module, path: str | Path) -> nn.Module:
    """Read ``path`` into ``module`` in place and return it; devices and dtypes stay those of the module.

    Raises:
        InputError: the file is missing, is a pickle, is no safetensors file, or its tensors do not match the
            module's (the message lists the first that differ).
    """
    tensors = read_weights(path)
    fit_tensors(module, tensors, what=f"weights file {path}")
    return module


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"weights file {path} does not exist; give the path of a .safetensors file")
    _refuse_pickle(path)
    return read_tensors(path)


def fit_tensors(module: nn.Module, tensors: Mapping[str, Tensor], what: str) -> None:
    """Copy ``tensors`` into ``module`` once names and shapes are known to match; ``what`` opens the error."""
    state = module.state_dict()
    missing = [name for name in state if name not in tensors]
    unexpected = [name for name in tensors if name not in state]
    shapes = [
        f"{name} {tuple(tensors[name].shape)} in the file, {tuple(value.shape)} in the module"
        for name, value in state.items()
        if name in tensors and tensors[name].shape != value.shape
    ]
    found = [("missing", missing), ("unexpected", unexpected), ("of another shape", shapes)]
    lines = [f"{len(names)} {kind}: {_first(names)}" for kind, names in found if names]
    if lines:
        raise InputError(
            f"{what} does not match the module ({type(module).__name__}): {'; '.join(lines)}; build the "
            "module with the configuration that the file was saved with"
        )
    module.load_state_dict(dict(tensors))


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors to ``path`` and force them to the disk; every failure of the disk is an `OSError`."""
    seen: set[int] = set()
    plain = {}
    for name, value in tensors.items():
        value = value.detach().to("cpu").contiguous()
        place = value.untyped_storage().data_ptr()
        plain[name] = value.clone() if place in seen else value  # tied tensors: the format has no aliases
        seen.add(place)
    metadata = {"format": "pt", "retrodict.format": str(FORMAT), "retrodict.version": version()}
    try:
        save_file(plain, path, metadata=metadata)
    except SafetensorError as error:
        raise OSError(f"{path} could not be written: {error}") from error
    sync_file(path)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{path} is not a readable safetensors file ({error}); it is damaged or of another kind"
        ) from error
    written = metadata.get("retrodict.format", "1")
    if not written.isdigit() or int(written) > FORMAT:
        raise InputError(
            f"{path} has format {written}; this version reads up to {FORMAT}; it was written by retrodict "
            f"{metadata.get('retrodict.version', 'unknown')}, which reads it"
        )
    return tensors


def _refuse_pickle(path: Path) -> None:
    """Refuse a pickle, which can run code when it is read, by its name or by its first bytes."""
    with open(path, "rb") as file:
        head = file.read(4)
    zipped = head == b"PK\x03\x04"
    pickled = len(head) > 1 and head[0] == 0x80 and head[1] <= 5
    if zipped or pickled or path.suffix.lower() in _PICKLE_SUFFIXES:
        target = path.with_suffix(".safetensors").name
        raise InputError(
            f"{path} is a pickle or a zip of pickles, which can run code when it is read; accepted: "
            ".safetensors; "
            'if you trust the file, convert it once with: python -c "import torch, safetensors.torch as s; '
            f"s.save_file(torch.load('{path.name}', weights_only=True), '{target}')\""
        )


def _first(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
