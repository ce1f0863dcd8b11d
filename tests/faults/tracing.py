"""System calls of a process under test: listed, refused, or never to return (strace(1))."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.processes import PATIENCE, need

TRACED = (sys.executable, Path(__file__).with_name("traced.py"))
"""The beginning of a command that `traced` can attach to."""

CHANGE_NOTHING = re.compile(
    "brk|clock_|f?stat|futex|get|lseek|lstat|madvise|mprotect|mmap|mremap|munmap|newfstatat"
    "|poll|pread|read|restart_syscall|rt_sig"
)
"""Calls that no reader can tell from none: a process killed at one of them leaves what a process
killed at the next other one leaves. The beginnings of their names."""

REFUSALS = {
    "accept4": "ECONNABORTED EMFILE ENFILE ENOBUFS ENOMEM EPERM",
    "close": "EDQUOT EIO ENOSPC",
    "connect": "ENOMEM",
    "epoll_create1": "EMFILE ENFILE ENOMEM",
    "epoll_ctl": "ENOMEM ENOSPC",
    "epoll_wait": "EINTR",
    "fchmod": "EIO EPERM",
    "fsync": "EDQUOT EIO ENOSPC",
    "ftruncate": "EIO",
    "getsockname": "ENOBUFS",
    "getsockopt": "ENOMEM",
    "ioctl": "ENOMEM",
    "memfd_create": "EMFILE ENFILE ENOMEM",
    "openat": "EACCES EDQUOT EIO EMFILE ENOSPC",
    "poll": "ENOMEM",
    "recvfrom": "EAGAIN ECONNRESET ENOMEM ETIMEDOUT",
    "recvmsg": "EAGAIN ECONNRESET ENOMEM",
    "rename": "EACCES EDQUOT EIO ENOSPC",
    "sendfile": "EAGAIN ECONNRESET EIO ENOMEM EPIPE",
    "sendto": "EAGAIN ECONNRESET ENOBUFS ENOMEM EPIPE",
    "setsockopt": "ENOMEM EPERM",
    "shutdown": "ENOTCONN",
    "unlink": "EACCES EIO",
    "write": "EAGAIN EDQUOT EIO ENOSPC EPIPE",
}
"""The errors that each call can have, by its page in section 2 of the manual: one of each kind."""


class Point(NamedTuple):
    """One system call: the `number`-th of this name, from 1 on."""

    name: str
    number: int


@contextmanager
def traced(pid: int, log: Path, *options: str) -> Iterator[None]:
    """Write the system calls of a process's main thread to `log` until the block ends."""
    command = [need("strace"), "-p", str(pid), "-o", str(log), *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        said = process.stderr.readline()
        assert "attached" in said, said
        yield
    finally:
        process.send_signal(signal.SIGINT)  # it detaches
        process.communicate(timeout=PATIENCE)


def points(log: Path) -> list[Point]:
    """All calls of a trace: strace counts what it tampers with by name."""
    seen: Counter[str] = Counter()
    found = []
    for name in re.findall(r"^(\w+)\(", log.read_text(errors="replace"), re.MULTILINE):
        seen[name] += 1
        found.append(Point(name, seen[name]))
    return found


def changing(calls: list[Point]) -> list[Point]:
    """The calls at which a kill may leave another state than at the next one."""
    return [point for point in calls if not CHANGE_NOTHING.match(point.name)]


def kill_at(point: Point) -> list[str]:
    """Options for `traced`: SIGKILL at the beginning of this call, which is not made."""
    return tamper(point, "signal=KILL")


def refuse(point: Point, error: str) -> list[str]:
    """Options for `traced`: this call is not made, and fails with `error`."""
    return tamper(point, f"error={error}")


def tamper(point: Point, how: str) -> list[str]:
    name, number = point
    return ["-e", f"trace={name}", "-e", f"inject={name}:{how}:when={number}"]


def was_refused(log: Path) -> bool:
    """Whether the call to be refused came."""
    return "(INJECTED)" in log.read_text(errors="replace")


def was_killed(log: Path) -> bool:
    """Whether the process was killed while it was traced."""
    return "+++ killed by SIGKILL +++" in log.read_text(errors="replace")
