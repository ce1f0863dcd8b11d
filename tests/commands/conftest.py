"""What the tests of the commands are given: poems, servers, peers."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from io import BytesIO, TextIOWrapper
from pathlib import Path

import pytest
from twisted.logger import globalLogBeginner

from poetry.cli import main
from tests.commands.tools import (
    LONG,
    QUICK,
    SHORT,
    Run,
)
from tests.processes import PATIENCE, Server, running


@pytest.fixture(scope="session")
def poems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with short.txt, long.txt, empty.txt, and 'a directory'."""
    directory = tmp_path_factory.mktemp("poems")
    for name, poem in [("short", SHORT), ("long", LONG), ("empty", b"")]:
        (directory / f"{name}.txt").write_bytes(poem)
    (directory / "a directory").mkdir()
    return directory


@pytest.fixture(scope="session")
def served(poems: Path) -> Iterator[Server]:
    """A server of short.txt, then of long.txt."""
    with running([*QUICK, poems / "short.txt", poems / "long.txt"], listeners=2) as server:
        yield server


@pytest.fixture
def peer() -> Iterator[socket.socket]:
    """A listener that does only what the test makes it do."""
    with socket.socket() as listener:
        listener.settimeout(PATIENCE)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs a command that ends before the reactor would run, as `processes.poetry` does."""

    def run(*words: str) -> subprocess.CompletedProcess[bytes]:
        monkeypatch.setattr(sys, "argv", ["poetry", *words])
        monkeypatch.setattr(sys, "stdin", TextIOWrapper(BytesIO()))
        monkeypatch.setattr(globalLogBeginner, "beginLoggingTo", lambda *_, **__: None)
        with pytest.raises(SystemExit) as ended:
            main()
        printed = [text.encode() for text in capfd.readouterr()]
        assert isinstance(ended.value.code, int)
        return subprocess.CompletedProcess(words, ended.value.code, *printed)

    return run
