"""The regression: targets, weightings in every parameterisation, conditions, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import retrodict as rd
from processes.paths import NAMED
from retrodict.core.errors import InputError
from retrodict.denoisers import TokenDenoiser, TwoEnded, Wrapped
from retrodict.denoisers.wrapped import PREDICTS, coefficients
from retrodict.exact import Atoms, GaussianMixture
from retrodict.objectives import Regression, TimeLaw, TokenRegression, make_objective, weightings
from retrodict.objectives.regression import residual
from retrodict.objectives.tokens import divergence
from retrodict.objectives.weightings import Level
from retrodict.processes import Interpolant, Masked, TokenBridge, conversions

LAW = GaussianMixture([0.4, 0.6], [[-1.0, 0.0], [0.8, 0.5]], [0.2, 0.1])
OTHER = GaussianMixture([0.5, 0.5], [[2.0, 1.0], [0.0, -1.0]], [0.3, 0.1])


class As(nn.Module):
    """A network that says, in the parameterisation ``predicts``, what ``mean(x, t)`` says of x0."""

    def __init__(self, mean, path: rd.GaussianPath, predicts: str) -> None:
        super().__init__()
        self.mean, self.path, self.predicts = mean, path, predicts

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (c(t)[:, None] for c in (self.path.alpha, self.path.sigma))
        c_in, c_skip, c_out = coefficients(self.predicts, alpha, sigma, 0.7)
        x = x / c_in
        return (self.mean(x, t) - c_skip * x) / c_out


def wrap(mean, path, predicts):
    return Wrapped(As(mean, path, predicts), path, predicts, data_std=0.7, time=lambda t: t)


class Fixed(TimeLaw):
    """Times that are given."""

    def __init__(self, t: Tensor) -> None:
        super().__init__()
        self.t = t

    def sample(self, n, process, generator):
        return self.t


@pytest.mark.parametrize("predicts", PREDICTS)
@pytest.mark.parametrize("name", [n for n in NAMED if n != "by-functions"])
def test_the_exact_posterior_is_the_minimum(name, predicts):
    """Adding a function d(x) to the exact output adds E|d|^2 to the loss: the cross term is zero.

    It is a mean of residuals, within four of its standard errors (false alarm 6e-5 each).
    """
    path, n = NAMED[name], 4000
    g = torch.Generator().manual_seed(3)
    t = torch.rand(n, generator=g, dtype=torch.float64) * 0.9 + 0.05
    x0, z = LAW.sample(n, seed=1), torch.randn(n, 2, generator=g, dtype=torch.float64)
    x_t = path.corrupt(x0, t, z)
    alpha, sigma = path.alpha(t)[:, None], path.sigma(t)[:, None]
    denoiser = wrap(LAW.denoiser(path), path, predicts)
    error = residual(denoiser.output(x_t, t), predicts, x0, z, alpha, sigma, 0.7)
    features = torch.stack([torch.ones(n, dtype=torch.float64), torch.tanh(x_t[:, 0]), torch.cos(x_t[:, 1]), t - 0.5])
    products = features.unsqueeze(-1) * error
    assert bool((products.mean(1).abs() < 4 * products.std(1) / n**0.5).all())


@pytest.mark.parametrize("heads", TwoEnded.HEADS)
def test_the_exact_ends_are_the_minimum_on_a_path_with_two(heads):
    path, n = Interpolant("trigonometric"), 4000
    oracle = LAW.denoiser(path, x1=OTHER)

    class Heads(nn.Module):
        def forward(self, x, t):
            belief = oracle.belief(x, t)
            if heads == "ends":
                return torch.cat([belief.mean, belief.x1], -1)
            drift = conversions.drift(path, x, t, belief.mean, belief.x1)
            return torch.cat([drift, conversions.noise(path, x, t, belief.mean, belief.x1)], -1)

    class Shifted(Heads):
        def forward(self, x, t):
            return super().forward(x, t) + 0.3 * torch.cat([torch.tanh(x), torch.cos(x)], -1)

    batch = {"x0": LAW.sample(n, seed=1), "x1": OTHER.sample(n, seed=2)}
    objective = Regression(path)
    losses = [
        [
            objective(TwoEnded(net, path, heads=heads, time=lambda t: t), batch, torch.Generator().manual_seed(s))[
                "loss"
            ]
            for net in (Heads(), Shifted())
        ]
        for s in range(8)
    ]
    gap = torch.tensor([b - a for a, b in losses])
    # the same draws for both: what is left of the difference is E|d|^2 of the added function
    x_t = torch.cat(
        [
            path.corrupt(
                batch["x0"],
                u,
                torch.randn(n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(9)),
                batch["x1"],
            )
            for u in torch.linspace(0.05, 0.95, 10, dtype=torch.float64)
        ]
    )
    added = 0.09 * (torch.tanh(x_t) ** 2 + torch.cos(x_t) ** 2).mean()
    assert abs(float(gap.mean() - added)) < 4 * float(gap.std() / 8**0.5) + 5e-4
    # and the ends that the heads imply are the oracle's
    x = batch["x0"][:20]
    belief = TwoEnded(Heads(), path, heads=heads, time=lambda t: t).belief(x, 0.4)
    assert torch.allclose(belief.mean, oracle.belief(x, 0.4).mean, atol=1e-9)
    assert torch.allclose(belief.x1, oracle.belief(x, 0.4).x1, atol=1e-9)


@pytest.mark.parametrize("weighting", ["min-snr", "edm", "elbo", "sigmoid"])
@pytest.mark.parametrize("name", ["vp-cosine", "edm", "rectified-flow"])
def test_a_weighting_gives_the_same_gradients_in_every_parameterisation(name, weighting):
    path = NAMED[name]
    times = Fixed(torch.linspace(0.1, 0.9, 32, dtype=torch.float64))
    batch = {"x": LAW.sample(32, seed=4)}
    found = {}
    for predicts in PREDICTS:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)).double()
        denoiser = wrap(lambda x, t, net=net: net(x), path, predicts)
        loss = Regression(path, weightings[weighting](), times)(denoiser, batch, torch.Generator().manual_seed(0))[
            "loss"
        ]
        found[predicts] = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(net.parameters()))])
    for predicts, gradient in found.items():
        if weighting == "edm" and predicts != "edm":
            continue  # its data_std is the network's: compared below
        assert torch.allclose(gradient, found["edm"], rtol=1e-8, atol=1e-10 * float(found["edm"].abs().max())), predicts


def test_weights_against_their_published_formulas():
    """Min-SNR of Hang et al., table 1; EDM's flat weight; ELBO's g^2 / (2 sigma^2) of Song et al., each by hand."""
    t = torch.linspace(0.02, 0.98, 49, dtype=torch.float64)
    path = rd.VP()
    snr = (path.alpha(t) / path.sigma(t)) ** 2
    weight = lambda name, predicts, p=path, **kw: weightings[name](**kw)(Level(p, t, predicts, 0.5))  # noqa: E731
    close = lambda a, b: torch.allclose(a, b, rtol=1e-9)  # noqa: E731
    assert close(weight("min-snr", "data"), snr.clamp(max=5))
    assert close(weight("min-snr", "noise"), snr.clamp(max=5) / snr)
    assert close(weight("min-snr", "velocity"), snr.clamp(max=5) / (snr + 1))
    assert close(weight("min-snr", "noise", gamma=1.0), snr.clamp(max=1) / snr)
    edm = rd.EDM()
    assert close(weight("edm", "edm", edm), torch.ones_like(t))
    sigma = edm.sigma(t)
    assert close(weight("edm", "data", edm), (sigma**2 + 0.25) / (sigma * 0.5) ** 2)
    for p in (path, rd.RectifiedFlow(), rd.VE()):
        likelihood = p.dispersion2(t) / (2 * p.sigma(t) ** 2)
        assert close(weight("elbo", "noise", p), likelihood)
        assert close(weight("elbo", "score", p), likelihood)
        snr = (p.alpha(t) / p.sigma(t)) ** 2
        assert close(weight("elbo", "data", p), likelihood * snr)
        assert close(weight("sigmoid", "noise", p), likelihood / (1 + snr * torch.e**-2))
    assert weight("uniform", "noise") is None
    h = 1e-6
    falling = -((path.alpha(t + h) / path.sigma(t + h)) ** 2 - (path.alpha(t - h) / path.sigma(t - h)) ** 2) / (4 * h)
    assert torch.allclose(weight("likelihood", "data"), falling, rtol=1e-4)


@pytest.mark.parametrize("weighting", ["uniform", "min-snr", "edm"])
@pytest.mark.parametrize("predicts", PREDICTS)
def test_losses_are_finite_at_both_ends_of_time(predicts, weighting):
    net = nn.Linear(2, 2)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = net

        def forward(self, x, t):
            assert bool(t.isfinite().all())
            return self.layer(x)

    for path in (rd.VP("cosine"), rd.RectifiedFlow(), rd.VP()):
        times = Fixed(torch.tensor([0.0, 1.0], dtype=torch.float64))
        terms = Regression(path, weighting, times)(
            Wrapped(Net(), path, predicts), {"x": torch.randn(2, 2)}, torch.Generator()
        )
        terms["loss"].backward()
        assert bool(terms["loss"].isfinite()) and bool(net.weight.grad.isfinite().all())


def test_single_precision_data_keep_a_single_precision_loss():
    path = rd.VP()
    terms = Regression(path, "min-snr")(
        Wrapped(As(lambda x, t: x.float(), path, "data"), path, "data"), {"x": torch.randn(8, 2)}, torch.Generator()
    )
    assert terms["loss"].dtype == torch.float32 and set(terms) == {"loss", "error"}


class Labelled(nn.Module):
    """Remembers the labels that it was called with."""

    def forward(self, x, t, label, other=None):
        self.label, self.other = label, other
        return x


def test_conditions_are_dropped_together_with_the_given_probability():
    path, net = rd.VP(), Labelled()
    denoiser = Wrapped(net, path, conditions={"label": 10, "other": 5.0})
    batch = {"x": torch.randn(4000, 1), "label": torch.arange(4000) % 10, "other": torch.zeros(4000)}
    Regression(path, dropout=0.2)(denoiser, batch, torch.Generator().manual_seed(0))
    dropped = net.label == 10
    assert dropped.equal(net.other == 5.0)
    assert net.label[~dropped].equal(batch["label"][~dropped])
    assert abs(float(dropped.float().mean()) - 0.2) < 4 * (0.16 / 4000) ** 0.5  # false alarm 6e-5
    Regression(path)(denoiser, batch, torch.Generator().manual_seed(0))
    assert 0.05 < float((net.label == 10).float().mean()) < 0.15
    Regression(path, dropout=0.0)(denoiser, batch, torch.Generator().manual_seed(0))
    assert net.label.equal(batch["label"])


def test_a_condition_without_null_is_never_dropped():
    path, net = rd.VP(), Labelled()
    denoiser = Wrapped(net, path, conditions={"label": None})
    batch = {"x": torch.randn(50, 1), "label": torch.arange(50)}
    Regression(path)(denoiser, batch, torch.Generator().manual_seed(0))
    assert net.label.equal(batch["label"])
    with pytest.raises(InputError, match="dropout needs a condition with a null value"):
        Regression(path, dropout=0.1)(denoiser, batch, torch.Generator())


def test_the_generator_is_the_only_source_of_randomness():
    path = rd.VP()
    objective = Regression(path, times="edm")
    batch = {"x": LAW.sample(16)}
    runs = [float(objective(LAW.denoiser(path), batch, torch.Generator().manual_seed(s))["loss"]) for s in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]


class Tokens(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.table = nn.Parameter(torch.zeros(classes, 4))

    def forward(self, x, t):
        return self.table[x]


def test_token_networks_are_asked_at_hidden_positions_only():
    """The gradient of a table of logits vanishes in the rows of shown tokens."""
    process, net = Masked(4), Tokens(5)
    batch = {"x": torch.randint(0, 4, (64, 3), generator=torch.Generator().manual_seed(0))}
    for weighting in ("elbo", "uniform"):
        net.zero_grad()
        terms = TokenRegression(process, weighting)(
            TokenDenoiser(net, process), batch, torch.Generator().manual_seed(1)
        )
        terms["loss"].backward()
        assert bool((net.table.grad[4] != 0).any()) and not bool(net.table.grad[:4].any())


def test_the_posterior_is_the_minimum_of_the_token_bound():
    """Also with targets that equal the source: the gradient of the expected bound vanishes at the posterior."""
    posterior = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)  # of x0, given a position that shows x1 = 0
    for process in (Masked(3), TokenBridge(3)):
        logits = posterior.log().requires_grad_()
        log_p = torch.log_softmax(logits, 0).expand(3, 1, 3)
        x0, other = torch.tensor([[0], [1], [2]]), torch.full((3, 1), 3 if isinstance(process, Masked) else 0)
        cost = divergence(process, log_p, x0, other, other)
        (gradient,) = torch.autograd.grad((posterior * cost).sum(), logits, retain_graph=True)
        assert float(gradient.abs().max()) < 1e-12
        (each,) = torch.autograd.grad(cost[1], logits)
        assert float(each.abs().max()) > 0.1


def test_uniform_token_loss_is_cross_entropy_of_hidden_tokens():
    process, net = Masked(4), Tokens(5)
    batch = {"x": torch.randint(0, 4, (64, 3), generator=torch.Generator().manual_seed(0))}
    t = torch.full((64,), 1.0, dtype=torch.float64)  # all hidden
    loss = TokenRegression(process, "uniform", Fixed(t))(TokenDenoiser(net, process), batch, torch.Generator())["loss"]
    assert abs(float(loss.detach()) - torch.log(torch.tensor(4.0)).item()) < 1e-6


def test_the_objective_that_suits_a_process():
    assert isinstance(make_objective("auto", rd.VP()), Regression)
    assert isinstance(make_objective("auto", Masked(4)), TokenRegression)
    assert type(make_objective("auto", rd.EDM()).times).__name__ == "NoiseLogNormal"
    assert type(make_objective("auto", rd.EDM(), times="uniform").times).__name__ == "TimeLaw"
    assert make_objective("likelihood", rd.VP()).weighting.integral
    assert make_objective("regression", rd.VP(), weighting="min-snr").weighting.gamma == 5
    mine = Regression(rd.VP())
    assert make_objective(mine, rd.VP()) is mine


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: make_objective("regresion", rd.VP()), "Did you mean 'regression'"),
        (lambda: make_objective(Regression(rd.VP()), rd.VP(), dropout=0.1), "takes no options"),
        (lambda: Regression(rd.VP(), weighting="min_snr"), "Did you mean 'min-snr'"),
        (lambda: Regression(rd.VP(), times="logit_normal"), "Did you mean 'logit-normal'"),
        (lambda: Regression(rd.VP(), coupling="optimal"), "Did you mean 'optimal-transport'"),
        (lambda: Regression(rd.VP(), dropout=1.0), "dropout of conditions is in"),
        (lambda: Regression(Masked(4)), "needs a Gaussian path"),
        (lambda: TokenRegression(rd.VP()), "for masks and token bridges"),
        (lambda: TokenRegression(Masked(4), "min-snr"), "tokens are weighted 'elbo' or 'uniform'"),
        (lambda: Regression(Interpolant(), "elbo"), "no log-SNR weighting"),
        (lambda: weightings["min-snr"](gamma=0.0), "gamma of the min-snr weighting is positive"),
    ],
)
def test_wrong_choices_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


@pytest.mark.parametrize(
    ("process", "batch", "message"),
    [
        (rd.VP(), {"y": torch.zeros(2, 2)}, "names its data 'x0'"),
        (rd.VP(), {"x": torch.zeros(2, 2), "x1": torch.zeros(2, 2)}, "has one end; leave out 'x1'"),
        (rd.VP(), {"x": torch.zeros(2, 2).long()}, "real numbers, got torch.int64; scale them first"),
        (rd.VP(), {"x": torch.zeros(2, 2), "labels": torch.zeros(2)}, "unknown condition or option 'labels'"),
        (TokenBridge(4), {"x": torch.zeros(2, 2).long()}, "needs 'x1', the other end"),
        (Masked(4), {"x": torch.zeros(2, 2)}, "tokens are integers, got torch.float32"),
        (TokenBridge(4), {"x": torch.zeros(2, 2).long(), "x1": torch.zeros(2, 3).long()}, "both ends have one shape"),
    ],
)
def test_wrong_batches_are_refused(process, batch, message):
    law = Atoms(torch.zeros(1, 2).long() if process.state == "tokens" else torch.zeros(1, 2))
    with pytest.raises(InputError, match=message):
        make_objective("auto", process)(law.denoiser(process), batch, torch.Generator())
