"""Named settings of the delta form (`retrodict.steering.editing.delta`).

==================  ============================================  ==============================================
name                setting                                       evaluations a step
==================  ============================================  ==============================================
edit-friendly       w = 1                                         2
turbo               w = 1.5, noise one level ahead, last clipped  3
h-edit              implicit, K inner steps                       2 + 2 K; explicit in the last step
h-edit-explicit     w of the user's                               2 for w = 1, else 3; 4 with a third guidance
flow                eta = 0, w = 1                                2
==================  ============================================  ==============================================

``auto`` is "edit-friendly": on handwritten digits its edits are recognised as often as those of the others, within the
interval of the measurement, for the fewest evaluations (`benchmarks/bench_editing.py`).  Where a part is held that
the classes share only loosely, a stronger pull arrives more often: "turbo".
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from retrodict.core.errors import InputError, near
from retrodict.core.registry import Registry
from retrodict.steering.editing.delta import Rule

methods: Registry[Rule] = Registry("editing method")
methods.add("edit-friendly", "auto", value=Rule())
# 15.5 is the published bound on the norm of a latent of 4 x 64 x 64 numbers
methods.add("turbo", value=Rule(strength=1.5, shift=1, clip=15.5 / 128))
methods.add("h-edit", value=Rule(implicit=True))
methods.add("h-edit-explicit", value=Rule())
methods.add("flow", value=Rule(eta=0.0))


def rule(method: str, options: dict[str, Any]) -> Rule:
    """The setting of a method, with what the user changed of it."""
    known = [f.name for f in fields(Rule) if f.name != "implicit"]
    for name in options:
        if name not in known:
            raise InputError(f"unknown option {name!r} of an edit; known: {', '.join(known)}.{near(name, known)}")
    return replace(methods[method], **options)
