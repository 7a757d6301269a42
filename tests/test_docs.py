"""The code in the README and the guide runs, and the gallery draws its figures."""

from __future__ import annotations

import importlib
import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs" / "guide").glob("*.md"))]


def _code(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), flags=re.M | re.S)


@pytest.mark.parametrize("page", [p for p in PAGES if _code(p)], ids=lambda p: p.stem)
def test_the_code_of_a_page_runs_from_top_to_bottom(page, tmp_path, monkeypatch):
    """Blocks share one namespace, as a reader's session would; training takes two steps instead of thousands."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(importlib.import_module("retrodict.verbs.fit"), "_DEFAULT_STEPS", 2)
    namespace: dict[str, object] = {}
    for number, block in enumerate(_code(page)):
        exec(compile(block, f"{page.name}, block {number + 1}", "exec"), namespace)


def test_the_gallery_draws_every_figure_that_the_guide_shows(tmp_path):
    spec = importlib.util.spec_from_file_location("gallery", ROOT / "examples" / "gallery.py")
    assert spec is not None and spec.loader is not None
    gallery = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(gallery)
    shown = {name for page in PAGES for name in re.findall(r"assets/(\w+)\.png", page.read_text())}
    assert {draw.__name__ for draw in gallery.FIGURES} <= shown
    gallery.smoothing(tmp_path)
    gallery.backward(tmp_path)
    assert (tmp_path / "smoothing.png").stat().st_size > 10_000
