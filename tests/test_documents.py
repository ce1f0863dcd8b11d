"""What README and docs show runs: their commands, README's program, and its tables of options.

In a ```console block each line that begins with `$ ` is a command, with the lines that a backslash
continues; other lines are what the commands print. `poetry serve` runs until the block ends, on
free ports: later commands get these instead of those shown, as they get those of a server that
always runs where their block starts none. poem.txt is what README shows of it.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.faults.readers import eventually
from tests.processes import PATIENCE, POETRY, Server, poetry, running

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCED = re.compile(r"^( *)```(\w+)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
SAMPLE = (ROOT / "poetry" / "sample.txt").read_text(encoding="utf-8")
POEM = "Said the river: I bring what I have to the sea.\n"
LISTENS = re.compile(r"(?:(?<=-p )|(?<=--metrics )|(?<=--listen ))\d+")
SHELL = {"kill"}  # what bash brings itself
PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
UNMEASURED = {"COVERAGE_PROCESS_CONFIG": ""}
ELSEWHERE = {
    "make": "it installs, or runs these tests",
    "python3 -m venv": "it installs; tests/deploy/test_twistd.py installs the wheel",
    "systemctl": "it needs systemd as the first process, and changes the machine",
    "systemd-socket-activate": "tests/deploy/test_systemd.py runs it, on a port of its own",
    "haproxy": "tests/deploy/test_haproxy.py runs it with its file, on ports of their own",
    "sysctl": "it changes the machine",
}
"""How a command begins that is not run here, nor is its block; and why."""


class Block(NamedTuple):
    """Commands, each with what is shown of its output."""

    page: str
    commands: list[tuple[str, str]]

    def __str__(self) -> str:
        return f"{self.page}: {self.commands[0][0]}"

    def elsewhere(self) -> set[str]:
        """The words of ELSEWHERE that begin one of its commands."""
        return {
            words
            for words in ELSEWHERE
            for command, _ in self.commands
            if f"{command} ".startswith(f"{words} ")
        }


def fenced(page: Path, language: str) -> list[str]:
    """The blocks of a page in a language, without their indentation."""
    text = page.read_text(encoding="utf-8")
    found = [(indent, body) for indent, tag, body in FENCED.findall(text) if tag == language]
    return [re.sub(f"^{indent}", "", body, flags=re.MULTILINE) for indent, body in found]


def blocks() -> Iterator[Block]:
    """All console blocks."""
    for page in PAGES:
        for body in fenced(page, "console"):
            assert body.startswith("$ "), f"{page.name}: no command: {body}"
            parts = re.findall(r"^\$ ((?:.*\\\n)*.*)\n((?:(?!\$ ).*\n)*)", body, re.MULTILINE)
            yield Block(page.name, parts)


BLOCKS = list(blocks())
RUN_HERE = [block for block in BLOCKS if not block.elsewhere()]


class Place(NamedTuple):
    """What a block runs in: its directory, the ports shown and those meant, the poem there."""

    directory: Path
    ports: dict[str, str]
    poem: str


def serve(stack: ExitStack, place: Place, command: str, shown: str) -> Place:
    """Run a `poetry serve` until the stack ends, on free ports, and see what it prints."""
    wanted = LISTENS.findall(command)
    words = shlex.split(LISTENS.sub("0", command))[1:]
    server = stack.enter_context(
        running(
            [*POETRY, *words], listeners=max(1, len(wanted)), cwd=place.directory, env=UNMEASURED
        )
    )
    real = [address.rpartition(":")[2] for address in server.addresses]
    ports = place.ports | dict(zip(wanted, real, strict=True))
    assert not shown or meant(shown, ports).splitlines() == server.lines
    return place._replace(ports=ports, poem=POEM if "poem.txt" in words else SAMPLE)


def meant(text: str, ports: dict[str, str]) -> str:
    """A text with the ports that are meant instead of those shown."""
    return re.sub(r"\b\d+\b", lambda number: ports.get(number[0], number[0]), text)


def run(place: Place, command: str, shown: str) -> None:
    """Run a command to its end, and see what it prints: what is shown, or the poem."""
    here = LISTENS.sub("0", command)
    real = meant(here, place.ports)
    silent, keyboard = os.pipe()  # telnet goes as soon as its standard input ends
    with os.fdopen(silent) as stdin, os.fdopen(keyboard, "w"):
        done = subprocess.run(
            ["bash", "-c", real],
            cwd=place.directory,
            env={**os.environ, **UNMEASURED, "PATH": PATH},
            stdin=stdin,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    if shown:
        assert done.stdout == shown
    elif real != here:  # it reads from a port
        assert place.poem in done.stdout


def end_daemons(directory: Path) -> None:
    """End what a failed block has left."""
    for path in directory.glob("*.pid"):
        os.kill(int(path.read_text(encoding="ascii")), signal.SIGKILL)


@pytest.fixture(scope="module")
def always(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of poem.txt with a log in JSON, one of whose readers is done."""
    directory = tmp_path_factory.mktemp("always")
    (directory / "poem.txt").write_text(POEM, encoding="utf-8")
    words = ("serve", "--log-format", "json", "poem.txt")
    with running([*POETRY, *words], cwd=directory, env=UNMEASURED) as server:
        assert poetry("get", server.addresses[0]).stdout.decode() == POEM
        assert eventually(lambda: '"transfer"' in server.stderr)
        yield server


@pytest.mark.parametrize("block", RUN_HERE, ids=str)
def test_console(block: Block, always: Server, tmp_path: Path) -> None:
    """The commands of a block run as they stand, and print what is shown, or the poem."""
    tools = {command.split()[0] for command, _ in block.commands} - SHELL
    if missing := sorted(tool for tool in tools if not shutil.which(tool, path=PATH)):
        pytest.skip(f"not installed: {', '.join(missing)}")
    (tmp_path / "poem.txt").write_text(POEM, encoding="utf-8")
    (tmp_path / "err.txt").write_text(always.stderr, encoding="utf-8")
    place = Place(tmp_path, {"10000": str(always.port)}, POEM)
    with ExitStack() as stack:
        stack.callback(end_daemons, tmp_path)
        for command, shown in block.commands:
            if command.startswith("poetry serve "):
                place = serve(stack, place, command, shown)
            else:
                run(place, command, shown)
        assert eventually(lambda: not list(tmp_path.glob("*.pid")))  # what was sent TERM has ended


def test_elsewhere() -> None:
    """Each reason not to run a block is that of one, and no command escapes by being unmarked."""
    assert set().union(*(block.elsewhere() for block in BLOCKS)) == set(ELSEWHERE)
    for page in PAGES:
        text = FENCED.sub("", page.read_text(encoding="utf-8"))
        assert not re.search(r"\n\n {4,}\S", text), f"{page.name}: a block without a language"


@pytest.mark.parametrize("script", fenced(PAGES[0], "python"))
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
    text = PAGES[0].read_text(encoding="utf-8")
    for command in ("serve", "get"):
        help_text = poetry(command, "--help").stdout.decode()
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
