"""Tuning: the best plan for one model, found by searching and by descent on held-out trajectories.

`trajectories` runs a teacher; `classical` races the plans that there are; `evolution` searches decisions step by step;
`compensation` fits the ratios of DC-Solver; `free` makes every coefficient of a plan a parameter, and `descent` moves
them; `tune` does all of this for one budget and keeps the winner.
"""

from retrodict.solvers.cascade import Cascade
from retrodict.solvers.tuning.classical import Entry, candidates, race
from retrodict.solvers.tuning.compensation import compensate, compensated
from retrodict.solvers.tuning.descent import Effort, refine
from retrodict.solvers.tuning.evolution import Decision, search
from retrodict.solvers.tuning.free import Free
from retrodict.solvers.tuning.trajectories import Trajectories, fingerprint, teach, teacher
from retrodict.solvers.tuning.tune import METHODS, Budget, Sets, tune_budget

__all__ = [
    "METHODS",
    "Budget",
    "Cascade",
    "Decision",
    "Effort",
    "Entry",
    "Free",
    "Sets",
    "Trajectories",
    "candidates",
    "compensate",
    "compensated",
    "fingerprint",
    "race",
    "refine",
    "search",
    "teach",
    "teacher",
    "tune_budget",
]
