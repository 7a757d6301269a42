"""What a denoiser knows of its data: units and variance.

Choices of C that take ``p(x0 | x_t)`` to be round need the variance v of the data, ``r^2 = v rho^2/(v + rho^2)`` with
rho = sigma/alpha: the posterior variance of a Gaussian prior.  It is read from an oracle's law, or from the statistics
that a trained network was preconditioned with; where neither is known it is 1 in the model's units, which is what
standardised data have.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from retrodict.data.scaling import stretch
from retrodict.denoisers import Denoiser, Joint
from retrodict.denoisers.wrapped import Wrapped


@dataclass(frozen=True)
class Spread:
    """Units and variance of data.

    Attributes:
        variance: mean variance of a coordinate, in the model's units.
        scale: the denoiser's map between units, None for the identity.
    """

    variance: float = 1.0
    scale: Any = None

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


def known_spread(denoiser: Denoiser) -> tuple[Spread, bool]:
    """What a denoiser knows of its data, and whether its beliefs carry a covariance of their own."""
    inner = _innermost(denoiser)
    scale = denoiser.scale
    if scale is not None and scale.is_identity:
        scale = None
    variables: list[Any] = list(inner.variables) if isinstance(inner, Joint) else [inner]
    sizes = inner.sizes if isinstance(inner, Joint) else [1]
    variance = sum(n * _variance(v) for n, v in zip(sizes, variables)) / sum(sizes)
    return Spread(variance, scale), all(hasattr(v, "law") for v in variables) and _carries_covariance(denoiser)


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
