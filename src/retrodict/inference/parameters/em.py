"""Expectation maximisation with closed forms, for three kinds of built models.

    theta'  =  argmax  E[ log p(x, y; theta') | y, theta ],         log p(y; theta') >= log p(y; theta).

The E-step is one smoother; the M-step depends on the kind (`em_gaussian`, `em_finite`): blocks of parameters that are
not named in ``fixed`` take their maximising values, given those that are.  Nothing is differentiated, and the model's
own values are where it starts.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch

from retrodict.core.errors import InputError, near
from retrodict.inference.exact import not_exact
from retrodict.inference.jumps import JumpProcess
from retrodict.inference.models import StateSpace
from retrodict.inference.parameters.em_finite import FiniteBlocks, JumpBlocks
from retrodict.inference.parameters.em_gaussian import GaussianBlocks
from retrodict.inference.parameters.result import Fit
from retrodict.inference.parameters.space import plain
from retrodict.inference.parameters.task import Task

log = logging.getLogger(__name__)

_ROUNDING = 1e-9  # the likelihood may fall by this share without anything being wrong
_INSTEAD = "method='gradient' fits any parameterisation, 'pmmh' samples"


def em(task: Task, steps: int = 1000, tolerance: float = 1e-9, fixed: Sequence[str] = ()) -> Fit:
    """Fit by expectation maximisation.

    Args:
        steps: at most so many iterations.
        tolerance: the relative gain in log likelihood below which it ends.
        fixed: names of blocks to leave as they are: A, b, Q (transition), C, c, R (observation), m0, P0 (prior) of a
            linear-Gaussian model; prior, transition (or rates) and those of the law of observation of a finite one.
    """
    for what, given in (("start", task.start), ("priors", task.priors), ("supports", task.supports)):
        if given:
            raise InputError(f"method='em' starts at the model's own values and takes no {what}=; {_INSTEAD}")
    kind = _kind(task)
    with torch.no_grad():
        blocks = kind(task.model, task.data)
    free = _free(blocks, fixed)
    trace: list[float] = []
    bar = task.bar(steps, "em")
    converged = False
    while True:
        value, better = blocks.step(free)
        trace.append(value)
        gain = value - trace[-2] if len(trace) > 1 else float("inf")
        scale = 1 + abs(value)
        if gain < -_ROUNDING * scale:
            log.warning("the log likelihood fell by %.3g in iteration %d of em", -gain, len(trace) - 1)
        converged = abs(gain) <= tolerance * scale
        if converged or len(trace) > steps:
            break
        blocks = better
        bar.update()
    bar.close()
    likelihood = task.likelihood_of(None)
    end = f"{'converged' if converged else 'stopped'} after {len(trace) - 1} iterations"
    return Fit(
        method="em",
        parameters={name: plain(blocks.values[name]) for name in free},
        log_likelihood=trace[-1],
        model=blocks.model,
        likelihood=likelihood,
        history={"log_likelihood": torch.tensor(trace, dtype=torch.float64)},
        converged=converged,
        message=f"em {end}",
        seed=task.seed,
    )


def _kind(task: Task) -> Callable[..., Any]:
    """The closed form that serves the model."""
    model = task.model
    if isinstance(model, JumpProcess):
        return JumpBlocks
    if not isinstance(model, StateSpace):
        what = "a function of parameters" if callable(model) else f"a {type(model).__name__}"
        raise InputError(
            f"method='em' takes a built StateSpace or JumpProcess whose laws have closed forms, got {what}; {_INSTEAD}"
        )
    reason = not_exact(model, task.data)
    if reason is not None:
        raise InputError(f"method='em' needs closed forms, and {reason}; {_INSTEAD}")
    return FiniteBlocks if model.kind == "finite" else GaussianBlocks


def _free(blocks: Any, fixed: Sequence[str]) -> list[str]:
    fixed = [fixed] if isinstance(fixed, str) else list(fixed)
    for name in fixed:
        if name not in blocks.values:
            raise InputError(
                f"fixed names {name!r}; the blocks are: {', '.join(blocks.values)}.{near(name, blocks.values)}"
            )
    free = [name for name in blocks.values if name not in fixed]
    if not free:
        raise InputError("every block is fixed; leave something to fit")
    return free
