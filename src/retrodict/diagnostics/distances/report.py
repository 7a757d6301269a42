"""One report on the quality of samples: every distance with its interval, beside a two-sample floor.

`quality` compares samples with real data they were not trained on; `floor` compares the training set with the
same real data, which is the best that a perfect sampler could show.  A claim is read from their difference,
`excess`. Measures that depend on the sample sizes run at equal sizes: the larger sample is cut into blocks of
the smaller's size, and the values are averaged.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from retrodict.core.errors import InputError, near, require
from retrodict.diagnostics.distances.classify import c2st, class_histogram
from retrodict.diagnostics.distances.gaussian import frechet
from retrodict.diagnostics.distances.kernels import kernel_distances
from retrodict.diagnostics.distances.measure import Measure, Samples, check_samples, measure, proportion
from retrodict.diagnostics.distances.neighbours import prdc
from retrodict.diagnostics.distances.transport import sliced_wasserstein, wasserstein

MOST_BLOCKS = 6  #: of the larger sample, for the measures at equal sizes


class Features(Protocol):
    """What `quality` asks of a feature map; `retrodict.diagnostics.classifier.FeatureClassifier` is one."""

    def features(self, x: Samples) -> Tensor: ...
    def predict(self, x: Samples) -> Tensor: ...


@dataclass(frozen=True)
class QualityReport(Mapping[str, Measure]):
    """Measures by name, in the order they were made; prints as a table.

    Attributes:
        measures: name -> `Measure`.
        floor: the same measures of the training set, or None.
    """

    measures: dict[str, Measure]
    floor: QualityReport | None = None

    def __getitem__(self, name: str) -> Measure:
        if name not in self.measures:
            known = ", ".join(self.measures)
            raise InputError(f"no measure {name!r} in this report; it has: {known}.{near(name, self.measures)}")
        return self.measures[name]

    def __contains__(self, name: object) -> bool:
        return name in self.measures

    def __iter__(self) -> Iterator[str]:
        return iter(self.measures)

    def __len__(self) -> int:
        return len(self.measures)

    def excess(self, name: str) -> Measure:
        """Value minus floor, with the interval of the difference of two independent estimates.

        The two share the real sample, which makes the interval a little too wide.
        """
        if self.floor is None:
            raise InputError("this report has no floor; give quality(..., floor=floor(train, held_out))")
        ours, least = self[name], self.floor[name]
        error = math.hypot(ours.high - ours.low, least.high - least.low) / (2 * 1.96)
        return measure(name, ours.value - least.value, error, ours.n, None, "minus the two-sample floor")

    def table(self) -> str:
        """A line per measure: value, interval, p-value, floor."""
        lines = [f"{'measure':22} {'value':>10} {'95% interval':>24} {'p':>7} {'floor':>10}"]
        for name, m in self.measures.items():
            p = "" if m.p_value is None else f"{m.p_value:.3g}"
            least = f"{self.floor[name].value:.4g}" if self.floor is not None and name in self.floor else ""
            interval = f"[{m.low:.4g}, {m.high:.4g}]"
            lines.append(f"{name:22} {m.value:>10.4g} {interval:>24} {p:>7} {least:>10}")
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.table()

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `from_dict` reads them."""
        floor = None if self.floor is None else self.floor.to_dict()
        return {"measures": {name: m.to_dict() for name, m in self.measures.items()}, "floor": floor}

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> QualityReport:
        measures = {name: Measure(**(m | {"n": tuple(m["n"])})) for name, m in saved["measures"].items()}
        return cls(measures, None if saved["floor"] is None else cls.from_dict(saved["floor"]))


def quality(
    real: Samples,
    fake: Samples,
    features: Features | None = None,
    labels: Samples | None = None,
    floor: QualityReport | None = None,
    *,
    k: int = 5,
    seed: int = 0,
) -> QualityReport:
    """Compare samples with real data that they were not trained on.

    Args:
        real, fake: ``(m, *shape)`` and ``(n, *shape)``, at least 20 of each; 2000 for sharp answers.
        features: a fixed classifier (`feature_classifier`): adds Frechet, kernel and neighbour measures in
            its features and the histogram of its classes.
        labels: the classes asked for, ``(n,)``: adds ``recognised``, the share of fake that the classifier
            puts there.
        floor: the report of `floor` on the same real data.
        k: neighbours of precision, recall, density and coverage.

    Returns:
        ``energy``, ``mmd``, ``frechet``, ``sliced_wasserstein``, ``precision``, ``recall``, ``density``,
        ``coverage``, ``c2st``; in one or two dimensions ``wasserstein``; with features ``frechet_features``,
        ``kid_features``, ``coverage_features`` and so on, ``class_histogram``; with labels ``recognised``.
    """
    x, y = check_samples(real, fake, least=20)
    require(labels is None or features is not None, "labels= needs features=, a classifier that recognises them")
    found = space_measures(x, y, k, seed)
    if x.shape[1] <= 2:
        found["wasserstein"] = at_equal_sizes(lambda a, b: {"": wasserstein(a, b, seed=seed)}, x, y)[""]
    found["c2st"] = c2st(x, y, seed=seed)
    if features is not None:
        fx, fy = (features.features(z).double() for z in (real, fake))
        found |= {f"{name}_features": m for name, m in space_measures(fx, fy, k, seed, "kid").items()}
        seen_real, seen_fake = (features.predict(z).cpu() for z in (real, fake))
        found["class_histogram"] = class_histogram(seen_real, seen_fake, seed=seed)
        if labels is not None:
            found["recognised"] = recognised(seen_fake, labels)
    return QualityReport({name: replace(m, name=name) for name, m in found.items()}, floor)


def floor(
    train: Samples,
    held_out: Samples,
    features: Features | None = None,
    labels: Samples | None = None,
    *,
    n: int | None = None,
    k: int = 5,
    seed: int = 0,
) -> QualityReport:
    """The report that the training set itself earns against the held-out data; no sampler can hope for less.

    Args:
        train, held_out: ``(m, *shape)`` and ``(n, *shape)``.
        features, k, seed: as in `quality`.
        labels: true classes of ``train``.
        n: how many training samples to use, drawn at random; None for all.
    """
    size = len(train) if n is None else n
    require(1 <= size <= len(train), f"n={n}; accepted: 1 to {len(train)}, the size of train")
    chosen = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[:size]
    asked = None if labels is None else torch.as_tensor(labels)[chosen]
    return quality(held_out, torch.as_tensor(train)[chosen], features, asked, k=k, seed=seed)


def space_measures(x: Tensor, y: Tensor, k: int, seed: int, kernels: str = "") -> dict[str, Measure]:
    """Frechet, kernel, sliced and neighbour measures of two matrices of samples."""
    names: Sequence[str] = (kernels,) if kernels else ("energy", "mmd")
    found = dict(zip(names, kernel_distances(x, y, names, seed=seed)))
    found["frechet"] = frechet(x, y, seed=seed)
    if not kernels:
        found |= at_equal_sizes(lambda a, b: {"sliced_wasserstein": sliced_wasserstein(a, b, seed=seed)}, x, y)
    return found | at_equal_sizes(lambda a, b: prdc(a, b, k, seed=seed), x, y)


def at_equal_sizes(compare: Callable[[Tensor, Tensor], dict[str, Measure]], x: Tensor, y: Tensor) -> dict[str, Measure]:
    """Means over blocks of the larger sample, each of the smaller one's size.

    The interval is that of one block, because the smaller sample is the same in all; so is the p-value.
    """
    size = min(len(x), len(y))
    blocks = min(MOST_BLOCKS, max(len(x), len(y)) // size)
    runs = [compare(x[slice_of(x, b, size)], y[slice_of(y, b, size)]) for b in range(blocks)]
    found = {}
    for name, first in runs[0].items():
        shift = sum(run[name].value for run in runs) / blocks - first.value
        note = first.note if blocks == 1 else f"mean of {blocks} blocks of {size}; {first.note}"
        found[name] = replace(
            first, value=first.value + shift, low=first.low + shift, high=first.high + shift, note=note
        )
    return found


def slice_of(x: Tensor, block: int, size: int) -> slice:
    return slice(0, size) if len(x) < 2 * size else slice(block * size, (block + 1) * size)


def recognised(seen: Tensor, labels: Samples) -> Measure:
    asked = torch.as_tensor(labels).cpu()
    require(asked.shape == seen.shape, f"{tuple(asked.shape)} labels for {len(seen)} samples; accepted: one each")
    return proportion("recognised", int((seen == asked).sum()), len(seen), "Wilson interval")
