"""``filter`` and ``smooth``: condition a model on a series and return the laws of its states, in one call."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from retrodict.inference import Marginals, Observed
from retrodict.verbs.condition import condition

_DATA = ("operator", "noise", "covariance", "missing")


def filter(model: Any, y: Any, times: Any = None, method: str = "auto", **options: Any) -> Marginals:
    """The law of the state at each time given what was seen up to and at that time.

    Args:
        model, method: as for `condition`.
        y: data as for `Observed` (or an `Observed`), at ``times``.
        options: of `Observed` (operator, noise, covariance, missing) and of `condition` (particles, seed, ...).

    Returns:
        `Marginals`, with ``.log_evidence`` and ``.exact``.
    """
    return _marginals("filter", model, y, times, method, options)


def smooth(model: Any, y: Any, times: Any = None, method: str = "auto", **options: Any) -> Marginals:
    """The law of the state at each time given all data; arguments and result as for `filter`.

    >>> from retrodict.inference import StateSpace
    >>> from retrodict.kernels import Gaussian, LinearGaussian
    >>> walk = StateSpace(Gaussian(0.0, 1.0), LinearGaussian(1.0, 0.0, 0.5))
    >>> laws = smooth(walk, [0.3, float("nan"), 1.1], noise=1.0)
    >>> [round(float(m), 4) for m in laws.mean.flatten()], laws.exact
    ([0.34, 0.53, 0.72], True)
    """
    return _marginals("smooth", model, y, times, method, options)


def _marginals(verb: str, model: Any, y: Any, times: Any, method: str, options: dict[str, Any]) -> Marginals:
    about = {key: options.pop(key) for key in _DATA if key in options}
    data = y if isinstance(y, Observed) else Observed(y, times=times, **about)
    post = condition(model, data, method, **options)
    return replace(getattr(post, verb)(), log_evidence=post.log_evidence, exact=post.exact)
