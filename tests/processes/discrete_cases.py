"""Discrete processes with their forward generators written out, for tests by enumeration."""

from __future__ import annotations

import numpy as np
import torch

from retrodict.processes import Blackout, FiniteJump, Masked, Uniform, birth_death
from retrodict.processes.discrete import Discrete

_RANDOM = torch.tensor(
    [[-1.1, 0.4, 0.7, 0.0], [0.2, -0.9, 0.3, 0.4], [0.5, 0.1, -0.6, 0.0], [0.0, 1.3, 0.2, -1.5]], dtype=torch.float64
)
CASES: dict[str, Discrete] = {
    "masked": Masked(3),
    "masked-cosine": Masked(3, "cosine"),
    "uniform": Uniform(4),
    "uniform-exponential": Uniform(3, "exponential", 6.0),
    "birth-death": FiniteJump(birth_death([1.0, 0.5, 2.0], [2.0, 1.0, 1.0])),
    "any-generator": FiniteJump(_RANDOM, "cosine"),
    "table": Uniform(2, [1.0, 0.9, 0.5, 0.2, 0.0]),
    "blackout": Blackout(6, rate=4.0),
    "blackout-linear": Blackout(5, schedule="linear"),
}


def generator(process: Discrete, t: float) -> np.ndarray:
    """The forward generator at t, per unit of t, from the definition of each process."""
    step = 1e-6
    speed = -float(process.keep(t + step).log() - process.keep(t - step).log()) / (2 * step)
    K = process.classes
    if isinstance(process, Masked):
        Q = np.zeros((K, K))
        Q[:-1, -1] = 1.0
    elif isinstance(process, Uniform):
        Q = np.full((K, K), 1 / K)
    elif isinstance(process, Blackout):
        Q = np.diag(np.arange(1.0, K), -1)
    else:
        assert isinstance(process, FiniteJump)
        Q = process.Q.numpy().copy()
        values = np.linalg.eigvals(Q).real
        Q = Q / np.sort(-values)[1]
    np.fill_diagonal(Q, 0.0)
    np.fill_diagonal(Q, -Q.sum(1))
    return speed * Q


def law(process: Discrete) -> torch.Tensor:
    """A law of x0 with no symmetry, ``(vocabulary,)``."""
    p = torch.linspace(1.0, 3.0, process.vocabulary, dtype=torch.float64) ** 2
    p[1] *= 0.4
    return p / p.sum()


def states(process: Discrete) -> torch.Tensor:
    """Every state of one coordinate, ``(classes, 1)``."""
    return torch.arange(process.classes)[:, None]


def transition(process: Discrete, t: float) -> torch.Tensor:
    """``q_t(x | v)`` as ``(vocabulary, classes)``, from the process' own likelihood."""
    return process.log_likelihood(states(process), t)[:, 0].exp().T
