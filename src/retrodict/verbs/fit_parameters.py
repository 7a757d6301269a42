"""``fit_parameters``: the parameters of a model from data, by one of four methods."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from retrodict.core.errors import InputError
from retrodict.inference import Observed
from retrodict.inference.parameters import Fit, Task, methods, run


def fit_parameters(
    model: Any,
    data: Any,
    method: str = "gradient",
    *,
    start: Mapping[str, Any] | None = None,
    priors: Mapping[str, Any] | None = None,
    supports: Mapping[str, Any] | None = None,
    steps: int | None = None,
    particles: int | None = None,
    chains: int | None = None,
    seed: int = 0,
    likelihood: str = "auto",
    conditioning: Mapping[str, Any] | None = None,
    progress: bool = True,
    **options: Any,
) -> Fit:
    """Fit the parameters of a model.

    Args:
        model: a function of named parameters that returns a model (``lambda a, s: StateSpace(...)``), or a built
            model whose laws hold modules or tensors that require gradients (they are left at the estimate).
            For "em" a built model whose laws have closed forms; its own values are the start.
        data: `Observed`, or what it takes.
        method: "gradient": maximum likelihood, with priors maximum a posteriori, with standard errors.
            "em": closed forms for linear-Gaussian and finite chains and jump processes (``fixed=`` names blocks to
            leave alone).  "pmmh": posterior draws by (particle marginal) Metropolis-Hastings.  "score-climbing":
            stochastic approximation with the score of the Parisian particle Gibbs sampler.
        start: name -> value (a number or an array).  By default the priors' means, or the values a built model has.
        priors: name -> `torch.distributions` object; parameters move on ``biject_to`` of its support.
        supports: name -> "positive", "unit", "simplex", "cholesky", "real", ``(low, high)`` or a constraint, for
            parameters without a prior.
        steps: iterations, or draws of each chain after burn-in.
        particles: of an estimated likelihood or score.
        chains: of "pmmh".
        seed: of everything random.
        likelihood: how the model is conditioned: a word of `condition`; "auto" is exact where it can be.
        conditioning: further options of `condition`, such as ``{"start": x0, "steps": 50}`` of an `SDE`.
        progress: a bar, where a person looks.
        options: of the method; a wrong one names those that it takes.

    Returns:
        `Fit` with parameters, standard_errors, log_likelihood, draws, states, forecast.

    Raises:
        InputError: unknown names (with the nearest), a start outside of its support, data in which nothing is seen, a
            method that does not apply (with those that do).

    >>> from retrodict.inference import StateSpace
    >>> from retrodict.kernels import Gaussian, LinearGaussian
    >>> def walk(q):
    ...     return StateSpace(Gaussian(0.0, 1.0), LinearGaussian(1.0, 0.0, q), LinearGaussian(1.0, 0.0, 0.5))
    >>> fit = fit_parameters(walk, [0.3, 0.9, 2.1, 1.6, 3.2], start={"q": 1.0}, supports={"q": "positive"})
    >>> round(fit.parameters["q"], 3), round(fit.log_likelihood, 3), fit.converged
    (0.709, -7.331, True)
    """
    fitter = methods[method]
    observed = data if isinstance(data, Observed) else Observed(data)
    if not bool(observed.seen.any()):
        raise InputError(f"nothing is seen in the data ({observed!r}); parameters need at least one observation")
    task = Task(model, observed, start, priors, supports, likelihood, conditioning or {}, seed, progress)
    given = {"steps": steps, "particles": particles, "chains": chains, **options}
    return run(method, fitter, task, given)
