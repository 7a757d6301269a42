"""Optimisers by name, with weight decay on matrices only (biases and gains are not shrunk)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from retrodict.core.errors import InputError, InputTypeError
from retrodict.core.registry import Registry

OPTIMIZERS: Registry[Callable[..., torch.optim.Optimizer]] = Registry("optimizer")


@OPTIMIZERS.register("adamw")
def _adamw(groups: list[dict], *, lr: float, betas: tuple[float, float], fused: bool) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=fused)


@OPTIMIZERS.register("sgd")
def _sgd(groups: list[dict], *, lr: float, betas: tuple[float, float], fused: bool) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=lr, momentum=betas[0], fused=fused)


def make_optimizer(
    what: str | Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer],
    module: nn.Module,
    *,
    lr: float,
    betas: tuple[float, float],
    weight_decay: float,
) -> torch.optim.Optimizer:
    """The optimiser of the trainable parameters of ``module``.

    Args:
        what: "adamw", "sgd" (momentum ``betas[0]``), or a callable that takes the list of parameters and
            returns a `torch.optim.Optimizer`; a callable chooses its own rate, betas and decay.
    """
    params = [p for p in module.parameters() if p.requires_grad]
    if not params:
        raise InputError("the module has no trainable parameter; nothing can be trained")
    if isinstance(what, str):
        groups: list[dict[str, Any]] = [{"params": params, "weight_decay": weight_decay}]
        if weight_decay:  # one group is one fused call, so two are made only where they differ
            groups = [
                {"params": [p for p in params if p.ndim > 1], "weight_decay": weight_decay},
                {"params": [p for p in params if p.ndim <= 1], "weight_decay": 0.0},
            ]
        groups = [group for group in groups if group["params"]]
        fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in params)
        return OPTIMIZERS[what](groups, lr=lr, betas=betas, fused=fused)
    optimizer = what(params)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise InputTypeError(
            f"optimizer={what!r} returned a {type(optimizer).__name__}; it must map a list of parameters "
            "to a torch.optim.Optimizer, as lambda params: torch.optim.SGD(params, lr=0.1)"
        )
    return optimizer
