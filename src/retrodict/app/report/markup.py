"""HTML built from elements, so that text is escaped unless it was built here.

`element("p", text)` escapes ``text``; only an `Html` value, which an earlier call made, goes in as it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

VOID = {"br", "img", "meta", "hr"}


class Html(str):
    """A string that is HTML already; made by `element` and `join`, or from constants of the program."""


def join(parts: Iterable[str], separator: str = "") -> Html:
    """Parts side by side, each escaped unless it is `Html`."""
    return Html(separator.join(part if isinstance(part, Html) else escape(str(part)) for part in parts))


def element(name: str, /, *children: str, **attributes: str | None) -> Html:
    """An element.  ``class_`` stands for ``class``, other underscores for hyphens; ``None`` leaves one out.

    >>> element("p", "a < b", class_="note", aria_label='"x"')
    '<p class="note" aria-label="&quot;x&quot;">a &lt; b</p>'
    """
    pairs = ((key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items() if value is not None)
    opening = "".join(f' {key}="{escape(str(value))}"' for key, value in pairs)
    if name in VOID:
        return Html(f"<{name}{opening}>")
    return Html(f"<{name}{opening}>{join(children)}</{name}>")
