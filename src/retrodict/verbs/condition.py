"""``condition``: Doob's h-transform as one verb.  What comes back is again the kind of thing that was given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from retrodict.core.errors import InputError, InputTypeError
from retrodict.denoisers import Denoiser, Guided
from retrodict.inference import condition_model
from retrodict.inference.posterior import known_models, serving
from retrodict.steering import steer


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance of scale w: the law ``q^(1-w) q(.|condition)^w``; 1 is plainly conditional.

    ``interval``, ``rescale`` and ``negative`` as in `retrodict.denoisers.Guided`.
    """

    scale: float
    interval: tuple[float, float] | None = None
    rescale: float = 0.0
    negative: dict[str, Any] | None = None


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
    """Condition a denoiser on goals, or a model on observations.

    Args:
        what: a `Denoiser`, or a model (`StateSpace`, `SDE`, `Tree`, ...).
        evidence: about a denoiser a potential (`Measurement`, ...), a list of them, or `Guidance`; `Observed` about a
            model.
        method: "auto", or a word; an unknown one names the known ones.  For measurements of a denoiser's data see
            `retrodict.steering.methods`; of a model "auto" is exact where it is linear-Gaussian or finite, and guided
            particles elsewhere.
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
        for name, value in (("start", start), ("steps", steps), ("particles", particles)):
            if value is not None:
                raise InputError(f"{name}= is for models; a conditioned denoiser takes n and steps in sample")
        if isinstance(evidence, Guidance):
            if method != "auto" or options:
                raise InputError(f"guidance is one method; got method={method!r}")
            return Guided(what, evidence.scale, evidence.interval, evidence.rescale, evidence.negative)
        return steer(what, evidence, method, **options)
    if not serving(type(what)):
        raise InputTypeError(f"condition takes a Denoiser or a model ({known_models()}), got {type(what).__name__}")
    given = {"start": start, "steps": steps, "particles": particles, "seed": seed, **options}
    return condition_model(what, evidence, method, given)
