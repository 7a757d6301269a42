"""What the solver tests share: mixtures that are written down, processes, and the options of each solver."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

import retrodict as rd
from retrodict.denoisers import Denoiser
from retrodict.exact import GaussianMixture
from retrodict.processes import GaussianPath, Process
from retrodict.solvers.cascade import Cascade

#: Three isotropic components of standard deviation about .8.
M8 = GaussianMixture(
    [0.2861, 0.4715, 0.2424],
    [[0.5884, -0.3353], [-0.4793, -1.8076], [1.5667, -0.9498]],
    [0.4963**2, 0.6136**2, 0.9542**2],
)

#: Five narrower components; the mixture on which `auto` is judged.
FRONTIER = GaussianMixture(
    [0.30, 0.20, 0.20, 0.15, 0.15],
    [[1.2, 0], [-0.8, 0.9], [-0.8, -0.9], [0.3, 1.6], [0.4, -1.5]],
    [0.25**2, 0.35**2, 0.30**2, 0.20**2, 0.40**2],
)


#: The components of `M8` narrower, all of them and mostly the first: what is extrapolated between under guidance.
PAIR = tuple(
    GaussianMixture(w, M8.means, [0.3102**2, 0.3835**2, 0.5964**2]) for w in (M8.weights, [0.9362, 0.0466, 0.0171])
)


def digits(n: int) -> Tensor:
    """n pictures ``(n, 64)`` in [-1, 1], in an order of no meaning (they are sorted by writer)."""
    from sklearn.datasets import load_digits

    pictures = torch.from_numpy(load_digits(return_X_y=True)[0]) / 8 - 1
    return pictures[torch.randperm(1797, generator=torch.Generator().manual_seed(0))][:n]


class Blurred(Denoiser):
    """The exact denoiser of data, each blurred by .15: a mixture of as many components, by matrix products."""

    blur2 = 0.15**2

    def __init__(self, data: Tensor, process: Process, conditions: dict[str, Any] | None = None) -> None:
        super().__init__(process, (data.shape[1],), conditions)
        self.data = data

    def forward(self, x: Tensor, t: Any, **condition: Any) -> Tensor:
        process: Any = self.process
        alpha, sigma = (c(torch.as_tensor(t).double()).reshape(-1, 1) for c in (process.alpha, process.sigma))
        v = alpha**2 * self.blur2 + sigma**2
        mean = torch.softmax(-0.5 * self.squares(x, alpha) / v + self.evidence(**condition), 1) @ self.data
        return (sigma**2 * mean + alpha * self.blur2 * x) / v

    def squares(self, x: Tensor, alpha: Tensor | float = 1.0) -> Tensor:
        """``|x - alpha x_i|^2`` for every datum, ``(batch, len(data))``."""
        own = x.square().sum(1, keepdim=True)
        return own - 2 * alpha * (x @ self.data.T) + alpha**2 * self.data.square().sum(1)

    def evidence(self, **condition: Any) -> Any:
        """Log weights of the data given conditions, ``(batch, len(data))``."""
        return 0.0

    def log_level(self, y: Tensor, sigma: Tensor) -> Tensor:
        """Log densities of the law blurred further by each level, ``(batch, len(sigma))``, up to one constant."""
        v, squares = self.blur2 + sigma**2, self.squares(y)
        half = y.shape[1] / 2
        return torch.stack([torch.logsumexp(-0.5 * squares / w, 1) - half * w.log() for w in v], 1)

    def sample(self, n: int, seed: int) -> Tensor:
        """Draws of the law."""
        g = torch.Generator().manual_seed(seed)
        own = self.data[torch.randint(len(self.data), (n,), generator=g)]
        return own + self.blur2**0.5 * torch.randn(own.shape, generator=g, dtype=own.dtype)


def interpolant() -> GaussianPath:
    """The bridge of Brownian motion between two data sets: no noise at either end."""
    return GaussianPath(lambda t: 1 - t, lambda t: (t * (1 - t)).sqrt(), lambda t: t)


ONE_ENDED: dict[str, Process] = {
    "vp-linear": rd.VP("linear"),
    "vp-cosine": rd.VP("cosine"),
    "vp-scaled-linear": rd.VP("scaled-linear"),
    "ddpm-table": rd.DDPM(),
    "subvp": rd.SubVP(),
    "ve": rd.VE(),
    "edm": rd.EDM(),
    "rectified-flow": rd.RectifiedFlow(),
}

#: Solver options beside the defaults; "eta" is the plan's, "lacks" names claims that these options give up.
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "adams": [
        {"order": 3, "kind": "noise"},
        {"order": 4, "kind": "flow"},
        {"order": 2, "kind": "velocity", "corrector": True, "lacks": ("constant",)},
        {"order": 3, "corrector": True},
        {"order": 3, "kind": "noise", "corrector": True, "tau": "rho"},
        {"order": 2, "tau": "angle"},
        {"order": 2, "tau": "t"},
        {"order": 2, "eta": 0.6},
        {"order": 3, "eta": 1.0},
        {"order": 2, "kind": "noise", "eta": 1.0, "lacks": ("variance",)},
    ],
    "bdia": [
        {"gamma": 0.5},
        {"form": "edm"},
        {"transfer": "heun", "gamma": 0.5},
        {"transfer": "heun", "form": "edm"},
    ],
    "ddim": [{"eta": 0.5}, {"eta": 1.0}],
    "ddpm": [{"variance": "large", "lacks": ("variance",)}],
    "deis": [{"variant": "rhoab", "degree": 3}, {"variant": "logrho"}, {"final": True}],
    "dpm-solver": [
        {"order": 1},
        {"order": 2, "weights": "midpoint"},
        {"order": 3},
        {"order": 3, "weights": "official"},
    ],
    "dpm-solver++": [
        {"order": 1},
        {"order": 2, "weights": "midpoint"},
        {"order": 3},
        {"order": 3, "weights": "official"},
    ],
    "sde-dpm-solver++": [{"order": 1}, {"order": 2, "weights": "midpoint"}, {"order": 3}, {"eta": 0.3}],
    "dpm-solver++-2s": [{"weights": "exact"}, {"nodes": "grid"}],
    "dpm-solver++-3s": [{"nodes": "grid"}],
    "dpm-solver-v3": [
        {"order": 3},
        {"order": 1},
        {"corrector": False},
        {"order": 3, "pseudo": True, "corrector": "pseudo"},
    ],
    "edm": [{"s_churn": 0.0}, {"s_noise": 1.05, "lacks": ("variance", "order")}],
    "euler-ancestral": [{"eta": 0.5}],
    "euler-maruyama": [{"eta": 0.5}],
    "flow-sde": [{"epsilon": lambda t: 1 + t}, {"eta": 0.4}],
    "ghvb": [{"weights": "exact"}, {"order": 3, "beta": 0.5, "weights": "exact", "tau": "rho"}],
    "hb": [{"kind": "data", "weights": "midpoint", "order": 2}, {"beta": 0.5, "weights": "exact"}],
    "restart": [
        {"intervals": ((0.3, 2.0, 3, 4),), "inner": "ddim"},
        {"intervals": ((0.3, 2.0, 1, 3), (0.05, 0.5, 2, 3)), "inner": "unipc"},
        {"s_noise": 1.05, "intervals": ((0.2, 2.0, 1, 3),), "lacks": ("variance",)},
    ],
    "pc": [
        {"corrections": 2},
        {"predictor": "ddim"},
        {"predictor": "none"},
        {"predictor": "reverse-diffusion", "lacks": ("constant", "variance")},
    ],
    "plms": [{"order": 2}, {"warmup": "heun"}, {"warmup": "runge-kutta"}],
    "rho-rk": [{"tableau": t} for t in ("midpoint", "kutta3", "heun3", "ralston3", "ssp3", "rk4", "bogacki-shampine")]
    + [{"kind": "velocity", "lacks": ("constant",)}, {"tableau": "midpoint", "kind": "flow"}],
    "usf": [
        {"kinds": ("noise",), "orders": (3,)},
        {"kinds": ("flow",), "taus": ("angle",), "orders": (3,), "correctors": (False,)},
        {"kinds": ("data",), "ratios": Cascade.fit({(5, 1.0): [1.1, 1.3, 0.8]})},
        {"kinds": ("velocity",), "lacks": ("constant",)},
    ],
    "unipc": [
        {"order": 1},
        {"order": 3},
        {"variant": "bh1"},
        {"variant": "exact"},
        {"kind": "noise", "order": 3},
        {"disable_corrector": (0, 2)},
    ],
}


def cases() -> list[tuple[str, dict[str, Any]]]:
    """``(solver, options)`` for every registered solver of Gaussian paths: its defaults and its variants."""
    names = sorted({entry.name for _, entry in rd.solvers.solvers.items() if not entry.discrete})
    return [(name, options) for name in names for options in [{}, *VARIANTS.get(name, [])]]


def case_id(case: tuple[str, dict[str, Any]]) -> str:
    """A readable test id."""
    name, options = case
    plain = lambda v: v if isinstance(v, (str, int, float, tuple)) else type(v).__name__  # noqa: E731
    shown = ",".join(f"{k}={plain(v)}" for k, v in options.items() if k != "lacks")
    return f"{name}({shown})" if shown else name


@cache
def starts(process_name: str, n: int = 64, dim: int = 2) -> torch.Tensor:
    """Starts at t = 1, the same in every test."""
    process: Any = ONE_ENDED[process_name]
    z = torch.randn(n, dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return z * float(process.sigma(1.0))
