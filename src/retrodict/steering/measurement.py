"""A measurement ``y = A(x0) + noise``: the Gaussian data potential, one formula for many published methods.

With ``p(x0 | x_t)`` taken as ``N(D, C)``, ``e = y - A D`` and ``M = A C A^T + R``,

    log h_t = -1/2 e^T M^-1 e - 1/2 log det (2 pi M),            D_y = D + G A^T M^-1 e

and the methods differ in the C inside M and in the gain G (Rozet et al. 2024; Song et al. 2023; Chung et al. 2023).
This file holds the potential; `retrodict.steering.covariances` the choices of C and G.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from retrodict.core.errors import InputError
from retrodict.core.noise import Noise
from retrodict.processes import GaussianPath, Process
from retrodict.steering.covariances import Covariance, covariances
from retrodict.steering.joined import Joined, Root, log_det, unroot
from retrodict.steering.operators import NonLinear, Operator, as_operator, identity
from retrodict.steering.potential import Node, Potential, Tilt, pulled
from retrodict.steering.spread import Spread, known_spread

if TYPE_CHECKING:
    from retrodict.denoisers import Denoiser

#: Standard deviation that stands for noise 0, in units of the model's data.
FLOOR = 0.02
#: Measurements of more numbers than this are solved by products alone.
DECOMPOSED = 1024


@dataclass(frozen=True)
class Coordinates:
    """A measurement of some coordinates ``c = V^T x`` of a state in the model's units, V with orthonormal columns.

    Attributes:
        y: their measured values ``(1, k)``; std: of the noise in each ``(k,)``, infinite where nothing was seen.
        inwards: ``x (batch, *shape) -> V^T x (batch, k)``; outwards: ``c -> V c``.
    """

    y: Tensor
    std: Tensor
    inwards: Callable[[Tensor], Tensor]
    outwards: Callable[[Tensor], Tensor]


class Measurement(Potential):
    """What was measured of a state.

    Args:
        y: the measurement ``(*output)`` or ``(1, *output)``, in the user's units.
        operator: anything that `as_operator` takes; None measures the state itself.
        noise: standard deviation of independent Gaussian noise, a number or one for each number of y.  0 is a hard
            constraint: `covariances` that can meet it exactly do, and as a likelihood it has the standard deviation
            ``floor``.
        covariance: of the noise, ``(m, m)`` on the flattened measurement, instead of ``noise``.
        floor: what stands for noise 0 in a likelihood, in the user's units; None is .02 of the scale of the data.

    Raises:
        InputError: noise that is negative, or no positive definite covariance; when a denoiser is conditioned: shapes
            that do not meet (both are named), and a y without noise that no state has.
    """

    def __init__(
        self,
        y: Any,
        operator: Any = None,
        noise: Any = None,
        *,
        covariance: Any = None,
        floor: float | None = None,
    ) -> None:
        self.y = torch.as_tensor(y)
        if not self.y.is_floating_point():
            self.y = self.y.to(torch.get_default_dtype())
        if not bool(torch.isfinite(self.y).all()):
            raise InputError("y has values that are not finite; leave out what was not measured by a mask operator")
        self.operator: Operator = identity() if operator is None else as_operator(operator)
        self.floor = floor
        self.constant = 0.0
        self.spread = Spread()
        self.how: Covariance = covariances["exact"]()
        self._shape: tuple[int, ...] | None = None
        self._output: tuple[int, ...] | None = None
        self._matrices: dict[Any, Tensor] = {}
        self.closed = False
        self._set_noise(noise, covariance)

    def _set_noise(self, noise: Any, covariance: Any) -> None:
        """One number for the noise: any other is divided out (`Joined`)."""
        if noise is not None and covariance is not None:
            raise InputError("give noise= (a standard deviation) or covariance= (a matrix), one of the two")
        root = _root(0.0 if noise is None and covariance is None else noise, covariance, self.y.numel())
        if isinstance(root, float):
            self.noise = root
            return
        self.operator, self.y = Joined([(self.operator, root)]), unroot(root, self.y.reshape(1, -1)).squeeze(0)
        self.noise, self.constant = 1.0, -log_det(root, self.y.numel())

    # -- before a run -----------------------------------------------------------------------------------------

    def using(self, covariance: str, **options: Any) -> Measurement:
        """The same measurement with another choice of C and gain: a name of `covariances` and its options."""
        out = copy.copy(self)
        out._forget()
        out.how = covariances[covariance](**options)
        return out

    def with_noise(self, noise: float) -> Measurement:
        """The same measurement taken to have another standard deviation (of its unit noise, where it had a matrix)."""
        out = copy.copy(self)
        out.noise = float(noise)
        out._forget()
        return out

    def check(self, shape: tuple[int, ...] | None, process: Process) -> None:
        if not isinstance(process, GaussianPath) or not process.scalar or len(process.ends) == 2:
            raise InputError(
                "a measurement steers real states on a scalar Gaussian path with one end, not "
                f"{type(process).__name__}; discrete states take a Reward"
            )
        if shape is None:
            return
        try:
            out = self._output_of(shape)
        except (RuntimeError, IndexError, TypeError) as error:
            raise InputError(
                f"the operator does not meet states of shape {shape}: {error}; y has shape {tuple(self.y.shape)}"
            ) from error
        if tuple(self.y.shape) not in (out, (1, *out)):
            raise InputError(
                f"the operator maps states of shape {shape} to measurements of shape {out}, "
                f"and y has shape {tuple(self.y.shape)}; they must agree"
            )

    def _output_of(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the measurement of a state, which is asked in the dtype of y."""
        if isinstance(self.operator, NonLinear):
            return tuple(self.operator(torch.zeros(1, *shape, dtype=self.y.dtype)).shape[1:])
        return self.operator.output_shape(shape)

    def bind(self, denoiser: Denoiser) -> Measurement:
        out = copy.copy(self)
        out._forget()
        out._shape = denoiser.shape
        out.spread, out.closed = known_spread(denoiser)
        out.spread.tell()
        out._check_range()
        return out

    def join(self, other: Potential) -> Measurement | None:
        """Both measurements as one, if they are treated alike: what they say of each other through C is then used."""
        if not isinstance(other, Measurement) or other.how != self.how or 0 in (self.noise, other.noise):
            return None
        parts: list[tuple[Operator, Root]] = [(self.operator, self.noise), (other.operator, other.noise)]
        out = copy.copy(self)
        out._forget()
        out.operator, out.noise = Joined(parts), 1.0
        values = [unroot(g.noise, g.y.reshape(1, -1).double()).squeeze(0) for g in (self, other)]
        out.y = torch.cat(values)
        out.constant = self.constant + other.constant
        out.constant -= log_det(self.noise, self.y.numel()) + log_det(other.noise, other.y.numel())
        return out

    def _forget(self) -> None:
        self._output = None
        self._matrices = {}
        for name in ("spectrum", "coordinates"):
            self.__dict__.pop(name, None)

    def _check_range(self) -> None:
        """A measurement without noise is one that some state has."""
        if self.noise > 0 or not self.operator.linear or self._shape is None or self.spectrum is None:
            return
        values, vectors = self.spectrum
        y = self.y.reshape(-1).double()
        y = y if vectors is None else vectors.T @ y
        outside = float(y[values <= 1e-10 * values.max()].norm())
        if outside > 1e-4 * max(float(y.norm()), 1e-12):
            raise InputError(
                f"noise 0, and no state has this y: a part of norm {outside:.3g} of y lies outside the operator's "
                "range; give the noise of the measurement, or correct y"
            )

    # -- the potential ----------------------------------------------------------------------------------------

    @property
    def graph(self) -> bool:  # type: ignore[override]
        return self.how.derivative(self.closed)

    @property
    def drift(self) -> bool:  # type: ignore[override]
        return self.how.gain != "none"

    @property
    def size(self) -> int:
        """Numbers in the measurement, m."""
        return self.y.numel()

    @property
    def variance(self) -> float:
        """Of the noise, in the user's units; of the floor where there is none."""
        return (self.noise or self.lowest) ** 2

    @property
    def lowest(self) -> float:
        """What stands for noise 0."""
        return FLOOR * self.spread.unit if self.floor is None else self.floor

    def seen(self, x0: Tensor) -> Tensor:
        """``A(x0)``, flattened ``(batch, m)``."""
        return self.operator(x0).flatten(1)

    def residual(self, x0: Tensor) -> Tensor:
        """``y - A(x0)``, ``(batch, m)``."""
        seen = self.seen(x0)
        return self.y.to(seen).reshape(1, -1) - seen

    def likelihood(self, x0: Tensor) -> Tensor:
        e = self.residual(x0).double()
        return (
            self.constant
            - 0.5 * (e**2).sum(1) / self.variance
            - 0.5 * self.size * math.log(2 * math.pi * self.variance)
        )

    def at(self, node: Node) -> Tilt:
        tilt = self.how.tilt(self, node)
        tilt.log_h = tilt.log_h.double() + (self.constant - 0.5 * self.size * math.log(2 * math.pi))
        return tilt

    def draw(self, node: Node, noise: Noise) -> Tensor:
        """A draw from ``N(D, C)`` given y, with the C inside M: exact for linear operators ``(batch, *shape)``.

        A draw u of ``N(D, C)`` and one of the noise n are corrected as the mean is: ``u + C A^T M^-1 (y + n - A u)``
        (Matheron's rule; Journel and Huijbregts 1978).
        """
        if not self.operator.linear:
            raise InputError("an exact draw needs a linear operator; pass move='langevin', 'hmc' or 'metropolis'")
        u = node.mean + self.how.spread(self, node, noise.normal(tuple(node.mean.shape[1:])).to(node.mean))
        e = self.residual(u)
        e = e + self.noise * noise.normal((self.size,)).to(e)
        solved, _ = self.how.solve(self, node, e)
        return u + self.how.times(self, node, self.pull_back(node.mean, solved)).to(u)

    @cached_property
    def coordinates(self) -> Coordinates:
        """What was measured as coordinates of a state in the model's units; of linear operators and one unit."""
        shape, operator = self._shape, self.operator
        if not operator.linear or shape is None or not self.spread.uniform:
            raise InputError(
                "this method works on singular directions: it needs a linear operator, a denoiser that knows the shape "
                "of its states, and one unit for all coordinates; 'mmps' and 'pigdm' need none of these"
            )
        singular: Any = operator.singular(shape)  # type: ignore[attr-defined]
        zero = torch.zeros(1, *shape, dtype=torch.float64)
        origin = zero if self.spread.scale is None else self.spread.scale.inverse(zero)
        values = singular.values * self.spread.unit
        keep = values > 1e-10 * values.max()
        seen = singular.measured(self.y.double().reshape(1, *operator.output_shape(shape)) - operator(origin))
        seen = torch.where(keep, seen / values, 0.0)
        return Coordinates(seen, torch.where(keep, self.noise / values, torch.inf), singular.inwards, singular.outwards)

    # -- the operator at a state ------------------------------------------------------------------------------

    def pull_back(self, x0: Tensor, v: Tensor) -> Tensor:
        """``A^T v`` for ``v (batch, m)``: of a non-linear operator the transposed derivative at x0."""
        operator, shape = self.operator, tuple(x0.shape[1:])
        v = v.detach().to(x0)
        if operator.linear and hasattr(operator, "adjoint"):
            if self._output is None:
                self._output = self._output_of(shape)
            return operator.adjoint(v.reshape(len(v), *self._output), shape)  # type: ignore[attr-defined]
        with torch.enable_grad():
            at = x0.detach().requires_grad_(True)
            (out,) = torch.autograd.grad(operator(at).flatten(1), at, v)
        return out

    def rows(self, x0: Tensor) -> Tensor:
        """The rows of A ``(m, batch or 1, *shape)``: of a non-linear operator its derivative at x0."""
        if self.operator.linear:
            return self.matrix(x0).unsqueeze(1)
        with torch.enable_grad():
            at = x0.detach().requires_grad_(True)
            seen = self.operator(at).flatten(1)
            eye = torch.eye(self.size, dtype=seen.dtype, device=seen.device).unsqueeze(1)
            return pulled(seen, at, eye.expand(-1, len(x0), -1))

    def matrix(self, x0: Tensor) -> Tensor:
        """The rows of a linear A, ``(m, *shape)``, written out once."""
        key = (x0.dtype, x0.device)
        if key not in self._matrices:
            eye = torch.eye(self.size, dtype=x0.dtype, device=x0.device)
            self._matrices[key] = self.pull_back(x0[:1], eye)
        return self._matrices[key]

    def push(self, x0: Tensor, v: Tensor) -> Tensor:
        """``A v`` for differences of states ``v (batch, *shape)``: of a non-linear operator its derivative at x0."""
        if self.operator.linear:
            return self.seen(v)
        moved: Any = torch.func.jvp(self.operator, (x0.detach(),), (v.to(x0),))
        return moved[1].flatten(1)

    @cached_property
    def spectrum(self) -> tuple[Tensor, Tensor | None] | None:
        """Eigenvalues ``(m,)`` and eigenvectors of ``A S A^T`` (None where it is diagonal), S the squared scale of the
        data: of linear operators that say that it is diagonal, or of at most `DECOMPOSED` numbers."""
        shape = self._shape
        if not self.operator.linear or shape is None:
            return None
        gram = getattr(self.operator, "gram", None)
        diagonal = gram(shape) if gram is not None and self.spread.uniform else None
        if diagonal is not None:
            return diagonal.flatten().double() * self.spread.unit**2, None
        if self.size > DECOMPOSED:
            return None
        rows = self.matrix(torch.zeros(1, *shape, dtype=torch.float64))
        G = self.seen(self.spread.stretch(self.spread.stretch(rows)))
        values, vectors = torch.linalg.eigh((G + G.T) / 2)
        return values.clamp_min(0), vectors


def _root(noise: Any, covariance: Any, m: int) -> Root:
    """A root of the noise's covariance: a number, one for each number of y, or a lower triangle."""
    if covariance is not None:
        R = torch.as_tensor(covariance, dtype=torch.float64)
        if R.shape != (m, m):
            raise InputError(f"covariance is a matrix ({m}, {m}) for a y of {m} numbers, got shape {tuple(R.shape)}")
        root, failed = torch.linalg.cholesky_ex(R)
        if int(failed) or not torch.allclose(R, R.T):
            raise InputError("covariance= is no symmetric positive definite matrix; a noise of 0 is written noise=0")
        return root
    value = torch.as_tensor(noise, dtype=torch.float64)
    if not bool(torch.isfinite(value).all() and (value >= 0).all()):
        raise InputError(f"noise is a standard deviation of at least 0, got {noise!r}")
    if value.numel() == 1:
        return float(value)
    if value.numel() != m or not bool((value > 0).all()):
        raise InputError(
            f"noise is a number or {m} positive numbers, one for each of y, got shape {tuple(value.shape)}; "
            "a matrix is given as covariance="
        )
    return value.flatten()
