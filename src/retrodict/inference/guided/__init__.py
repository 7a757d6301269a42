"""Backward filtering forward guiding: one backward sweep of an auxiliary process, guided paths, honest weights.

`steps` are the true transitions, `evidence` what is seen, `auxiliary` chooses the linear process whose `messages`
guide them, `guides` run forward, `model` is the map of innovations and the engine's model, and `posterior` has the
methods that users name.  (van der Meulen and Schauer, "Automatic backward filtering forward guiding for Markov
processes and graphical models", 2020.)
"""

from retrodict.inference.guided.chains import bffg
from retrodict.inference.guided.model import GuidedModel, Innovations
from retrodict.inference.guided.posterior import GuidedPosterior

__all__ = ["GuidedModel", "GuidedPosterior", "Innovations", "bffg"]
