"""Running backward: plans, the generators that write them, and the two runtimes that execute them."""

from retrodict.solvers import generators
from retrodict.solvers.build import Solver, plan, regrid, solvers
from retrodict.solvers.grids import grids
from retrodict.solvers.plan import Plan

__all__ = ["Plan", "Solver", "generators", "grids", "plan", "regrid", "solvers"]
