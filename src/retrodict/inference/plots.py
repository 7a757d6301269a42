"""Pictures of results: laws with bands, paths, effective sample size, ancestry, trees.  Each returns its Axes."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from retrodict.core.errors import InputError, require
from retrodict.inference.results import Marginals, Paths

_BAND, _FAINT = 0.25, 0.3  # opacities


def marginals(
    laws: Marginals,
    *,
    series: int = 0,
    coordinates: Sequence[int] | None = None,
    level: float = 0.9,
    truth: Any = None,
    observed: Any = None,
    ax: Any = None,
) -> Any:
    """Means with central bands of probability ``level``; probabilities of finite states stacked to one.

    Args:
        series: which of the batch.
        coordinates: of the state; by default all.
        truth: ``(N, d)`` or ``(N,)``, drawn as a thin line; observed: the same, drawn as points.
    """
    ax = _axes(ax)
    keep = ~torch.isnan(laws.times[series])
    t = _times(laws, series, keep)
    if laws.probabilities is not None:
        p = _numpy(laws.probabilities[series, keep])
        ax.stackplot(t, p.T, labels=[f"state {j}" for j in range(p.shape[1])], alpha=0.8)
        ax.set_ylim(0, 1)
        ax.set_ylabel("probability")
    else:
        assert laws.mean is not None
        low, high = laws.interval(level)
        chosen = range(laws.mean.shape[-1]) if coordinates is None else coordinates
        for j in chosen:
            name = f"{laws.what} {j}" if laws.mean.shape[-1] > 1 else laws.what
            (line,) = ax.plot(t, _numpy(laws.mean[series, keep, j]), label=f"{name}, {level:.0%} band")
            band = _numpy(low[series, keep, j]), _numpy(high[series, keep, j])
            ax.fill_between(t, *band, color=line.get_color(), alpha=_BAND, linewidth=0)
            for values, style in ((truth, {"lw": 0.8, "ls": "--"}), (observed, {"lw": 0, "marker": ".", "ms": 4})):
                if values is not None:
                    ax.plot(t, _column(values, j), color=line.get_color(), **style)
    ax.set_xlabel(laws.axis.name or "time")
    ax.legend(loc="best", frameon=False)
    return ax


def paths(draws: Paths, *, series: int = 0, coordinate: int = 0, most: int = 50, ax: Any = None) -> Any:
    """Up to ``most`` hidden paths over time; heavier ones are darker."""
    ax = _axes(ax)
    keep = ~torch.isnan(draws.times[series])
    x = _numpy(draws.x[:most, series][:, keep])
    weights = _numpy(draws.weights[:most, series])
    top = weights.max()
    for path, weight in zip(x, weights):
        y = path[:, coordinate] if path.ndim == 2 else path
        style = {"drawstyle": "steps-post"} if path.ndim == 1 else {}
        ax.plot(_times(draws, series, keep), y, color="C0", lw=0.8, alpha=_FAINT * weight / top + 0.02, **style)
    ax.set_xlabel(draws.axis.name or "time")
    ax.set_ylabel(f"state {coordinate}" if draws.x.ndim == 4 else "state")
    return ax


def ess(values: Tensor, *, particles: int | None = None, times: Any = None, ax: Any = None) -> Any:
    """Effective sample size ``(n+1,)`` or ``(n+1, S)`` over time, beside the number of particles."""
    ax = _axes(ax)
    values = values if values.ndim == 2 else values[:, None]
    t = np.arange(len(values)) if times is None else np.asarray(times)
    for s in range(values.shape[1]):
        ax.plot(t, _numpy(values[:, s]), lw=1, color="C0", alpha=1 if values.shape[1] == 1 else 0.5)
    if particles is not None:
        ax.axhline(particles, color="0.6", lw=0.8, ls=":")
    ax.set_ylim(bottom=0)
    ax.set_xlabel("time")
    ax.set_ylabel("effective sample size")
    return ax


def ancestry(
    ancestors: Sequence[Tensor],
    x: Sequence[Tensor] | None = None,
    *,
    series: int = 0,
    coordinate: int = 0,
    ax: Any = None,
) -> Any:
    """The genealogy of a particle run: every particle joined to its parent; lines with living descendants are dark.

    Args:
        ancestors: parents ``(S, N)`` of nodes 1..n, as indices at the node before.
        x: states ``(S, N, d)`` or ``(S, N)`` of nodes 0..n, the heights; by default the particles' indices.
    """
    ax = _axes(ax)
    parents = [_numpy(a[series]) for a in ancestors]
    require(bool(parents), "ancestry needs one step or more")
    N = len(parents[0])
    heights = [np.arange(N)] * (len(parents) + 1) if x is None else [_column(v[series], coordinate) for v in x]
    require(
        len(heights) == len(parents) + 1,
        f"{len(parents)} steps have {len(parents) + 1} layers of states, not {len(heights)}",
    )
    alive = np.ones(N, dtype=bool)
    segments: dict[bool, list[Any]] = {False: [], True: []}  # without and with living descendants
    for k in range(len(parents) - 1, -1, -1):
        before = np.zeros(N, dtype=bool)
        before[parents[k][alive]] = True
        for living in (False, True):
            chosen = np.flatnonzero(alive == living)
            segments[living] += [[(k, heights[k][parents[k][i]]), (k + 1, heights[k + 1][i])] for i in chosen]
        alive = before
    from matplotlib.collections import LineCollection

    ax.add_collection(LineCollection(segments[False], colors="0.8", linewidths=0.4))
    ax.add_collection(LineCollection(segments[True], colors="C0", linewidths=0.8))
    ax.autoscale_view()
    ax.set_xlabel("step")
    ax.set_ylabel("particle" if x is None else f"state {coordinate}")
    return ax


def tree(
    edges: Iterable[tuple], *, values: Mapping[Hashable, float] | None = None, labels: bool = True, ax: Any = None
) -> Any:
    """A rooted tree from left to right; leaves are spread evenly and parents sit amid their children.

    Args:
        edges: ``(parent, child)`` or ``(parent, child, length)``, as of `Tree`; lengths are 1 by default.
        values: a number for each vertex, by name, for its colour (a posterior mean, say).
        labels: whether vertices carry their names.
    """
    ax = _axes(ax)
    edges = list(edges)
    place = _layout(edges)
    for a, b in (edge[:2] for edge in edges):
        (xa, ya), (xb, yb) = place[a], place[b]
        ax.plot([xa, xa, xb], [ya, yb, yb], color="0.5", lw=1, zorder=1)
    points = np.array(list(place.values()))
    shade: dict[str, Any] = {"color": "C0"}
    if values is not None:
        missing = [v for v in place if v not in values]
        require(not missing, f"values has no number for the vertices {missing}")
        shade = {"c": [float(values[v]) for v in place], "cmap": "viridis"}
    drawn = ax.scatter(points[:, 0], points[:, 1], s=30, zorder=2, **shade)
    if values is not None:
        ax.figure.colorbar(drawn, ax=ax)
    for v, at in place.items() if labels else ():
        ax.annotate(str(v), at, xytext=(5, 0), textcoords="offset points", va="center", fontsize=8)
    ax.set_xlabel("distance from the root")
    ax.set_yticks([])
    return ax


def _layout(edges: list[tuple]) -> dict[Hashable, tuple[float, float]]:
    """Vertex -> (distance from the root, height), parents before their children."""
    children: dict[Hashable, list[tuple[Hashable, float]]] = {}
    for edge in edges:
        children.setdefault(edge[0], []).append((edge[1], float(edge[2]) if len(edge) > 2 else 1.0))
    ends = {edge[1] for edge in edges}
    roots = [v for v in children if v not in ends]
    if len(roots) != 1 or len(ends) != len(edges):
        raise InputError(f"edges (parent, child) do not make one rooted tree: roots {roots}")
    distance, stack, walk = {roots[0]: 0.0}, [roots[0]], []
    while stack:
        v = stack.pop()
        walk.append(v)
        for child, length in reversed(children.get(v, [])):
            distance[child] = distance[v] + length
            stack.append(child)
    height = {v: float(i) for i, v in enumerate(v for v in walk if v not in children)}
    for v in reversed(walk):
        if v in children:
            height[v] = float(np.mean([height[child] for child, _ in children[v]]))
    return {v: (distance[v], height[v]) for v in walk}


def _axes(ax: Any) -> Any:
    if ax is not None:
        return ax
    from matplotlib.figure import Figure

    return Figure(figsize=(7, 3.5), layout="constrained").add_subplot()


def _times(results: Marginals | Paths, series: int, keep: Tensor) -> Any:
    labels = results.axis.labels(_numpy(results.times[series, keep]))
    return labels.to_timestamp() if hasattr(labels, "to_timestamp") else labels


def _column(values: Any, j: int) -> np.ndarray:
    array = _numpy(values)
    return array if array.ndim == 1 else array[:, j]


def _numpy(value: Any) -> np.ndarray:
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
