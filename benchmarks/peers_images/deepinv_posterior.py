"""deepinv's posterior samplers on a Gaussian mixture seen through a matrix; the problem is JSON on standard input.

All see the exact denoiser.  Reverse-time SDEs run in units in which the data has variance one, which PiGDM takes for
granted; DiffPIR in [0, 1], to which it clips.  Prints one line of JSON: for each sampler its samples ``x (n, d)``, its
evaluations and seconds, or why it has none.
"""

from __future__ import annotations

import json
import math
import sys
import time

import torch

# torchvision's compiled operators need not match a CPU build of torch; none of them is used here
_real = torch.library.register_fake
torch.library.register_fake = lambda name, *a, **k: (
    (lambda f: f) if str(name).startswith("torchvision::") else _real(name, *a, **k)
)
import deepinv as dinv  # noqa: E402

torch.library.register_fake = _real


class Mixture(dinv.models.Denoiser):
    """``E[x0 | x]`` for ``x = x0 + sigma z`` of a mixture that is stretched and moved: x0 -> (x0 - shift)/unit."""

    def __init__(self, law: dict, unit: float, shift: float = 0.0) -> None:
        super().__init__()
        as_tensor = lambda v: torch.tensor(v, dtype=torch.float64)  # noqa: E731
        self.log_w, self.means = as_tensor(law["weights"]).log(), (as_tensor(law["means"]) - shift) / unit
        self.values, self.vectors = torch.linalg.eigh(as_tensor(law["covariances"]) / unit**2)
        self.calls = 0

    def forward(self, x, sigma, *args, **kwargs):
        self.calls += 1
        flat = x.reshape(len(x), -1).double()
        s2 = torch.as_tensor(sigma).double().reshape(-1, 1, 1) ** 2
        turned = torch.einsum("kij,bki->bkj", self.vectors, flat[:, None] - self.means)
        total = self.values + s2
        log_r = self.log_w - 0.5 * (turned**2 / total + total.log()).sum(-1)
        ends = self.means + torch.einsum("kij,bkj->bki", self.vectors, self.values / total * turned)
        mean = (torch.softmax(log_r, -1)[..., None] * ends).sum(1)
        return mean.reshape(x.shape).to(x.dtype)


def physics_of(A: torch.Tensor, noise: float) -> dinv.physics.LinearPhysics:
    """``y = A x`` on states ``(n, 1, 1, d)``."""
    forward = lambda x, **k: (x.flatten(1) @ A.to(x.dtype).T)[:, None, None]  # noqa: E731
    adjoint = lambda y, **k: (y.flatten(1) @ A.to(y.dtype))[:, None, None]  # noqa: E731
    made = dinv.physics.LinearPhysics(A=forward, A_adjoint=adjoint)
    made.noise_model = dinv.physics.GaussianNoise(sigma=noise)
    return made


def reverse_sde(law: dict, fidelity: str, **options: object) -> tuple[torch.Tensor, int]:
    """`PosteriorDiffusion` on the variance-exploding path of the problem, ancestral steps."""
    unit = math.sqrt(law["variance"])
    A, y = torch.tensor(law["A"]), torch.tensor(law["y"]) / unit
    denoiser = Mixture(law, unit)
    times = torch.linspace(1, 0, law["steps"] + 1, dtype=torch.float64)
    model = dinv.sampling.PosteriorDiffusion(
        data_fidelity=getattr(dinv.sampling, fidelity)(denoiser=denoiser, **options),
        denoiser=denoiser,
        sde=dinv.sampling.VarianceExplodingDiffusion(sigma_min=0.01 / unit, sigma_max=40 / unit, alpha=1.0),
        solver=dinv.sampling.AncestralSolver(timesteps=times, rng=torch.Generator().manual_seed(0)),
        minus_one_one=False,
    )
    seen = y[None, None, None].expand(law["n"], 1, 1, len(y))
    x = model(seen, physics_of(A, law["noise"] / unit), x_init=(law["n"], 1, 1, A.shape[1]), seed=0)
    return x.detach().flatten(1).double() * unit, denoiser.calls


def diffpir(law: dict) -> tuple[torch.Tensor, int]:
    """DiffPIR, in [0, 1]."""
    unit, shift = 24.0, -12.0
    A = torch.tensor(law["A"])
    y = (torch.tensor(law["y"]) - shift * A.sum(1)) / unit
    denoiser = Mixture(law, unit, shift)
    noise = law["noise"] / unit
    model = dinv.sampling.DiffPIR(
        denoiser, dinv.optim.data_fidelity.L2(), sigma=noise, max_iter=law["steps"], zeta=0.3, lambda_=1.0
    )
    seen = y[None, None, None].expand(law["n"], 1, 1, len(y)).float()
    torch.manual_seed(0)
    x = model(seen, physics_of(A.float(), noise))
    return x.detach().flatten(1).double() * unit + shift, denoiser.calls


def ddrm(law: dict) -> tuple[torch.Tensor, int]:
    """DDRM, where the matrix picks coordinates."""
    A = torch.tensor(law["A"])
    if not bool(((A == 0) | (A == 1)).all()):
        raise ValueError("the matrix picks no coordinates")
    unit, mask = math.sqrt(law["variance"]), A.sum(0)
    physics = dinv.physics.Inpainting(img_size=(1, 1, len(mask)), mask=mask.reshape(1, 1, -1))
    physics.noise_model = dinv.physics.GaussianNoise(sigma=law["noise"] / unit)
    denoiser = Mixture(law, unit)
    high, low, n = 40 / unit, 0.01 / unit, law["steps"]
    sigmas = [(high ** (1 / 7) + i / (n - 1) * (low ** (1 / 7) - high ** (1 / 7))) ** 7 for i in range(n)]
    model = dinv.sampling.DDRM(denoiser, sigmas=sigmas)
    seen = (torch.tensor(law["y"]) @ A / unit).reshape(1, 1, 1, -1).expand(law["n"], 1, 1, -1).clone()
    torch.manual_seed(0)
    return model(seen.float(), physics).flatten(1).double() * unit, denoiser.calls


def main() -> None:
    torch.set_num_threads(1)
    law = json.loads(sys.stdin.read())
    samplers = {
        "DPS (norm)": lambda: reverse_sde(law, "DPSDataFidelity", weight=1.0),
        "DPS (annealed)": lambda: reverse_sde(law, "DPSDataFidelity", guidance="annealed"),
        "PiGDM": lambda: reverse_sde(law, "PiGDMDataFidelity"),
        "moment matching": lambda: reverse_sde(law, "MomentMatchingDataFidelity"),
        "DiffPIR": lambda: diffpir(law),
        "DDRM": lambda: ddrm(law),
    }
    out = {}
    for name, sampler in samplers.items():
        begin = time.perf_counter()
        try:
            x, calls = sampler()
        except Exception as error:
            print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr)
            continue
        out[name] = {"x": x.tolist(), "evaluations": calls, "seconds": time.perf_counter() - begin}
    print(json.dumps(out))


if __name__ == "__main__":
    main()
