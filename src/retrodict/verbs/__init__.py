"""The verbs: the only place that dispatches over rooms."""

from retrodict.verbs.backprop import backprop
from retrodict.verbs.condition import Guidance, condition
from retrodict.verbs.edit import edit
from retrodict.verbs.fit import fit
from retrodict.verbs.fit_parameters import fit_parameters
from retrodict.verbs.invert import Inversion, invert
from retrodict.verbs.sample import sample
from retrodict.verbs.samples import Samples
from retrodict.verbs.saving import load, save
from retrodict.verbs.smooth import filter, smooth
from retrodict.verbs.tune import Tuned, tune

__all__ = [
    "Guidance",
    "Inversion",
    "Samples",
    "Tuned",
    "backprop",
    "condition",
    "edit",
    "filter",
    "fit",
    "fit_parameters",
    "invert",
    "load",
    "sample",
    "save",
    "smooth",
    "tune",
]
