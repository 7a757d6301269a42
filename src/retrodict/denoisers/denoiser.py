"""The denoiser: what is believed of the clean end, given a noisy state.

``denoiser(x, t, **condition)`` returns the posterior mean of x0 (for tokens: probabilities on a trailing axis);
``denoiser.belief(...)`` returns the whole `Belief` from the same single evaluation.  Every guided, conditioned,
combined or exact denoiser is a `Denoiser`, so that every plan runs on it unchanged.

A denoiser that bends the target law also owns the weights that keep the answer right: `increment` between two
nodes of a plan and `final` at its end are log-weights, and population runs ask for nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from retrodict.core.errors import InputError, near
from retrodict.core.noise import Noise
from retrodict.kernels import Belief
from retrodict.processes import Process


@dataclass(frozen=True)
class Step:
    """What happened between two evaluations of a denoiser on one path.

    Attributes:
        prev, now: beliefs at the two nodes; ``now`` is None after the last row.
        t, s: their times; snr_t, snr_s: alpha^2/sigma^2 there (infinite at the clean end).
        log_ratio: ``(batch,)``, log of base kernel over proposal kernel for the move.
        stochastic: whether the move had fresh noise.
        x: the state at s; x_prev: the state at t.
        log_move: log-probability of the move under any belief ``(batch,)``, where a data-dependent row has one.
    """

    prev: Belief
    now: Belief | None
    t: float
    s: float
    snr_t: float
    snr_s: float
    log_ratio: Tensor
    stochastic: bool
    x: Tensor
    x_prev: Tensor | None = None
    log_move: Callable[[Belief], Tensor] | None = None


class Denoiser(nn.Module):
    """Base of every denoiser.

    Attributes:
        process: the process that it reverses.
        shape: event shape of a sample, without the batch axis; None if any will do.
        conditions: names of the conditions that a call accepts, each with its null value (None: it has none).
        temperature: factor on the variance of the prior and of all fresh noise (see `Product`).
        weighted: whether `increment` and `final` carry weights.
        heuristic: whether its samples follow no law that it names, so that ``correction`` says "none".
        timeless: whether equal states have equal beliefs whatever the time, so that a run may keep them.
        recipe: the plain values that rebuild it, where `fit` or `load` made it.
        codec: what its tokens stand for (`retrodict.data.Codec`), where it was trained on text, categories or graphs.
        scale: a module whose ``inverse`` maps the model's units to the user's; None if they are the same.
    """

    process: Process
    shape: tuple[int, ...] | None = None
    conditions: dict[str, Any]
    temperature: float = 1.0
    weighted: bool = False
    heuristic: bool = False
    timeless: Any = False
    scale: Any  # no class-level value: it would hide the submodule
    recipe: Any = None
    codec: Any = None

    def __init__(
        self, process: Process, shape: tuple[int, ...] | None = None, conditions: dict[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.process, self.shape, self.conditions = process, shape, dict(conditions or {})
        self.scale = None

    def forward(self, x: Tensor, t: float | Tensor, **condition: Any) -> Tensor:
        """Posterior mean of x0 given ``x (batch, *shape)`` at time t, a number or ``(batch,)``."""
        return self.belief(x, t, **condition).mean

    def belief(self, x: Tensor, t: float | Tensor, **condition: Any) -> Belief:
        """The belief about the clean end; one evaluation."""
        return Belief(self(x, t, **condition))

    def prior(self, shape: tuple[int, ...], noise: Noise, x1: Tensor | None = None) -> Tensor:
        """The state at t = 1."""
        x = self.process.prior(shape, noise, x1)
        return x if self.temperature == 1 else x * self.temperature**0.5

    def start_weight(self, belief: Belief) -> Tensor:
        """Log weight of a fresh start, given the belief at the first node ``(batch,)``."""
        return torch.zeros(belief.mean.shape[0], dtype=torch.float64, device=belief.mean.device)

    def increment(self, step: Step) -> Tensor:
        """Log weight of the move between two nodes, ``(batch,)``."""
        return torch.zeros(step.x.shape[0], dtype=torch.float64, device=step.x.device)

    def final(self, step: Step) -> Tensor:
        """Log weight of the last move, after which nothing is evaluated, ``(batch,)``."""
        return torch.zeros(step.x.shape[0], dtype=torch.float64, device=step.x.device)

    def decode(self, tokens: Tensor) -> Any:
        """What samples ``(n, length)`` stand for: texts, rows of categories, or graphs."""
        if self.codec is None:
            raise InputError("this denoiser knows no meaning of its tokens; those trained on text or categories do")
        return self.codec.decode(tokens)

    def check_condition(self, condition: dict[str, Any]) -> None:
        """Raise unless every name in ``condition`` is declared."""
        for name in condition:
            if name not in self.conditions:
                known = ", ".join(self.conditions) or "none"
                raise InputError(
                    f"unknown condition or option {name!r}; conditions of this denoiser: {known}."
                    f"{near(name, self.conditions)}"
                )

    @property
    def device(self) -> torch.device:
        tensor = next(self.parameters(), None)
        tensor = tensor if tensor is not None else next(self.buffers(), None)
        return tensor.device if tensor is not None else torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        tensor = next(self.parameters(), None)
        tensor = tensor if tensor is not None else next((b for b in self.buffers() if b.is_floating_point()), None)
        return tensor.dtype if tensor is not None else torch.get_default_dtype()

    @staticmethod
    def wrap(network: nn.Module, process: Process, predicts: str = "noise", **options: Any) -> Denoiser:
        """A denoiser from a network that predicts noise, data, velocity, flow, score or edm; see `Wrapped`."""
        from retrodict.denoisers.wrapped import Wrapped

        return Wrapped(network, process, predicts, **options)


def batch_time(t: float | Tensor, x: Tensor) -> Tensor:
    """Time as float64 ``(batch,)`` on the device of x."""
    t = torch.as_tensor(t, dtype=torch.float64, device=x.device)
    return t.expand(x.shape[0]) if t.ndim == 0 else t
