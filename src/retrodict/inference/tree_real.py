"""Trees of real states: exact where every edge is linear-Gaussian, guided where some are not.

A level of the tree, all edges whose children have equal depth, is one batch of short chains: of one step for a
kernel, of many for a diffusion along the edge.  Messages, guides and weights are those of chains.  At a vertex with
several parents (linear kernels only) the message to each is its own block of the quadratic message to all, and the
blocks across go into the weight.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from retrodict.core.errors import InputError
from retrodict.core.noise import KeyedNoise, Noise
from retrodict.inference.emissions import law_seen
from retrodict.inference.guided.auxiliary import brownian
from retrodict.inference.guided.evidence import Evidence
from retrodict.inference.guided.guides import Doob
from retrodict.inference.guided.messages import Messages, absorb, sweep
from retrodict.inference.guided.posterior import start_law
from retrodict.inference.guided.steps import EulerGrid, KernelSteps, Steps
from retrodict.inference.observed import Observed
from retrodict.inference.results import Marginals, Paths
from retrodict.inference.sde import SDE, euler_nodes
from retrodict.inference.tree import Edges, Tree, TreePosterior
from retrodict.kernels import Kernel, LinearGaussian
from retrodict.kernels.euler import Pin, dense, mv
from retrodict.kernels.scans.gaussian.algebra import Message, Step, bayes, guided_root
from retrodict.kernels.scans.gaussian.algebra import mv as apply

_PILOTS = 128


@dataclass
class Level:
    """The steps along a batch of edges, with series and edges on one axis ``(S E)``."""

    edges: Edges
    steps: Steps | None
    joint: Step | None = None  # the linear kernel of a vertex with several parents, (1, ...)
    linear: bool = True
    auxiliary: Step | None = None
    messages: Messages | None = None
    guide: Doob | None = None
    joined: Message | None = None  # the message to all parents together
    pins: dict[int, Pin] = field(default_factory=dict)

    def gather(self, values: Tensor) -> Tensor:
        """Values of the parents, ``(S, V, ...)`` to ``(S E, ...)``, or side by side where they share a child."""
        picked = values[:, self.edges.parents]
        if self.edges.together:
            return picked.movedim(1, -2).flatten(-2)
        return picked.flatten(0, 1)


class RealTree(TreePosterior):
    """A tree of real states given data.

    Args:
        steps: Euler steps along an edge with a diffusion.
        auxiliary: of non-linear edges: "regress" (on pilot draws of the tree) or "brownian".
        particles, seed: of the weighted draws, where the tree is not exact.
    """

    def __init__(
        self, model: Tree, data: Observed, at: Iterable[Hashable] | None, root: Any,
        steps: int = 20, particles: int = 1000, seed: int = 0, auxiliary: str = "regress",
    ) -> None:  # fmt: skip
        super().__init__(model, data, particles, seed)
        if auxiliary not in ("regress", "brownian"):
            raise InputError(f"auxiliary of a tree is 'regress' or 'brownian', got {auxiliary!r}")
        self.law0, self.d, self.tilt = start_law(root, len(data))
        V, S = len(self.vertices), len(data)
        law, data = law_seen(model.observation, torch.zeros(1, self.d, dtype=torch.float64), data)
        self.evidence = Evidence(model.seen_at(data, at), V, self.d, law, *data.filled)
        self.levels = [self._level(edges, steps) for edges in model.levels(self.evidence.pins)]
        linear = all(level.linear for level in self.levels)
        self.exact = linear and model.branching and self.evidence.linear and self.tilt is None
        self.route = "messages by level" if self.exact else f"{particles} guided draws, {auxiliary} auxiliary"
        self._filter(self.law0[0].unsqueeze(1).expand(S, V, self.d), linear, auxiliary)

    def _level(self, edges: Edges, steps: int) -> Level:
        model = self.model
        if edges.together:
            kernel = model.kernel(edges.parents[0], edges.children[0])
            name, size = model.vertices[edges.children[0]], self.d * len(edges.parents)
            if not isinstance(kernel, LinearGaussian) or kernel.A.kind != "dense" or kernel.A.value.shape[-1] != size:
                raise InputError(
                    f"{name!r} has several parents: its kernel is a LinearGaussian with A ({self.d}, {size})"
                )
            if edges.children[0] in self.evidence.pins:
                raise InputError(f"{name!r} has several parents and is seen without noise; give a small noise")
            offset = torch.as_tensor(kernel.b, dtype=torch.float64).expand(self.d)
            joint = (kernel.A.value.double()[None], offset[None], dense(kernel.Q.to(torch.float64), self.d)[None])
            return Level(edges, None, joint)
        kernels = [model.kernel(p, c) for p, c in zip(edges.parents, edges.children)]
        made = self._steps(edges, kernels, steps)
        level = Level(edges, made, linear=isinstance(made, KernelSteps) and made.linear)
        own = [self.evidence.pins[c] for c in edges.children if c in self.evidence.pins]
        if own:
            if len({pin.E.shape for pin in own}) > 1:
                raise InputError("leaves of one depth are seen without noise in different coordinates; give noise")
            E, e = (torch.stack([getattr(pin, part) for pin in own], 1).flatten(0, 1) for part in ("E", "e"))
            level.pins = {made.n: Pin(E, e)}
        return level

    def _steps(self, edges: Edges, kernels: list[Any], steps: int) -> Steps:
        S, E, model = len(self.data), len(kernels), self.model
        if all(isinstance(kernel, SDE) for kernel in kernels):
            if any(kernel is not kernels[0] for kernel in kernels):
                raise InputError("diffusions of one depth are one SDE; put its parameters into functions of the state")
            away = model.distances()[edges.parents]
            span = torch.tensor(
                [model.length(p, c) for p, c in zip(edges.parents, edges.children)], dtype=torch.float64
            )
            t = torch.cat([euler_nodes(float(a), (a + b).reshape(1, 1), steps) for a, b in zip(away, span)])
            t = t.repeat(S, 1)
            return EulerGrid(kernels[0].drift, kernels[0].diffusion, t, self.d, S * E)
        parts: list[tuple[Any, Kernel]] = []
        for kernel in {id(k): k for k in kernels}.values():
            if isinstance(kernel, SDE) or not hasattr(kernel, "mean"):
                raise InputError(
                    f"edges of one depth are Gaussian kernels, or one SDE; got {type(kernel).__name__} among them"
                )
            own = torch.tensor([i for i, k in enumerate(kernels) if k is kernel])
            index = (torch.arange(S)[:, None] * E + own).flatten()
            parts.append((slice(None) if len(own) == E else index, kernel))
        return KernelSteps([parts], self.d, S * E)

    # -- backward --------------------------------------------------------------------------------------------

    def _filter(self, nominal: Tensor, linear: bool, auxiliary: str) -> None:
        """Messages from the leaves to the root; with non-linear edges once more on an auxiliary from pilots."""
        for level in self.levels:
            if level.steps is not None:
                flat = level.gather(nominal).unsqueeze(1).expand(-1, level.steps.n + 1, -1)
                level.auxiliary = level.steps.affine(flat) if level.linear else brownian(level.steps, flat)
        self._backward(nominal)
        if linear and self.evidence.linear:
            return
        noise = KeyedNoise(0, len(self.data), name="pilot")
        x, log_w, inner = self._forward(_PILOTS, noise)
        share = torch.softmax(log_w, -1)
        for level, paths in zip(self.levels, inner):
            if not level.linear and auxiliary == "regress":
                assert level.steps is not None and paths is not None
                fitted = level.steps.regressed(paths, log_w.repeat_interleave(len(level.edges.children), 0))
                if all(bool(torch.isfinite(part).all()) for part in fitted):
                    level.auxiliary = fitted
        self._backward(torch.einsum("sn,snvd->svd", share, x))

    def _backward(self, nominal: Tensor) -> None:
        S, d = len(self.data), self.d
        fused, _ = self.evidence.potentials(nominal)
        for level in reversed(self.levels):
            children, parents = level.edges.children, torch.tensor(level.edges.parents)
            own: Message = tuple(part[:, children].flatten(0, 1) for part in fused)  # type: ignore[assignment]
            if level.joint is not None:
                level.joined = H, F, c = _pull_wide(level.joint, own)
                p = len(parents)
                blocks = H.reshape(S, p, d, p, d)
                first = torch.zeros(p, dtype=torch.float64)
                first[0] = 1
                message = (
                    torch.stack([blocks[:, i, :, i] for i in range(p)], 1),
                    F.reshape(S, p, d),
                    c[:, None] * first,
                )
                level.messages = Messages(tuple(part.unsqueeze(1) for part in own), own, {})  # type: ignore[arg-type]
            else:
                steps = level.steps
                assert steps is not None and level.auxiliary is not None
                quiet = tuple(torch.zeros_like(part).unsqueeze(1).repeat_interleave(steps.n, 1) for part in own)
                chain = tuple(torch.cat((a, b.unsqueeze(1)), 1) for a, b in zip(quiet, own))
                level.messages = sweep(level.auxiliary, chain, level.pins)  # type: ignore[arg-type]
                level.guide = Doob(steps, level.auxiliary, level.messages)
                message = tuple(part[:, 0].unflatten(0, (S, -1)) for part in level.messages.pulled)
            fused = tuple(a.index_add(1, parents, b) for a, b in zip(fused, message))  # type: ignore[assignment]
        self.fused = fused
        self.m0, self.P0, self.log_norm = bayes(*self.law0, tuple(part[:, 0] for part in fused))  # type: ignore[arg-type]
        self.root0 = guided_root(self.law0[1], fused[0][:, 0])

    # -- forward ---------------------------------------------------------------------------------------------

    def _forward(self, n: int, noise: Noise) -> tuple[Tensor, Tensor, list[Tensor | None]]:
        """States ``(S, n, V, d)``, log-weights ``(S, n)``, and the fine paths ``(steps + 1, S E, n, d)`` of levels."""
        S, d = len(self.data), self.d
        x: list[Tensor] = [torch.empty(0)] * len(self.vertices)
        x[0] = self.m0.unsqueeze(1) + mv(self.root0.unsqueeze(1), noise.normal((n, d)).double())
        log_w = self.log_norm.unsqueeze(1) + torch.zeros(S, n, dtype=torch.float64)
        log_w = log_w if self.tilt is None else log_w + self.tilt(x[0])
        inner: list[Tensor | None] = []
        for level in self.levels:
            parents = [x[p] for p in level.edges.parents]
            if level.joint is not None:
                y, gain = self._several(level, parents, noise.normal((n, d)).double())
                x[level.edges.children[0]], log_w = y, log_w + gain
                inner.append(None)
                continue
            assert level.steps is not None and level.guide is not None
            E = len(parents)
            start = torch.stack(parents, 1).flatten(0, 1)
            z = noise.normal((E, level.steps.n, n, level.steps.r)).double()
            path, gain = level.guide.run(0, start, z.flatten(0, 1).movedim(1, 0))
            log_w = log_w + gain.unflatten(0, (S, E)).sum(1)
            for child, state in zip(level.edges.children, path[-1].unflatten(0, (S, E)).unbind(1)):
                x[child] = state
            inner.append(torch.cat((start.unsqueeze(0), path)))
        for j, vertex in enumerate(self.evidence.nodes):
            correction = self.evidence.correction(j, x[vertex])
            log_w = log_w if correction is None else log_w + correction
        return torch.stack(x, 2), log_w, inner

    def _several(self, level: Level, parents: list[Tensor], z: Tensor) -> tuple[Tensor, Tensor]:
        """The child of several parents, and what the blocks across its message weigh."""
        assert level.joint is not None and level.joined is not None and level.messages is not None
        h: Message = tuple(part[:, 0] for part in level.messages.fused)  # type: ignore[assignment]
        A, b, Q = level.joint
        (G, g, _), _ = absorb((torch.eye(self.d, dtype=A.dtype)[None], b, Q), h)
        root = guided_root(Q, h[0])
        together = torch.cat(parents, -1)
        y = mv((G @ A).unsqueeze(1), together) + g.unsqueeze(1) + mv(root.unsqueeze(1), z)
        S, p, d = together.shape[0], len(parents), self.d
        across = level.joined[0].reshape(S, p, d, p, d).clone()
        for i in range(p):
            across[:, i, :, i] = 0
        across = across.reshape(S, p * d, p * d)
        return y, -0.5 * (together * mv(across.unsqueeze(1), together)).sum(-1)

    # -- what is asked for -----------------------------------------------------------------------------------

    def sample(self, n: int, seed: int = 0) -> Paths:
        """``n`` weighted draws of the states of all vertices, ``(n, S, V, d)``; of equal weight where exact."""
        x, log_w, _ = self._forward(n, KeyedNoise(seed, len(self.data), name="tree"))
        return self._drawn(x.movedim(1, 0), log_w.T)

    def smooth(self) -> Marginals:
        """Means ``(S, V, d)`` and covariances of all vertices."""
        if not self.exact:
            x, w = self._cloud.x, self._cloud.weights
            mean = torch.einsum("ns,nsvd->svd", w, x)
            centred = x - mean
            return self._marginals(mean=mean, covariance=torch.einsum("ns,nsvd,nsve->svde", w, centred, centred))
        S, V, d = len(self.data), len(self.vertices), self.d
        mean, cov = torch.zeros(S, V, d, dtype=torch.float64), torch.zeros(S, V, d, d, dtype=torch.float64)
        mean[:, 0], cov[:, 0] = self.m0, self.P0
        for level in self.levels:
            A, b, Q = self._posterior_step(level)
            m, P = apply(A, level.gather(mean)) + b, A @ level.gather(cov) @ A.mT + Q
            mean[:, level.edges.children] = m.unflatten(0, (S, -1))
            cov[:, level.edges.children] = P.unflatten(0, (S, -1))
        return self._marginals(mean=mean, covariance=cov)

    def _posterior_step(self, level: Level) -> Step:
        """The guided kernel of a linear level, its exact rows met."""
        assert level.auxiliary is not None and level.messages is not None
        h: Message = tuple(part[:, -1] for part in level.messages.fused)  # type: ignore[assignment]
        step: Step = tuple(part[:, 0] for part in level.auxiliary)  # type: ignore[assignment]
        (A, b, Q), _ = absorb(step, h)
        for pin in level.pins.values():
            E, e = pin.E[:, 0], pin.e[:, 0]
            gain = torch.linalg.solve(E @ Q @ E.mT, E @ Q).mT
            A, b, Q = A - gain @ E @ A, b + apply(gain, e - apply(E, b)), Q - gain @ E @ Q
        return A, b, Q


def _pull_wide(step: Step, h: Message) -> Message:
    """The message about all parents, side by side, through ``A (d, p d)``: pulled to the mean, then along A."""
    A, b, Q = step
    _, (P, B, C) = absorb((torch.eye(Q.shape[-1], dtype=A.dtype)[None], b, Q), h)
    return A.mT @ P @ A, apply(A.mT, B), C
