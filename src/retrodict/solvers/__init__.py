"""Running backward: plans, the generators that write them, and the two runtimes that execute them."""

from retrodict.solvers import generators
from retrodict.solvers.adaptive import Recorded, adaptive
from retrodict.solvers.build import plan, regrid
from retrodict.solvers.builder import Builder
from retrodict.solvers.grids import grids
from retrodict.solvers.parallel import Parallel
from retrodict.solvers.plan import Plan
from retrodict.solvers.registry import Solver, alias, solver, solvers
from retrodict.solvers.remask import Remask

__all__ = [
    "Builder",
    "Parallel",
    "Plan",
    "Recorded",
    "Remask",
    "Solver",
    "adaptive",
    "alias",
    "generators",
    "grids",
    "plan",
    "regrid",
    "solver",
    "solvers",
]
