"""Plans of steering methods that are more than a solver on a conditioned denoiser.

They are made like any plan, but stand in no registry: they mean something for conditioned denoisers only, which bring
them (`retrodict.solvers.auto.Choice`).

=============  =====================================================================================================
dps            ancestral steps, each followed by a push along ``grad |y - A D|`` (Chung et al. 2023, algorithm 1)
stsl           some pushes along the gradient of log h at each level, then a DDIM step (Rout et al. 2024)
diffpir        a share of the noise is drawn anew at each step (Zhu et al. 2023, algorithm 1)
daps           at each level a draw of x0, noised to the next (Zhang et al. 2025, algorithm 1)
replacement    measured coordinates are overwritten at each level (Song et al. 2021), with jumps back (Lugmayr et al.
               2022, algorithm 1)
ddrm           a step for each singular direction (Kawar et al. 2022)
=============  =====================================================================================================
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from retrodict.core.errors import InputError, near, require
from retrodict.solvers.builder import Builder
from retrodict.solvers.generators.first_order import retention
from retrodict.solvers.registry import Solver
from retrodict.steering import calls as _calls

#: Evaluations of a conditioned denoiser where none are asked for: first-order steps whose weights vary with their size
#: want more than the high-order steps of plain generation.
EVALUATIONS = 60


def _plan(name: str, generate: Callable[..., int], grid: str = "logsnr") -> Solver:
    return Solver(name, generate, None, "always", 1.0, grid, claims=())


def _pull(b: Builder, i: int, keep: float) -> float:
    """The coefficient of D in the first-order step from level i to the next."""
    L = b.levels
    ratio = keep * L.sigma[i + 1] / L.sigma[i] if L.sigma[i] > 0 else 0.0
    return float(L.alpha[i + 1] - ratio * L.alpha[i])


def dps(b: Builder, zeta: Any = 1.0, schedule: str = "constant") -> int:
    """Ancestral steps, then ``x - zeta grad_x |y - A D|``.

    Args:
        zeta: step size, a number or one for each element of a state; schedule: "constant", or "alpha" to multiply by
            alpha_t (the code of BlindDPS).
    """
    if schedule not in ("constant", "alpha"):
        raise InputError(f"schedule is 'constant' or 'alpha', got {schedule!r}.{near(schedule, ('constant', 'alpha'))}")
    x, step = 0, np.asarray(zeta, dtype=np.float64)
    require(bool((step >= 0).all()), f"zeta is a step size of at least 0, got {zeta!r}")
    for i in range(b.n):
        k, keep = b.eval(x, i), retention(b, i, b.eta)
        size = step * (b.levels.alpha[i] if schedule == "alpha" else 1.0)
        x = b.frozen(x, k, i, i + 1, keep)
        x = b.call("push", x, k, i, i + 1, factor=(size - _pull(b, i, keep)).tolist())
    return x


def stsl(b: Builder, inner: int = 5, rate: float = 0.2, limit: float = 1.0) -> int:
    """``inner`` moves ``x + rate min(sigma, limit)^2 grad log h`` a level, then a deterministic step on D itself."""
    require(
        isinstance(inner, int) and inner >= 0, f"inner is a number of moves, an integer of at least 0; got {inner!r}"
    )
    require(rate > 0, f"rate is positive, got {rate}")
    x = 0
    for i in range(b.n):
        alpha, sigma = float(b.levels.alpha[i]), float(b.levels.sigma[i])
        for _ in range(inner):
            factor = rate * alpha * min(1.0, limit / sigma) ** 2
            x = b.call("push", x, b.eval(x, i), i, i, factor=factor)
        k = b.eval(x, i)
        x = b.frozen(x, k, i, i + 1, retention(b, i, 0.0))
        x = b.call("push", x, k, i, i + 1, factor=-_pull(b, i, retention(b, i, 0.0)))
    return x


def diffpir(b: Builder, zeta: float = 0.3) -> int:
    """``alpha D_y + sigma (sqrt(1 - zeta) eps + sqrt(zeta) z)``, eps the noise that D_y leaves in x."""
    require(0 <= zeta <= 1, f"zeta is a share between 0 and 1, got {zeta}")
    x = 0
    for i in range(b.n):
        x = b.frozen(x, b.eval(x, i), i, i + 1, (1 - zeta) ** 0.5)
    return x


def daps(b: Builder, ode: int = 1, move: str = "exact", moves: int = 100, rate: float = 0.5) -> int:
    """Draws of x0 around where the ODE from x arrives, noised to the next level.

    Args:
        ode: evaluations of the ODE from each level, Euler steps in sigma/alpha; 1 takes D.
        move: "exact" (linear operators), "langevin", "hmc" or "metropolis" (which needs no gradient of the operator).
        moves: of a chain; rate: its step relative to what the curvature admits.
    """
    require(isinstance(ode, int) and ode >= 1, f"ode is a number of evaluations of at least 1, got {ode!r}")
    if move not in _calls.MOVES:
        raise InputError(f"move is one of {', '.join(_calls.MOVES)}; got {move!r}.{near(move, _calls.MOVES)}")
    require(moves >= 1 and rate > 0, f"moves is at least 1 and rate positive, got {moves} and {rate}")
    x, steps = 0, b.n
    for i in range(steps):
        k = _arrive(b, x, i, ode)
        words = {"move": move, "moves": moves, "rate": rate, "end": bool(b.levels.sigma[i + 1] == 0)}
        x = b.call("renoise", x, k, i, i + 1, **words)
    return x


def _arrive(b: Builder, x: int, i: int, ode: int) -> int:
    """The evaluation at which the ODE from level i ends."""
    if ode == 1 or not b.finite(i):
        return b.eval(x, i)
    rho, lowest = float(np.exp(-b.levels.lam[i])), float((-b.path.log_snr(max(b.path.t_min, 0.0))).exp())
    inner = np.linspace(rho ** (1 / 7), min(lowest, rho / 2) ** (1 / 7), ode)[1:] ** 7
    lam = np.minimum(-np.log(inner), float(b.path.log_snr(max(b.path.t_min, 0.0))))
    levels = [i, *b.add_levels(lam).tolist()]
    for here, there in itertools.pairwise(levels):
        x = b.frozen(x, b.eval(x, here), here, there, 1.0)
    return b.eval(x, levels[-1])


def replacement(b: Builder, rounds: int = 1, jump: int = 1) -> int:
    """Ancestral steps with the measured coordinates overwritten; ``rounds`` times each, going back ``jump`` levels."""
    require(isinstance(rounds, int) and rounds >= 1, f"rounds is an integer of at least 1, got {rounds!r}")
    require(isinstance(jump, int) and jump >= 1, f"jump is an integer of at least 1, got {jump!r}")
    x, i = 0, 0
    while i < b.n:
        stop = min(i + jump, b.n)
        for again in range(rounds):
            if again:
                x = _back(b, x, stop, i)
            for j in range(i, stop):
                x = _overwritten(b, x, j)
        i = stop
    return x


def _overwritten(b: Builder, x: int, i: int) -> int:
    k = b.eval(x, i)
    x = b.frozen(x, k, i, i + 1, retention(b, i, b.eta))
    return b.call("replace", x, k, i, i + 1, end=bool(b.levels.sigma[i + 1] == 0))


def _back(b: Builder, x: int, low: int, high: int) -> int:
    """Forward noise from one level to a noisier one."""
    L = b.levels
    carry = L.alpha[high] / L.alpha[low]
    return b.row(high, {x: carry}, z=float(np.sqrt(max(0.0, L.sigma[high] ** 2 - (carry * L.sigma[low]) ** 2))))


def ddrm(b: Builder, eta_share: float = 0.85, eta_b: float = 1.0) -> int:
    """DDRM with its two shares of noise: eta on what was not measured, eta_b on what was."""
    require(0 <= eta_share <= 1 and 0 <= eta_b <= 1, f"shares lie between 0 and 1, got {eta_share} and {eta_b}")
    x = 0
    for i in range(b.n):
        k = b.eval(x, i)
        if i == 0:  # the start has the measurement in it
            x = b.call("replace", x, k, 0, 0)
            k = b.eval(x, 0)
        if b.levels.alpha[i] == 0:  # nothing of the data is left in the state
            x = b.frozen(x, k, i, i + 1)
            continue
        end = bool(b.levels.sigma[i + 1] == 0)
        x = b.call("ddrm", x, k, i, i + 1, eta=eta_share, eta_b=eta_b, end=end)
    return x


DPS, STSL, DIFFPIR = _plan("dps", dps), _plan("stsl", stsl), _plan("diffpir", diffpir)
DAPS, REPLACEMENT, DDRM = _plan("daps", daps, "karras"), _plan("replacement", replacement), _plan("ddrm", ddrm)
