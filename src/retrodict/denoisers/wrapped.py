"""A network as a denoiser: every parameterisation is two coefficients.

With ``F = network(c_in x, network_time(t), **condition)`` the posterior mean is ``D = c_skip x + c_out F``:

==========  ==================================  ============================================================
predicts    F estimates                         c_skip, c_out
==========  ==================================  ============================================================
data        x0                                  0, 1
noise       z                                   1/alpha, -sigma/alpha
velocity    alpha z - sigma x0                  alpha/(alpha^2+sigma^2), -sigma/(alpha^2+sigma^2)
flow        z - x0                              1/(alpha+sigma), -sigma/(alpha+sigma)
score       grad log p_t                        1/alpha, sigma^2/alpha
edm         (x0 - c_skip x)/c_out               alpha d^2/v, sigma d/sqrt(v), v = alpha^2 d^2 + sigma^2
==========  ==================================  ============================================================

"edm" is the preconditioning of Karras et al. (2022, table 1), for any path: c_in = 1/sqrt(v), d the data's
standard deviation.  The inverse map of the same coefficients is the regression target of training.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from retrodict.core.errors import InputError, near
from retrodict.denoisers.denoiser import Denoiser, batch_time
from retrodict.kernels import Belief
from retrodict.processes import GaussianPath, Process, conversions

PREDICTS = ("data", "noise", "velocity", "flow", "score", "edm")


def coefficients(
    predicts: str, alpha: Tensor, sigma: Tensor, data_std: float = 1.0
) -> tuple[Tensor | float, Tensor | float, Tensor | float]:
    """``(c_in, c_skip, c_out)`` of a parameterisation at given alpha and sigma."""
    if predicts == "data":
        return 1.0, 0.0, 1.0
    if predicts == "noise":
        return 1.0, 1 / alpha, -sigma / alpha
    if predicts == "velocity":
        square = alpha**2 + sigma**2
        return 1.0, alpha / square, -sigma / square
    if predicts == "flow":
        return 1.0, 1 / (alpha + sigma), -sigma / (alpha + sigma)
    if predicts == "score":
        return 1.0, 1 / alpha, sigma**2 / alpha
    if predicts == "edm":
        v = alpha**2 * data_std**2 + sigma**2
        return v**-0.5, alpha * data_std**2 / v, sigma * data_std * v**-0.5
    raise InputError(f"unknown prediction type {predicts!r}; known: {', '.join(PREDICTS)}.{near(predicts, PREDICTS)}")


class Wrapped(Denoiser):
    """A network on a Gaussian path with one (known or only) clean end.

    Args:
        network: called as ``network(x, time, **condition)``, time ``(batch,)``; returns the shape of x.
        process: a scalar `GaussianPath`.
        predicts: what the network estimates (table above).
        data_std: standard deviation of the data, for "edm".
        shape: event shape of a sample.
        conditions: condition names and their null values.
        time: "process" tells the network ``process.network_time(t)``; a callable maps ``t (batch,)`` to its clock.

    On a path with two ends the network's channels are doubled and estimate both ends ("data" only).
    """

    def __init__(
        self,
        network: nn.Module,
        process: Process,
        predicts: str = "noise",
        *,
        data_std: float = 1.0,
        shape: tuple[int, ...] | None = None,
        conditions: dict[str, Any] | None = None,
        time: Any = "process",
    ) -> None:
        super().__init__(process, shape, conditions)
        if not isinstance(process, GaussianPath) or not process.scalar:
            raise InputError(f"a network is wrapped on a scalar Gaussian path, got {type(process).__name__}")
        coefficients(predicts, torch.ones(()), torch.ones(()))  # raises on an unknown name
        self.network, self.predicts, self.data_std = network, predicts, float(data_std)
        self._clock = process.network_time if time == "process" else time

    def coefficients(self, t: Tensor, like: Tensor) -> tuple[Tensor | float, Tensor | float, Tensor | float]:
        """``(c_in, c_skip, c_out)`` at ``t (batch,)``, shaped and typed to multiply ``like``."""
        path: GaussianPath = self.process  # type: ignore[assignment]
        fit = lambda c: c.to(like.dtype).reshape(-1, *(1,) * (like.ndim - 1)) if isinstance(c, Tensor) else c  # noqa: E731
        c_in, c_skip, c_out = coefficients(self.predicts, path.alpha(t), path.sigma(t), self.data_std)
        return fit(c_in), fit(c_skip), fit(c_out)

    def output(self, x: Tensor, t: Tensor, **condition: Any) -> Tensor:
        """The network's raw output F."""
        seen = x * self.coefficients(t, x)[0] if self.predicts == "edm" else x  # c_in is 1 for the others
        return self.network(seen, self._clock(t).to(x.dtype), **self._filled(x, condition))

    def forward(self, x: Tensor, t: float | Tensor, **condition: Any) -> Tensor:
        t = batch_time(t, x)
        _, c_skip, c_out = self.coefficients(t, x)
        F = self.output(x, t, **condition)
        if F.shape != x.shape:
            raise InputError(f"the network returned shape {tuple(F.shape)} for a state of shape {tuple(x.shape)}")
        if self.predicts == "data":
            return F
        return c_skip * x + c_out * F

    def _filled(self, x: Tensor, condition: dict[str, Any]) -> dict[str, Any]:
        """Missing conditions become their null value; numbers and single rows are repeated over the batch."""
        self.check_condition(condition)
        full = dict(condition)
        for name, null in self.conditions.items():
            if full.get(name) is not None:
                full[name] = over_batch(full[name], x.shape[0], x.device)
            elif null is not None:
                full[name] = repeat_null(null, x.shape[0], x.device)
        return full


def repeat_null(null: Any, batch: int, device: torch.device) -> Tensor:
    """A null value, a number or one row ``(*shape,)``, once for each batch element."""
    null = torch.as_tensor(null, device=device)
    return null.expand(batch, *null.shape)


def over_batch(value: Any, batch: int, device: torch.device) -> Tensor:
    """A condition ``(batch, ...)`` from a number, one row, or a whole batch."""
    if isinstance(value, (int, float)):
        return torch.full((batch,), value, device=device)
    value = torch.as_tensor(value, device=device)
    if value.ndim and value.shape[0] == batch:
        return value
    return (
        value.expand(batch, *value.shape)
        if value.ndim == 0 or value.shape[0] != 1
        else value.expand(batch, *value.shape[1:])
    )


class TwoEnded(Wrapped):
    """A network that estimates both ends of a path between two data sets, on doubled channels (axis 1, or the last).

    Args:
        heads: what the two halves of the channels are: "ends", the means of (x0, x1), or "velocity-noise", the
            mean velocity of the noiseless interpolant and the mean noise, from which the ends follow.

    With x1 given as the condition ``x1=`` it is data, and only x0 is taken from the network.
    """

    HEADS = ("ends", "velocity-noise")

    def __init__(self, network: nn.Module, process: Process, *, heads: str = "ends", **options: Any) -> None:
        super().__init__(network, process, "data", **options)
        if len(process.ends) != 2:
            raise InputError(f"two heads need a path with two ends; {type(process).__name__} has one")
        if heads not in self.HEADS:
            raise InputError(f"unknown heads {heads!r}; known: {', '.join(self.HEADS)}.{near(heads, self.HEADS)}")
        self.heads = heads

    def split(self, x: Tensor, t: Tensor, **condition: Any) -> tuple[Tensor, Tensor]:
        """The raw outputs of the two heads, each shaped as x."""
        return split_ends(self.output(x, t, **condition), x)

    def belief(self, x: Tensor, t: float | Tensor, **condition: Any) -> Belief:
        known = condition.pop("x1", None)
        t = batch_time(t, x)
        x0, x1 = self.split(x, t, **condition)
        if self.heads == "velocity-noise":
            x0, x1 = conversions.ends(self.process, x, t, x0, x1)  # type: ignore[arg-type]
        return Belief(x0, x1=x1 if known is None else known)

    def forward(self, x: Tensor, t: float | Tensor, **condition: Any) -> Tensor:
        return self.belief(x, t, **condition).mean


def split_ends(F: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """The two ends from doubled channels (axis 1 for images, the last axis otherwise)."""
    axis = 1 if x.ndim == 4 else -1
    if F.shape[axis] != 2 * x.shape[axis]:
        raise InputError(f"a path with two ends needs doubled channels; got {tuple(F.shape)} for {tuple(x.shape)}")
    x0, x1 = F.chunk(2, dim=axis)
    return x0, x1
