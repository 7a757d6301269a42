"""retrodict: describe a stochastic process forward; run it backward.

The front door: every public name, each imported from its room when it is first used, so that `import retrodict` and
the command line's help answer at once.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from retrodict import exact, operators
    from retrodict.data import Data, load_data
    from retrodict.denoisers import Anneal, Denoiser, Guided, Product, Thresholded
    from retrodict.denoisers.diffusers import from_diffusers
    from retrodict.diagnostics.certificate import Certificate, certify
    from retrodict.inference import SDE, JumpProcess, Observed, ReactionNetwork, StateSpace, Tree
    from retrodict.particles import Population
    from retrodict.processes import (
        DDPM,
        EDM,
        VE,
        VP,
        Blackout,
        FiniteJump,
        GaussianPath,
        Interpolant,
        Masked,
        MeanReverting,
        RectifiedFlow,
        SubVP,
        TokenBridge,
        Uniform,
    )
    from retrodict.solvers import Parallel, Plan, Remask, plan
    from retrodict.steering import Classifier, Measurement, Reward
    from retrodict.verbs import (
        Guidance,
        Inversion,
        Samples,
        Tuned,
        backprop,
        condition,
        edit,
        filter,
        fit,
        fit_parameters,
        invert,
        load,
        sample,
        save,
        smooth,
        tune,
    )

__version__ = "0.1.0.dev0"

__all__ = [
    "DDPM",
    "EDM",
    "SDE",
    "VE",
    "VP",
    "Anneal",
    "Blackout",
    "Certificate",
    "Classifier",
    "Data",
    "Denoiser",
    "FiniteJump",
    "GaussianPath",
    "Guidance",
    "Guided",
    "Interpolant",
    "Inversion",
    "JumpProcess",
    "Masked",
    "MeanReverting",
    "Measurement",
    "Observed",
    "Parallel",
    "Plan",
    "Population",
    "Product",
    "ReactionNetwork",
    "RectifiedFlow",
    "Remask",
    "Reward",
    "Samples",
    "StateSpace",
    "SubVP",
    "Thresholded",
    "TokenBridge",
    "Tree",
    "Tuned",
    "Uniform",
    "backprop",
    "certify",
    "condition",
    "edit",
    "exact",
    "filter",
    "fit",
    "fit_parameters",
    "from_diffusers",
    "invert",
    "load",
    "load_data",
    "operators",
    "plan",
    "sample",
    "save",
    "smooth",
    "tune",
]

#: Where each public name lives; a test keeps this equal to the imports above, which type checkers read.
_HOMES = {
    "Data": "retrodict.data",
    "load_data": "retrodict.data",
    "Anneal": "retrodict.denoisers",
    "Denoiser": "retrodict.denoisers",
    "Guided": "retrodict.denoisers",
    "Product": "retrodict.denoisers",
    "Thresholded": "retrodict.denoisers",
    "from_diffusers": "retrodict.denoisers.diffusers",
    "Certificate": "retrodict.diagnostics.certificate",
    "certify": "retrodict.diagnostics.certificate",
    "JumpProcess": "retrodict.inference",
    "Observed": "retrodict.inference",
    "ReactionNetwork": "retrodict.inference",
    "StateSpace": "retrodict.inference",
    "SDE": "retrodict.inference",
    "Tree": "retrodict.inference",
    "Population": "retrodict.particles",
    "DDPM": "retrodict.processes",
    "EDM": "retrodict.processes",
    "Blackout": "retrodict.processes",
    "FiniteJump": "retrodict.processes",
    "GaussianPath": "retrodict.processes",
    "Interpolant": "retrodict.processes",
    "Masked": "retrodict.processes",
    "MeanReverting": "retrodict.processes",
    "RectifiedFlow": "retrodict.processes",
    "SubVP": "retrodict.processes",
    "TokenBridge": "retrodict.processes",
    "Uniform": "retrodict.processes",
    "VE": "retrodict.processes",
    "VP": "retrodict.processes",
    "Parallel": "retrodict.solvers",
    "Plan": "retrodict.solvers",
    "Remask": "retrodict.solvers",
    "plan": "retrodict.solvers",
    "Classifier": "retrodict.steering",
    "Measurement": "retrodict.steering",
    "Reward": "retrodict.steering",
    "Guidance": "retrodict.verbs",
    "Inversion": "retrodict.verbs",
    "Samples": "retrodict.verbs",
    "Tuned": "retrodict.verbs",
    "backprop": "retrodict.verbs",
    "condition": "retrodict.verbs",
    "edit": "retrodict.verbs",
    "filter": "retrodict.verbs",
    "fit": "retrodict.verbs",
    "fit_parameters": "retrodict.verbs",
    "invert": "retrodict.verbs",
    "load": "retrodict.verbs",
    "sample": "retrodict.verbs",
    "save": "retrodict.verbs",
    "smooth": "retrodict.verbs",
    "tune": "retrodict.verbs",
}
_MODULES = (
    "data",
    "denoisers",
    "diagnostics",
    "exact",
    "inference",
    "kernels",
    "objectives",
    "operators",
    "particles",
    "processes",
    "solvers",
    "steering",
    "training",
)


def __getattr__(name: str) -> Any:
    """A public name or a room, on first use."""
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
    elif name in _MODULES:
        value = importlib.import_module(f"retrodict.{name}")
    else:
        raise AttributeError(f"module 'retrodict' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})
