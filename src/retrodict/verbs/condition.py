"""``condition``: Doob's h-transform as one verb.  What comes back is again the kind of thing that was given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from retrodict.core.errors import InputError, InputTypeError
from retrodict.denoisers import Denoiser, Guided
from retrodict.inference import condition_model
from retrodict.inference.posterior import known_models, serving


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance of scale w: the law ``q^(1-w) q(.|condition)^w``; 1 is plainly conditional."""

    scale: float


def condition(
    what: Any,
    evidence: Any,
    method: str = "auto",
    *,
    start: Any = None,
    steps: int | None = None,
    particles: int | None = None,
    seed: int = 0,
    **options: Any,
) -> Any:
    """Condition a denoiser on guidance, or a model on observations.

    Args:
        what: a `Denoiser`, or a model (`StateSpace`, `SDE`, `Tree`, ...).
        evidence: `Guidance` about a denoiser; `Observed` about a model.
        method: "auto" (exact where the model is linear-Gaussian or finite, else guided particles), or a word:
            "exact", "extended", "unscented", "bootstrap", "guided", ...; an unknown word names the known ones.
        start: a known state at the model's start, where the model has no prior.
        steps: of an Euler grid between consecutive times.
        particles: how many, for the methods that have them (1,000 by default).
        seed: of the particles.
        options: of the method.

    Returns:
        a denoiser that every plan runs unchanged, and that carries the weights which keep a population right; or
        a `Conditioned` model with ``filter``, ``smooth``, ``sample``, ``log_evidence``, ``exact``.

    >>> import torch
    >>> from retrodict.inference import Observed, StateSpace
    >>> from retrodict.kernels import Gaussian, LinearGaussian
    >>> walk = StateSpace(Gaussian(0.0, 1.0), LinearGaussian(1.0, 0.0, 0.5), LinearGaussian(1.0, 0.0, 1.0))
    >>> post = condition(walk, Observed([0.3, float("nan"), 1.1]))
    >>> post.exact, tuple(post.smooth().mean.shape)
    (True, (1, 3, 1))
    """
    if isinstance(what, Denoiser):
        if method != "auto":
            raise InputError(f"a denoiser is conditioned in one way; got method={method!r}")
        if isinstance(evidence, Guidance):
            return Guided(what, evidence.scale)
        raise InputError(f"evidence about a denoiser is Guidance(scale); got {type(evidence).__name__}")
    if not serving(type(what)):
        raise InputTypeError(f"condition takes a Denoiser or a model ({known_models()}), got {type(what).__name__}")
    given = {"start": start, "steps": steps, "particles": particles, "seed": seed, **options}
    return condition_model(what, evidence, method, given)
