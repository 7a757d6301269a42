"""Multistep solvers: exponential Adams-Bashforth in any prediction type and coordinate, and its correctors.

One generator, `multistep`, carries DDIM's descendants.  At step i it interpolates the predictions of the last p
nodes; with a corrector it first redoes the previous step with the newest prediction included.  The solvers that
users know by name are choices of its arguments:

=======================  =============================================================================
dpm-solver++             kind data, tau lambda                 (Lu et al. 2022, eq. (4.2))
dpm-solver               kind noise, tau lambda                (Lu et al. 2022)
deis                     kind noise, tau t, rho or lambda      (Zhang and Chen 2023, eq. (14))
lms                      kind noise, tau rho                   (k-diffusion)
plms, ipndm              kind noise, weights of equal steps    (Liu et al. 2022)
unipc                    kind data or noise, with a corrector  (Zhao et al. 2023, algorithm 5)
flow-ab, velocity-ab     kind flow or velocity
sde-...                  eta > 0: the SDE form, kappa = 1 + eta^2
=======================  =============================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from retrodict.core.errors import InputError, near, require
from retrodict.solvers.builder import Builder
from retrodict.solvers.registry import alias, solver
from retrodict.solvers.weights import COORDINATES, INTERPOLATION, KINDS, Rule, bh1, exact, midpoint, official, uniform

RULES: dict[str, Rule] = {"exact": exact, "heun": exact, "midpoint": midpoint, "official": official}
VARIANTS: dict[str, Rule] = {"exact": exact, "bh1": bh1, "bh2": midpoint}


def multistep(
    b: Builder,
    order: int,
    kind: str,
    tau: str | None = None,
    final: Any = "auto",
    rule: Rule = exact,
    corrector: bool | Callable[[int], bool] = False,
    first: int = 0,
    x: int = 0,
    ks: Sequence[int] = (),
) -> int:
    """Exponential Adams over the grid.

    Args:
        order: nodes of the predictor; kind, tau, rule: see `weights`; final: see `drops`.
        corrector: whether (or at which levels) to redo a step with the next node's prediction.
        first, x, ks: start at this step, from this register, with these evaluations of the levels before it.
    """
    require(isinstance(order, int) and 1 <= order <= 6, f"order is an integer from 1 to 6, got {order!r}")
    require(kind in KINDS, f"kind is one of {', '.join(KINDS)}; got {kind!r}.{near(kind, KINDS)}")
    require(
        tau is None or tau in COORDINATES,
        f"tau is one of {', '.join(COORDINATES)}; got {tau!r}.{near(str(tau), COORDINATES)}",
    )
    require(b.eta == 0 or kind in ("data", "noise"), f"eta > 0 needs kind 'data' or 'noise', got {kind!r}")
    tau, kappa = tau or INTERPOLATION[kind], 1 + b.eta**2
    drop = drops(b, final, tau)
    sizes = {i: step_size(b, i, order, kind, tau, drop) for i in range(first, b.n)}
    full = [i for i in sizes if not singular(b, i, kind, tau)]
    predictor = dict(
        zip(full, b.weights([(i, i + 1, list(range(i, i - sizes[i], -1))) for i in full], kind, tau, kappa, rule))
    )
    redo = corrector if callable(corrector) else lambda i: corrector
    redone = [
        i
        for i in range(first + 1, b.n)
        if i - 1 in predictor and usable(b, i, tau) and usable(b, i - 1, tau) and redo(i)
    ]
    nodes = {i: list(range(i, i - 1 - sizes[i - 1], -1)) for i in redone}
    corrections = dict(zip(redone, b.weights([(i - 1, i, nodes[i]) for i in redone], kind, tau, 1.0, rule)))
    noise = b.noise_std(kind, kappa) if b.eta > 0 else np.zeros(b.n)
    ks, carried = list(ks), x
    for i in range(first, b.n):
        ks.append(b.eval(x, i))  # x is the predicted state; the recursion goes on from the corrected one
        if i in corrections:
            a, w = corrections[i]
            carried = b.row(i, {carried: a}, predictions={ks[i - j]: w[j] for j in range(len(w))}, kind=kind)
        else:
            carried = x
        if i in predictor:
            a, w = predictor[i]
            x = b.row(i + 1, {carried: a}, predictions={ks[i - j]: w[j] for j in range(len(w))}, kind=kind, z=noise[i])
        else:
            x = b.frozen(carried, ks[i], i, i + 1, 1.0 if kappa == 1 else 0.0)
    return x


def singular(b: Builder, i: int, kind: str, tau: str) -> bool:
    """Whether step i cannot be written in ``kind``: from alpha = 0 in noise, or to sigma = 0 where the SDE's noise
    form or an infinite coordinate would leave something behind.  It is then the first-order row."""
    if b.levels.alpha[i] == 0 and (kind == "noise" or b.eta > 0):
        return True
    return bool(b.levels.sigma[i + 1] == 0) and (tau == "lambda" or (kind == "noise" and b.eta > 0))


def step_size(b: Builder, i: int, order: int, kind: str, tau: str, drop: bool) -> int:
    """How many nodes step i uses: the start-up ramp, the drop at the end, and levels that cannot be nodes."""
    oldest = 0
    while oldest < i and not usable(b, oldest, tau):
        oldest += 1
    m = min(order, i - oldest + 1, b.n - i if drop else order)
    return max(m, 1) if usable(b, i, tau) else 1


def usable(b: Builder, level: int, tau: str) -> bool:
    """Whether a level can be a node of a polynomial in tau."""
    return tau not in ("lambda", "rho") or b.finite(level)


def drops(b: Builder, final: Any, tau: str) -> bool:
    """Whether the order falls to one at the end, as ``final`` says.  "auto" lowers it for tau = lambda and t, if the
    last step in lambda is more than twice the mean one or ends at sigma = 0; other coordinates are finite there."""
    if isinstance(final, bool):
        return final
    require(final == "auto", f"final is True (lower the order at the end), False or 'auto'; got {final!r}")
    if tau not in ("lambda", "t"):
        return False
    lam = b.levels.lam[: b.n + 1]
    if not np.isfinite(lam[-1]):
        return tau == "lambda"
    inner = np.diff(lam[np.isfinite(lam)])
    return bool(len(inner) and inner[-1] > 2 * inner.mean())


def chosen(table: Mapping[str, Rule], name: str, word: str) -> Rule:
    """A rule by name."""
    if name not in table:
        raise InputError(f"{word} is one of {', '.join(table)}; got {name!r}.{near(name, table)}")
    return table[name]


def _with_corrector(options: Mapping[str, Any]) -> float:
    """Declared order: the number of nodes, and one more with a corrector."""
    return float(options["order"]) + (1.0 if options.get("corrector") else 0.0)


def _plain_order(options: Mapping[str, Any]) -> float:
    """Declared order of multistep weights: the published third order reaches second only."""
    return float(min(options["order"], 2) if options.get("weights") == "official" else options["order"])


_ROTATING = {
    "constant": "under a constant denoiser the velocity turns with the angle; standard normal data, whose velocity is "
    "zero, are integrated exactly instead"
}
_NOISE_FORM = {"variance": "the noise form of the SDE keeps the marginal variance to O(h^2) only"}


@solver(
    "adams",
    order=_with_corrector,
    eta="share",
    claims=("constant", "variance", "order"),
    without=_NOISE_FORM | _ROTATING,
)
def adams(
    b: Builder, order: int = 2, kind: str = "data", tau: str | None = None, corrector: bool = False, final: Any = "auto"
) -> int:
    """Exponential Adams-Bashforth(-Moulton) in a prediction type and an interpolation coordinate.

    Args:
        order: nodes of the predictor, 1 to 6.
        kind: "data", "noise", "flow" or "velocity".
        tau: "lambda", "rho", "flow", "angle" or "t"; None is the kind's own.
        corrector: redo each step with the next node's prediction (no extra evaluations; order + 1).
        final: True lowers the order to one over the last steps, False keeps it, "auto" decides from the grid.
    """
    require(b.eta == 0 or not corrector, "a corrector needs eta = 0: it would reuse the noise of its step")
    return multistep(b, order, kind, tau, final, corrector=corrector)


@solver("dpm-solver++", "dpm++", order=_plain_order)
def dpm_solver_plus(b: Builder, order: int = 2, weights: str = "exact", final: Any = "auto") -> int:
    """DPM-Solver++ multistep (Lu et al. 2022): data prediction in log-SNR.

    Args:
        order: 1 to 3 as published; up to 6 here.
        weights: "exact"; "midpoint" (the usual 2M) or "heun" (exact at order 2) for two nodes; "official": as
            published and shipped everywhere, where the third order has half of its second difference and is second.
        final: lower the order at the end (True, False, "auto").
    """
    return multistep(b, order, "data", final=final, rule=chosen(RULES, weights, "weights"))


@solver("sde-dpm-solver++", order=_plain_order, eta="share", default_eta=1.0, claims=("constant", "variance", "order"))
def sde_dpm_solver_plus(b: Builder, order: int = 2, weights: str = "exact", final: Any = "auto") -> int:
    """SDE-DPM-Solver++ (Lu et al. 2022, appendix) at any eta: `dpm-solver++` on the SDE of kappa = 1 + eta^2."""
    return multistep(b, order, "data", final=final, rule=chosen(RULES, weights, "weights"))


@solver("dpm-solver", order=_plain_order)
def dpm_solver(b: Builder, order: int = 2, weights: str = "exact", final: Any = "auto") -> int:
    """DPM-Solver multistep (Lu et al. 2022): noise prediction in log-SNR; options as for 'dpm-solver++'."""
    return multistep(b, order, "noise", final=final, rule=chosen(RULES, weights, "weights"))


@solver("dpm-solver-sde", order=_plain_order, eta="share", default_eta=1.0, without=_NOISE_FORM)
def dpm_solver_sde(b: Builder, order: int = 2, weights: str = "exact", final: Any = "auto") -> int:
    """SDE-DPM-Solver: the noise form of the SDE; prefer 'sde-dpm-solver++', which keeps the variance."""
    return multistep(b, order, "noise", final=final, rule=chosen(RULES, weights, "weights"))


@solver("deis", order=lambda options: options["degree"] + 1.0, grid="quadratic")
def deis(b: Builder, degree: int = 2, variant: str = "tab", final: Any = False) -> int:
    """DEIS (Zhang and Chen 2023): noise prediction, a polynomial of ``degree`` in time ("tab"), in sigma/alpha
    ("rhoab") or in its logarithm ("logrho", which diffusers implements)."""
    coordinates = {"tab": "t", "rhoab": "rho", "logrho": "lambda"}
    if variant not in coordinates:
        raise InputError(f"variant is one of {', '.join(coordinates)}; got {variant!r}.{near(variant, coordinates)}")
    require(isinstance(degree, int) and 0 <= degree <= 5, f"degree is an integer from 0 to 5, got {degree!r}")
    return multistep(b, degree + 1, "noise", coordinates[variant], final)


@solver("lms", order=lambda options: float(options["order"]), grid="karras")
def lms(b: Builder, order: int = 4, final: Any = False) -> int:
    """Linear multistep in sigma/alpha (k-diffusion): DEIS "rhoab" under its other name."""
    return multistep(b, order, "noise", "rho", final)


@solver("unipc", order=lambda options: options["order"] + 1.0)
def unipc(
    b: Builder,
    order: int = 2,
    variant: str = "bh2",
    kind: str = "data",
    disable_corrector: Sequence[int] = (),
    final: Any = "auto",
) -> int:
    """UniPC (Zhao et al. 2023): a predictor of ``order`` and a corrector that costs no evaluation; order + 1.

    Args:
        variant: "bh1" or "bh2" as published, "exact" weights throughout; they differ in rows of two nodes only.
        kind: "data" or "noise".
        disable_corrector: steps whose result is not corrected, counted from 0.
        final: lower the order at the end (True, False, "auto").
    """
    require(kind in ("data", "noise"), f"kind is 'data' or 'noise', got {kind!r}")
    skip = {int(i) for i in disable_corrector}
    return multistep(b, order, kind, None, final, chosen(VARIANTS, variant, "variant"), lambda i: i - 1 not in skip)


@solver(
    "velocity-ab", order=lambda options: float(options["order"]), grid="angle", claims=("order",), without=_ROTATING
)
def velocity_ab(b: Builder, order: int = 2, final: Any = "auto") -> int:
    """Adams-Bashforth of the velocity on the angle theta = atan(sigma/alpha): finite at both ends of time.

    Its first order is Euler's method in theta, not DDIM: it is exact for standard normal data rather than for a
    constant denoiser.
    """
    return multistep(b, order, "velocity", None, final)


def _pseudo_order(options: Mapping[str, Any]) -> float:
    """Weights of equal steps are second order at best where steps are not equal in sigma/alpha."""
    return float(min(options["order"], 2))


@solver("plms", "ipndm", order=_pseudo_order, grid="uniform")
def plms(b: Builder, order: int = 4, warmup: str = "ramp") -> int:
    """Pseudo linear multistep: PLMS, iPNDM, PNDM (Liu et al. 2022).

    Adams-Bashforth weights of equal steps, whatever the steps are: second order unless they are equal in sigma/alpha.

    Args:
        order: 1 to 4.
        warmup: "ramp" (orders 1, 2, 3, ...), "heun" (S-PNDM: one step of two evaluations) or "runge-kutta"
            (F-PNDM: three steps of four evaluations).
    """
    require(isinstance(order, int) and 1 <= order <= 4, f"order is an integer from 1 to 4, got {order!r}")
    warmups = {"ramp": (0, 0), "heun": (1, 2), "runge-kutta": (3, 4)}
    if warmup not in warmups:
        raise InputError(f"warmup is one of {', '.join(warmups)}; got {warmup!r}.{near(warmup, warmups)}")
    steps, stages = warmups[warmup]
    x, ks = 0, []
    for i in range(min(steps, b.n)):
        if b.levels.sigma[i + 1] == 0 or b.levels.alpha[i] == 0:  # no noise to be had at one end of this step
            ks.append(b.eval(x, i))
            x = b.frozen(x, ks[-1], i, i + 1)
            continue
        first, x = _pseudo_runge_kutta(b, x, i, stages)
        ks.append(first)
    return multistep(b, order, "noise", "rho", False, uniform, first=len(ks), x=x, ks=ks)


def _pseudo_runge_kutta(b: Builder, x: int, i: int, stages: int) -> tuple[int, int]:
    """A starting step of PNDM: stages of Heun's or the classical method, each a DDIM transfer of the same state with
    the previous stage's noise.  Returns the first evaluation, which alone enters the history, and the new state."""
    L = b.levels
    middle: Any = b.add_levels(b.path.log_snr((L.t[i] + L.t[i + 1]) / 2).numpy()[None])[0] if stages == 4 else None
    ks = [b.eval(x, i)]
    for level in ([middle, middle] if stages == 4 else []) + [i + 1]:
        ks.append(b.eval(_transfer(b, x, i, level, {ks[-1]: 1.0}), level))
    shares = dict(zip(ks, [1 / 6, 1 / 3, 1 / 3, 1 / 6] if stages == 4 else [0.5, 0.5]))
    return ks[0], _transfer(b, x, i, i + 1, shares)


def _transfer(b: Builder, x: int, s: int, t: int, shares: Mapping[int, float]) -> int:
    """DDIM from level s to t with a weighted mean of noise predictions."""
    L = b.levels
    a, width = L.alpha[t] / L.alpha[s], L.sigma[t] - L.alpha[t] / L.alpha[s] * L.sigma[s]
    return b.row(t, {x: a}, predictions={k: width * share for k, share in shares.items()}, kind="noise")


alias("dpm++2m", "dpm-solver++", order=2, weights="midpoint")
alias("dpm++3m", "dpm-solver++", order=3)
alias("dpm++2m-sde", "sde-dpm-solver++", order=2, weights="midpoint")
alias("dpm++3m-sde", "sde-dpm-solver++", order=3)
