"""`Fit`: what fitting returns: parameters, how sure they are, and the model conditioned at them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from retrodict.core.errors import InputError
from retrodict.inference import io
from retrodict.inference.jumps.exact import _with_blanks
from retrodict.inference.parameters.likelihood import Likelihood
from retrodict.inference.parameters.mixing import effective_size, r_hat
from retrodict.inference.parameters.space import Space
from retrodict.inference.posterior import Conditioned
from retrodict.inference.results import Marginals, Paths

_PATHS = 100  # draws of the hidden path at a point estimate
_MOST = 200  # draws that a forecast averages


@dataclass(frozen=True)
class Sampled:
    """Where a Markov chain went: what rebuilds the model and its particles at every kept draw.

    Attributes:
        space: of the parameters; free: ``(chains, draws, p)``.
        seeds: of the likelihood estimate that was accepted, ``(chains, draws)``.
    """

    space: Space
    free: Tensor
    seeds: Tensor

    def __len__(self) -> int:
        return self.seeds.numel()

    def at(self, i: int) -> tuple[Any, int]:
        """The model of draw ``i``, chains one after another, and the seed of its particles."""
        return self.space.model(self.free.flatten(0, 1)[i]), int(self.seeds.flatten()[i])


@dataclass(frozen=True, eq=False)
class Fit:
    """Fitted parameters.

    Attributes:
        method: the word that was asked for.
        parameters: name -> value; of a Bayesian fit the posterior mean.
        standard_errors: name -> standard error (posterior standard deviation), or None where none was computed.
        log_likelihood: of the data at ``parameters``, all series together.
        exact: whether the likelihood is exact.
        model: the model at ``parameters``.
        history: what happened on the way: "log_likelihood" and whatever the method follows.
        draws: name -> ``(chains, draws, *shape)`` after burn-in, or None.
        converged: whether the method's own criterion was met; None where it has none.
        message: the end in words.
        acceptance: of each chain.
    """

    method: str
    parameters: dict[str, Any]
    log_likelihood: float
    model: Any
    likelihood: Likelihood = field(repr=False)
    exact: bool = True
    standard_errors: dict[str, Any] | None = None
    history: dict[str, Any] = field(default_factory=dict, repr=False)
    draws: dict[str, Tensor] | None = field(default=None, repr=False)
    converged: bool | None = None
    message: str = ""
    acceptance: Tensor | None = None
    sampled: Sampled | None = field(default=None, repr=False)
    seed: int = 0

    @cached_property
    def posterior(self) -> Conditioned:
        """The model at ``parameters`` conditioned on the data."""
        return self.likelihood.condition(self.model, self.seed)

    @cached_property
    def states(self) -> Paths:
        """Hidden paths given the data: one for each kept draw of the parameters, or 100 at a point estimate."""
        if self.sampled is None:
            return _equal(self.posterior.sample(_PATHS, self.seed), self.seed)
        parts = [_one_path(post, seed) for post, seed in self._conditioned(range(len(self.sampled)))]
        self._restore()
        return replace(
            parts[0], x=torch.cat([p.x for p in parts]), log_weights=torch.cat([p.log_weights for p in parts])
        )

    def forecast(self, times: Any, of: str = "state") -> Marginals:
        """The law of the state (``of="observation"``: of what will be seen) at later times.

        Averages over up to 200 draws of the parameters where there are draws; ``times`` as for
        `Conditioned.forecast`.  Models without a closed form forecast the state alone.
        """
        if self.sampled is None:
            return forecast(self.posterior, self.likelihood, times, of, self.seed)
        n = len(self.sampled)
        chosen = [int(i) for i in torch.linspace(0, n - 1, min(n, _MOST)).long()]
        laws = [forecast(post, self.likelihood, times, of, seed) for post, seed in self._conditioned(chosen)]
        self._restore()
        return mixture(laws)

    @cached_property
    def r_hat(self) -> dict[str, Tensor] | None:
        """Split R-hat of each parameter."""
        return None if self.draws is None else {name: r_hat(value) for name, value in self.draws.items()}

    @cached_property
    def ess(self) -> dict[str, Tensor] | None:
        """Effective number of draws of each parameter."""
        return None if self.draws is None else {name: effective_size(value) for name, value in self.draws.items()}

    def to_arviz(self, states: bool = False) -> Any:
        """ArviZ InferenceData: the draws, with ``states`` the hidden path of each, and the data.

        Raises:
            InputError: the method has no draws.
        """
        if self.draws is None:
            raise InputError(f"method={self.method!r} gives an estimate and no draws; method='pmmh' gives draws")
        y = self.likelihood.data.y
        stats = {"lp": self.history["log_density"]} if "log_density" in self.history else None
        return io.to_arviz(self.draws, states=self.states if states else None, observed={"y": y}, sample_stats=stats)

    def plot(self, **options: Any) -> Any:
        """The draws of each parameter, or the likelihood on the way to an estimate; Axes."""
        from retrodict.inference.parameters import plots

        return plots.fit(self, **options)

    def __repr__(self) -> str:
        kind = "exact" if self.exact else "estimated"
        lines = [f"Fit(method={self.method!r}, log_likelihood={self.log_likelihood:.6g} ({kind}); {self.message})"]
        for name, value in self.parameters.items():
            row = f"  {name} = {_show(value)}"
            if self.standard_errors is not None:
                row += f" +- {_show(self.standard_errors[name])}"
            if self.r_hat is not None and self.ess is not None:
                row += f"   R-hat {_show(self.r_hat[name], 3)}, {_show(self.ess[name], 3)} effective draws"
            lines.append(row)
        return "\n".join(lines)

    def _conditioned(self, which: Any) -> Iterator[tuple[Conditioned, int]]:
        assert self.sampled is not None
        for i in which:
            model, seed = self.sampled.at(i)
            yield self.likelihood.condition(model, seed), seed

    def _restore(self) -> None:
        """A built model lends its tensors to every draw: set them back to the estimate."""
        assert self.sampled is not None
        space = self.sampled.space
        if space.leaves is not None:
            space.place({name: torch.as_tensor(value).double() for name, value in self.parameters.items()})


# --- paths and forecasts of any conditioned model -----------------------------------------------------------------


def _equal(paths: Paths, seed: int) -> Paths:
    """Paths of equal weight."""
    even = bool((paths.log_weights == paths.log_weights[:1]).all())
    return paths if even else paths.resample(seed)


def _one_path(post: Conditioned, seed: int) -> Paths:
    """One path from the particles behind a likelihood estimate; a draw, where the posterior is exact."""
    weighted = getattr(post, "guided", None) is not None
    paths = _equal(post.sample(getattr(post, "particles", 1) if weighted else 1, seed), seed)
    return replace(paths, x=paths.x[:1], log_weights=paths.log_weights[:1], innovations=None)


def forecast(post: Conditioned, likelihood: Likelihood, times: Any, of: str, seed: int) -> Marginals:
    """The posterior's own forecast, or a filter that is shown nothing at the later times."""
    if type(post).forecast is not Conditioned.forecast:
        return post.forecast(times, of)
    if of != "state":
        raise InputError(f"method={post.method!r} forecasts the state; got of={of!r}")
    data = likelihood.data
    last = data.times[torch.arange(len(data)), data.lengths - 1].unsqueeze(1)
    if isinstance(times, int):
        ahead = last + torch.arange(1, times + 1, dtype=torch.float64)
    else:
        ahead = torch.as_tensor(data.axis.numbers(times), dtype=torch.float64).expand(len(data), -1)
    if ahead.shape[1] == 0 or bool((ahead <= last).any()):
        raise InputError(f"a forecast is of one or more times after the last observation, at {float(last.max()):g}")
    laws = replace(likelihood, data=_with_blanks(data, ahead)).condition(post.model, seed).filter()
    rows = torch.arange(len(data)).unsqueeze(1), data.lengths.unsqueeze(1) + torch.arange(ahead.shape[1])
    pick = lambda v: None if v is None else v[rows]  # noqa: E731
    return Marginals(
        ahead,
        pick(laws.mean),
        pick(laws.covariance),
        pick(laws.probabilities),
        exact=False,
        axis=data.axis,
        single=data.single,
    )


def mixture(laws: list[Marginals]) -> Marginals:
    """The moments of the equal mixture of laws at the same times."""
    if laws[0].probabilities is not None:
        return replace(laws[0], probabilities=torch.stack([law.probabilities for law in laws]).mean(0), exact=False)  # type: ignore[misc]
    means = torch.stack([law.mean for law in laws])  # type: ignore[misc]
    mean, apart = means.mean(0), means - means.mean(0)
    cov = torch.stack([law.covariance for law in laws]).mean(0)  # type: ignore[misc]
    between = torch.einsum("i...a,i...b->...ab", apart, apart) / len(laws)
    return replace(laws[0], mean=mean, covariance=cov + between, exact=False)


def _show(value: Any, digits: int = 4) -> str:
    value = torch.as_tensor(value)
    if value.ndim == 0:
        return f"{float(value):.{digits}g}"
    return str([float(f"{v:.{digits}g}") for v in value.flatten().tolist()]) if value.numel() <= 9 else "(many)"
