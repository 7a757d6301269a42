"""Parameters of models from data: maximum likelihood, expectation maximisation, and posterior draws.

`methods` is the table behind ``fit_parameters(model, data, method=...)``; each takes a `Task` and options and returns
a `Fit`.
"""

from collections.abc import Callable

from retrodict.core.registry import Registry
from retrodict.inference.parameters.em import em
from retrodict.inference.parameters.gradient import gradient
from retrodict.inference.parameters.mixing import effective_size, mean_error, r_hat
from retrodict.inference.parameters.pmmh import pmmh
from retrodict.inference.parameters.result import Fit
from retrodict.inference.parameters.score import score_climbing
from retrodict.inference.parameters.task import Task, run

#: Word -> the function that fits.
methods: Registry[Callable[..., Fit]] = Registry("method")
methods.add("gradient", value=gradient)
methods.add("em", value=em)
methods.add("pmmh", value=pmmh)
methods.add("score-climbing", value=score_climbing)

__all__ = ["Fit", "Task", "effective_size", "mean_error", "methods", "r_hat", "run"]
