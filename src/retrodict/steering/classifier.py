"""A classifier as a potential: ``log h_t(x) = scale log p(c | x_t = x)``.

With a classifier of noisy states (Dhariwal and Nichol 2021) and scale 1 this is Bayes' rule, and exact if the
classifier is.  A classifier of clean states is asked about the posterior mean, or about draws: a `Reward`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from retrodict.core.errors import InputError, require
from retrodict.processes import GaussianPath, Process
from retrodict.steering.potential import Node, Potential, Tilt
from retrodict.steering.reward import Reward

if TYPE_CHECKING:
    from retrodict.denoisers import Denoiser


class Classifier(Potential):
    """A class to reach.

    Args:
        network: ``(x_t, t (batch,)) -> logits (batch, classes)`` of states in the model's units, as
            `retrodict.steering.fit_classifier` makes; with ``clean=True`` ``x0 -> logits`` of states in the user's.
        label: the class, from 0.
        scale: power of ``p(c | x)``; 1 is the conditional law, more is more typical of the class.
        clean: whether the classifier knows clean states only.
        gradient: whether it moves the samples; None for yes on real states, no on others.
        value, draws: of a clean classifier, as in `Reward`.
    """

    def __init__(
        self,
        network: Callable[..., Tensor],
        label: int,
        scale: float = 1.0,
        *,
        clean: bool = False,
        gradient: bool | None = None,
        value: str = "auto",
        draws: int = 8,
    ) -> None:
        require(callable(network), f"a classifier is a network that returns logits, got {type(network).__name__}")
        whole = isinstance(label, int) and not isinstance(label, bool) and label >= 0
        require(whole, f"label is a class, an integer from 0, got {label!r}")
        require(scale >= 0, f"scale is at least 0, got {scale}")
        self.network, self.label, self.scale, self.clean = network, label, float(scale), clean
        self.gradient, self.units = gradient, None
        self.reward = Reward(lambda x0: self._log_p(self.network(x0)), self.scale, bool(gradient), value, draws)
        self.graph = self.drift = bool(gradient)

    def check(self, shape: tuple[int, ...] | None, process: Process) -> None:
        self.reward.check(shape, process)

    def bind(self, denoiser: Denoiser) -> Potential:
        real = isinstance(denoiser.process, GaussianPath)
        if self.gradient is None and real:
            return Classifier(
                self.network, self.label, self.scale, clean=self.clean, gradient=True,
                value=self.reward.value, draws=self.reward.draws,
            ).bind(denoiser)  # fmt: skip
        if self.clean:
            return self.reward.bind(denoiser)
        out = copy.copy(self)
        out.units = denoiser.scale if real else None
        return out

    def likelihood(self, x0: Tensor) -> Tensor:
        """``scale log p(c | x0)``, by the classifier at t = 0."""
        if self.clean:
            return self.reward.likelihood(x0)
        x = x0 if self.units is None else self.units(x0)
        return self.scale * self._log_p(self.network(x, torch.zeros(len(x), dtype=torch.float64, device=x.device)))

    def at(self, node: Node) -> Tilt:
        if self.clean:
            return self.reward.at(node)
        t = torch.as_tensor(node.t, dtype=torch.float64, device=node.x.device)
        log_h = self.scale * self._log_p(self.network(node.x, t.expand(node.batch) if t.ndim == 0 else t))
        return Tilt(log_h, node.drift_of(log_h) if self.drift else None)

    def _log_p(self, logits: Any) -> Tensor:
        if logits.ndim != 2 or logits.shape[1] <= self.label:
            raise InputError(
                f"a classifier returns logits (batch, classes) with class {self.label} among them, "
                f"got {tuple(logits.shape)}"
            )
        return torch.log_softmax(logits.double(), -1)[:, self.label]
