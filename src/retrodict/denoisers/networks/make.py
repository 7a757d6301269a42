"""A network by name, or the one that suits the data."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from retrodict.core.errors import InputError, near, require
from retrodict.denoisers.networks.base import Network, networks
from retrodict.denoisers.networks.embedding import Spec

#: layout -> (length of the shape, network chosen by "auto")
LAYOUTS = {
    "vector": (1, "mlp"),
    "series": (2, "unet1d"),
    "image": (3, "unet"),
    "tokens": (1, "transformer"),
    "counts": (3, "count-unet"),
}


def make_network(
    kind: str,
    shape: Sequence[int],
    *,
    out_channels: int | None = None,
    conditions: Mapping[str, Spec] | None = None,
    layout: str | None = None,
    vocabulary: int | None = None,
    time: bool = True,
    **options: Any,
) -> Network:
    """A network for samples of ``shape``.

    Args:
        kind: a name in `networks`, or "auto": "mlp" for vectors, "unet" for images, "unet1d" for series,
            "transformer" for tokens, "count-unet" for images of whole numbers.
        shape: of one sample: ``(d,)``, ``(time, channel)``, ``(channel, height, width)``, or ``(length,)``.
        out_channels: channels of the output (logits for tokens); None for as many as the input.
        conditions: name -> number of classes, or shape of a real vector; see `Network`.
        layout: "vector", "series", "image", "tokens" or "counts" (images of whole numbers); None reads it from the
            shape and ``vocabulary``.
        vocabulary: number of values, a mask included; for tokens and counts only.
        time: False for a network without a time input.
        options: of the network's class, such as ``hidden=`` or ``channels=``.

    Raises:
        InputError: an unknown kind, layout or option, with the nearest known; a shape that does not fit
            the layout.
    """
    if layout is None:
        whole = {3: "counts"}.get(len(shape), "tokens")
        layout = whole if vocabulary is not None else {1: "vector", 2: "series"}.get(len(shape), "image")
    if layout not in LAYOUTS:
        raise InputError(f"unknown layout {layout!r}; known: {', '.join(LAYOUTS)}.{near(layout, LAYOUTS)}")
    axes, best = LAYOUTS[layout]
    require(len(shape) == axes, f"shape {tuple(shape)} has {len(shape)} axes; layout {layout!r} has {axes}")
    require(
        (vocabulary is not None) == (layout in ("tokens", "counts")),
        "vocabulary= goes with layout 'tokens' or 'counts', and only with them",
    )
    cls = networks[best if kind == "auto" else kind]
    known = list(inspect.signature(cls).parameters)
    if vocabulary is not None:
        require("vocabulary" in known, f"network {cls.name!r} takes no {layout}; accepted: {best!r}")
        options["vocabulary"] = vocabulary
    for name in options:
        if name not in known:
            raise InputError(
                f"network {cls.name!r} has no option {name!r}; known: {', '.join(known)}.{near(name, known)}"
            )
    return cls(shape, out_channels=out_channels, conditions=conditions, time=time, **options)
