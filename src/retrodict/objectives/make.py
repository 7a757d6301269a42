"""Objectives by name, and the one that suits a process."""

from __future__ import annotations

from functools import partial
from typing import Any

from retrodict.core.errors import InputError
from retrodict.core.registry import Registry
from retrodict.objectives.regression import Objective, Regression
from retrodict.objectives.times import NoiseLogNormal
from retrodict.objectives.tokens import ChainRegression, EmbeddedRegression, TokenRegression
from retrodict.processes import EDM, VE, Discrete, Process

#: Objectives by name: each is called with the process and options.
objectives: Registry[Any] = Registry("objective")


def make_objective(name: str | Objective, process: Process, **options: Any) -> Objective:
    """An objective for a process.

    Args:
        name: a name of `objectives`, or an objective, which is returned as it is:

            * "auto": "tokens" for tokens and counts, "regression" for real states, with EDM's law of times on the
              variance-exploding paths;
            * "regression": squared error, by default of the network's own output at stratified times;
            * "likelihood": the evidence bound, with times uniform in log-SNR on a Gaussian path;
            * "tokens": the evidence bound of a discrete process in continuous time: the weighted cross-entropy of
              hidden tokens, the Poisson regression of counts (also "poisson");
            * "score-entropy": the same without its constant, as it is published for jump processes;
            * "vlb": the bound of a chain of finitely many steps;
            * "embedded": cross-entropy of tokens whose embeddings move on a Gaussian path.
        process: what the denoiser reverses.
        options: of the objective: ``weighting``, ``times``, ``coupling``, ``dropout``.

    Raises:
        InputError: an unknown name, or a process that no objective suits.
    """
    if not isinstance(name, str):
        if options:
            raise InputError(f"an objective that is made already takes no options; got {', '.join(options)}")
        return name
    return objectives[name](process, **options)


@objectives.register("auto")
def _auto(process: Process, **options: Any) -> Objective:
    if isinstance(process, Discrete):
        return TokenRegression(process, **options)
    if process.state == "real":
        suited: dict[str, Any] = {"times": NoiseLogNormal()} if isinstance(process, (EDM, VE)) else {}
        return Regression(process, **(suited | options))
    raise InputError(f"no objective learns states of kind {process.state!r}; accepted: 'real', 'tokens', 'count'")


@objectives.register("likelihood")
def _likelihood(process: Process, **options: Any) -> Objective:
    if isinstance(process, Discrete):
        return TokenRegression(process, **options)
    suited: dict[str, Any] = {"weighting": "elbo", "times": "log-snr"}
    return Regression(process, **(suited | options))


objectives.add("regression", value=Regression)
objectives.add("tokens", "poisson", value=TokenRegression)
objectives.add("score-entropy", value=partial(TokenRegression, constant=False))
objectives.add("vlb", value=ChainRegression)
objectives.add("embedded", value=EmbeddedRegression)
