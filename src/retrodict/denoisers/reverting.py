"""A network on a mean-reverting path, in every prediction type.

The path of x - mu has one end, so that the coefficients of `Wrapped` apply to it:

    D = mu + c_skip (x - mu) + c_out F        F = network(x, time, mu, **condition)

with F an estimate of the noise z, of x0 - mu ("data"), of ``alpha z - sigma (x0 - mu)`` ("velocity"), and so on.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from retrodict.core.errors import InputError, InputTypeError
from retrodict.denoisers.denoiser import batch_time
from retrodict.denoisers.wrapped import Wrapped
from retrodict.kernels import Belief
from retrodict.processes import MeanReverting


class Reverting(Wrapped):
    """A network that restores (module docstring); ``x1=`` is the point mu of each sample.

    Args:
        network: called as ``network(x, time, mu, **condition)``; returns the shape of x.
        process: a `MeanReverting` path; predicts and the other options: as for `Wrapped`.
    """

    def __init__(self, network: nn.Module, process: MeanReverting, predicts: str = "noise", **options: Any) -> None:
        if not isinstance(process, MeanReverting):
            raise InputTypeError(f"Reverting takes a MeanReverting process, got {type(process).__name__}")
        super().__init__(network, process, predicts, **options)

    def belief(self, x: Tensor, t: float | Tensor, **condition: Any) -> Belief:
        path: Any = self.process
        mu = path.point(condition.pop("x1", None), x)
        t = batch_time(t, x)
        c_in, c_skip, c_out = self.coefficients(t, x)
        seen = mu + c_in * (x - mu)
        F = self.network(seen, self._clock(t).to(x.dtype), mu, **self._filled(x, condition))
        if F.shape != x.shape:
            raise InputError(f"the network returned shape {tuple(F.shape)} for a state of shape {tuple(x.shape)}")
        return Belief(mu + c_skip * (x - mu) + c_out * F, x1=mu)

    def forward(self, x: Tensor, t: float | Tensor, **condition: Any) -> Tensor:
        return self.belief(x, t, **condition).mean
