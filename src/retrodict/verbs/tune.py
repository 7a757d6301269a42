"""``tune``: the best plan for one model at a budget, found on its own trajectories.

found = rd.tune(denoiser, evaluations=[5, 8], guidance=1.5, label=torch.arange(10))
found.save("plan.json")
rd.sample(denoiser, 64, plan="plan.json", label=...)
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from retrodict.core.errors import InputError, InputTypeError, near, require
from retrodict.denoisers import Denoiser, Guided
from retrodict.processes import GaussianPath
from retrodict.solvers import Plan
from retrodict.solvers.tuning import METHODS, Budget, Effort, Sets, fingerprint, teach, teacher, tune_budget
from retrodict.solvers.tuning.trajectories import load, rms
from retrodict.solvers.tuning.trajectories import save as save_trajectories
from retrodict.verbs.sample import check_denoiser, evaluating

log = logging.getLogger(__name__)

#: Evaluations of the teacher: at least so many of a network and of a closed form, and at most.
_TEACHER, _CLOSED, _MOST = 40, 160, 640
#: The teacher's error may be such a share of the best untuned plan's.
_SHARE = 0.1


@dataclass
class Tuned:
    """What `tune` returns.

    Attributes:
        budgets: the findings by number of evaluations.
        guidance: the scale that it was tuned for.
        teacher: evaluations of the teacher; teacher_error: its distance to a teacher of half as many, an upper bound
            of its own error.
    """

    budgets: dict[int, Budget]
    guidance: float
    teacher: int
    teacher_error: float
    advice: list[str] = field(default_factory=list)

    @property
    def plans(self) -> dict[int, Plan]:
        """The winning plan of each budget."""
        return {nfe: budget.plan for nfe, budget in self.budgets.items()}

    @property
    def table(self) -> list[dict[str, Any]]:
        """One row a budget: errors before and after on trajectories that had no say, their ratio with its 95% interval,
        the method that won, and whether more trajectories would help."""
        return [budget.row() for budget in self.budgets.values()]

    def save(self, path: str | Path) -> list[Path]:
        """Write ``path`` as a `Plan` file: the plan, or with several budgets that of the most evaluations, and each
        budget's beside it as ``NAME-<evaluations>.json``.  Returns the files; ``plan=path, nfe=`` picks one of them."""
        path = Path(path)
        require(path.suffix == ".json", f"a plan is a .json file, got {path.name!r}")
        path.parent.mkdir(parents=True, exist_ok=True)
        plans = self.plans
        files = [path]
        plans[max(plans)].save(path)
        if len(plans) > 1:
            for nfe, plan in plans.items():
                files.append(path.with_name(f"{path.stem}-{nfe}.json"))
                plan.save(files[-1])
        return files

    def __repr__(self) -> str:
        lines = [f"Tuned(guidance {self.guidance:g}; errors on held-out trajectories)"]
        for r in self.table:
            lines.append(
                f"  {r['evaluations']:>3} evaluations  {r['before']:.4g} ({r['start']}) -> {r['after']:.4g} "
                f"({r['method']}), ratio {r['ratio']:.2f} [{r['ratio_low']:.2f}, {r['ratio_high']:.2f}]"
            )
        return "\n".join([*lines, *(f"  {line}" for line in self.advice)])


def tune(
    denoiser: Denoiser,
    evaluations: Sequence[int] | int = (4, 5, 6, 8, 10),
    *,
    guidance: float = 1.0,
    methods: Sequence[str] = METHODS,
    trajectories: int = 1024,
    teacher_evaluations: int | None = None,
    effort: Effort | None = None,
    shape: tuple[int, ...] | None = None,
    seed: int = 0,
    cache: str | Path | None = None,
    save_memory: bool | None = None,
    progress: bool = True,
    **condition: Any,
) -> Tuned:
    """Search solvers, grids and coefficients for one model.

    A teacher of many evaluations shows where starts should end.  For each budget the best classical plan is found, and
    improved by search, compensation and free coefficients (`retrodict.solvers.tuning`); what is returned is never worse
    than that plan on the trajectories that choose, and is reported on others.

    Args:
        denoiser: on a scalar Gaussian path with one end.
        evaluations: budgets, each at least 2.
        guidance: classifier-free scale to tune for; sample with the same.
        methods: any of "search", "compensate", "free".
        trajectories: to learn from; half as many choose and half as many are reported on.
        teacher_evaluations: None doubles them until the teacher's error is a tenth of the best untuned plan's.
        effort: how long to search and descend (`Effort`).
        shape: of a sample, where the denoiser does not know it.
        seed: of every random choice; equal seeds give equal plans.
        cache: a folder where trajectories are kept for the next call.
        save_memory: compute evaluations twice rather than keep their activations; None does where a sample has more
            than 4,096 elements.
        condition: as for `sample`; tensors are repeated in turn over the trajectories, so that
            ``label=torch.arange(10)`` tunes for ten classes.

    Raises:
        InputError: another process, unknown methods or conditions, budgets or numbers out of range.
    """
    budgets = _checked(denoiser, evaluations, methods, trajectories, guidance)
    denoiser.check_condition(condition)
    shape = tuple(shape) if shape is not None else denoiser.shape
    if shape is None:
        raise InputError("this denoiser does not know the shape of a sample; pass shape=(...), without the batch axis")
    model = denoiser if guidance == 1.0 else Guided(denoiser, guidance)
    words = {"shape": shape, "seed": seed, "condition": condition}
    with evaluating(model), _frozen(model), tqdm(disable=None if progress else True, desc="tuning") as bar:

        def tell(stage: str) -> None:
            bar.set_description(stage)
            bar.update()

        nfe, gap = _teacher(model, guidance, teacher_evaluations, max(budgets), words)
        sets = _sets(model, trajectories, nfe, guidance, words, cache, tell)
        big = torch.Size(shape).numel() > 4096 if save_memory is None else save_memory
        options = {"guidance": guidance, "methods": methods, "effort": effort, "seed": seed, "save_memory": big}
        found = {}
        for budget in budgets:
            found[budget] = tune_budget(
                model, budget, sets, **options, on_progress=lambda s, b=budget: tell(f"{b} evaluations: {s}")
            )
            log.info("%d evaluations: %.4g -> %.4g", budget, found[budget].before, found[budget].after)
    return Tuned(found, guidance, nfe, gap, _advice(found, gap, trajectories))


# -- parts ----------------------------------------------------------------------------------------------------


def _checked(
    denoiser: Denoiser, evaluations: Any, methods: Sequence[str], trajectories: int, guidance: float
) -> list[int]:
    check_denoiser(denoiser, 1)
    path = denoiser.process
    if not isinstance(path, GaussianPath) or not path.scalar or len(path.ends) != 1:
        raise InputError(
            f"tuning is for scalar Gaussian paths with one end, whose plans are rows; got {type(path).__name__}"
        )
    budgets = [evaluations] if isinstance(evaluations, int) else list(evaluations)
    require(
        bool(budgets) and all(isinstance(b, int) and not isinstance(b, bool) and b >= 2 for b in budgets),
        f"evaluations are integers of at least 2, got {evaluations!r}",
    )
    if isinstance(methods, str):
        raise InputTypeError(f"methods is a list of names, got the text {methods!r}")
    for name in methods:
        require(name in METHODS, f"methods are among {', '.join(METHODS)}; got {name!r}.{near(str(name), METHODS)}")
    require(isinstance(trajectories, int) and trajectories >= 32, f"trajectories is at least 32, got {trajectories!r}")
    require(abs(guidance) < float("inf"), f"guidance is a finite scale, got {guidance}")
    return sorted(set(budgets))


def _teacher(
    model: Denoiser, guidance: float, asked: int | None, budget: int, words: dict[str, Any]
) -> tuple[int, float]:
    """``(evaluations, distance to a teacher of half as many)``."""
    if asked is not None:
        require(asked >= 2 * budget, f"a teacher makes at least twice the {budget} evaluations, got {asked}")
    probe = lambda n: teach(model, 32, teacher(model, n, guidance), **words)  # noqa: E731
    closed = not any(True for _ in model.parameters())
    nfe = asked or max(_CLOSED if closed else _TEACHER, 2 * budget)
    half, full = probe(nfe // 2), probe(nfe)
    reach = _SHARE * full.error(model, teacher(model, budget, guidance))
    gap = float(rms(full.errors(half.end)))
    # methods of second order or more: the finer run is at least four times as near
    while asked is None and gap / 4 > reach and 2 * nfe <= _MOST:
        nfe, half, full = 2 * nfe, full, probe(2 * nfe)
        gap = float(rms(full.errors(half.end)))
    return nfe, gap


def _sets(
    model: Denoiser,
    n: int,
    nfe: int,
    guidance: float,
    words: dict[str, Any],
    cache: str | Path | None,
    tell: Any,
) -> Sets:
    """The three sets, each of a seed of its own; read from the cache where it has them."""
    made = []
    plan = teacher(model, nfe, guidance)
    weights = fingerprint(model, **{**words, "guidance": guidance, "nfe": nfe}) if cache is not None else ""
    for number, (name, size) in enumerate((("train", n), ("valid", n // 2), ("test", n // 2))):
        own = {**words, "seed": 3 * words["seed"] + number}
        path = None if cache is None else Path(cache) / f"trajectories-{weights}-{name}-{size}.safetensors"
        if path is not None and path.is_file():
            kept = teach(model, 1, plan, **own)  # shared conditions are not written
            made.append(load(path, model.device, kept.shared))
            continue
        made.append(teach(model, size, plan, **own, on_batch=lambda _: tell("teacher")))
        if path is not None:
            save_trajectories(made[-1], path)
    return Sets(*made)


def _advice(found: dict[int, Budget], gap: float, trajectories: int) -> list[str]:
    lines = []
    wanting = [str(nfe) for nfe, budget in found.items() if budget.wants_more]
    if wanting:
        lines.append(
            f"more trajectories would help at {', '.join(wanting)} evaluations: errors fell further on the "
            f"{trajectories} learned from than on those held out; try trajectories={4 * trajectories}"
        )
    if gap / 4 > 0.5 * min(budget.after for budget in found.values()):
        lines.append("the teacher's own error is not small beside these; raise teacher_evaluations")
    return lines


class _frozen:
    """Parameters without gradients, for as long as it lasts: those of coefficients alone are wanted."""

    def __init__(self, model: Denoiser) -> None:
        self.wanted = [p for p in model.parameters() if p.requires_grad]

    def __enter__(self) -> None:
        for p in self.wanted:
            p.requires_grad_(False)

    def __exit__(self, *raised: object) -> None:
        for p in self.wanted:
            p.requires_grad_(True)
