"""``condition``: Doob's h-transform as one verb.  What comes back is again the kind of thing that was given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from retrodict.core.errors import InputError, InputTypeError
from retrodict.denoisers import Denoiser, Guided


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance of scale w: the law ``q^(1-w) q(.|condition)^w``; 1 is plainly conditional."""

    scale: float


def condition(what: Any, evidence: Any) -> Any:
    """Condition a denoiser on evidence.

    Args:
        what: a `Denoiser`.
        evidence: `Guidance`.

    Returns:
        a denoiser that every plan runs unchanged, and that carries the weights which keep a population right.
    """
    if not isinstance(what, Denoiser):
        raise InputTypeError(f"condition takes a Denoiser, got {type(what).__name__}")
    if isinstance(evidence, Guidance):
        return Guided(what, evidence.scale)
    raise InputError(f"evidence about a denoiser is Guidance(scale); got {type(evidence).__name__}")
