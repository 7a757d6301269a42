"""Plans of discrete processes: the process' own step, tau-leaping, and one event at a time.

All rows depend on data.  The *step* pushes what is believed of x0 through the bridge: ancestral sampling, unmasking,
births; with remasking (`retrodict.solvers.remask`) and with correctors, which move at a fixed time without changing
the marginals.  *Tau-leaping* freezes the backward rates over a step.  *Events* draws when the state next jumps and
where to, so that no grid is seen at all.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from retrodict.core.errors import InputError, require
from retrodict.denoisers.discrete import check_sharpening
from retrodict.processes import Discrete
from retrodict.processes.jumps import Jumping
from retrodict.solvers import jump_grids, jump_rows  # noqa: F401  (they register a grid and the rows)
from retrodict.solvers.builder import Builder
from retrodict.solvers.registry import alias, solver
from retrodict.solvers.remask import Remask, as_remask
from retrodict.solvers.weights import Levels

_BELIEFS = ("auto", "mean", "gaussian", "marginal", "sample")
_OPAQUE = {
    "constant": "rows are opaque; the process' own bridge is tested instead",
    "order": "it depends on the process and on what of the belief is pushed",
    "variance": "rows are opaque; the process' own bridge is tested instead",
}
_CLEAN_HIDE = 1e-9  # events are simulated down to this forgotten share; one last step goes to the clean end


@solver("step", order=None, eta="share", grid="uniform", claims=("bridge",), ends=2, without=_OPAQUE)
def step(
    b: Builder,
    belief_as: str = "auto",
    remask: Any = None,
    corrections: int = 0,
    correction: float = 0.1,
    temperature: float = 1.0,
    top_p: float = 1.0,
) -> int:
    """The process' own reverse step: its bridge pushes the belief (any process; the default for discrete states).

    Args:
        belief_as: "mean", "gaussian", "marginal", "sample"; "auto" is the marginal law where the denoiser has one,
            else the mean.
        remask: a `Remask` schedule, its name, or None for ``eta`` times the most at every step.
        corrections: further steps at each time reached, of one evaluation each, that forget the share ``correction``
            of the most and reveal as much: a corrector that keeps the marginals.
        temperature, top_p: of the class posteriors, see `retrodict.denoisers.sharpened`.
    """
    require(belief_as in _BELIEFS, f"belief_as is one of {', '.join(_BELIEFS)}; got {belief_as!r}")
    require(
        isinstance(corrections, int) and corrections >= 0, f"corrections is an integer of at least 0: {corrections!r}"
    )
    require(0 <= correction <= 1, f"correction is a share between 0 and 1, got {correction}")
    schedule, clock = as_remask(remask, b.process), b.levels.t.copy()
    words: dict[str, Any] = {"belief_as": belief_as} | _sharpening(b, temperature, top_p)
    if schedule is not None:
        require(b.eta == 0, f"remasking says how much is forgotten: leave out eta={b.eta}")
        nan = np.full(len(clock), np.nan)
        b.levels = Levels(schedule.times(b.process, clock), nan, nan, nan)  # type: ignore[arg-type]
    require(corrections == 0 or isinstance(b.process, Discrete), "corrections of 'step' are for discrete processes")
    x, confidence = 0, None
    for i in range(b.n):
        k = b.eval(x, i)
        if schedule is not None and schedule.schedule == "conf":
            x, confidence = _confident(b, x, k, i, confidence, schedule, words)
        else:
            x = b.call("reverse-step", x, k, i, i + 1, eta=_eta(b, schedule, i, clock), **words)
        for _ in range(corrections if b.levels.t[i + 1] > 0 else 0):
            x = b.call("reverse-step", x, b.eval(x, i + 1), i + 1, i + 1, eta=float(correction), **words)
    return x


alias("ancestral", "step")


def _eta(b: Builder, schedule: Remask | None, i: int, clock: np.ndarray) -> float:
    if schedule is None:
        return b.eta
    t, s = float(b.levels.t[i]), float(b.levels.t[i + 1])
    return schedule.eta(b.process, t, s, float(clock[i]))  # type: ignore[arg-type]


def _confident(
    b: Builder, x: int, k: int, i: int, confidence: int | None, schedule: Remask, words: dict[str, Any]
) -> tuple[int, int]:
    """The step that forgets what was revealed with little confidence, and the confidences after it."""
    known = () if confidence is None else (confidence,)
    moved = b.call("confident-step", x, k, i, i + 1, more=known, amount=schedule.share, **words)
    sharp = {name: words[name] for name in ("temperature", "top_p") if name in words}
    return moved, b.call("confidence", x, k, i, i + 1, more=(moved, *known), **sharp)


@solver(
    "tau-leaping",
    order=1,
    eta="none",
    grid="uniform",
    claims=("reversal",),
    ends=2,
    without=_OPAQUE | {"order": "rows are opaque; its error under an exact posterior is measured by enumeration"},
    discrete=True,
)
def tau_leaping(b: Builder, temperature: float = 1.0, top_p: float = 1.0) -> int:
    """Tau-leaping: backward rates frozen over a step (Campbell et al. 2022, section 4.3).

    A count has Poisson births; another value jumps at most once a step.  Where rates are infinite, at a start that
    has forgotten everything, and in the last step to the clean end, the process' own step is taken.
    """
    words = _sharpening(b, temperature, top_p)
    x = 0
    for i in range(b.n):
        k = b.eval(x, i)
        t, s = float(b.levels.t[i]), float(b.levels.t[i + 1])
        if s == 0 or (isinstance(b.process, Jumping) and float(b.process.keep(t)) == 0):
            x = b.call("reverse-step", x, k, i, i + 1, eta=0.0, belief_as="auto", **words)
        else:
            x = b.call("tau-leap", x, k, i, i + 1, **words)
    return x


@solver(
    "events",
    order=None,
    eta="none",
    grid="uniform",
    claims=("reversal",),
    ends=2,
    without=_OPAQUE
    | {
        "order": "it has no time step; its law under an exact posterior is the data's",
        "reversal": "with several coordinates, masks aside, only as 'horizon' shrinks and the steps grow",
    },
    discrete=True,
)
def events(b: Builder, horizon: float | None = None, temperature: float = 1.0, top_p: float = 1.0) -> int:
    """One event at a time, each sample on its own clock: no time step, and no error from one.

    The chance to stay is known in closed form from the belief at hand, so the next event's time is drawn by inverting
    it and its place and value from the rates there.  Exact for masks (first-hitting, Zheng et al. 2024) and for
    states of one coordinate; with more coordinates the belief about each is carried to the event by Bayes' rule for
    that coordinate alone, which ``horizon`` limits: an evaluation serves at most that much of the log odds of having
    been forgotten.  The plan makes ``steps - 1`` events and then one step to the end with all that is left: ``steps`` =
    number of tokens reveals masks one by one.
    """
    process, end = b.process, float(b.levels.t[-1])
    if isinstance(process, Jumping) and float(process.keep(b.levels.t[0])) == 0:
        raise InputError(
            "infinitely many events lie before a start that has forgotten everything; use schedule='exponential', or "
            "start earlier"
        )
    require(horizon is None or horizon > 0, f"horizon is a positive change of the log odds, or None; got {horizon}")
    words = _sharpening(b, temperature, top_p)
    floor = end if end > 0 else float(process.time_at(_CLEAN_HIDE))  # type: ignore[attr-defined]
    x, clock = 0, None
    for _ in range(b.n - 1):
        k = b.eval(x, 0, clock)
        known = () if clock is None else (clock,)
        limits: dict[str, Any] = {"floor": floor} | ({} if horizon is None else {"horizon": float(horizon)}) | words
        after = b.call("event-time", x, k, 0, b.n, more=known, **limits)
        x, clock = b.call("event", x, k, 0, b.n, more=(after, *known), **limits), after
    known = () if clock is None else (clock,)
    k = b.eval(x, 0, clock)
    return b.call("reverse-step", x, k, 0, b.n, more=known, eta=0.0, belief_as="auto", **words)


alias("first-hitting", "events")


def _sharpening(b: Builder, temperature: float, top_p: float) -> dict[str, Any]:
    """The options that sharpen beliefs, none where they leave them as they are."""
    check_sharpening(temperature, top_p)
    given = {"temperature": float(temperature), "top_p": float(top_p)}
    return {name: value for name, value in given.items() if value != 1}
