"""What the tests of the commands share: poems, processes, terminals, peers."""

from __future__ import annotations

import fcntl
import os
import pty
import socket
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.processes import PATIENCE, POETRY, SERVE

SHORT = "Said the river: I bring what I have to the sea. — envoi\n".encode()
LONG = bytes(range(256)) * 12_000
NO_PATH = f"/{'x' * 119}"
"""A path that no Unix socket can have."""

QUICK = (*SERVE, "--grace", "0", "--log-level", "error")
RUN = "from poetry.__main__ import main; main()"
HASTE = """
import time
real, start = time.time, time.time()
time.time = lambda: start + 100 * (real() - start)
from poetry.cli import main
main()
"""
HASTY = (sys.executable, "-c", HASTE)
"""The command, with a time of day that runs a hundred times as fast, so that it soon takes long."""

Run = Callable[..., subprocess.CompletedProcess[bytes]]
"""Runs a command to its end."""


@contextmanager
def terminal(columns: int = 80) -> Iterator[tuple[int, bytearray]]:
    """A terminal to write to, and the bytes shown on it when the block has ended."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", 24, columns, 0, 0))
    seen = bytearray()

    def watch() -> None:
        with suppress(OSError):  # EIO: the terminal is open nowhere any more
            while data := os.read(master, 65536):
                seen.extend(data)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield slave, seen
    finally:
        os.close(slave)
        watcher.join(PATIENCE)
        os.close(master)


def port_of(listener: socket.socket) -> str:
    return str(listener.getsockname()[1])


def accept(listener: socket.socket) -> socket.socket:
    """The next connection; nothing that it does takes for ever."""
    connection, _ = listener.accept()
    connection.settimeout(PATIENCE)
    return connection


@contextmanager
def started(
    *words: str | Path, command: Sequence[str] = POETRY, **options: Any
) -> Iterator[subprocess.Popen[bytes]]:
    """A `poetry` command that runs until the block ends; its outputs are pipes."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    with subprocess.Popen([*command, *map(str, words)], **options) as process:
        try:
            yield process
        finally:
            process.kill()


def written(directory: Path) -> bool:
    """Whether a file there has something in it."""
    return any(path.stat().st_size for path in directory.iterdir())


def error_of(result: subprocess.CompletedProcess[bytes], code: int) -> str:
    """The one line on standard error of a command that has failed with `code`."""
    lines = result.stderr.decode().splitlines()
    assert (result.returncode, len(lines)) == (code, 1), result
    assert lines[0].startswith("Error: ")
    return lines[0].removeprefix("Error: ")
