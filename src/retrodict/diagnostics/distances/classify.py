"""Two-sample tests by classifiers, and class histograms.

If a classifier, trained on half of both samples, tells the other half apart better than chance, the laws
differ (Lopez-Paz and Oquab, 2017).  A weak classifier sees nothing, so a panel is run and the best is
reported with its p-value times the size of the panel (Bonferroni).  Under equal laws the held-out accuracy
has mean 1/2 and a standard error of at most sqrt(1/4 / tests).

The histogram of classes, as a fixed classifier sees them, is the cheapest test of dropped modes: total
variation ``1/2 sum_c |p_c - q_c|`` with the chi-square test of equal shares.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy import stats
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from retrodict.core.errors import InputError, InputTypeError, near, require
from retrodict.diagnostics.distances.measure import Measure, Samples, check_samples, measure, spread, wilson


def with_squares(x: np.ndarray) -> np.ndarray:
    return np.concatenate([x, x**2], axis=1)


def panel(seed: int) -> dict[str, Any]:
    """Fresh classifiers by name: each sees something that the others miss."""
    return {
        "logistic": make_pipeline(
            StandardScaler(),
            FunctionTransformer(with_squares),
            StandardScaler(),
            LogisticRegression(C=0.1, max_iter=200),
        ),
        "neighbours": make_pipeline(StandardScaler(), KNeighborsClassifier(15)),
        "network": make_pipeline(
            StandardScaler(),
            MLPClassifier((64,), alpha=1.0, early_stopping=True, random_state=seed),
        ),
        "boosting": HistGradientBoostingClassifier(max_iter=40, max_leaf_nodes=8, random_state=seed),
    }


PANEL = tuple(panel(0))


def c2st(real: Samples, fake: Samples, *, classifiers: Sequence[str] = PANEL, seed: int = 0) -> Measure:
    """Best held-out accuracy of a panel of classifiers between ``real`` and ``fake``; 1/2 is chance.

    The larger sample is cut (at random) to the size of the smaller; half of each trains, half tests.  Keep
    the generator's training data out of ``real``, or a perfect copyist looks right.

    Args:
        classifiers: names from `PANEL`.
    """
    x, y = check_samples(real, fake, least=20)
    known = panel(seed)
    require(len(classifiers) > 0, f"no classifiers; known: {', '.join(known)}")
    for name in classifiers:
        if name not in known:
            raise InputError(f"unknown classifier {name!r}; known: {', '.join(known)}.{near(name, known)}")
    g = torch.Generator().manual_seed(seed)
    size = min(len(x), len(y))
    parts = [z[torch.randperm(len(z), generator=g)[:size]].split([size // 2, size - size // 2]) for z in (x, y)]
    train = torch.cat([parts[0][0], parts[1][0]]).numpy()
    test = torch.cat([parts[0][1], parts[1][1]]).numpy()
    truth_train, truth_test = (np.repeat([0, 1], len(z) // 2) for z in (train, test))
    right = {name: int((known[name].fit(train, truth_train).predict(test) == truth_test).sum()) for name in classifiers}
    best = max(right, key=right.__getitem__)
    single = float(stats.binomtest(right[best], len(test), 0.5, alternative="greater").pvalue)
    low, high = wilson(right[best], len(test))
    shown = ", ".join(f"{name} {count / len(test):.3f}" for name, count in right.items())
    note = f"held-out accuracy: {shown}; p by Bonferroni, interval (Wilson) of the best alone"
    return Measure("c2st", right[best] / len(test), low, high, min(1.0, single * len(right)), (size, size), note)


def class_histogram(
    real: Samples, fake: Samples, classes: int | None = None, *, resamples: int = 100, seed: int = 0
) -> Measure:
    """Total variation between the class shares of two sets of integer labels ``(m,)`` and ``(n,)``.

    Args:
        classes: number of classes; None for one more than the largest label.
        resamples: random halves for the interval, which is for what samples of these sizes show.
    """
    labels = [torch.as_tensor(z) for z in (real, fake)]
    for what, z in zip(("real", "fake"), labels):
        if z.is_floating_point() or z.dtype == torch.bool or z.ndim != 1:
            raise InputTypeError(f"{what} has shape {tuple(z.shape)}, dtype {z.dtype}; accepted: integer labels (n,)")
        require(len(z) >= 2, f"{what} has {len(z)} labels; accepted: at least 2")
    count = 1 + max(int(z.max()) for z in labels) if classes is None else classes
    for what, z in zip(("real", "fake"), labels):
        require(0 <= int(z.min()) and int(z.max()) < count, f"{what} has labels outside 0..{count - 1}")
    x, y = (torch.nn.functional.one_hot(z.long(), count).double() for z in labels)

    def variation(i: torch.Tensor, j: torch.Tensor) -> float:
        return (x[i].mean(0) - y[j].mean(0)).abs().sum().item() / 2

    value = variation(torch.arange(len(x)), torch.arange(len(y)))
    error = spread(variation, len(x), len(y), resamples, seed)
    table = torch.stack([x.sum(0), y.sum(0)]).numpy()
    table = table[:, table.sum(0) > 0]
    test: Any = stats.chi2_contingency(table) if table.shape[1] > 1 else None
    p = 1.0 if test is None else float(test.pvalue)
    worst = int((x.mean(0) - y.mean(0)).abs().argmax())
    shares = f"class {worst} has {x[:, worst].mean():.3f} of real and {y[:, worst].mean():.3f} of fake"
    return measure("class_histogram", value, error, (len(x), len(y)), p, f"total variation; largest gap: {shares}")
