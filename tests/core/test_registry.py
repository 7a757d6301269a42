"""Errors and registries: what was given, what is accepted, the nearest name."""

from __future__ import annotations

import pytest

from retrodict.core.errors import (
    InputError,
    MissingExtraError,
    RetrodictError,
    near,
    optional_import,
    require,
)
from retrodict.core.registry import Registry


def test_an_unknown_name_names_the_nearest():
    paths = Registry("path")
    paths.add("linear", "straight", value=1)
    paths.register("cosine")(2)
    assert paths["straight"] == 1 and paths["cosine"] == 2
    assert "linear" in paths and "lineal" not in paths
    assert list(paths) == ["linear", "straight", "cosine"] and dict(paths.items())["cosine"] == 2
    with pytest.raises(
        InputError, match=r"unknown path 'lineal'; known: cosine, linear, straight. Did you mean 'linear'\?"
    ):
        paths["lineal"]


def test_a_name_is_taken_once():
    paths = Registry("path")
    paths.add("a", value=1)
    with pytest.raises(InputError, match="'a' is registered already"):
        paths.add("a", value=2)


def test_near_names():
    assert near("Heum", ["heun", "ddim"]) == " Did you mean 'heun'?"
    assert near("zzzz", ["heun", "ddim"]) == ""


def test_errors_are_also_the_built_in_ones():
    with pytest.raises(ValueError, match="because"):
        require(False, "because")
    require(True, "not raised")
    assert issubclass(InputError, RetrodictError)


def test_a_missing_extra_says_how_to_install_it():
    assert optional_import("math", "any").sqrt(4) == 2
    with pytest.raises(MissingExtraError, match=r"pip install 'retrodict\[ot\]'"):
        optional_import("no_such_module_here", "ot")
