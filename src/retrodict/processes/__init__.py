"""Processes: what noise does to a state over time, and the bridge that leads back."""

from retrodict.processes.gaussian import GaussianPath
from retrodict.processes.interpolant import Interpolant
from retrodict.processes.named import DDPM, EDM, VE, VP, RectifiedFlow, SubVP
from retrodict.processes.process import Process, from_config, processes
from retrodict.processes.tokens import Masked, TokenBridge

__all__ = [
    "DDPM",
    "EDM",
    "VE",
    "VP",
    "GaussianPath",
    "Interpolant",
    "Masked",
    "Process",
    "RectifiedFlow",
    "SubVP",
    "TokenBridge",
    "from_config",
    "processes",
]
