"""Editing as one recursion on what is added to the data: the delta form.

The result of an edit is ``x0 + delta`` with delta = 0 at the start of the run backward.  At each level t the datum is
noised afresh, ``x_t = alpha_t x0 + sigma_t eps_t``, the edited state stands beside it at ``x_t + alpha_t delta``, and
with D the posterior mean on the way from t to r

    delta <- (1 - tau) delta + tau [ D(xh_t | source) - D(x_t | source) + w (D(xh_t | target) - D(xh_t | source)) ]

    1 - tau = q sqrt(1 - eta^2 (1 - q^2)),        q = (sigma_r / alpha_r) / (sigma_t / alpha_t)

The first difference carries delta to the next level as the source sees it, the second pulls it to the target.  Nothing
is inverted and no noise is stored, and the published editors are settings of it:

=================================  =============================================================================
edit-friendly inversion            w = 1 (Huberman-Spiegelglas, Kulikov and Michaeli 2024)
pseudo-guidance                    w > 1 (Deutch, Gal, Garibi, Patashnik and Cohen-Or 2024, "TurboEdit"), who noise
                                   the datum one level further down than the network is told, and bound the norm of
                                   the last noise
explicit h-transform               w, with a guidance of its own for the source in the pull (Nguyen et al. 2025)
implicit h-transform               the pull taken at the next level's noise, in K inner steps (the same)
FlowEdit                           eta = 0, w = 1 (Kulikov et al. 2024)
=================================  =============================================================================

Goals other than a class, `Potential`s, steer the target's denoiser, so that their pulls add up with the class change.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from retrodict.core.errors import InputError, require
from retrodict.core.noise import Noise
from retrodict.solvers.weights import Levels

#: ``(x, t) -> posterior mean``.
Mean = Callable[[Tensor, float], Tensor]


@dataclass(frozen=True)
class Rule:
    """A setting of the recursion.

    Attributes:
        strength: w, the weight of the pull to the target.
        eta: share of admissible noise in the steps that the recursion stands for; 1 is the DDPM posterior.
        shift: levels by which the noise of the datum runs ahead of the time that the network is told.
        implicit: take the pull at the next level, from the state that the carried delta leads to.
        inner: steps K into which an implicit pull is cut, each 1/K of it.
        anchor: pull of the inner steps after the first back to the carried delta: a step along the sign of the
            difference, this many times as long as theirs (root mean square).
        clip: bound on the root mean square, over a sample, of the noise that the last step adds to the datum's
            posterior mean, in the model's units; None is none.
    """

    strength: float = 1.0
    eta: float = 1.0
    shift: int = 0
    implicit: bool = False
    inner: int = 1
    anchor: float = 0.0
    clip: float | None = None

    def __post_init__(self) -> None:
        require(math.isfinite(self.strength), f"strength is a finite weight of the edit, got {self.strength}")
        require(0 <= self.eta <= 1, f"eta is the share of admissible noise, between 0 and 1; got {self.eta}")
        for name, least in (("shift", 0), ("inner", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise InputError(f"{name} is an integer of at least {least}, got {value!r}")
        require(self.implicit or self.inner == 1, f"inner={self.inner}: only 'h-edit' takes inner steps")
        require(
            self.anchor == 0 or (self.inner > 1 and self.anchor > 0),
            f"anchor is at least 0 and holds inner steps after the first; got anchor={self.anchor}, inner={self.inner}",
        )
        require(self.clip is None or self.clip > 0, f"clip is a positive root mean square, or None; got {self.clip}")


@dataclass(frozen=True)
class Terms:
    """The denoisers of an edit; ``reference`` is what the target is compared with, mostly ``source`` itself."""

    source: Mean
    target: Mean
    reference: Mean


def edit_delta(
    x0: Tensor,
    terms: Terms,
    levels: Levels,
    noise: Noise,
    rule: Rule,
    mask: Tensor | None = None,
    on_step: Callable[[], None] | None = None,
) -> Tensor:
    """What an edit adds to ``x0 (batch, *shape)``, in the model's units.

    Args:
        levels: N + 1 of them, down to the clean end.
        noise: source of one normal a level.
        mask: where the datum may change, 1, and where not, 0; broadcasts with x0.
    """
    path = _Source(x0, levels, noise, rule.shift)
    delta = torch.zeros_like(x0)
    for i in range(len(levels) - 1):
        delta = _step(delta, terms, path, i, rule)
        if mask is not None:
            delta = delta * mask
        if on_step is not None:
            on_step()
    return delta


class _Source:
    """The datum at every level, under a fresh noise each."""

    def __init__(self, x0: Tensor, levels: Levels, noise: Noise, shift: int) -> None:
        self.x0, self.levels, self.noise, self.shift = x0, levels, noise, shift
        self._drawn: dict[int, Tensor] = {}

    def at(self, i: int) -> Tensor:
        """The noised datum that stands at level i."""
        if i not in self._drawn:  # levels are met in order, and the last two are all that is asked for again
            z = self.noise.normal(tuple(self.x0.shape[1:])).to(self.x0)
            j = min(i + self.shift, len(self.levels) - 1)
            self._drawn = {k: v for k, v in self._drawn.items() if k == i - 1}
            self._drawn[i] = float(self.levels.alpha[j]) * self.x0 + float(self.levels.sigma[j]) * z
        return self._drawn[i]

    def beside(self, i: int, delta: Tensor) -> Tensor:
        """The edited state at level i."""
        return self.at(i) + float(self.levels.alpha[i]) * delta

    def time(self, i: int) -> float:
        return float(self.levels.t[i])


def _step(delta: Tensor, terms: Terms, path: _Source, i: int, rule: Rule) -> Tensor:
    """From level i to the next."""
    levels = path.levels
    q = float(levels.sigma[i + 1] * levels.alpha[i] / (levels.sigma[i] * levels.alpha[i + 1]))
    tau = 1 - q * math.sqrt(1 - rule.eta**2 * (1 - q * q))
    t, x, xh = path.time(i), path.at(i), path.beside(i, delta)
    before = terms.source(x, t)
    # the clean end has no noise to take the pull at, and from a level without signal the step to it has no bound
    if rule.implicit and q > 0:
        carried = torch.lerp(delta, terms.source(xh, t) - before, tau)
        delta = _pull_ahead(carried, terms, path, i + 1, tau * rule.strength / q, rule)
    else:
        delta = torch.lerp(delta, _pull(terms, xh, t, rule.strength) - before, tau)
    if i + 2 == len(levels) and rule.clip is not None:
        delta = delta + _bounded(path.x0 - before, rule.clip)
    return delta


def _pull(terms: Terms, xh: Tensor, t: float, w: float) -> Tensor:
    """``D(xh | source) + w (D(xh | target) - D(xh | reference))``, in as few evaluations as that takes."""
    target = terms.target(xh, t)
    if terms.reference is terms.source:
        return target if w == 1 else torch.lerp(terms.source(xh, t), target, w)
    return terms.source(xh, t) + w * (target - terms.reference(xh, t))


def _pull_ahead(carried: Tensor, terms: Terms, path: _Source, i: int, size: float, rule: Rule) -> Tensor:
    """The pull at level i from the delta that was carried there: a step in the noise estimate, which is what makes its
    size tau/q."""
    delta = carried
    for k in range(rule.inner):
        xh = path.beside(i, delta)
        move = (terms.target(xh, path.time(i)) - terms.reference(xh, path.time(i))) * (size / rule.inner)
        if k and rule.anchor:
            away = torch.sign(delta - carried)
            move = move - rule.anchor * rms(move) / rms(away).clamp_min(1e-30) * away
        delta = delta + move
    return delta


def _bounded(u: Tensor, clip: float) -> Tensor:
    """What a bound on u takes off it, ``(min(1, clip/|u|) - 1) u``."""
    return ((clip / rms(u).clamp_min(1e-30)).clamp_max(1) - 1) * u


def rms(x: Tensor) -> Tensor:
    """Root mean square over each sample, shaped ``(batch, 1, ...)``."""
    return x.square().flatten(1).mean(1).sqrt().reshape(-1, *(1,) * (x.ndim - 1))
