"""What a method of fitting is given, and the table of methods."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm

from retrodict.core.errors import InputError, near
from retrodict.inference.observed import Observed
from retrodict.inference.parameters.likelihood import Likelihood
from retrodict.inference.parameters.space import Space, make_space


@dataclass(frozen=True)
class Task:
    """A model to fit to data, and how to condition it."""

    model: Any
    data: Observed
    start: Mapping[str, Any] | None = None
    priors: Mapping[str, Any] | None = None
    supports: Mapping[str, Any] | None = None
    likelihood: str = "auto"
    conditioning: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    progress: bool = True

    def space(self) -> Space:
        """The parameters."""
        return make_space(self.model, self.start, self.priors, self.supports)

    def likelihood_of(self, particles: int | None) -> Likelihood:
        """The likelihood, by so many particles where it takes them."""
        return Likelihood(self.data, self.likelihood, particles, dict(self.conditioning))

    def bar(self, total: int, words: str) -> Any:
        """A progress bar; silent where no person looks."""
        return tqdm(total=total, desc=words, leave=False, disable=None if self.progress else True)


def run(name: str, fit: Callable[..., Any], task: Task, options: Mapping[str, Any]) -> Any:
    """Call a method with the options that were given; unknown ones are named."""
    accepted = list(inspect.signature(fit).parameters)[1:]
    given = {key: value for key, value in options.items() if value is not None}
    for key in given:
        if key not in accepted:
            raise InputError(f"method={name!r} takes no {key!r}; it takes: {', '.join(accepted)}.{near(key, accepted)}")
    for key in ("steps", "particles", "chains"):
        if key in given and (not isinstance(given[key], int) or given[key] < 1):
            raise InputError(f"{key} is an integer of at least 1, got {given[key]!r}")
    return fit(task, **given)
