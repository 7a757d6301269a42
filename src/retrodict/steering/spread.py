"""What a denoiser knows of its data: units and variance.

Choices of C that take ``p(x0 | x_t)`` to be round need the variance v of the data, ``r^2 = v rho^2/(v + rho^2)`` with
rho = sigma/alpha: the posterior variance of a Gaussian prior.  It is read from an oracle's law, or from the statistics
that a trained network was preconditioned with; where neither is known it is 1 in the model's units, which is what
standardised data have.  Variables side by side have each a v of its own: an image and the kernel that blurred it differ
by orders of magnitude.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from retrodict.data.scaling import stretch
from retrodict.denoisers import Denoiser, Joint
from retrodict.denoisers.wrapped import Wrapped

log = logging.getLogger(__name__)

#: Variables whose variances differ by more than this are seen at noise levels that hardly overlap.
APART = 30.0


@dataclass(frozen=True)
class Spread:
    """Units and variance of data.

    Attributes:
        variance: mean variance of a coordinate, in the model's units.
        scale: the denoiser's map between units, None for the identity.
        variances: where variables differ, that of each coordinate's variable ``shape``.
    """

    variance: float = 1.0
    scale: Any = None
    variances: Tensor | None = None

    @property
    def each(self) -> float | Tensor:
        """The variance of a coordinate, a number where all have one."""
        return self.variance if self.variances is None else self.variances

    def stretch(self, v: Tensor) -> Tensor:
        """A difference of states from the model's units to the user's."""
        return stretch(self.scale, v)

    @property
    def unit(self) -> float:
        """One of the model's units in the user's, root mean square over coordinates."""
        return 1.0 if self.scale is None else float(self.scale.scale.double().square().mean().sqrt())

    @property
    def uniform(self) -> bool:
        """Whether all coordinates have one unit."""
        return self.scale is None or bool((self.scale.scale == self.scale.scale.flatten()[0]).all())

    def tell(self) -> None:
        """Say so where one variable is seen only once another is decided."""
        if self.variances is None or float(self.variances.max() / self.variances.min()) <= APART:
            return
        log.warning(
            "variables side by side have variances %s in the model's units: under one process the small ones are seen "
            "only once the large ones are decided; give their denoisers a scale that makes them alike",
            ", ".join(f"{v:.3g}" for v in self.variances.unique_consecutive().tolist()),
        )


def known_spread(denoiser: Denoiser) -> tuple[Spread, bool]:
    """What a denoiser knows of its data, and whether its beliefs carry a covariance of their own."""
    inner = _innermost(denoiser)
    scale = denoiser.scale
    if scale is not None and scale.is_identity:
        scale = None
    variables: list[Any] = list(inner.variables) if isinstance(inner, Joint) else [inner]
    closed = all(hasattr(v, "law") for v in variables) and _carries_covariance(denoiser)
    if not isinstance(inner, Joint):
        return Spread(_variance(inner), scale), closed
    own = torch.tensor([_variance(v) for v in variables], dtype=torch.float64)
    each = own.repeat_interleave(torch.tensor(inner.sizes))
    return Spread(float(each.mean()), scale, each if len(set(own.tolist())) > 1 else None), closed


def _innermost(denoiser: Any) -> Denoiser:
    """What denoisers made of one denoiser are made of."""
    while isinstance(getattr(denoiser, "denoiser", None), Denoiser):
        denoiser = denoiser.denoiser
    return denoiser


def _variance(denoiser: Any) -> float:
    law = getattr(denoiser, "law", None)
    covariance = getattr(law, "covariance", None)
    if isinstance(covariance, Tensor):
        return float(covariance.diagonal().mean())
    atoms = getattr(law, "data", None)
    if isinstance(atoms, Tensor) and atoms.is_floating_point():
        weights = law.weights.to(atoms)  # type: ignore[union-attr]
        mean = torch.tensordot(weights, atoms, 1)
        return float(torch.tensordot(weights, (atoms - mean) ** 2, 1).mean())
    return float(denoiser.data_std**2) if isinstance(denoiser, Wrapped) else 1.0


def _carries_covariance(denoiser: Any) -> bool:
    """Oracles say: one evaluation of theirs costs little."""
    if denoiser.shape is None or len(denoiser.process.ends) == 2:
        return False
    belief = denoiser.belief(torch.zeros(1, *denoiser.shape, dtype=denoiser.dtype), 0.5)
    return belief.cov is not None
