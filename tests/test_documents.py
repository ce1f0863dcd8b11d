"""What README and docs show runs: their commands, README's program, and its tables of options.

In a ```console block each line that begins with `$ ` is a command, with the lines that a backslash
continues; other lines are what the commands print. Port 10000 is a free one here.

The commands of README and of each step of the tutorial run in their order, in one shell: README's
in an empty folder, the tutorial's beside its programs. A server runs until the next one starts. On
other pages each block runs by itself, beside a poem.txt; there `poetry serve` runs until the block
ends, and later commands get its port, or that of a server that always runs where their block starts
none.

A ```python block after a comment that names files is a part of each of these files.
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
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from benchmarks.report import behind, newest
from poetry.daemon.metrics import OUTCOMES
from tests.processes import PATIENCE, POETRY, ROOT, Server, eventually, poetry, running

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCED = re.compile(r"^( *)```(\w+)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
SAMPLE = (ROOT / "poetry" / "sample.txt").read_text(encoding="utf-8")
POEM = "Said the river: I bring what I have to the sea.\n"
LISTENS = re.compile(r"(?:(?<=-p )|(?<=--metrics )|(?<=--listen ))\d+")
MANUAL = ROOT / "docs" / "twisted-poetry.1"
SHELL = {"kill", "cd", "export", "echo"}  # what bash brings itself
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
    """Commands, each with the output shown of it, and the heading above them."""

    page: str
    heading: str
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


def fenced(page: Path, language: str) -> list[tuple[str, str]]:
    """The blocks of a page in a language, without their indentation; each after its heading."""
    text = page.read_text(encoding="utf-8")
    found = []
    for block in FENCED.finditer(text):
        indent, tag, body = block.groups()
        if tag == language:
            *_, heading = ["", *re.findall(r"^## (.*)", text[: block.start()], re.MULTILINE)]
            found.append((heading, re.sub(f"^{indent}", "", body, flags=re.MULTILINE)))
    return found


def blocks() -> Iterator[Block]:
    """All console blocks."""
    for page in PAGES:
        for heading, body in fenced(page, "console"):
            assert body.startswith("$ "), f"{page.name}: no command: {body}"
            parts = re.findall(r"^\$ ((?:.*\\\n)*.*)\n((?:(?!\$ ).*\n)*)", body, re.MULTILINE)
            yield Block(page.name, heading, parts)


BLOCKS = list(blocks())
RUN_HERE = [block for block in BLOCKS if not block.elsewhere()]
IN_ORDER = ("README.md", "tutorial.md")


class Place(NamedTuple):
    """The surroundings of a block: its directory, its ports as shown and as meant, its poem."""

    directory: Path
    ports: dict[str, str]
    poem: str


def serve(stack: ExitStack, place: Place, command: str, shown: str) -> Place:
    """Run a `poetry serve` until the stack ends, on free ports, and check its output."""
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
    """Run a command to its end, and check its output against the page, or the poem."""
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
    """End the processes that a failed block has left."""
    for path in directory.glob("*.pid"):
        with suppress(ProcessLookupError):  # it may end just now
            os.kill(int(path.read_text(encoding="ascii")), signal.SIGKILL)


def skip_without_tools(commands: list[tuple[str, str]]) -> None:
    """Skip the test, with the tools' names, where some are not installed."""
    tools = {command.split()[0] for command, _ in commands if command[0] not in "(~"} - SHELL
    if missing := sorted(tool for tool in tools if not shutil.which(tool, path=PATH)):
        pytest.skip(f"not installed: {', '.join(missing)}")


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


@pytest.mark.parametrize(
    "block", [block for block in RUN_HERE if block.page not in IN_ORDER], ids=str
)
def test_console_blocks_run(block: Block, always: Server, tmp_path: Path) -> None:
    """The commands of a block run as they stand, and print the output shown, or the poem."""
    skip_without_tools(block.commands)
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


def test_unrun_blocks_have_a_reason() -> None:
    """Each reason not to run a block belongs to one, and no command is without a mark."""
    assert set().union(*(block.elsewhere() for block in BLOCKS)) == set(ELSEWHERE)
    for page in PAGES:
        text = FENCED.sub("", page.read_text(encoding="utf-8"))
        assert not re.search(r"\n\n {4,}\S", text), f"{page.name}: a block without a language"


SHELL_FUNCTIONS = """
set -e
trap end_server EXIT
end_server() { kill -9 $! 2> /dev/null || true; wait $! 2> /dev/null || true; }
await_server() {
    until port=$(sed -n 's/^Serving .* on .*://p' "$SERVING") && [ "$port" ]; do
        kill -0 $! 2> /dev/null || { cat "$ERRORS" >&2; exit 1; }
        sleep 0.05
    done
    sed "s/:$port$/:10000/" "$SERVING"
}
"""


def is_server(command: str) -> bool:
    """Whether a command goes on, in the background or in a terminal of its own."""
    return command.endswith(" &") or "poetry serve" in command


def in_one_shell(commands: list[tuple[str, str]], directory: Path) -> list[str]:
    """Run commands one after the other; give the output of each."""
    lines = [SHELL_FUNCTIONS]
    for command, _ in commands:
        if is_server(command):
            there = re.sub(r"\b10000\b", "0", command.removesuffix(" &"))
            serving = f': > "$SERVING"; {there} > "$SERVING" 2> "$ERRORS" &'
            lines += ["end_server", serving, "await_server"]
        else:
            lines.append(re.sub(r"\b10000\b", "$port", command))
        lines.append(r"printf '\0'")
    notes = {"SERVING": str(directory / ".serving"), "ERRORS": str(directory / ".errors")}
    shell = subprocess.Popen(
        ["bash", "-c", "\n".join(lines)],
        cwd=directory,
        env={**os.environ, **UNMEASURED, **notes, "PATH": PATH, "HOME": str(directory)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        printed, errors = shell.communicate(timeout=2 * PATIENCE)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(shell.pid, signal.SIGKILL)
    assert shell.returncode == 0, printed + errors
    return printed.split("\0")[:-1]


def counts(line: str) -> tuple[set[str], int]:
    """The words of a count printed by readers.py, and the sum of its numbers."""
    return set(re.findall("[a-z]+", line)), sum(map(int, re.findall(r"\d+", line)))


def check_printed(commands: list[tuple[str, str]], printed: list[str]) -> None:
    """Check the output of each command; the sample poem, or nothing, where none is shown.

    Where readers are let down, chance decides how many of them in which way, or not at all.
    """
    for (command, shown), said in zip(commands, printed, strict=True):
        if "readers.py" in command and counts(shown)[0] != {"whole"}:
            (words, total), (shown_words, shown_total) = counts(said), counts(shown)
            assert words <= shown_words | {"whole"}, f"{command}: {said}"
            assert words != {"whole"}, f"{command}: {said}"
            assert total == shown_total, f"{command}: {said}"
        elif shown or not is_server(command):
            assert said == (shown or SAMPLE * (" get " in command)), command


def test_readme_commands_run_in_order(tmp_path: Path) -> None:
    """README's commands run in their order, in an empty folder."""
    (tmp_path / "poems").symlink_to(sys.prefix)  # what README installs, which is done here
    commands = [each for block in RUN_HERE if block.page == "README.md" for each in block.commands]
    skip_without_tools(commands)
    check_printed(commands, in_one_shell(commands, tmp_path))


FIRST, *STEPS = [block for block in BLOCKS if block.page == "tutorial.md"]


@pytest.mark.evidence
@pytest.mark.parametrize("heading", list(dict.fromkeys(block.heading for block in STEPS)))
def test_tutorial_commands_run_in_order(heading: str, tmp_path: Path) -> None:
    """The commands of a step of the tutorial show the failure before, and the whole poem after."""
    mine = [each for block in STEPS if block.heading == heading for each in block.commands]
    commands = [*FIRST.commands, *mine]
    skip_without_tools(commands)
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    check_printed(commands, in_one_shell(commands, tmp_path))


QUOTED = re.compile(r"^<!-- ([\w./ -]+) -->\n```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
QUOTES = [
    (page, name, quote)
    for page in PAGES
    for names, quote in QUOTED.findall(page.read_text(encoding="utf-8"))
    for name in names.split()
]


@pytest.mark.parametrize(("page", "name", "quote"), QUOTES, ids=lambda value: str(value)[-30:])
def test_quotes_are_in_the_programs(page: Path, name: str, quote: str) -> None:
    """Code that a page quotes from a program stands in that program."""
    assert f"\n{quote}" in f"\n{(ROOT / name).read_text(encoding='utf-8')}", page.name


def test_examples_are_in_the_documents() -> None:
    """Each program of examples/ is quoted, linked or run on a page."""
    pages = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    examples = [path for path in (ROOT / "examples").rglob("*") if path.suffix in (".py", ".tac")]
    assert [path.name for path in examples if path.name not in pages] == []


def test_links_lead_to_files_and_headings() -> None:
    """Each link to a file of this tree leads to one, and each to a heading to a heading."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for target in re.findall(r"\]\((?!https?:)([^)]+)\)", text):
            name, _, heading = target.partition("#")
            path = page.parent / name if name else page
            assert path.exists(), f"{page.name}: {target}"
            if heading:
                titles = re.findall(r"^#+ (.*)", path.read_text(encoding="utf-8"), re.MULTILINE)
                slugs = [re.sub(r"[^\w -]", "", title).lower() for title in titles]
                assert heading in [slug.replace(" ", "-") for slug in slugs], f"{page}: {target}"


def test_manual_page_is_current(tmp_path: Path) -> None:
    """The manual page is what docs/manual.py makes of the commands."""
    (tmp_path / "poetry").symlink_to(ROOT / "poetry")
    shutil.copy(ROOT / "docs" / "manual.py", tmp_path)
    made = tmp_path / "twisted-poetry.1"
    subprocess.run([sys.executable, tmp_path / "manual.py"], check=True, timeout=PATIENCE)
    assert made.read_text(encoding="utf-8") == MANUAL.read_text(encoding="utf-8")


def test_readme_names_cheaper_peers() -> None:
    """README names each peer that costs less for a short poem, with its figure, beside ours."""
    quoted = re.findall(
        r"short poem costs (\w+) ([\d.]+) times .*? \((\d of \d) scen", behind(newest())
    )
    text = " ".join(PAGES[0].read_text(encoding="utf-8").split())
    for peer, ratio, lossless in quoted:
        said = rf"\b{peer}\b[^;,]* {ratio} times[^;,]* \({lossless}\b"
        assert re.search(said, text), f"README: {peer} {ratio} times ... ({lossless} ...)"
    assert quoted


@pytest.mark.parametrize("script", [body for _, body in fenced(PAGES[0], "python")])
def test_readme_programs_run(tmp_path: Path, script: str) -> None:
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


def test_operating_has_each_event() -> None:
    """The table in operating.md has each event that the package logs, and no other."""
    page = (ROOT / "docs" / "operating.md").read_text(encoding="utf-8")
    table = page.partition("| event |")[2].partition("\n\n")[0]
    rows = [row.split("|")[1] for row in table.splitlines() if row.startswith("| `")]
    shown = {name for cell in rows for name in re.findall(r"`(\w+)`", cell)}
    sources = "".join(path.read_text("utf-8") for path in (ROOT / "poetry").rglob("*.py"))
    logged = re.findall(r'event(?:=|": |", )"(\w+)"(?: if .* else "(\w+)")?', sources)
    assert shown == {name for names in logged for name in names if name}


def test_operating_has_each_outcome() -> None:
    """operating.md says what each outcome means that a server counts."""
    page = (ROOT / "docs" / "operating.md").read_text(encoding="utf-8")
    said = page.partition("\n`outcome` is ")[2].partition("\n\n")[0]
    assert [each for each in OUTCOMES if f"`{each}`" not in said] == []


def test_readme_has_each_option() -> None:
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
