"""Networks that read a number or a class off a noisy state: soft values of a reward, time-dependent classifiers.

Both are regressions on pairs ``(x_t, x0)``, x0 from data and x_t from the process:

===================  ==========================================  ==================================================
what                 minimised over (t, x0, x_t)                 at the optimum
===================  ==========================================  ==================================================
value, exponential   ``exp(v(x_t,t)) - exp(l(x0)) v(x_t,t)``     ``v = log E[exp l(x0) | x_t]``, the soft value
value, squared       ``(v(x_t,t) - l(x0))^2``                    ``v = E[l(x0) | x_t]``, from below (Li et al. 2024)
classifier           ``-log softmax(f(x_t,t))_c``                ``p(c | x_t)`` (Dhariwal and Nichol 2021)
===================  ==========================================  ==================================================
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from retrodict.core.errors import InputError, require
from retrodict.core.noise import GeneratorNoise
from retrodict.denoisers import Denoiser
from retrodict.denoisers.networks import MLP
from retrodict.processes import Discrete
from retrodict.steering.reward import Reward
from retrodict.training import train


class Readout(nn.Module):
    """``(x_t, t) -> (batch, outputs)`` for states of any kind, in the model's units: a residual network of the
    flattened state, one-hot where values are discrete.

    Args:
        shape: of a state; outputs: numbers that are read off.
        classes: values of a discrete state, a mask included; None for real states.
        hidden, depth: of the network.
    """

    def __init__(
        self, shape: tuple[int, ...], outputs: int, classes: int | None = None, hidden: int = 128, depth: int = 2
    ) -> None:
        super().__init__()
        self.classes = classes
        size = math.prod(shape) * (classes or 1)
        self.body = MLP((size,), out_channels=outputs, hidden=hidden, depth=depth)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Raw numbers ``(batch, outputs)``; ``t (batch,)`` in [0, 1]."""
        if self.classes is not None:
            x = F.one_hot(x, self.classes)
        return self.body(x.flatten(1).to(self.body.dtype), t.to(self.body.dtype))


class Value(nn.Module):
    """One output of a readout, moved by the constant that it was trained around: log h itself."""

    offset: Tensor

    def __init__(self, readout: Readout, offset: float = 0.0) -> None:
        super().__init__()
        self.readout = readout
        self.register_buffer("offset", torch.tensor(offset, dtype=torch.float64))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """``(batch,)``."""
        return self.readout(x, t)[:, 0] + self.offset.to(x.device)


def fit_value(
    denoiser: Denoiser,
    reward: Reward,
    data: Any,
    *,
    loss: str = "exponential",
    network: nn.Module | None = None,
    steps: int = 2000,
    **training: Any,
) -> Reward:
    """The reward with a network for its soft value, fitted to states of the denoiser's process.

    Args:
        data: clean states ``(n, *shape)`` in the user's units, from the law that the denoiser stands for: its data, or
            samples of it.
        loss: "exponential" or "squared" (module docstring).
        network: ``(x_t, t) -> (batch, 1)``; None makes a `Readout`.
        steps, training: as in `retrodict.training.train`.
    """
    require(loss in ("exponential", "squared"), f"loss is 'exponential' or 'squared', got {loss!r}")
    x0 = _states(denoiser, data)
    with torch.no_grad():
        l = reward.likelihood(x0)
    require(bool(torch.isfinite(l).all()), "a value is fitted to finite rewards; this one forbids some of the data")
    offset = float(torch.logsumexp(l, 0)) - math.log(len(l)) if loss == "exponential" else float(l.mean())
    target = (l - offset).exp() if loss == "exponential" else l - offset

    def objective(module: nn.Module, batch: dict[str, Tensor], generator: torch.Generator) -> Tensor:
        x, t = _noisy(denoiser, batch["x0"], generator)
        v, y = module(x, t)[:, 0], batch["target"].to(torch.float32)
        return (v.exp() - y * v).mean() if loss == "exponential" else (v - y).square().mean()

    readout = _fitted(denoiser, network, 1, objective, {"x0": x0, "target": target}, steps, training)
    out = copy.copy(reward)
    out.value = Value(readout, offset)
    return out


def fit_classifier(
    denoiser: Denoiser,
    data: Any,
    labels: Any,
    *,
    network: nn.Module | None = None,
    steps: int = 2000,
    **training: Any,
) -> nn.Module:
    """A time-dependent classifier ``(x_t, t) -> logits (batch, classes)`` of states in the model's units.

    Args:
        data: clean states ``(n, *shape)`` in the user's units; labels: ``(n,)`` integers from 0.
        network, steps, training: as in `fit_value`.
    """
    x0, y = _states(denoiser, data), torch.as_tensor(labels)
    good = y.shape == (len(x0),) and not y.is_floating_point() and bool((y >= 0).all())
    require(
        good, f"labels of {len(x0)} states are integers from 0 of shape ({len(x0)},), got {tuple(y.shape)} {y.dtype}"
    )

    def objective(module: nn.Module, batch: dict[str, Tensor], generator: torch.Generator) -> Tensor:
        return F.cross_entropy(module(*_noisy(denoiser, batch["x0"], generator)), batch["label"])

    return _fitted(denoiser, network, int(y.max()) + 1, objective, {"x0": x0, "label": y.long()}, steps, training)


# -- helpers --------------------------------------------------------------------------------------------------


def _states(denoiser: Denoiser, data: Any) -> Tensor:
    x0 = torch.as_tensor(data.x if hasattr(data, "x") else data)
    shape = denoiser.shape
    if x0.ndim < 2 or (shape is not None and tuple(x0.shape[1:]) != tuple(shape)):
        raise InputError(f"clean states of this denoiser are (n, *{shape}), got {tuple(x0.shape)}")
    return x0


def _noisy(denoiser: Denoiser, x0: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """``(x_t, t)``, t uniform, in the model's units."""
    t = torch.rand(len(x0), generator=generator, device=x0.device, dtype=torch.float64)
    x0 = x0 if denoiser.scale is None or isinstance(denoiser.process, Discrete) else denoiser.scale(x0)
    noise = GeneratorNoise(generator, len(x0), dtype=x0.dtype if x0.is_floating_point() else torch.float32)
    return denoiser.process.corrupt(x0, t, noise), t


def _fitted(
    denoiser: Denoiser,
    network: nn.Module | None,
    outputs: int,
    objective: Any,
    data: dict[str, Tensor],
    steps: int,
    training: dict[str, Any],
) -> Any:
    process = denoiser.process
    if network is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(training.get("seed", 0))
            classes = process.classes if isinstance(process, Discrete) else None
            network = Readout(tuple(data["x0"].shape[1:]), outputs, classes)
    words: dict[str, Any] = {"progress": False} | training
    return train(network, objective, data, steps=steps, **words).module.eval().requires_grad_(False)
