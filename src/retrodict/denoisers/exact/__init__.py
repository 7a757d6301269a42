"""Oracles: laws for which the denoiser of any process is known in closed form."""

from retrodict.denoisers.exact.atoms import Atoms
from retrodict.denoisers.exact.mixture import GaussianMixture

__all__ = ["Atoms", "GaussianMixture"]
