"""Signals, whenever they come: 130 without a word, and nothing left behind."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.commands.tools import (
    LONG,
    QUICK,
    RUN,
    SHORT,
    accept,
    error_of,
    port_of,
    started,
    written,
)
from tests.faults.bad import black_hole
from tests.processes import PATIENCE, POETRY, SERVE, Command, Server, eventually, run, running

LATE = "import atexit, os, signal; atexit.register(os.kill, os.getpid(), signal.{}); " + RUN
EARLY = f"""
import os, signal
from poetry import cli
real = cli.main
cli.main = lambda: (os.kill(os.getpid(), signal.SIGHUP), real())
{RUN}
"""
"""Hangs up as soon as the command may handle that, before the rest is loaded."""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_ends_get_with_130(peer: socket.socket, tmp_path: Path, number: int) -> None:
    """INT, TERM and HUP end a download with 130, and leave no file."""
    with (
        started("get", "-o", tmp_path / "poem.txt", port_of(peer)) as process,
        accept(peer) as connection,
    ):
        connection.sendall(LONG)
        assert eventually(lambda: written(tmp_path))
        process.send_signal(number)
        _, stderr = process.communicate(timeout=PATIENCE)
    assert (process.returncode, stderr) == (130, b"")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_ignored_signal_stays_ignored(peer: socket.socket, number: signal.Signals) -> None:
    """HUP under nohup and INT in the background of a shell script do nothing."""
    options: Any = {"preexec_fn": lambda: signal.signal(number, signal.SIG_IGN)}
    with started("get", port_of(peer), **options) as process, accept(peer) as connection:
        process.send_signal(number)
        connection.sendall(SHORT)
        connection.close()
        stdout, stderr = process.communicate(timeout=PATIENCE)
    assert (process.returncode, stdout, stderr) == (0, SHORT, b"")


@pytest.mark.parametrize("count", [1, 2])
def test_interrupt_with_a_stuck_output(served: Server, count: int) -> None:
    """An interrupt is heard while standard output is stuck."""
    with started("get", *[served.addresses[1]] * count) as process:
        assert process.stdout is not None
        assert process.stdout.read(1) == LONG[:1]
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 130
        _, stderr = process.communicate(timeout=PATIENCE)
    assert stderr == b""


@pytest.mark.parametrize("count", [1, 2])
def test_interrupt_while_connecting(tmp_path: Path, count: int) -> None:
    """An interrupt before there is a connection is no failure, either."""
    with black_hole() as port:
        words = ("get", "--directory", tmp_path / "d", str(port), f"tcp:127.0.0.1:{port}")
        with started(*words[: 3 + count]) as process:
            assert eventually(lambda: len(list(tmp_path.glob("d/.poetry-*.part"))) == count)
            process.send_signal(signal.SIGINT)
            _, stderr = process.communicate(timeout=PATIENCE)
    assert (process.returncode, stderr) == (130, b"")
    assert not list(tmp_path.glob("d/*"))


@pytest.mark.parametrize("command", [POETRY, (Path(sys.executable).with_name("poetry"),)])
@pytest.mark.parametrize(
    ("loading", "words"),
    [
        ("click", ("get", "1")),
        ("twisted", ("get", "1")),
        ("tqdm", ("get", "--progress", "1")),
        ("twisted", ("serve",)),
    ],
)
def test_interrupt_while_loading(
    tmp_path: Path, loading: str, command: Command, words: Command
) -> None:
    """An interrupt before all is imported is no traceback, wherever it comes."""
    interrupting = "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)\n"
    (tmp_path / f"{loading}.py").write_text(interrupting)
    done = run([*command, *words], env={"PYTHONPATH": str(tmp_path)})
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_interrupt_after_the_result_does_not_change_it(name: str) -> None:
    """A signal while Python ends does not change the exit code."""
    words = [sys.executable, "-c", LATE.format(name), "get", "unix:/no/such/socket"]
    result = run(words)
    assert error_of(result, 1).startswith("unix:/no/such/socket: ")
    with running([sys.executable, "-c", LATE.format(name), *QUICK[3:]]) as server:
        assert server.stop() == 0


def test_hangups_while_a_server_ends_do_not_change_its_result() -> None:
    """HUPs that come with a stop, up to the last moment, leave the exit code alone."""
    with running(QUICK) as server:
        server.signal(signal.SIGTERM)
        while server.process.poll() is None:
            server.signal(signal.SIGHUP)
            time.sleep(0.001)  # more often, Python's own handling recurses
        assert server.wait() == 0


@pytest.mark.parametrize("words", [("get", "1"), ("serve", "-"), ("serve", "/dev/stdin")])
def test_hangup_while_loading(words: Command) -> None:
    """A terminal that closes ends a download, and a poem that it may have cut short."""
    done = run([sys.executable, "-c", EARLY, *words])
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")


def test_hangup_while_a_server_loads_is_a_reload() -> None:
    """A HUP waits until the server can reload."""
    with running([sys.executable, "-c", EARLY, *SERVE[3:], "--log-format", "json"]) as server:
        assert eventually(lambda: bool(server.logged("reloaded")))
        assert server.stop() == 0


def test_interrupt_while_reading_standard_input() -> None:
    """An interrupt while the poem is read from standard input is no traceback, either."""
    with started("serve", "-", stdin=subprocess.PIPE) as process:
        reading = Path(f"/proc/{process.pid}/wchan")
        assert eventually(lambda: "pipe" in reading.read_text(encoding="ascii"))
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=PATIENCE)
    assert (process.returncode, stdout, stderr.strip()) == (130, b"", b"")


def test_get_without_sighup(served: Server) -> None:
    """Where there is no SIGHUP, as on Windows, a poem is fetched all the same."""
    words = [sys.executable, "-c", f"import signal; del signal.SIGHUP; {RUN}", "get"]
    result = run([*words, served.addresses[0]])
    assert (result.returncode, result.stdout, result.stderr) == (0, SHORT, b"")
