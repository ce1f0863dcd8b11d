"""Shell completion, as a user who presses Tab meets it."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.processes import PATIENCE, ROOT, need

README = (ROOT / "README.md").read_text(encoding="utf-8")
SHELLS = {
    "bash": ["bash", "--norc", "--noprofile", "-i"],
    "zsh": ["zsh", "-f", "-i"],
    "fish": ["fish", "--no-config", "--interactive"],
}
ESCAPES = re.compile(rb"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)|[()].|[=>])")


def lines_of(shell: str) -> str:
    """The lines that README gives for a shell's start file."""
    found = re.search(rf"```{shell}\n(.*?)```", README.replace("\n  ", "\n"), re.DOTALL)
    assert found is not None
    return found[1]


@contextmanager
def typing(shell: str, directory: Path) -> Iterator[Callable[[str, str], None]]:
    """A shell on a terminal: types text, and waits until other text is shown."""
    master, slave = pty.openpty()
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    home = {
        "HOME": str(directory),
        "XDG_CONFIG_HOME": str(directory),
        "XDG_DATA_HOME": str(directory),
    }
    process = subprocess.Popen(
        SHELLS[shell],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        cwd=directory,
        env={**os.environ, **home, "PATH": path, "TERM": "xterm", "PS1": "$ "},
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(slave)

    def type_and_wait(text: str, expected: str) -> None:
        os.write(master, text.encode())
        seen = b""
        give_up = time.monotonic() + PATIENCE
        while expected not in (shown := ESCAPES.sub(b"", seen).decode(errors="replace")):
            assert time.monotonic() < give_up, shown
            if select.select([master], [], [], 1)[0]:
                seen += os.read(master, 65536)

    try:
        yield type_and_wait
    finally:
        process.kill()
        process.wait()
        os.close(master)


@pytest.mark.parametrize("command", ["poetry", "twisted-poetry"])
@pytest.mark.parametrize("shell", SHELLS)
def test_tab_completes(tmp_path: Path, shell: str, command: str) -> None:
    """With README's lines, Tab completes the commands' words, their options, and file names."""
    need(shell)
    poem, start = tmp_path / "poem.txt", tmp_path / "start"
    poem.touch()
    start.write_text(lines_of(shell))
    with typing(shell, tmp_path) as types:
        types(f". {start} && echo rea''dy\n", "ready")
        types(f"{command} ser\t", "serve ")
        types("--idl\t", "--idle-timeout ")
        types("1 po\t", "em.txt")
