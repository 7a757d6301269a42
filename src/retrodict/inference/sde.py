"""`SDE`: the law of a diffusion ``dX = drift(X, t) dt + diffusion(X, t) dW``, and plain simulation.

The law knows nothing of data: ``condition(SDE(...), Observed(v, times=...), start=x0, steps=100)`` bends it by
backward filtering forward guiding (`inference.guided`).  The discretisation is Euler-Maruyama everywhere, and
every unbiasedness that is claimed is for the Euler chain.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from retrodict.core.errors import InputError, InputTypeError
from retrodict.core.noise import KeyedNoise
from retrodict.inference.models import as_prior, leaves
from retrodict.inference.results import Paths
from retrodict.kernels.euler import EulerStep, NonLinearGaussian, dispersion, mv
from retrodict.kernels.laws import Gaussian
from retrodict.kernels.precise import Precise, precise

_BLOCK = 2_000_000  # normals drawn at once: few calls, and no more memory than the paths themselves


@dataclass(frozen=True, eq=False, repr=False)
class SDE:
    """A diffusion.

    Args:
        drift: ``(x, t) -> (..., d)`` for states ``x (..., d)`` with any leading axes; t is a tensor without axes, or
            one that broadcasts against x where series have times of their own.
        diffusion: the dispersion g (not ``g g'``): a number, ``(d,)`` (diagonal), ``(d, r)``, or a function of
            ``(x, t)`` that returns one of these, or one for each state: ``(..., d)`` or ``(..., d, r)``.  It may have
            fewer columns than rows (a hypoelliptic diffusion).
        prior: the law of the state at ``t0``: `kernels.Gaussian` or a `torch.distributions` object over ``(d,)``.
        t0: where time starts.
        observation: as of a `StateSpace`; by default the data bring their operator and noise.

    >>> ou = SDE(lambda x, t: -x, 0.5)
    >>> ou.sample(3, times=[0.5, 1.0], steps=50, start=[1.0]).x.shape
    torch.Size([3, 1, 2, 1])
    """

    drift: Callable[[Tensor, Any], Tensor]
    diffusion: Any
    prior: Any = None
    t0: float = 0.0
    observation: Any = None

    def __post_init__(self) -> None:
        if not callable(self.drift):
            raise InputTypeError(f"drift is a function of (x, t), got {type(self.drift).__name__}")
        object.__setattr__(self, "drift", precise(self.drift))
        if callable(self.diffusion):
            object.__setattr__(self, "diffusion", precise(self.diffusion))
        else:
            object.__setattr__(self, "diffusion", torch.as_tensor(self.diffusion, dtype=torch.float64))

    def __repr__(self) -> str:
        g: Any = self.diffusion
        if isinstance(g, Tensor):
            words = f"{g.item():g}" if g.ndim == 0 else f"{' x '.join(map(str, g.shape))} numbers"
        else:
            words = _name(g)
        known = {"prior": self.prior, "observation": self.observation}
        parts = [
            f"drift {_name(self.drift)}",
            f"diffusion {words}",
            *(f"{k} {_name(v)}" for k, v in known.items() if v),
        ]
        return f"SDE({', '.join(parts)}, t0={self.t0:g})"

    def parameters(self) -> Iterator[Tensor]:
        """Every tensor inside the laws that a gradient can reach."""
        yield from leaves((self.drift, self.diffusion, self.prior, self.observation))

    def kernel(self, s: float, t: float) -> NonLinearGaussian:
        """One Euler step from s to t: the transition of a `StateSpace`."""
        return EulerStep(self.drift, self.diffusion, torch.as_tensor(s, dtype=torch.float64), float(t) - float(s))

    def sample(
        self,
        n: int,
        times: Sequence[float] | Tensor,
        steps: int = 50,
        *,
        start: Any = None,
        seed: int = 0,
        dtype: torch.dtype = torch.float64,
    ) -> Paths:
        """Simulate ``n`` paths.

        Args:
            n: number of paths.
            times: ``(N,)`` increasing times at which the paths are returned, none before ``t0``.
            steps: Euler steps between consecutive times.
            start: the state at ``t0``, ``(d,)`` or ``(n, d)``; without it, draws of the prior.
            seed: of the noise; dtype: of the states.

        Returns:
            `Paths` with x ``(n, 1, N, d)``.
        """
        times = torch.as_tensor(times, dtype=torch.float64)
        _check_simulation(n, times, steps, self.t0)
        noise = KeyedNoise(seed, 1, name="simulate")
        x = self._start(start, n, noise).to(dtype)
        out = torch.empty(len(times), n, x.shape[1], dtype=dtype)
        nodes = euler_nodes(self.t0, times[None], steps)[0]
        for k, state in enumerate(self._walk(x, nodes, noise), start=1):
            if k % steps == 0:
                out[k // steps - 1] = state
        if not bool(torch.isfinite(out[-1]).all()):
            raise InputError("the simulation is not finite; take more steps, or a drift that does not explode")
        return Paths(out.movedim(0, 1).unsqueeze(1), torch.zeros(n, 1, dtype=torch.float64), times.unsqueeze(0))

    def _start(self, start: Any, n: int, noise: KeyedNoise) -> Tensor:
        if start is not None:
            x = torch.as_tensor(start, dtype=torch.float64)
            x = x.reshape(1, -1) if x.ndim < 2 else x
            if x.ndim != 2 or x.shape[0] not in (1, n):
                raise InputError(f"start is one state (d,) or one a path ({n}, d), got {tuple(x.shape)}")
            return x.expand(n, -1).clone()
        if self.prior is None:
            raise InputError("the state at t0 is not known: give start=x0, or SDE(..., prior=law)")
        law, _, d = as_prior(self.prior)
        if isinstance(law, Gaussian):
            return law.mean[0] + noise.normal((n, d))[0].double() @ law.cov.sqrt().value[0].mT
        uniform = noise.uniform((n, d))[0]  # any other law by inversion, so that the seed decides
        return law.icdf(uniform).double() if law.batch_shape else law.icdf(uniform[..., 0]).double().reshape(n, d)

    def _walk(self, x: Tensor, nodes: Tensor, noise: KeyedNoise) -> Iterator[Tensor]:
        """The state after every Euler step; the normals of many steps are drawn and scaled in one block."""
        n = x.shape[0]
        dtype, g = x.dtype, self.diffusion
        width = dispersion(g(x[None], nodes[0]) if callable(g) else g, x[None]).shape[-1]
        lengths = nodes.diff()
        rows = max(1, _BLOCK // (n * width))
        for first in range(0, len(lengths), rows):
            dt = lengths[first : first + rows]
            z = noise.normals(1, (len(dt), n, width))[0][0].to(dtype) * dt.sqrt().to(dtype)[:, None, None]
            if not callable(g):
                constant = g.to(dtype)
                z = z @ constant.mT if constant.ndim == 2 else z * constant
            for t, step, row in zip(nodes[first:].to(dtype).unbind(), dt.tolist(), z.unbind()):
                push = _spread(g(x[None], t), x, row) if callable(g) else row
                x = torch.add(x, self.drift(x, t), alpha=step).add_(push)
                yield x


def _name(f: Any) -> str:
    """What a function or law is called."""
    f = f.f if isinstance(f, Precise) else f
    return getattr(f, "__name__", type(f).__name__)


def euler_nodes(start: float | Tensor, times: Tensor, steps: int) -> Tensor:
    """``(S, N steps + 1)``: ``steps`` equal intervals between consecutive times ``(S, N)``, the first from start, a
    number or ``(S, 1)``."""
    ends = torch.cat((torch.zeros_like(times[:, :1]) + start, times), 1)
    shares = torch.arange(1, steps + 1, dtype=times.dtype) / steps
    inner = ends[:, :-1, None] + ends.diff(dim=1)[..., None] * shares
    return torch.cat((ends[:, :1], inner.flatten(1)), 1)


def _spread(g: Any, x: Tensor, z: Tensor) -> Tensor:
    """The dispersion g at states ``x (n, d)``, applied to scaled normals ``z (n, r)``."""
    g = torch.as_tensor(g, dtype=x.dtype)
    product = g * z if g.ndim in (0, 1, 3) else mv(dispersion(g, x[None]), z[None])
    return product.reshape(x.shape)


def _check_simulation(n: int, times: Tensor, steps: int, t0: float) -> None:
    if n < 1 or steps < 1:
        raise InputError(f"n and steps are at least 1, got n={n}, steps={steps}")
    if times.ndim != 1 or not len(times) or not bool(torch.isfinite(times).all()):
        raise InputError(f"times is a vector of finite numbers, got shape {tuple(times.shape)}")
    if float(times[0]) < t0 or bool((times.diff() <= 0).any()):
        raise InputError(f"times increase from t0={t0:g}, got {times[:6].tolist()}")
