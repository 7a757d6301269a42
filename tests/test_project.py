"""The project as a whole: rooms import one way, names are documented, packaging says what is true."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import retrodict

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "retrodict"
MODULES = sorted(SOURCE.rglob("*.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

# A room may import itself and the rooms of earlier lines; rooms of one line stand side by side.
ROOMS = (
    ("core",),
    ("kernels",),
    ("particles",),
    ("processes",),
    ("data",),
    ("denoisers",),
    ("objectives",),
    ("solvers",),
    ("training",),
    ("steering", "inference", "credit"),
    ("distill",),
    ("diagnostics",),
    ("verbs",),
    ("app",),
)
LEVEL = {room: level for level, rooms in enumerate(ROOMS) for room in rooms}
# The front door: short modules outside the rooms that may name anything below the application.
FRONT = {"__init__", "exact", "operators"}


def name_of(path: Path) -> str:
    """The path of a source file from the repository's root, as test id."""
    return path.relative_to(ROOT).as_posix()


def room_of(path: Path) -> str:
    """The first folder below ``retrodict``, or the module's stem for files that stand outside the rooms."""
    parts = path.relative_to(SOURCE).parts
    return parts[0] if len(parts) > 1 else path.stem


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imports(tree: ast.AST, package: str, *, inside_functions: bool = True) -> Iterator[tuple[str, int]]:
    """Absolute dotted names that a module imports when it runs, with their lines."""
    for node in ast.iter_child_nodes(tree):
        if is_type_checking(node):
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.rsplit(".", node.level - 1)[0] if node.level > 1 else package
            origin = ".".join(filter(None, [base if node.level else "", node.module]))
            yield from ((f"{origin}.{alias.name}", node.lineno) for alias in node.names)
        elif inside_functions or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from imports(node, package, inside_functions=inside_functions)


def package_of(path: Path) -> str:
    """The dotted package against which a module's relative imports resolve."""
    return ".".join(("retrodict", *path.relative_to(SOURCE).parent.parts))


def wrong_way(path: Path, text: str) -> list[str]:
    """Imports of ``text``, were it the file ``path``, that go up the list of rooms or sideways."""
    here = room_of(path)
    faults = []
    for name, line in imports(ast.parse(text), package_of(path)):
        parts = name.split(".")
        if parts[0] != "retrodict":
            continue
        there = parts[1] if len(parts) > 1 else ""
        if there not in LEVEL:
            # The package itself, `retrodict.exact`, or a name at the front door: the application's way.
            if here != "app" and here not in FRONT:
                faults.append(f"{name_of(path)}:{line} imports {name} through the front door")
        elif there != here and here not in FRONT and LEVEL[there] >= LEVEL[here]:
            faults.append(f"{name_of(path)}:{line} ({here}) imports {name} ({there})")
        elif here in FRONT and there == "app":
            faults.append(f"{name_of(path)}:{line} imports the application")
    return faults


def test_every_room_is_listed() -> None:
    """A new folder must take its place in the order before anything may import it."""
    folders = {path.parent.relative_to(SOURCE).parts[0] for path in MODULES if path.parent != SOURCE}
    assert folders <= LEVEL.keys()
    assert {path.stem for path in SOURCE.glob("*.py")} <= FRONT


def test_imports_point_one_way() -> None:
    faults = [fault for path in MODULES for fault in wrong_way(path, path.read_text())]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize(
    ("path", "text", "legal"),
    [
        ("kernels/a.py", "from retrodict.core import errors", True),
        ("kernels/a.py", "from ..core.errors import near", True),
        ("kernels/a.py", "import retrodict.processes", False),
        ("kernels/a.py", "def f():\n    from retrodict.solvers.plan import Plan", False),
        ("kernels/a.py", "from ..solvers import plan", False),
        ("kernels/a.py", "if TYPE_CHECKING:\n    from retrodict.solvers.plan import Plan", True),
        ("kernels/a.py", "import retrodict as rd\nfrom retrodict import VP", False),
        ("steering/a.py", "from retrodict.inference import x", False),
        ("steering/deep/a.py", "from ...steering import x", True),
        ("solvers/a.py", "from retrodict.verbs import fit", False),
        ("app/a.py", "from retrodict import exact", True),
        ("__init__.py", "from retrodict.app import cli", False),
    ],
)
def test_the_import_check_can_fail(path: str, text: str, legal: bool) -> None:
    """The checker itself, on imports whose legality is plain."""
    assert (wrong_way(SOURCE / path, text) == []) is legal


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_module_reads_like_a_book(path: Path) -> None:
    """A docstring first, and short enough to be read in one sitting."""
    text = path.read_text()
    assert len(text.splitlines()) <= 500
    assert (path.name == "__init__.py" and not text.strip()) or ast.get_docstring(ast.parse(text))


@pytest.mark.parametrize("name", getattr(retrodict, "__all__", []))
def test_public_name_is_documented(name: str) -> None:
    public = getattr(retrodict, name)
    if inspect.ismodule(public) or inspect.isclass(public) or callable(public):
        assert inspect.getdoc(public), f"retrodict.{name} has no docstring"


def test_the_front_door_is_written_once() -> None:
    """What type checkers see behind the front door, what it imports on first use, and what it lists are the same."""
    tree = ast.parse((SOURCE / "__init__.py").read_text())
    block = next(node for node in tree.body if is_type_checking(node))
    seen = {a.name: node.module for node in ast.walk(block) if isinstance(node, ast.ImportFrom) for a in node.names}
    modules = {name for name, home in seen.items() if home == "retrodict"}
    assert seen == retrodict._HOMES | dict.fromkeys(modules, "retrodict")
    assert set(retrodict.__all__) == seen.keys() and modules <= set(retrodict._MODULES)
    assert all(getattr(retrodict, name) is not None for name in (*retrodict.__all__, *retrodict._MODULES))
    with pytest.raises(AttributeError, match="no attribute 'sampel'"):
        retrodict.sampel  # noqa: B018


# --- words -------------------------------------------------------------------------------------------------


def tracked_text() -> Iterator[tuple[Path, str]]:
    """Every text file that git tracks, but this one, which has to name what it forbids."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        if path == Path(__file__).resolve() or not path.is_file():
            continue
        data = path.read_bytes()
        if b"\0" not in data:
            yield path, data.decode("utf-8")


def test_no_machine_or_registry_is_named() -> None:
    """Files speak of the product: no paths of somebody's machine, no package-index hosts."""
    forbidden = re.compile(
        r"/work/|/root/|/home/\w|/opt/(pypi|wheels)|\bdossiers?\b|pypi\.org|pythonhosted|download\.pytorch"
        r"|extra-index-url|find-links",
        re.IGNORECASE,
    )
    faults = [f"{name_of(path)}: {hit.group()}" for path, text in tracked_text() for hit in forbidden.finditer(text)]
    assert not faults, "\n".join(faults)


def test_scheduler_is_not_our_word() -> None:
    """The field calls path, grid, plan and sampler alike a 'scheduler'; here it only means diffusers' own."""
    theirs = re.compile(r"diffusers|lr_scheduler|pipe\.scheduler", re.IGNORECASE)
    faults = []
    for path in MODULES:
        if "diffusers" in name_of(path):
            continue
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            if "scheduler" in line.lower() and not theirs.search(line):
                faults.append(f"{name_of(path)}:{number}: {line.strip()}")
    assert not faults, "\n".join(faults)


def test_nothing_is_unpickled() -> None:
    """Loading never runs code that a file names: no pickle, no torch.load, no allow_pickle=True."""
    forbidden = {"pickle.load", "pickle.loads", "torch.load", "joblib.load", "eval", "dill.load"}
    faults = []
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            allows = [k for k in node.keywords if k.arg == "allow_pickle" and ast.unparse(k.value) != "False"]
            if allows or ast.unparse(node.func) in forbidden:
                faults.append(f"{name_of(path)}:{node.lineno}: {ast.unparse(node)}")
    assert not faults, "\n".join(faults)


# --- packaging ---------------------------------------------------------------------------------------------


def distribution(requirement: str) -> str:
    """The normalised project name of a requirement line."""
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement).group()).lower()


CORE = {distribution(line) for line in PROJECT["dependencies"]}
EXTRAS = {extra: {distribution(line) for line in lines} for extra, lines in PROJECT["optional-dependencies"].items()}
OPTIONAL = set().union(*(names for extra, names in EXTRAS.items() if extra not in {"dev", "docs"}))


providers = cache(packages_distributions)


def third_party(path: Path, *, inside_functions: bool) -> Iterator[tuple[set[str], str]]:
    """Distributions behind the imports of a module that are neither ours nor the standard library's."""
    tree = ast.parse(path.read_text())
    for name, line in imports(tree, package_of(path), inside_functions=inside_functions):
        top = name.split(".")[0]
        if top != "retrodict" and top not in sys.stdlib_module_names:
            names = {distribution(provider) for provider in providers().get(top, [top])}
            yield names, f"{name_of(path)}:{line} imports {top}"


def test_imports_are_declared() -> None:
    """What a module imports as it loads is a core dependency; what a function imports may be an extra's."""
    faults = []
    for path in MODULES:
        for names, where in third_party(path, inside_functions=False):
            if not names & CORE:
                faults.append(f"{where} at the top of the module, which is not a core dependency")
        for names, where in third_party(path, inside_functions=True):
            if not names & (CORE | OPTIONAL):
                faults.append(f"{where}, which pyproject.toml does not declare")
    assert not faults, "\n".join(faults)


def test_install_lines_in_errors_are_right() -> None:
    """``optional_import(module, extra)`` names an extra that exists and brings the module."""
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and ast.unparse(node.func).endswith("optional_import")):
                continue
            values = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
            if len(values) == 2:
                module, extra = values
                where = f"{name_of(path)}:{node.lineno}"
                assert extra in EXTRAS, f"{where} names the extra {extra!r}"
                # `torch.utils.tensorboard` needs tensorboard beside torch, so any part of the name may be the extra's.
                parts = module.split(".")
                names = {distribution(p) for part in parts for p in providers().get(part, [part])}
                assert names & EXTRAS[extra], f"{where}: the extra {extra!r} does not bring {module!r}"


def test_constraints_lie_within_the_ranges() -> None:
    """The versions that the tests ran with are ones that the package accepts, and torch is held."""
    from packaging.requirements import Requirement

    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    held = {distribution(line): line.split("==")[1] for line in lines}
    assert "torch" in held
    declared = PROJECT["dependencies"] + [line for lines in PROJECT["optional-dependencies"].values() for line in lines]
    for requirement in map(Requirement, declared):
        name = distribution(requirement.name)
        if name in held:
            assert requirement.specifier.contains(held[name]), f"{requirement} excludes the held {held[name]}"
    assert not held.keys() - {distribution(line) for line in declared} - {"mkdocstrings-python"}


def test_version_is_told_once() -> None:
    """The changelog and the citation name the version that pyproject.toml declares."""
    version = PROJECT["version"]
    assert re.search(rf"^## {re.escape(version)}\b", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert f"version: {version}\n" in (ROOT / "CITATION.cff").read_text()


def test_command_is_installed() -> None:
    """The console script of pyproject.toml resolves to a function."""
    module, function = PROJECT["scripts"]["retrodict"].split(":")
    assert callable(getattr(importlib.import_module(module), function))
