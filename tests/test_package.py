"""The installed package: its files, its types, and the cost of its start."""

from __future__ import annotations

import ast
import importlib
import re
import shutil
import sys
from importlib.metadata import distribution, requires
from pathlib import Path

import pytest

import poetry as package
from tests.processes import ROOT, run
from tests.processes import poetry as run_poetry

COMMANDS = ("poetry", "twisted-poetry")


# The distribution


def test_both_commands_are_declared() -> None:
    """Both commands are declared, and are the same."""
    points = {point.name: point for point in distribution("twisted-poetry").entry_points}
    assert sorted(points) == sorted(COMMANDS)
    assert {point.value for point in points.values()} == {"poetry.__main__:main"}
    assert {point.group for point in points.values()} == {"console_scripts"}


def test_requirements_are_few() -> None:
    """The package needs Twisted, click and tqdm; the rest are extras."""
    lines = [line for line in requires("twisted-poetry") or () if "extra ==" not in line]
    assert {re.split(r"[^\w-]", line)[0] for line in lines} == {"twisted", "click", "tqdm"}


def test_package_is_typed_and_brings_a_poem() -> None:
    """The package says that it is typed, and brings a poem that is not ASCII."""
    directory = Path(str(package.__file__)).parent
    assert (directory / "py.typed").exists()
    sample = (directory / "sample.txt").read_bytes()
    assert len(sample) > len(sample.decode())
    assert not (ROOT / "twisted" / "__init__.py").exists()
    assert not (ROOT / "twisted" / "plugins" / "__init__.py").exists()


def test_public_names() -> None:
    """Each public name exists, is listed, and comes from the module that type checkers know."""
    source = (ROOT / "poetry" / "__init__.py").read_text(encoding="utf-8")
    imports = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)]
    typed = {
        alias.name: str(node.module)
        for node in imports
        for alias in node.names
        if str(node.module).startswith("poetry.")
    }
    assert set(typed) == set(package.__all__)
    for name, room in typed.items():
        assert getattr(package, name) is getattr(importlib.import_module(room), name)
        assert getattr(package, name).__module__ == room
        assert name in dir(package)


def test_version() -> None:
    """The version is that of the installed distribution."""
    assert package.__version__ == distribution("twisted-poetry").version
    assert "__version__" in dir(package)


@pytest.mark.parametrize("room", ["errors", "protocol", "client", "server"])
def test_rooms(room: str) -> None:
    """The rooms of the public names are there by attribute, whatever was loaded before."""
    program = f"import poetry; print(poetry.{room}.__name__)"
    done = run([sys.executable, "-c", program])
    assert (done.returncode, done.stdout.decode()) == (0, f"poetry.{room}\n")


def test_other_name_is_an_attribute_error() -> None:
    """Another name is an AttributeError, as of any module."""
    with pytest.raises(AttributeError, match="module 'poetry' has no attribute 'prose'"):
        importlib.import_module("poetry").prose  # noqa: B018


@pytest.mark.parametrize(
    "checker",
    [
        ("mypy", "--config-file=", "--strict", "--python-executable"),
        ("pyright", "--warnings", "--pythonpath"),
    ],
    ids=["mypy", "pyright"],
)
def test_type_checkers(tmp_path: Path, checker: tuple[str, ...]) -> None:
    """Of the uses, a user's type checker refuses those that are marked as wrong, and no other."""
    shutil.copy(ROOT / "tests" / "uses.py", tmp_path)
    result = run([sys.executable, "-m", *checker, sys.executable, "uses.py"], cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr


def test_module_runs_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    """`python -m poetry` is the command; an import runs nothing."""
    importlib.import_module("poetry.__main__")
    assert capsys.readouterr() == ("", "")
    assert run_poetry("--version").stdout.startswith(b"twisted-poetry, version ")


# What it costs to start


def imported(*words: str) -> set[str]:
    """The modules that a command imports."""
    result = run_poetry(*words, env={"PYTHONPROFILEIMPORTTIME": "1", "COVERAGE_PROCESS_CONFIG": ""})
    lines = result.stderr.decode().splitlines()
    return {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")}


@pytest.mark.parametrize("words", [["--help"], ["serve", "--help"], ["get", "--help"], ["get"]])
def test_help_does_without_twisted(words: list[str]) -> None:
    """Help and usage errors load neither Twisted nor anything else that is slow."""
    modules = imported(*words)
    assert "poetry.cli" in modules
    assert not {name for name in modules if re.match(r"(twisted|zope|tqdm|asyncio)\b", name)}


def test_get_loads_no_module_of_serve() -> None:
    """`poetry get` loads no module that only `serve`, a bar or a retry needs."""
    modules = imported("get", "unix:/no/such/socket")
    assert "poetry.download.fetch" in modules
    serving = r"poetry\.(server|daemon|serving)"
    others = rf"{serving}|tqdm|prometheus_client|twisted\.(web|application)"
    assert not {name for name in modules if re.match(rf"({others})\b", name)}
