"""Editing data with the denoiser that models them: one recursion, and the published editors as settings of it."""

from retrodict.steering.editing.delta import Mean, Rule, Terms, edit_delta
from retrodict.steering.editing.edited import Edited
from retrodict.steering.editing.methods import methods, rule
from retrodict.steering.editing.regions import region

__all__ = ["Edited", "Mean", "Rule", "Terms", "edit_delta", "methods", "region", "rule"]
