"""Maximum likelihood by stochastic approximation with an unbiased score: for any chain with a transition density.

Fisher's identity makes the score a smoothed additive functional,

    d log p(y; theta) = E[ d log mu(x_0) g_0(x_0) + sum_k d log m_k(x_{k-1}, x_k) g_k(x_k) | y, theta ],

which the Parisian particle Gibbs sampler (Cardoso and others 2023) estimates with all of its particles.  One scalar
with a graph does it: tau carries log m g itself, particles and backward draws are constants, and the derivative of the
estimate is the estimate of the derivative.  Each step moves

    theta <- theta + rate l^-power score / scale          (scale: root mean square of the scores so far),

the frozen path is kept from step to step, and the estimate is the average over the second half (Polyak and Juditsky
1992).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from retrodict.core.errors import InputError
from retrodict.core.noise import KeyedNoise, Noise
from retrodict.inference.models import StateSpace
from retrodict.inference.parameters.likelihood import Likelihood, derivatives
from retrodict.inference.parameters.result import Fit
from retrodict.inference.parameters.task import Task
from retrodict.inference.particle_posterior import no_density, proposals
from retrodict.inference.problem import Problem
from retrodict.kernels import Categorical, Gaussian
from retrodict.particles.conditional import sweep

_MEMORY = 0.95  # of the running mean square of scores


def score_climbing(
    task: Task,
    steps: int = 400,
    particles: int = 50,
    sweeps: int = 2,
    rate: float = 0.3,
    power: float = 0.6,
    proposal: str = "bootstrap",
    threshold: float = 0.5,
    average: float = 0.5,
) -> Fit:
    """Climb the likelihood (with priors: the posterior density) along estimated scores.

    Args:
        steps: of the stochastic approximation.
        particles, sweeps: of particle Gibbs a step; the score is that of the last sweep.
        rate, power: step l is ``rate l^-power`` of a unit score, with power in (0.5, 1].
        proposal: of the particles; threshold: of their resampling.
        average: share of the steps, at the end, whose mean is the estimate.
    """
    if not 0.5 < power <= 1:
        raise InputError(f"power is in (0.5, 1], so that steps add up and their squares do not; got {power}")
    if not 0 < average <= 1 or sweeps < 1 or rate <= 0:
        raise InputError(f"0 < average <= 1, sweeps >= 1, rate > 0; got {average}, {sweeps}, {rate}")
    space, likelihood = task.space(), task.likelihood_of(None)
    first = space.model(space.start)
    if not isinstance(first, StateSpace):
        raise InputError(f"method='score-climbing' takes a StateSpace, got {type(first).__name__}; use 'gradient'")
    reason = no_density(first, task.data)
    if reason is not None:
        raise InputError(f"method='score-climbing' needs a transition with a density, and {reason}; use 'pmmh'")
    climber = Score(likelihood, KeyedNoise(task.seed, len(task.data), dtype=torch.float64), particles, proposal)
    climber.threshold = threshold
    free, square = space.start.clone(), torch.zeros(space.size, dtype=torch.float64)
    path, scores = [], []
    bar = task.bar(steps, "score climbing")
    for step in range(1, steps + 1):
        for _ in range(sweeps - 1):
            climber.renew(space.model(free))
        _, score = derivatives(space, climber.estimate, free)
        with torch.enable_grad():
            leaf = free.clone().requires_grad_()
            prior = space.log_prior(leaf, jacobian=False)
            if prior.requires_grad:
                score = score + torch.autograd.grad(prior, leaf)[0]
        square = _MEMORY * square + (1 - _MEMORY) * score.square()
        scale = (square / (1 - _MEMORY**step)).sqrt().clamp_min(1e-12)
        free = free + rate * step**-power * score / scale
        path.append(free)
        scores.append(score)
        bar.update()
    bar.close()
    free = torch.stack(path[-max(1, int(average * steps)) :]).mean(0)
    model = space.model(free)
    post = likelihood.condition(model, task.seed)
    return Fit(
        method="score-climbing",
        parameters=space.plain(free),
        log_likelihood=float(post.log_evidence.sum().detach()),
        model=model,
        likelihood=likelihood,
        exact=post.exact,
        history={"free": torch.stack(path), "score": torch.stack(scores)},
        message=f"{steps} steps with {particles} particles, {sweeps} sweeps each",
        seed=task.seed,
    )


class Score:
    """The complete-data log likelihood averaged over the smoothing law by Parisian particle Gibbs.

    Attributes:
        frozen: the path of the sampler, ``(S, n+1, ...)``; None before the first sweep.
    """

    def __init__(self, likelihood: Likelihood, noise: Noise, particles: int, proposal: str = "bootstrap") -> None:
        self.data, self.noise, self.particles, self.proposal = likelihood.data, noise, particles, proposal
        self.frozen: Tensor | None = None
        self.threshold = 0.5

    def estimate(self, model: StateSpace) -> Tensor:
        """One sweep; a scalar, all series together, whose gradient in the model's parameters estimates the score."""
        return self.of_series(model).sum()

    def of_series(self, model: StateSpace) -> Tensor:
        """The same, one a series ``(S,)``."""
        problem = Problem(model, self.data)
        terms = Terms(problem)
        found = sweep(
            proposals[self.proposal](problem), self.particles, self.noise, self.frozen, select="parisian",
            threshold=self.threshold, term=terms.step, start=terms.start,
        )  # fmt: skip
        self.frozen = found.path.detach()
        assert found.estimate is not None
        return found.estimate[:, 0]

    def renew(self, model: StateSpace) -> None:
        """One sweep for its path alone."""
        with torch.no_grad():
            problem = Problem(model, self.data)
            found = sweep(
                proposals[self.proposal](problem), self.particles, self.noise, self.frozen, select="backward",
                threshold=self.threshold,
            )  # fmt: skip
        self.frozen = found.path


class Terms:
    """log mu g_0 and log m_k g_k of a problem, with their graph, as an additive functional of one column."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.event = 0 if problem.model.kind == "finite" else 1

    def start(self, x: Tensor) -> Tensor:
        """At node 0, states ``(S, N, ...)``."""
        return (self._log_prior(x) + self.problem.log_likelihood(0, x)).unsqueeze(-1)

    def step(self, k: int, x: Tensor, y: Tensor) -> Tensor:
        """From states ``x (S, N, M, ...)`` of node k-1 to ``y (S, N, 1, ...)`` of node k."""
        pairs = torch.broadcast_tensors(x, y)
        shape = pairs[0].shape[:3]
        before, after = (v.flatten(1, 2) for v in pairs)
        log_m = self.problem.kernel(k).log_prob(before, after, event=self.event).double()
        log_g = self.problem.log_likelihood(k, y.squeeze(2))
        return (log_m.reshape(shape) + log_g.unsqueeze(-1)).unsqueeze(-1)

    def _log_prior(self, x: Tensor) -> Tensor:
        prior = self.problem.prior
        if isinstance(prior, Categorical):
            return prior.log_p.expand(x.shape[0], -1).gather(1, x)
        if not isinstance(prior, Gaussian):
            value = prior.log_prob(x if prior.batch_shape or prior.event_shape else x[..., 0])
            return value.sum(-1) if value.ndim == x.ndim else value
        mean, cov = prior.mean.double().unsqueeze(1), prior.cov.value.double().unsqueeze(1)
        if not mean.requires_grad and not cov.requires_grad:
            return torch.zeros(x.shape[:2], dtype=torch.float64)  # a constant, also where it has no density
        return MultivariateNormal(mean, cov).log_prob(x)
