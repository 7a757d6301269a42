"""Processes: what noise does to a state over time, and the bridge that leads back."""

from retrodict.processes.counts import Blackout
from retrodict.processes.discrete import Discrete, Jumps
from retrodict.processes.gaussian import GaussianPath
from retrodict.processes.interpolant import Interpolant
from retrodict.processes.jumps import FiniteJump, Uniform, birth_death
from retrodict.processes.mean_reverting import MeanReverting
from retrodict.processes.named import DDPM, EDM, VE, VP, RectifiedFlow, SubVP
from retrodict.processes.nonlinear import Nonlinear
from retrodict.processes.process import Process, from_config, processes
from retrodict.processes.quantised import Quantised
from retrodict.processes.tokens import Masked, TokenBridge

__all__ = [
    "DDPM",
    "EDM",
    "VE",
    "VP",
    "Blackout",
    "Discrete",
    "FiniteJump",
    "GaussianPath",
    "Interpolant",
    "Jumps",
    "Masked",
    "MeanReverting",
    "Nonlinear",
    "Process",
    "Quantised",
    "RectifiedFlow",
    "SubVP",
    "TokenBridge",
    "Uniform",
    "birth_death",
    "from_config",
    "processes",
]
