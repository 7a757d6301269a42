"""Gradients through plans: equal to those of autograd through the same plan, for less memory; the continuous adjoint
against the exact transport of a mixture on the line."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

import retrodict as rd
from retrodict.core.errors import InputError, InputTypeError
from retrodict.core.noise import KeyedNoise
from retrodict.data import Scale
from retrodict.denoisers import Denoiser
from retrodict.exact import GaussianMixture
from retrodict.processes import VP, RectifiedFlow
from retrodict.solvers import general, runtime
from retrodict.steering import Measurement, Steered


class Net(nn.Module):
    """A network of a state, the time, a class and a real condition."""

    def __init__(self, width=16):
        super().__init__()
        self.label = nn.Embedding(3, width)
        self.first, self.style = nn.Linear(5, width), nn.Linear(2, width)
        self.last = nn.Linear(width, 4)
        self.drop = nn.Dropout(0.5)

    def forward(self, x, t, label, style):
        seen = torch.cat([x, t[:, None]], 1)
        hidden = torch.tanh(self.first(seen) + self.label(label) + self.style(torch.nan_to_num(style.to(x))))
        return self.last(self.drop(hidden))


def make(dtype=torch.float64, process=None):
    torch.manual_seed(0)
    conditions = {"label": 2, "style": torch.full((2,), math.nan)}
    return Denoiser.wrap(Net(), process or VP("cosine"), "velocity", shape=(4,), conditions=conditions).to(dtype)


def start(dtype=torch.float64, n=3):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, 4, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    style = torch.randn(n, 2, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    return x, style, torch.arange(n) % 2


def loss_of(out):
    return (out * torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view_as(out)).sum() + out.pow(3).sum()


def gradients(out, denoiser, x, style):
    wanted = [x, style, *denoiser.parameters()]
    return torch.autograd.grad(loss_of(out), wanted)


def plain(denoiser, plan, x, style, label, seed=0, guidance=1.0):
    """The same plan with every operation on autograd's tape: the general executor."""
    model = denoiser if guidance == 1 else rd.Guided(denoiser, guidance)
    model.eval()
    noise = KeyedNoise(seed, len(x), dtype=x.dtype)
    with torch.enable_grad():
        return general.run(plan, model, x, noise, {"label": label, "style": style}).x


def worst(a, b):
    return max(float((u - v).abs().max()) / max(1.0, float(v.abs().max())) for u, v in zip(a, b))


PLANS = [
    ("bdia", {}, "reversible"),
    ("bdia", {"form": "edm", "end": 0.01}, "reversible"),
    ("bdia", {"gamma": 0.95}, "reversible"),
    ("bdia", {"transfer": "heun"}, "recompute"),
    ("bdia", {}, "recompute"),
    ("ddim", {}, "recompute"),
    ("adams", {}, "recompute"),
    ("unipc", {}, "recompute"),
    ("heun", {}, "recompute"),
    ("ddim", {"eta": 1.0}, "recompute"),
]


@pytest.mark.parametrize(("solver", "options", "mode"), PLANS, ids=lambda v: str(v))
def test_the_gradient_is_that_of_autograd(solver, options, mode):
    bounds = {torch.float64: 1e-12, torch.float32: 1e-5}
    if "form" in options:  # a leapfrog in x/alpha amplifies roundings, of the run itself as well
        bounds = {torch.float64: 1e-11}
    for dtype, bound in bounds.items():
        denoiser, (x, style, label) = make(dtype), start(dtype)
        plan = rd.plan(solver, denoiser.process, steps=25, **options)
        want = plain(denoiser, plan, x, style, label)
        out = rd.backprop(denoiser, x, plan=plan, mode=mode, label=label, style=style)
        assert worst([out.detach()], [want.detach()]) < bound
        assert worst(gradients(out, denoiser, x, style), gradients(want, denoiser, x, style)) < bound


def test_auto_is_reversible_where_it_can_be():
    denoiser, (x, style, label) = make(), start()
    words = {"label": label, "style": style, "steps": 20}
    assert saved(lambda: rd.backprop(denoiser, x, **words)) < 4 * x.numel()
    assert saved(lambda: rd.backprop(denoiser, x, solver="ddim", **words)) > 15 * x.numel()
    # rounding errors that would grow by 1e8: recomputed
    assert saved(lambda: rd.backprop(denoiser, x, options={"gamma": 0.4}, **words)) > 15 * x.numel()
    with pytest.raises(InputError, match="is not reversible: 20 of its states"):
        rd.backprop(denoiser, x, solver="ddim", mode="reversible", **words)


def saved(run):
    """Numbers that autograd keeps of a run beside parameters."""
    kept = {}

    def pack(value):
        if not isinstance(value, nn.Parameter):
            kept[value.data_ptr()] = value.numel()
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda v: v):
        out = run()
    assert out.requires_grad
    return sum(kept.values())


def test_memory_of_the_reversible_mode_does_not_grow():
    denoiser, (x, style, label) = make(), start()
    words = {"label": label, "style": style}
    sizes = {
        mode: [saved(lambda: rd.backprop(denoiser, x, steps=n, mode=mode, **words)) for n in (10, 40, 160)]  # noqa: B023
        for mode in ("reversible", "recompute", "continuous")
    }
    assert len(set(sizes["reversible"])) == 1 and sizes["reversible"][0] <= 3 * x.numel() + style.numel()
    assert sizes["recompute"] == [n * x.numel() + style.numel() for n in (10, 40, 160)]  # states, no activations
    assert len(set(sizes["continuous"])) == 1
    taped = [
        saved(lambda: plain(denoiser, rd.plan("bdia", denoiser.process, steps=n), x, style, label))  # noqa: B023
        for n in (10, 40)
    ]
    assert taped[1] > 3.5 * taped[0] and taped[0] > 5 * sizes["recompute"][0]


def test_guidance_and_units_and_noise():
    denoiser, (x, style, label) = make(), start()
    plan = rd.plan("ddim", denoiser.process, steps=8, eta=0.7)
    denoiser.scale = Scale(1.0, 3.0)
    words = {"plan": plan, "label": label, "style": style, "guidance": 2.0, "seed": 3}
    out = rd.backprop(denoiser, x, **words)
    want = denoiser.scale.inverse(plain(denoiser, plan, x, style, label, seed=3, guidance=2.0))
    assert worst(gradients(out, denoiser, x, style), gradients(want, denoiser, x, style)) < 1e-12
    other = rd.backprop(denoiser, x, **(words | {"seed": 4}))
    assert float((other - out).detach().abs().max()) > 1e-2


def test_the_run_is_that_of_sample():
    denoiser, (x, style, label) = make(), start()
    plan = rd.plan("bdia", denoiser.process, steps=12)
    with torch.no_grad():
        want = runtime.run(plan, denoiser.eval(), x, KeyedNoise(0, 3), {"label": label, "style": style})
    denoiser.train()  # dropout stays out of it, in the run and on the way back
    out = rd.backprop(denoiser, x, plan=plan, label=label, style=style)
    assert worst([out.detach()], [want]) < 1e-12
    grads = gradients(out, denoiser, x, style)
    again = gradients(rd.backprop(denoiser, x, plan=plan, label=label, style=style), denoiser, x, style)
    assert worst(grads, again) == 0 and denoiser.training


def test_only_what_is_wanted():
    denoiser, (x, style, label) = make(), start()
    denoiser.requires_grad_(False)
    out = rd.backprop(denoiser, x.detach(), nfe=6, label=label, style=style)
    out.sum().backward()
    assert style.grad is not None and x.grad is None
    assert not rd.backprop(denoiser, x.detach(), nfe=6, label=label).requires_grad
    denoiser.network.label.weight.requires_grad_(True)
    loss_of(rd.backprop(denoiser, x.detach(), nfe=6, label=label)).backward()
    grad = denoiser.network.label.weight.grad
    assert bool((grad[:2] != 0).any(1).all()) and bool((grad[2] == 0).all())


def test_one_embedding_for_all_samples():
    """A condition that every sample shares collects the gradients of all."""
    denoiser, (x, _, label) = make(), start()
    shared = torch.tensor([0.3, -0.2], dtype=torch.float64, requires_grad=True)
    each = shared.detach().expand(3, 2).clone().requires_grad_()
    got = torch.autograd.grad(loss_of(rd.backprop(denoiser, x, nfe=6, label=label, style=shared)), shared)[0]
    want = torch.autograd.grad(loss_of(rd.backprop(denoiser, x, nfe=6, label=label, style=each)), each)[0].sum(0)
    assert float((got - want).abs().max()) < 1e-12


def test_weights_that_moved_are_noticed():
    denoiser, (x, style, label) = make(), start()
    out = rd.backprop(denoiser, x, nfe=5, label=label, style=style)
    with torch.no_grad():
        denoiser.network.last.bias.add_(1.0)
    with pytest.raises(InputError, match="weights changed"):
        loss_of(out).backward()


# -- the continuous adjoint -----------------------------------------------------------------------------------------


class Line(Denoiser):
    """The exact denoiser of a mixture on the line whose left mean is a parameter."""

    def __init__(self, path, mean=-1.0):
        super().__init__(path, (1,))
        self.mean = nn.Parameter(torch.tensor(mean, dtype=torch.float64))

    def parts(self, alpha, sigma):
        means = torch.stack([self.mean, torch.ones_like(self.mean)])
        variances = torch.tensor([0.25, 0.09], dtype=torch.float64)
        return means, variances, (alpha**2 * variances + sigma**2).sqrt()

    def forward(self, x, t, **condition):
        alpha, sigma = float(self.process.alpha(t)), float(self.process.sigma(t))
        means, variances, spread = self.parts(alpha, sigma)
        miss = x - alpha * means
        share = torch.softmax(torch.tensor([0.4, 0.6]).log() - 0.5 * (miss / spread) ** 2 - spread.log(), 1)
        return (share * (means + alpha * variances * miss / spread**2)).sum(1, keepdim=True)

    def cdf(self, x, t):
        alpha, sigma = float(self.process.alpha(t)), float(self.process.sigma(t))
        means, _, spread = self.parts(alpha, sigma)
        normal = 0.5 * (1 + torch.erf((x - alpha * means) / (spread * math.sqrt(2))))
        return normal @ torch.tensor([0.4, 0.6], dtype=torch.float64)

    @torch.no_grad()
    def transport(self, x, t, s):
        """What the flow makes of x: it keeps the order of points on a line, so F_s(x_s) = F_t(x_t)."""
        target, low, high = self.cdf(x, t), torch.full((len(x), 1), -30.0).double(), torch.full((len(x), 1), 30.0)
        high = high.double()
        for _ in range(80):
            middle = (low + high) / 2
            below = (self.cdf(middle, s) < target)[:, None]
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (low + high) / 2


@pytest.mark.parametrize(("integrator", "order"), [("euler", 1), ("midpoint", 2)])
def test_the_continuous_adjoint_converges(integrator, order):
    """Result, gradient in the start and in a parameter against the exact transport; at eight times the steps the
    errors have fallen by the order's power, within a factor of two."""
    path, first, end = VP("cosine"), 0.9, 0.05
    model = Line(path)
    x = torch.tensor([[-1.3], [-0.2], [0.4], [1.1]], dtype=torch.float64, requires_grad=True)
    exact = model.transport(x, first, end)
    h = 1e-5
    slope = (model.transport(x + h, first, end) - model.transport(x - h, first, end)) / (2 * h)
    up, down = (Line(path, -1.0 + d).transport(x, first, end).sum() for d in (h, -h))

    def errors(steps):
        words = {"steps": steps, "start": first, "end": end, "grid": "logsnr"}
        out = rd.backprop(model, x, mode="continuous", integrator=integrator, **words)
        in_x, in_mean = torch.autograd.grad(out.sum(), [x, model.mean])
        values = [(out - exact).abs().max(), (in_x - slope).abs().max(), (in_mean - (up - down) / (2 * h)).abs()]
        return np.array([v.item() for v in values])

    coarse, fine = errors(40), errors(320)
    falls = coarse / fine
    assert (falls > 8**order / 2).all() and (falls < 8**order * 2).all(), falls
    # the plan's own gradient is another thing, which the exact modes give
    plan = rd.plan("ddim", path, steps=40, start=first, end=end, grid="logsnr")
    taped = general.run(plan, model, x, KeyedNoise(0, 4), {}).x
    want = torch.autograd.grad(taped.sum(), [x, model.mean])
    got = torch.autograd.grad(rd.backprop(model, x, plan=plan, mode="recompute").sum(), [x, model.mean])
    assert worst(got, want) < 1e-12


def test_the_start_of_a_sample_is_found():
    """Initial-noise optimisation: the transport on the line is undone."""
    model = Line(VP("cosine")).requires_grad_(False)
    target = torch.tensor([[0.7], [-0.9]], dtype=torch.float64)
    x = torch.zeros(2, 1, dtype=torch.float64, requires_grad=True)
    search = torch.optim.LBFGS([x], max_iter=50, line_search_fn="strong_wolfe")

    def loss():
        search.zero_grad()
        value = (rd.backprop(model, x, steps=30) - target).square().sum()
        value.backward()
        return value

    search.step(loss)
    assert float((rd.backprop(model, x, steps=30) - target).abs().max()) < 1e-4


def test_bad_input():
    denoiser, (x, style, label) = make(), start()
    law = GaussianMixture([1.0], [[0.0, 0.0]], [1.0])
    steered = Steered(law.denoiser(VP()), [Measurement([1.0, 0.0], noise=0.1)])
    x2 = torch.zeros(3, 2, dtype=torch.float64)
    for model, arguments, words, message in [
        (denoiser, x, {"mode": "reversable"}, "Did you mean 'reversible'"),
        (denoiser, x[:, :2], {}, "states of this denoiser"),
        (denoiser, x, {"label": 7}, "out of range"),
        (denoiser, x, {"label": label[:2]}, "2 values of 'label' for 3 data"),
        (denoiser, x, {"lable": 1}, "Did you mean 'label'"),
        (denoiser, x, {"mode": "continuous", "integrator": "midpiont"}, "Did you mean 'midpoint'"),
        (steered, x2, {}, "into the loss"),
    ]:
        with pytest.raises(InputError, match=message):
            rd.backprop(model, arguments, **words)
    with pytest.raises(InputTypeError, match="real tensor"):
        rd.backprop(denoiser, label)
    with pytest.raises(InputError, match="depend on data"):
        rd.backprop(denoiser, x, solver="ancestral", steps=5, style=style)
    with pytest.raises(InputError, match="ends above sigma = 0"):
        rd.backprop(denoiser, x, plan=rd.plan("ddim", VP("cosine"), steps=5), mode="continuous", style=style)


@pytest.mark.parametrize("process", [VP("cosine"), RectifiedFlow()])
def test_the_flow_starts_where_there_is_no_signal(process):
    """One step of DDIM leads into it, and its gradient is counted."""
    denoiser, (x, style, label) = make(process=process), start()
    words = {"label": label, "style": style, "end": 0.1}
    out = rd.backprop(denoiser, x, mode="continuous", steps=100, integrator="midpoint", **words)
    want = rd.backprop(denoiser, x, solver="heun", steps=120, **words)
    assert worst([out.detach()], [want.detach()]) < 2e-2
    assert worst(gradients(out, denoiser, x, style), gradients(want, denoiser, x, style)) < 2e-2
