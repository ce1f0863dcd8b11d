"""What is installed, what it costs to start, and what the README shows."""

from __future__ import annotations

import ast
import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from importlib.metadata import distribution, requires
from pathlib import Path

import pytest

import poetry as package
from tests.processes import PATIENCE, POETRY, Server, running
from tests.processes import poetry as run_poetry

ROOT = Path(__file__).parents[1]
COMMANDS = ("poetry", "twisted-poetry")


# The distribution


def test_commands() -> None:
    """Both commands are declared, and are the same."""
    points = {point.name: point for point in distribution("twisted-poetry").entry_points}
    assert sorted(points) == sorted(COMMANDS)
    assert {point.value for point in points.values()} == {"poetry.__main__:main"}
    assert {point.group for point in points.values()} == {"console_scripts"}


def test_requirements() -> None:
    """What it needs is Twisted, click and tqdm; the rest are extras."""
    lines = [line for line in requires("twisted-poetry") or () if "extra ==" not in line]
    assert {re.split(r"[^\w-]", line)[0] for line in lines} == {"twisted", "click", "tqdm"}


def test_files() -> None:
    """The package says that it is typed, and brings a poem that is not ASCII."""
    directory = Path(str(package.__file__)).parent
    assert (directory / "py.typed").exists()
    sample = (directory / "sample.txt").read_bytes()
    assert len(sample) > len(sample.decode())
    assert not (ROOT / "twisted" / "__init__.py").exists()
    assert not (ROOT / "twisted" / "plugins" / "__init__.py").exists()


def test_public_names() -> None:
    """Each public name is there, is listed, and comes from the room that type checkers know of."""
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


def test_no_other_name() -> None:
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
    result = subprocess.run(
        [sys.executable, "-m", *checker, sys.executable, "uses.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_module(capsys: pytest.CaptureFixture[str]) -> None:
    """`python -m poetry` is the command; to import it is nothing."""
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


def test_get_is_lean() -> None:
    """`poetry get` loads nothing that only `serve`, a bar or a retry needs."""
    modules = imported("get", "unix:/no/such/socket")
    assert "poetry.fetch" in modules
    serving = r"poetry\.(server|build|tap|logs|metrics|systemd)"
    others = rf"{serving}|tqdm|prometheus_client|twisted\.(web|application)"
    assert not {name for name in modules if re.match(rf"({others})\b", name)}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(command: str, shell: str) -> None:
    """click's completion works for both names: its script, and what it asks for then."""
    program = shutil.which(command, path=str(Path(sys.executable).parent))
    if program is None:
        pytest.skip(f"{command} is not installed beside Python")

    def complete(instruction: str, **env: str) -> str:
        variable = f"_{command.upper().replace('-', '_')}_COMPLETE"
        result = subprocess.run(
            [program],
            env={**os.environ, **env, variable: f"{shell}_{instruction}"},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert "Traceback" not in result.stderr
        return result.stdout

    if shell != "bash" or shutil.which("bash"):
        assert command in complete("source")
    asked = {"COMP_WORDS": f"{command} se", "COMP_CWORD": "se" if shell == "fish" else "1"}
    assert "serve" in complete("complete", **asked)


# README
#
# Each ```python block runs as a script of its own. In a ```console block, each line that begins
# with `$ ` is a command, and the lines after it are all that it prints. `poetry serve` runs until
# the end, and where an address of it is shown, later commands are given the real one instead.
# poem.txt is the poem that the first `poetry get` shows. What installs, builds or measures is named
# in ELSEWHERE, and not run here.

BLOCK = re.compile(r"^( *)```(\w+)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
ELSEWHERE = ("make", "python3", "pip", "poems/bin/poetry", "git")


def blocks(language: str) -> list[str]:
    """The README's blocks in a language."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return [body for _, tag, body in BLOCK.findall(text) if tag == language]


def sessions() -> list[tuple[list[str], str]]:
    """The README's commands, in words, and what each is shown to print."""
    found = []
    for block in blocks("console"):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, shown = part.partition("\n")
            found.append((shlex.split(command, comments=True), shown))
    return found


@pytest.fixture
def started() -> Iterator[ExitStack]:
    """What is running, to be ended with the test."""
    with ExitStack() as stack:
        yield stack


def test_readme_console(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, started: ExitStack
) -> None:
    """The README's commands print what it shows."""
    monkeypatch.chdir(tmp_path)
    commands = [(words, shown) for words, shown in sessions() if words[0] not in ELSEWHERE]
    poems = [shown for words, shown in commands if words[:2] == ["poetry", "get"]]
    assert poems, "the README shows no poem"
    Path("poem.txt").write_text(poems[0], encoding="utf-8")
    real: dict[str, str] = {}
    for words, shown in commands:
        assert words[0] == "poetry", f"add {words[0]!r} to this test, or to ELSEWHERE"
        given = [real.get(word, word) for word in words[1:]]
        if given[0] == "serve":
            lines = shown.splitlines()
            shown_addresses = [line.rpartition(" ")[2] for line in lines]
            server: Server = started.enter_context(running([*POETRY, *given], listeners=len(lines)))
            real.update(zip(shown_addresses, server.addresses, strict=True))
            for line, printed in zip(lines, server.lines, strict=True):
                assert printed.rpartition(" ")[0] == line.rpartition(" ")[0]
        else:
            result = run_poetry(*given)
            assert (result.returncode, result.stdout.decode()) == (0, shown)


@pytest.mark.parametrize("script", blocks("python"))
def test_readme_python(tmp_path: Path, script: str) -> None:
    """The README's programs run to their end and print something, and nothing on standard error."""
    result = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        capture_output=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, b"")
    assert result.stdout


def test_readme_options() -> None:
    """The README's tables have each option of both commands, and no other."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for command in ("serve", "get"):
        help_text = run_poetry(command, "--help").stdout.decode()
        section = re.split(r"^## ", text, flags=re.MULTILINE)
        [table] = [part for part in section if part.lower().startswith(command)]
        rows = "".join(line for line in table.splitlines() if line.startswith("| `"))
        options = re.compile(r"(?<![\w-])--[a-z][\w-]*")
        shown = {name for cell in re.findall(r"`(.*?)`", rows) for name in options.findall(cell)}
        declared = {
            name
            for line in help_text.splitlines()
            if line.startswith("  -")
            for name in options.findall(line.split("  ")[1])
        }
        assert shown == declared - {"--help"}
