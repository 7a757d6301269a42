"""Denoisers: what is believed of the clean end, from networks, from closed forms, and from one another."""

from retrodict.denoisers.combined import Anneal, Bound, Guided, Product, Thresholded
from retrodict.denoisers.denoiser import Denoiser, Step
from retrodict.denoisers.wrapped import TokenDenoiser, TwoEnded, Wrapped

__all__ = [
    "Anneal",
    "Bound",
    "Denoiser",
    "Guided",
    "Product",
    "Step",
    "Thresholded",
    "TokenDenoiser",
    "TwoEnded",
    "Wrapped",
]
