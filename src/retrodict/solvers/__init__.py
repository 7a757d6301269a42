"""Running backward: plans, the generators that write them, and the two runtimes that execute them."""

from retrodict.solvers import generators
from retrodict.solvers.adaptive import Recorded, adaptive
from retrodict.solvers.build import plan, regrid
from retrodict.solvers.builder import Builder
from retrodict.solvers.denoising_mcmc import Walk, denoising_mcmc, finish
from retrodict.solvers.grids import grids
from retrodict.solvers.parallel import Parallel
from retrodict.solvers.plan import Plan
from retrodict.solvers.registry import Solver, alias, solver, solvers
from retrodict.solvers.remask import Remask
from retrodict.solvers.starts import Start, select_start
from retrodict.solvers.statistics import Statistics
from retrodict.solvers.statistics import measure as statistics
from retrodict.solvers.time_shift import time_shifted

__all__ = [
    "Builder",
    "Parallel",
    "Plan",
    "Recorded",
    "Remask",
    "Solver",
    "Start",
    "Statistics",
    "Walk",
    "adaptive",
    "alias",
    "denoising_mcmc",
    "finish",
    "generators",
    "grids",
    "plan",
    "regrid",
    "select_start",
    "solver",
    "solvers",
    "statistics",
    "time_shifted",
]
