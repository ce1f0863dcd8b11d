"""Processes under test: start one, read its announcements, and always end it."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

PATIENCE = 60.0
"""Seconds before a test gives up on a process: a bound, never an expectation."""

POETRY = (sys.executable, "-m", "poetry")
"""The command under test, of the environment that runs the tests."""

Command = tuple[str | Path, ...]

SERVE: Command = (*POETRY, "serve")

ROOT = Path(__file__).parents[1]
"""The checkout under test."""

SAMPLE = (ROOT / "poetry" / "sample.txt").read_bytes()
"""The poem that the package brings."""

TICK = 0.05
"""Seconds between two looks at a condition."""

PASSES_IN = """
import os, socket, sys
given = {given}
os.dup2(given.fileno(), 3)
os.set_inheritable(3, True)
os.environ.update(LISTEN_FDS="1", LISTEN_FDNAMES="poem", LISTEN_PID=str(os.getpid()))
os.execv(sys.argv[1], sys.argv[1:])
"""


def eventually(
    condition: Callable[[], object], patience: float = PATIENCE, *, tick: float = TICK
) -> bool:
    """Whether a condition comes to hold within so many seconds; it is checked at every tick."""
    deadline = time.monotonic() + patience
    while not (held := condition()) and time.monotonic() < deadline:
        time.sleep(tick)
    return bool(held)


def need(tool: str) -> str:
    """Find a tool; skip the test where it is not installed."""
    path = shutil.which(tool)
    if path is None:
        pytest.skip(f"{tool} is not installed")
    return path


def limit_descriptors(soft: int, hard: int) -> None:
    """Limit the open files of this process."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def passed_in(given: str, *command: str) -> tuple[str, ...]:
    """A command that finds a socket, a Python expression, as descriptor 3, as from systemd."""
    return (sys.executable, "-c", PASSES_IN.format(given=given), *command)


def sockets_of(pid: int) -> set[str]:
    """The inodes of the sockets that a process has open now."""
    found = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            found.add(str(descriptor.readlink()))
    return {name[8:-1] for name in found if name.startswith("socket:[")}


def listening_port(pid: int) -> int | None:
    """The TCP port on which a process listens; None while it does not."""
    own = sockets_of(pid)
    for line in Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]:
        _, local, _, state, *_, inode = line.split()[:10]
        if state == "0A" and inode in own:
            return int(local.rpartition(":")[2], 16)
    return None


class Server:
    """A running server: `addresses` in the order of its `Serving ... on ADDRESS` lines."""

    def __init__(self, process: subprocess.Popen[str], stderr: Path) -> None:
        self.process = process
        self._stderr = stderr
        self.lines: list[str] = []
        self.addresses: list[str] = []

    def await_listeners(self, count: int) -> None:
        """Read standard output until `count` listeners are announced."""
        assert self.process.stdout is not None
        timer = threading.Timer(PATIENCE, self.process.kill)
        timer.start()
        try:
            while len(self.addresses) < count:
                line = self.process.stdout.readline()
                assert line, f"ended before it served ({self.process.poll()}): {self.stderr}"
                self.lines.append(line.rstrip("\n"))
                _, found, address = self.lines[-1].rpartition(" on ")
                assert found, f"not an announcement: {line!r}"
                self.addresses.append(address)
        finally:
            timer.cancel()

    @property
    def port(self) -> int:
        """The port of the first listener."""
        return int(self.addresses[0].rpartition(":")[2])

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def stderr(self) -> str:
        """All standard error of the process so far."""
        return self._stderr.read_text(encoding="utf-8", errors="replace")

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def stop(self) -> int:
        """Send TERM, wait for the end, and give the exit code."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def wait(self) -> int:
        return self.process.wait(PATIENCE)

    def resident(self) -> int:
        """Resident memory of the process now, in bytes."""
        pages = Path(f"/proc/{self.pid}/statm").read_text(encoding="ascii").split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def logged(self, *kinds: str) -> list[dict[str, Any]]:
        """The events logged so far with `--log-format json`, of these kinds or of all."""
        events = [json.loads(line) for line in re.findall(r".+\n", self.stderr)]
        return [event for event in events if not kinds or event["event"] in kinds]

    def sockets(self) -> int:
        """How many sockets the process has open now."""
        return len(sockets_of(self.pid))


@contextmanager
def running(
    command: Sequence[str | Path],
    *,
    listeners: int = 1,
    descriptors: int | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: bytes | None = None,
    pass_fds: Sequence[int] = (),
) -> Iterator[Server]:
    """Run `command` until the block ends; it has announced `listeners` addresses by then.

    `descriptors` is its hard limit of open files. The process is ended by its id, whatever happens.
    """
    before = partial(limit_descriptors, descriptors, descriptors) if descriptors else None
    with tempfile.TemporaryDirectory() as directory:
        stderr = Path(directory) / "stderr"
        with stderr.open("wb") as errors, tempfile.TemporaryFile() as given:
            given.write(stdin or b"")
            given.seek(0)
            process = subprocess.Popen(
                [str(word) for word in command],
                stdin=given,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                preexec_fn=before,
                env={**os.environ, **env} if env is not None else None,
                cwd=cwd,
                pass_fds=pass_fds,
            )
        server = Server(process, stderr)
        try:
            server.await_listeners(listeners)
            yield server
        finally:
            if process.poll() is None:
                process.kill()
            process.wait(PATIENCE)
            assert process.stdout is not None
            process.stdout.close()


def run(
    command: Sequence[str | Path],
    *,
    stdin: bytes = b"",
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    before: Callable[[], object] | None = None,
    patience: float = PATIENCE,
) -> subprocess.CompletedProcess[bytes]:
    """Run a command to its end; the new process calls `before` first."""
    return subprocess.run(
        command,
        input=stdin,
        capture_output=True,
        timeout=patience,
        env={**os.environ, **env} if env is not None else None,
        cwd=cwd,
        preexec_fn=before,
        check=False,
    )


def poetry(
    *arguments: str | Path,
    stdin: bytes = b"",
    env: Mapping[str, str] | None = None,
    before: Callable[[], object] | None = None,
) -> subprocess.CompletedProcess[bytes]:
    """Run one `poetry` command to its end."""
    return run([*POETRY, *map(str, arguments)], stdin=stdin, env=env, before=before)
