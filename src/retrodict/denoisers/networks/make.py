"""A network by name, or the one that suits the data."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from retrodict.core.errors import InputError, near, require
from retrodict.denoisers.networks.base import Network, networks
from retrodict.denoisers.networks.embedding import Spec

#: layout -> (length of the shape, network chosen by "auto")
LAYOUTS = {"vector": (1, "mlp"), "series": (2, "unet1d"), "image": (3, "unet"), "tokens": (1, "transformer")}


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
            "transformer" for tokens.
        shape: of one sample: ``(d,)``, ``(time, channel)``, ``(channel, height, width)``, or ``(length,)``.
        out_channels: channels of the output (logits for tokens); None for as many as the input.
        conditions: name -> number of classes, or shape of a real vector; see `Network`.
        layout: "vector", "series", "image" or "tokens"; None reads it from the shape and ``vocabulary``.
        vocabulary: number of token values, a mask token included; for tokens only.
        time: False for a network without a time input.
        options: of the network's class, such as ``hidden=`` or ``channels=``.

    Raises:
        InputError: an unknown kind, layout or option, with the nearest known; a shape that does not fit
            the layout.
    """
    if layout is None:
        layout = "tokens" if vocabulary is not None else {1: "vector", 2: "series"}.get(len(shape), "image")
    if layout not in LAYOUTS:
        raise InputError(f"unknown layout {layout!r}; known: {', '.join(LAYOUTS)}.{near(layout, LAYOUTS)}")
    axes, best = LAYOUTS[layout]
    require(len(shape) == axes, f"shape {tuple(shape)} has {len(shape)} axes; layout {layout!r} has {axes}")
    require(
        (vocabulary is not None) == (layout == "tokens"),
        "vocabulary= goes with layout 'tokens', and only with it",
    )
    cls = networks[best if kind == "auto" else kind]
    known = list(inspect.signature(cls).parameters)
    if vocabulary is not None:
        require("vocabulary" in known, f"network {cls.name!r} takes no tokens; accepted for tokens: 'transformer'")
        options["vocabulary"] = vocabulary
    for name in options:
        if name not in known:
            raise InputError(
                f"network {cls.name!r} has no option {name!r}; known: {', '.join(known)}.{near(name, known)}"
            )
    return cls(shape, out_channels=out_channels, conditions=conditions, time=time, **options)
