"""One regression: every Gaussian-path denoiser is learned as a conditional expectation of its target.

    loss = E_{t, x0, x1, z}  w(t) | F(x_t, t) - F*(x0, x1, z, t) |^2 / d,        argmin F = E[F* | x_t]

F is the network's own output and F* its target, written from (x0, z) so that nothing divides by a coefficient
that vanishes at an end of time:

==========  ====================================================
data        x0
noise       z
velocity    alpha z - sigma x0
flow        z - x0
score       -z / sigma (the residual is multiplied by sigma)
edm         (sigma x0 / data_std - alpha data_std z) / sqrt(v),  v = alpha^2 data_std^2 + sigma^2
==========  ====================================================

Any other denoiser, an exact one for instance, is regressed on x0; the likelihood weighting then gives the
entropy of a finite data set, without training.  On a path with two ends the two heads are regressed on (x0,
x1), or on the velocity of the noiseless interpolant and the noise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from retrodict.core.errors import InputError, require
from retrodict.core.noise import GeneratorNoise
from retrodict.denoisers import Denoiser, TwoEnded, Wrapped
from retrodict.objectives.couplings import Coupling, couplings
from retrodict.objectives.times import TimeLaw, time_laws
from retrodict.objectives.weightings import Level, Weighting, weightings
from retrodict.processes import GaussianPath, Process

_DROPOUT = 0.1


class Objective:
    """What the objectives of all processes share: reading a batch, times, condition dropout, and their state.

    Args:
        process: what the denoiser reverses.
        weighting: a name of `weightings`, or a `Weighting`.
        times: a name of `time_laws`, or a `TimeLaw`.
        dropout: probability with which a sample's conditions are replaced by their null values; None is 0.1
            for denoisers that have conditions with null values, else 0.
    """

    def __init__(
        self, process: Process, weighting: str | Weighting, times: str | TimeLaw, dropout: float | None
    ) -> None:
        require(dropout is None or 0 <= dropout < 1, f"dropout of conditions is in [0, 1), got {dropout}")
        self.process, self.dropout = process, dropout
        self.weighting: Weighting = weightings[weighting]() if isinstance(weighting, str) else weighting
        self.times: TimeLaw = time_laws[times]() if isinstance(times, str) else times

    def __call__(
        self, denoiser: Denoiser, batch: Mapping[str, Tensor], generator: torch.Generator
    ) -> dict[str, Tensor]:
        """The loss of a batch.

        Args:
            denoiser: what is trained.
            batch: "x0" (or "x"), ``(n, *shape)``; "x1" for a path with two ends; conditions by their names.
            generator: of the device of the batch; the only source of randomness.

        Returns:
            "loss", a scalar to minimise, and further scalars to report.
        """
        raise NotImplementedError

    def read(self, denoiser: Denoiser, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | None, dict[str, Tensor]]:
        """``(x0, x1, conditions)`` of a batch."""
        condition = {name: value for name, value in batch.items() if name not in ("x0", "x", "x1")}
        x0, x1 = batch.get("x0", batch.get("x")), batch.get("x1")
        if x0 is None:
            raise InputError(f"a batch names its data 'x0' (or 'x'); got {', '.join(batch) or 'nothing'}")
        if (x1 is not None) != (len(self.process.ends) == 2):
            wanted = "needs 'x1', the other end" if x1 is None else "has one end; leave out 'x1'"
            raise InputError(f"{type(self.process).__name__} {wanted}")
        if x1 is not None and x1.shape != x0.shape:
            raise InputError(f"both ends have one shape; got {tuple(x0.shape)} and {tuple(x1.shape)}")
        denoiser.check_condition(condition)
        return x0, x1, condition

    def drop(self, denoiser: Denoiser, condition: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """Replace all conditions of some samples by their null values."""
        nulls = {k: null for k, null in denoiser.conditions.items() if null is not None and k in condition}
        if self.dropout == 0 or not nulls:
            if self.dropout and not nulls:
                raise InputError(
                    "dropout needs a condition with a null value, in the denoiser and in the batch; "
                    f"got conditions {denoiser.conditions} and batch entries {sorted(condition)}"
                )
            return condition
        n = len(next(iter(condition.values())))
        drop = torch.rand(n, generator=generator, device=generator.device) < (self.dropout or _DROPOUT)
        return {
            name: _replace(value, drop, nulls[name]) if name in nulls else value for name, value in condition.items()
        }

    def over_time(self, t: Tensor, error: Tensor, weight: Tensor | None) -> dict[str, Tensor]:
        """The loss from errors ``(n,)`` at times t and their weights."""
        weighted = error if weight is None else error * weight.to(error.dtype)
        if self.weighting.integral:
            value = weighted / self.times.density(t, self.process).to(error.dtype)
        else:
            correction = self.times.correction(t)
            value = weighted if correction is None else weighted * correction.to(error.dtype)
        self.times.update(t, weighted)
        terms = {"loss": value.mean()}
        return terms if value is error else terms | {"error": error.detach().mean()}

    def state_dict(self) -> dict[str, Any]:
        """What the objective has learned, for a checkpoint."""
        return {"times": self.times.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a `state_dict`."""
        self.times.load_state_dict(state["times"])


class Regression(Objective):
    """The squared-error regression of a denoiser on a Gaussian path (module docstring).

    Args:
        process: a scalar `GaussianPath`.
        weighting, times, dropout: see `Objective`.
        coupling: a name of `couplings`, or a `Coupling`: pairs data with noise, or with the other end's data.

    >>> import torch, retrodict as rd
    >>> path, law = rd.RectifiedFlow(), rd.exact.GaussianMixture([1.0], [[0.0]], [1.0])
    >>> loss = Regression(path)(law.denoiser(path), {"x": law.sample(4096)}, torch.Generator().manual_seed(0))
    >>> abs(float(loss["loss"]) - 0.5) < 0.02  # E Var(x0 | x_t), the mean over t of t^2 / (t^2 + (1 - t)^2)
    True
    """

    def __init__(
        self,
        process: Process,
        weighting: str | Weighting = "uniform",
        times: str | TimeLaw = "stratified",
        coupling: str | Coupling = "independent",
        dropout: float | None = None,
    ) -> None:
        if not isinstance(process, GaussianPath):
            raise InputError(f"a regression needs a Gaussian path, got {type(process).__name__}")
        super().__init__(process, weighting, times, dropout)
        if self.weighting.integral and len(process.ends) == 2:
            raise InputError("a path with two ends has no log-SNR weighting; use weighting='uniform'")
        self.coupling: Coupling = couplings[coupling]() if isinstance(coupling, str) else coupling

    def __call__(
        self, denoiser: Denoiser, batch: Mapping[str, Tensor], generator: torch.Generator
    ) -> dict[str, Tensor]:
        x0, x1, condition = self.read(denoiser, batch)
        if not x0.is_floating_point():
            raise InputError(f"data of a Gaussian path are real numbers, got {x0.dtype}; scale them first")
        t = self.times.sample(len(x0), self.process, generator).to(x0.device)
        z = GeneratorNoise(generator, len(x0), dtype=x0.dtype, device=x0.device).normal(x0.shape[1:])
        labels = condition.get("label")
        if x1 is None:
            z = self.coupling(x0, z, labels, generator)
        else:
            x1 = self.coupling(x0, x1, labels, generator)
        x_t = self.process.corrupt(x0, t, z, x1)
        condition = self.drop(denoiser, condition, generator)
        if isinstance(denoiser, TwoEnded):
            error = self._two_ended(denoiser, x_t, t, x0, x1, z, condition)
        else:
            error = self._one_ended(denoiser, x_t, t, x0, z, condition)
        predicts = denoiser.predicts if isinstance(denoiser, Wrapped) else "data"
        level = Level(self.process, t, predicts, getattr(denoiser, "data_std", 1.0))  # type: ignore[arg-type]
        return self.over_time(t, error, self.weighting(level))

    def _one_ended(
        self, denoiser: Denoiser, x_t: Tensor, t: Tensor, x0: Tensor, z: Tensor, condition: dict[str, Tensor]
    ) -> Tensor:
        """Mean squared residual of each sample ``(n,)``."""
        if not isinstance(denoiser, Wrapped):
            return _mean_square(denoiser(x_t, t, **condition) - x0)
        alpha, sigma = (_leading(c, x0) for c in (self.process.alpha(t), self.process.sigma(t)))  # type: ignore[attr-defined]
        F = denoiser.output(x_t, t, **condition)
        if F.shape != x0.shape:
            raise InputError(f"the network returned shape {tuple(F.shape)} for data of shape {tuple(x0.shape)}")
        return _mean_square(residual(F, denoiser.predicts, x0, z, alpha, sigma, denoiser.data_std))

    def _two_ended(
        self,
        denoiser: TwoEnded,
        x_t: Tensor,
        t: Tensor,
        x0: Tensor,
        x1: Tensor | None,
        z: Tensor,
        condition: dict[str, Tensor],
    ) -> Tensor:
        """Mean squared residual of both heads of each sample ``(n,)``."""
        assert x1 is not None
        first, second = denoiser.split(x_t, t, **condition)
        if denoiser.heads == "ends":
            return _mean_square(first - x0) + _mean_square(second - x1)
        da, db, _ = (_leading(rate, x0) for rate in self.process.rates(t))  # type: ignore[attr-defined]
        return _mean_square(first - (da * x0 + db * x1)) + _mean_square(second - z)


def residual(
    F: Tensor, predicts: str, x0: Tensor, z: Tensor, alpha: Tensor, sigma: Tensor, data_std: float = 1.0
) -> Tensor:
    """``F - F*`` (times sigma for "score"), finite at both ends of time; coefficients broadcast against x0."""
    if predicts == "data":
        return F - x0
    if predicts == "noise":
        return F - z
    if predicts == "velocity":
        return F - (alpha * z - sigma * x0)
    if predicts == "flow":
        return F - (z - x0)
    if predicts == "score":
        return sigma * F + z
    v = alpha**2 * data_std**2 + sigma**2
    return F - (sigma / data_std * x0 - alpha * data_std * z) * v.rsqrt()


def _mean_square(residual: Tensor) -> Tensor:
    return residual.square().flatten(1).mean(1)


def _leading(value: Tensor, like: Tensor) -> Tensor:
    return value.to(like).reshape(-1, *(1,) * (like.ndim - 1))


def _replace(value: Tensor, drop: Tensor, null: float | Tensor) -> Tensor:
    drop = drop.to(value.device).reshape(-1, *(1,) * (value.ndim - 1))
    return torch.where(drop, torch.as_tensor(null).to(value), value)
