"""The pages on inference: their pictures are drawn, their errors are those that are raised, their file runs."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
from pathlib import Path

import yaml

from retrodict.app.infer.drifts import drifts, finite_laws, real_laws
from retrodict.app.infer.fields import priors
from retrodict.app.infer.models import build, kinds
from retrodict.app.infer.run import parse_config

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs" / "guide"


def blocks(page: Path) -> list[tuple[str, str]]:
    """``(language, text)`` of every block of code."""
    return re.findall(r"^```(\w+)\n(.*?)^```", page.read_text(), flags=re.M | re.S)


def test_every_picture_of_the_pages_is_drawn_by_the_example(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("inference_gallery", ROOT / "examples" / "inference.py")
    assert spec is not None and spec.loader is not None
    gallery = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(gallery)
    pages = [*GUIDE.glob("inference*.md"), ROOT / "README.md", ROOT / "docs" / "index.md"]
    shown = {name for page in pages for name in re.findall(r"assets/(\w+)\.png", page.read_text())}
    assert {draw.__name__ for draw in gallery.FIGURES} <= shown
    for draw in (gallery.regimes, gallery.genealogy):
        draw(tmp_path)
        assert (tmp_path / f"{draw.__name__}.png").stat().st_size > 10_000


def test_the_errors_shown_are_those_that_are_raised() -> None:
    """Type and first words; the rest may be worded better one day."""
    namespace: dict[str, object] = {}
    compared = 0
    said = ""
    for language, text in blocks(GUIDE / "inference-errors.md"):
        if language == "python":
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                exec(text, namespace)
            said = out.getvalue()
            continue
        for shown, raised in zip(text.strip().split("\n\n"), said.strip().split("\n"), strict=True):
            assert shown.split()[:7] == raised.split()[:7]
            compared += 1
    assert compared >= 10


def test_the_configuration_of_the_page_builds_and_every_name_is_told() -> None:
    page = GUIDE / "inference-files.md"
    (config,) = (text for language, text in blocks(page) if language == "yaml")
    plan = parse_config(yaml.safe_load(config))
    assert set(build(plan.given["model"], 1, 0.0)[1]) == {"level", "noise"}
    text = page.read_text()
    for registry in (kinds, drifts, priors, real_laws, finite_laws):
        assert all(f"`{name}`" in text for name in registry), registry.kind
