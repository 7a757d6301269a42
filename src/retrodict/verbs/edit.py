"""``edit``: change what data say and keep the rest.

    made = rd.edit(denoiser, images, source=3, target=8, steps=8)
    made.x, made.distance

The recursion is `retrodict.steering.editing.delta`; here its denoisers are put together: the source's and the target's
conditions, guidance, and goals beyond a condition, which steer the target's denoiser.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from retrodict.core.errors import InputError, InputTypeError, NonFiniteError, require
from retrodict.core.noise import KeyedNoise
from retrodict.data.scaling import stretch
from retrodict.denoisers import Denoiser, Guided
from retrodict.processes import GaussianPath
from retrodict.solvers.grids import Times, as_grid, make_levels
from retrodict.solvers.weights import Levels
from retrodict.steering.editing import Edited, Mean, Rule, Terms, edit_delta
from retrodict.steering.editing import region as find_region
from retrodict.steering.editing import rule as rule_of
from retrodict.steering.potential import Potential
from retrodict.steering.steered import Steered
from retrodict.verbs.conditions import over_samples
from retrodict.verbs.sample import check_denoiser, evaluating


@torch.no_grad()
def edit(
    denoiser: Denoiser,
    images: Tensor,
    source: Any = None,
    target: Any = None,
    *,
    goals: Potential | Sequence[Potential] = (),
    steps: int | None = None,
    method: str = "auto",
    guidance: float | Sequence[float] = 1.0,
    mask: Tensor | float | None = None,
    start: float = 1.0,
    grid: Any = None,
    seed: int = 0,
    batch_size: int | None = None,
    progress: bool = True,
    **options: Any,
) -> Edited:
    """Edit data: away from what ``source`` says of them, to what ``target`` and ``goals`` say.

    Args:
        denoiser: a model of the data on a Gaussian path with one clean end.
        images: data ``(n, *shape)`` in the user's units; one datum ``(*shape)`` is a batch of one.
        source, target: conditions, as a dict, or the value of the only one (or of "label"); a tensor or list of length
            n is per sample.  ``source=None`` makes no claim: the unconditional denoiser.  ``target=None`` is the
            source's, where goals alone say what to change.
        goals: `Potential`s (measurements, rewards) that pull beside the class change; their drifts add up.
        steps: levels that are visited (20 by default); grid: their spacing ("uniform" by default), or times.
        method: "auto", "edit-friendly", "turbo", "h-edit", "h-edit-explicit" or "flow".
        guidance: classifier-free guidance scale, for both; or a pair (source, target); or a third for the source in
            the pull, as the target is compared with it.
        mask: where data may change: 1 and 0, or soft, broadcasting with a datum or the batch; what is kept is kept to
            the bit.  A number in (0, 1) lets that share of each datum change, where source and target disagree most.
        start: the time at which the edit begins: 1 changes most, and what is decided above ``start`` is kept.
        seed: keys the noise of sample i by (seed, i); batch_size: how many samples run at once.
        options: of the method: strength, eta, shift, inner, anchor, clip (`retrodict.steering.editing.delta.Rule`).

    Returns:
        `Edited`.

    Raises:
        InputError: words and shapes that do not meet, before any evaluation; NonFiniteError: an edit that overflowed.
    """
    check_denoiser(denoiser, 1)
    setting = rule_of(method, options)
    _check_process(denoiser)
    x = _data(denoiser, images)
    levels = _levels(denoiser, steps, grid, start)
    wanted = [goals] if isinstance(goals, Potential) else list(goals)
    if target is None and not wanted:
        raise InputError("nothing to change: give target=, the condition to reach, or goals=; target={} is no class")
    before = _condition(denoiser, source, len(x), "source")
    after = before if target is None else _condition(denoiser, target, len(x), "target")
    region: Any = _region(mask, x)
    size = _batch_size(batch_size, len(x))
    editor = _Editor(denoiser, (before, after), _scales(guidance), wanted, levels, setting, seed)
    x0 = (x if denoiser.scale is None else denoiser.scale(x)).to(denoiser.device, denoiser.dtype)
    chunks = torch.arange(len(x)).split(size)
    total = len(chunks) * (len(levels) - 1)
    with evaluating(denoiser), tqdm(total=total, disable=None if progress else True, desc="editing") as bar:
        made = [editor.run(x0, index, region, lambda: bar.update()) for index in chunks]
    delta = stretch(denoiser.scale, torch.cat([part for part, _ in made])).to(x)
    used = torch.cat([m for _, m in made if m is not None]).to(x) if isinstance(region, float) else region
    nfe, passes = editor.nfe // len(chunks), editor.passes // len(chunks)
    name = "edit-friendly" if method == "auto" else method
    return Edited(x + delta, x, delta, used, name, setting, tuple(levels.t.tolist()), nfe, passes)


class _Editor:
    """The denoisers of an edit and what they were asked."""

    def __init__(
        self,
        denoiser: Denoiser,
        conditions: tuple[dict[str, Any], dict[str, Any]],
        scales: tuple[float, float, float],
        goals: Sequence[Potential],
        levels: Levels,
        setting: Rule,
        seed: int,
    ) -> None:
        self.process: Any = denoiser.process
        self.before, self.after = conditions
        self.levels, self.setting, self.seed = levels, setting, seed
        self.source, target, self.reference = (denoiser if w == 1 else Guided(denoiser, w) for w in scales)
        self.weights = [1 if w == 1 else 2 for w in scales]  # network passes an evaluation
        self.target = Steered(target, goals) if goals else target
        self.same = scales[0] == scales[2]
        self.nfe = self.passes = 0

    def run(self, x0: Tensor, index: Tensor, region: Any, on_step: Callable[[], Any]) -> tuple[Tensor, Tensor | None]:
        """What is added to the samples ``index``, and the mask that held it."""
        terms = self._terms(index)
        x0 = x0[index.to(x0.device)]
        noise = KeyedNoise(self.seed, index.numpy(), dtype=x0.dtype, device=x0.device)
        mask = None
        if isinstance(region, float):
            mask = find_region(x0, terms, self.process, noise.stream("region"), region)
        elif region is not None:
            mask = (region[index] if len(region) > 1 else region).to(x0)
        return edit_delta(x0, terms, self.levels, noise.stream("levels"), self.setting, mask, on_step), mask

    def _terms(self, index: Tensor) -> Terms:
        before, after = (
            {k: v[index.to(v.device)] if isinstance(v, Tensor) else v for k, v in c.items()}
            for c in (self.before, self.after)
        )
        source = self._mean(self.source, before, self.weights[0])
        reference = source if self.same else self._mean(self.reference, before, self.weights[2])
        return Terms(source, self._mean(self.target, after, self.weights[1]), reference)

    def _mean(self, denoiser: Denoiser, condition: dict[str, Any], passes: int) -> Mean:
        def mean(x: Tensor, t: float) -> Tensor:
            self.nfe, self.passes = self.nfe + 1, self.passes + passes
            out = denoiser(x, t, **condition)
            if not bool(torch.isfinite(out).all()):
                raise NonFiniteError(
                    f"the posterior mean at t = {t:g} is not finite: weaken the edit or take more steps"
                )
            return out

        return mean


# -- checks ---------------------------------------------------------------------------------------------------


def _check_process(denoiser: Denoiser) -> None:
    path = denoiser.process
    if not isinstance(path, GaussianPath) or not path.scalar or len(path.ends) != 1:
        raise InputError(
            f"editing needs a Gaussian path with scalar coefficients and one clean end, got {path!r}; "
            "discrete states and paths between two data sets have no offset to edit"
        )


def _data(denoiser: Denoiser, x: Tensor) -> Tensor:
    """The data as a batch of real numbers."""
    if not isinstance(x, Tensor):
        raise InputTypeError(f"images are a tensor (n, *shape), got {type(x).__name__}")
    shape = denoiser.shape
    x = x if x.is_floating_point() else x.to(denoiser.dtype)
    if shape is not None and tuple(x.shape) == tuple(shape):
        x = x.unsqueeze(0)
    require(
        x.ndim > 1 and len(x) > 0 and (shape is None or tuple(x.shape[1:]) == tuple(shape)),
        f"images have shape {tuple(x.shape)}; data of this denoiser are (n, {', '.join(map(str, shape or ('...',)))})",
    )
    require(bool(torch.isfinite(x).all()), "images have NaN or infinity")
    return x


def _levels(denoiser: Denoiser, steps: int | None, grid: Any, start: float) -> Levels:
    chosen = as_grid("uniform" if grid is None else grid)
    if isinstance(chosen, Times):
        n = len(chosen.values) - 1
        require(steps in (None, n), f"the grid gives {n + 1} times, so {n} steps; leave out steps")
        require(start == 1.0, "times say where the edit starts: leave out start")
        require(bool(chosen.values) and chosen.values[-1] == 0, "times of an edit end at 0, the datum")
    else:
        n = 20 if steps is None else steps
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise InputError(f"steps is an integer of at least 1, got {n!r}")
        require(0 < start <= 1, f"start is a time in (0, 1], got {start}")
    return make_levels(chosen, denoiser.process, n, start)


def _scales(guidance: float | Sequence[float]) -> tuple[float, float, float]:
    """Guidance of the source, of the target, and of the source in the pull."""
    if isinstance(guidance, (int, float)):
        scales = (float(guidance), float(guidance), float(guidance))
    else:
        values = [float(w) for w in guidance]
        if len(values) not in (2, 3):
            raise InputError(f"guidance is one scale, a pair (source, target), or three; got {len(values)}")
        scales = (values[0], values[1], values[-1] if len(values) == 3 else values[0])
    if not all(math.isfinite(w) for w in scales):
        raise InputError(f"guidance is made of finite scales, got {guidance}")
    return scales


def _condition(denoiser: Denoiser, value: Any, n: int, name: str) -> dict[str, Any]:
    """A condition as a dict, what is per sample as tensors of length n."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        known = list(denoiser.conditions)
        only = known[0] if len(known) == 1 else "label" if "label" in known else None
        if only is None:
            shown = ", ".join(known) or "none"
            raise InputError(f"{name} is a dict of conditions here, got {value!r}; this denoiser has: {shown}")
        value = {only: value}
    denoiser.check_condition(dict(value))
    return {k: over_samples(denoiser, k, v, n, name) for k, v in value.items()}


def _region(mask: Any, x: Tensor) -> Tensor | float | None:
    """A mask ``(1 or n, *shape)``, a share, or nothing."""
    if mask is None:
        return None
    if isinstance(mask, (int, float)) and not isinstance(mask, bool):
        require(0 < mask < 1, f"a mask that is a number is the share to change, between 0 and 1; got {mask}")
        return float(mask)
    mask = torch.as_tensor(mask).to(x)
    event = tuple(x.shape[1:])
    try:
        full = torch.broadcast_shapes(tuple(mask.shape), (1, *event))
    except RuntimeError:
        full = ()
    if full not in ((1, *event), tuple(x.shape)):
        raise InputError(f"a mask of shape {tuple(mask.shape)} does not fit data of shape {tuple(x.shape)}")
    require(bool(((mask >= 0) & (mask <= 1)).all()), "a mask lies between 0, keep, and 1, may change")
    return mask.expand(full)


def _batch_size(batch_size: int | None, n: int) -> int:
    if batch_size is not None and (isinstance(batch_size, bool) or batch_size < 1):
        raise InputError(f"batch_size is at least 1, got {batch_size}")
    return batch_size or n
