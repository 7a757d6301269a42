"""Independent variables in one state: an image and the kernel that blurred it, each with a denoiser of its own.

``p(x, k) = p(x) p(k)`` under one process has the denoiser of x beside that of k, so that a goal about both, such as a
measurement ``y = k * x`` with k unknown, steers a product space (Chung et al. 2023, "BlindDPS").
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from retrodict.core.errors import InputError, require
from retrodict.core.lin import Lin
from retrodict.data.scaling import Scale
from retrodict.denoisers.combined import same_process
from retrodict.denoisers.denoiser import Denoiser
from retrodict.kernels import Belief


class Joint(Denoiser):
    """Several denoisers side by side, on flattened states ``(batch, d_1 + d_2 + ...)``.

    Args:
        denoisers: of independent variables, on one process, each with a known shape and without weights.  A variable
            is decided at noise levels around its own spread: scales that give all of them unit variance let one goal
            steer them together.
    """

    def __init__(self, denoisers: Sequence[Denoiser]) -> None:
        require(len(denoisers) >= 2, f"a joint state has at least two variables, got {len(denoisers)}")
        conditions: dict[str, Any] = {}
        for d in denoisers:
            conditions |= d.conditions
            if not same_process(d.process, denoisers[0].process):
                raise InputError(f"variables share one process; got {d.process!r} and {denoisers[0].process!r}")
            if d.shape is None or d.weighted or d.process.state != "real":
                raise InputError("variables of a joint state are real, of known shape, and not conditioned themselves")
        self.shapes: list[tuple[int, ...]] = [d.shape for d in denoisers if d.shape is not None]
        self.sizes = [math.prod(shape) for shape in self.shapes]
        super().__init__(denoisers[0].process, (sum(self.sizes),), conditions)
        self.variables: Any = torch.nn.ModuleList(denoisers)
        self.scale = self._scales(denoisers)

    def _scales(self, denoisers: Sequence[Denoiser]) -> Scale | None:
        if all(d.scale is None for d in denoisers):
            return None
        scales = [Scale() if d.scale is None else d.scale for d in denoisers]
        flat = lambda v, shape: v.expand(shape).flatten()  # noqa: E731
        shift, scale = (
            torch.cat([flat(getattr(s, name), shape) for s, shape in zip(scales, self.shapes)])
            for name in ("shift", "scale")
        )
        return Scale(shift, scale)

    def split(self, x: Tensor) -> list[Tensor]:
        """The variables of joint states ``(batch, d)``, each ``(batch, *its shape)``."""
        return [v.reshape(len(x), *shape) for v, shape in zip(x.split(self.sizes, 1), self.shapes)]

    def belief(self, x: Tensor, t: float | Tensor, **condition: Any) -> Belief:
        beliefs = [
            d.belief(v, t, **{k: c for k, c in condition.items() if k in d.conditions})
            for d, v in zip(self.variables, self.split(x))
        ]
        mean = torch.cat([b.mean.flatten(1) for b in beliefs], 1)
        if any(b.cov is None for b in beliefs):
            return Belief(mean)
        return Belief(mean, cov=lambda: self._blocks(beliefs, mean))

    def _blocks(self, beliefs: Sequence[Belief], mean: Tensor) -> Lin:
        out = mean.new_zeros(len(mean), mean.shape[1], mean.shape[1])
        start = 0
        for belief, size in zip(beliefs, self.sizes):
            eye = Lin.dense(torch.eye(size, dtype=mean.dtype, device=mean.device))
            stop = start + size
            out[:, start:stop, start:stop] = (belief.covariance().to(mean.dtype) @ eye).value
            start = stop
        return Lin.dense(out)
