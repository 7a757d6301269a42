"""Denoisers: what is believed of the clean end, from networks, from closed forms, and from one another."""

from retrodict.denoisers.combined import Anneal, Bound, Guided, Product, Thresholded
from retrodict.denoisers.denoiser import Denoiser, Step
from retrodict.denoisers.discrete import CountDenoiser, EmbeddedDenoiser, Sharpened, TokenDenoiser, sharpened
from retrodict.denoisers.joint import Joint
from retrodict.denoisers.monte_carlo import MonteCarlo
from retrodict.denoisers.reverting import Reverting
from retrodict.denoisers.stitched import Stitched, Stitching, excess_divergence, stitchings
from retrodict.denoisers.wrapped import TwoEnded, Wrapped

__all__ = [
    "Anneal",
    "Bound",
    "CountDenoiser",
    "Denoiser",
    "EmbeddedDenoiser",
    "Guided",
    "Joint",
    "MonteCarlo",
    "Product",
    "Reverting",
    "Sharpened",
    "Step",
    "Stitched",
    "Stitching",
    "Thresholded",
    "TokenDenoiser",
    "TwoEnded",
    "Wrapped",
    "excess_divergence",
    "sharpened",
    "stitchings",
]
