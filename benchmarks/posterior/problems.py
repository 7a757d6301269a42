"""Linear inverse problems whose posterior is known: two mixtures, and a kernel density estimate of digits.

P1  two dimensions, nine components on a grid of spacing 4, the first coordinate seen: three modes.
P2  eight dimensions on a plane, 25 components, one direction seen: ten modes.
KDE the digits of scikit-learn blurred by a Gaussian: 64 dimensions, one component a training image, seen through 2 x 2
    block means, or the upper half of the image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor

import retrodict as rd
from retrodict.denoisers import Denoiser
from retrodict.kernels import Belief

COVARIANCES = (
    (0.1748, -0.0796, 0.4063), (1.2568, -0.6184, 0.6024), (0.3935, 0.1857, 1.0995),
    (0.7317, 0.2043, 0.2662), (0.6339, 0.1879, 2.0104), (0.4100, 0.6205, 1.6385),
    (0.4987, -0.3311, 0.7221), (0.4786, -0.4893, 0.8856), (0.7361, -0.3066, 0.5839),
)  # fmt: skip
WEIGHTS_1 = (0.1681, 0.1485, 0.0962, 0.1667, 0.0881, 0.0869, 0.0913, 0.1078, 0.0464)
WEIGHTS_2 = (
    0.0108, 0.0218, 0.0225, 0.0186, 0.0442, 0.0141, 0.0378, 0.0544, 0.0458, 0.0402, 0.0411, 0.0289, 0.0551,
    0.0326, 0.0128, 0.0146, 0.0498, 0.0200, 0.0412, 0.0546, 0.0690, 0.0740, 0.0668, 0.0657, 0.0636,
)  # fmt: skip
SEEN_2 = (0.1221, 0.1784, 0.6439, -0.0641, -0.3364, 0.1434, -0.5361, 0.2589)


@dataclass(frozen=True)
class Problem:
    """A denoiser, what was measured, and the exact posterior.

    Attributes:
        modes: ``x (n, d) -> (n, K)``, how probable each class of the posterior is for a sample.
        exact: ``(n, seed) -> (n, d)``, exact draws; weights: of the classes.
        plan: words for `retrodict.sample`.
    """

    name: str
    denoiser: Denoiser
    A: Tensor
    y: Tensor
    noise: float
    n: int
    plan: dict[str, Any]
    modes: Any
    exact: Any
    weights: Tensor
    mean: Tensor


def _mixture(name: str, law: Any, A: Any, y: float, n: int, steps: int) -> Problem:
    A, seen = torch.tensor([A], dtype=torch.float64), torch.tensor([y], dtype=torch.float64)
    post = law.posterior(A, seen, 0.3)
    denoiser = law.denoiser(rd.VE(sigma_min=0.01, sigma_max=40.0))
    modes = lambda x: torch.softmax(post.component_log_prob(x), -1)  # noqa: E731
    plan = {"steps": steps, "grid": "karras"}
    exact = lambda m, seed: post.sample(m, seed)  # noqa: E731
    return Problem(name, denoiser, A, seen, 0.3, n, plan, modes, exact, post.weights, post.mean)


def p1() -> Problem:
    """Two dimensions."""
    means = [(4.0 * i, 4.0 * j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    law = rd.exact.GaussianMixture(WEIGHTS_1, means, [[[a, b], [b, c]] for a, b, c in COVARIANCES])
    return _mixture("P1", law, (1.0, 0.0), -4.1651, 1500, 200)


def p2() -> Problem:
    """Eight dimensions."""
    means = [(4.0 * i, 4.0 * j) * 4 for i in range(-2, 3) for j in range(-2, 3)]
    law = rd.exact.GaussianMixture(WEIGHTS_2, means, torch.full((25,), 0.5))
    return _mixture("P2", law, SEEN_2, -0.7171, 700, 120)


class KDE(Denoiser):
    """The exact denoiser of equally weighted Gaussians of one variance; matrix products, so that derivatives are cheap.

    It keeps its covariance to itself, as a network does.
    """

    def __init__(self, process: Any, atoms: Tensor, bandwidth: float) -> None:
        super().__init__(process, (atoms.shape[1],))
        self.atoms: Tensor
        self.register_buffer("atoms", atoms)
        self.variance, self.squares = bandwidth**2, (atoms**2).sum(1)

    def belief(self, x: Tensor, t: float | Tensor, **condition: Any) -> Belief:
        path: Any = self.process
        alpha, sigma = float(path.alpha(t)), float(path.sigma(t))
        total = alpha**2 * self.variance + sigma**2
        weights = torch.softmax((alpha * (x @ self.atoms.T) - 0.5 * alpha**2 * self.squares) / total, -1)
        near = weights @ self.atoms
        return Belief(near + alpha * self.variance / total * (x - alpha * near))


def kde(which: str, index: int) -> Problem:
    """Held-out digit number ``index`` under block means ("blocks") or with its lower half missing ("half")."""
    images, labels = load_digits(return_X_y=True)
    images, labels = torch.tensor(images / 8 - 1), torch.tensor(labels)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    held, atoms, classes = images[order[:8]], images[order[8:]], labels[order[8:]]
    A, h2, sd = _operator(which), 0.15**2, 0.1
    y = A @ held[index] + sd * torch.randn(len(A), generator=torch.Generator().manual_seed(index), dtype=torch.float64)
    # one covariance for all components of the posterior, so that nothing is decomposed more than once
    gain = h2 * A.T @ torch.linalg.inv(h2 * A @ A.T + sd**2 * torch.eye(len(A)))
    root = torch.linalg.cholesky(h2 * (torch.eye(64) - gain @ A))
    seen = atoms @ A.T
    means = atoms + (y - seen) @ gain.T
    spread = torch.linalg.cholesky(h2 * A @ A.T + sd**2 * torch.eye(len(A)))
    weights = torch.softmax(-0.5 * _norms(spread, y - seen), 0)
    one_hot = torch.nn.functional.one_hot(classes, 10).double()

    def modes(x: Tensor) -> Tensor:
        far = torch.cdist(_white(root, x), _white(root, means)) ** 2
        return torch.softmax(weights.clamp_min(1e-300).log() - 0.5 * far, -1) @ one_hot

    def exact(n: int, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        pick = torch.multinomial(weights, n, True, generator=generator)
        return means[pick] + torch.randn(n, 64, generator=generator, dtype=torch.float64) @ root.T

    plan = {"steps": 60, "grid": "logsnr"}
    denoiser = KDE(rd.VP(), atoms, 0.15)
    return Problem(f"KDE {which}", denoiser, A, y, sd, 64, plan, modes, exact, weights @ one_hot, weights @ means)


def _operator(which: str) -> Tensor:
    if which == "half":
        return torch.eye(64, dtype=torch.float64)[:32]
    A = torch.zeros(4, 4, 8, 8, dtype=torch.float64)
    for i in range(8):
        for j in range(8):
            A[i // 2, j // 2, i, j] = 0.25
    return A.reshape(16, 64)


def _white(root: Tensor, x: Tensor) -> Tensor:
    return torch.linalg.solve_triangular(root, x.T, upper=False).T


def _norms(root: Tensor, x: Tensor) -> Tensor:
    return (_white(root, x) ** 2).sum(1)
