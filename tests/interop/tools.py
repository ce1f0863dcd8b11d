"""Real tools as the other end: whether they are there, and a port of their own to listen on."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks.measure import free_port
from tests.processes import PATIENCE, eventually, listening_port

SIZES = (1, 3_000, 10_000_000)
"""Bytes of the poems: the least there is, one that a packet takes, one that no buffer takes."""


def poem_of(size: int) -> bytes:
    """Every byte value, line ends and NUL included, in no order that a tool could expect."""
    return random.Random(size).randbytes(size)


@contextmanager
def tool_listening(
    command: Callable[[int], Sequence[str | Path]],
    stdin: Path | int = subprocess.DEVNULL,
) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Run a tool that listens; a port that is taken meanwhile is tried again elsewhere."""
    for _ in range(5):
        port = free_port()
        with Path("/dev/null" if isinstance(stdin, int) else stdin).open("rb") as given:
            process = subprocess.Popen(
                command(port),
                stdin=stdin if isinstance(stdin, int) else given,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
        try:
            if listens(process, port):
                yield process, port
                return
        finally:
            process.kill()
            _, errors = process.communicate(timeout=PATIENCE)
    pytest.fail(f"{command(0)[0]} does not listen: {errors!r}")


def listens(process: subprocess.Popen[bytes], port: int) -> bool:
    """Wait until the tool listens on `port`, or has ended."""
    eventually(lambda: process.poll() is not None or listening_port(process.pid) == port)
    return process.poll() is None
