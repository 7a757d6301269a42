"""Laws with exact denoisers, to test solvers and samplers against (re-exported from the denoisers room)."""

from retrodict.denoisers.exact import Atoms, GaussianMixture

__all__ = ["Atoms", "GaussianMixture"]
