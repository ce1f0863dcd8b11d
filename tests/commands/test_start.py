"""The start of `poetry serve`: refusals of the system, and the log of a start and a stop."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.error import CannotListenError

from poetry.commands.serve import explain_failure
from tests.conftest import PoemFile
from tests.processes import PATIENCE, POETRY, need, poetry, run, running

JSON = ("--log-format", "json")

SERVE, GET = ("serve",), ("get", "1")


@pytest.mark.parametrize(
    ("command", "refused", "said"),
    [
        (
            SERVE,
            "prlimit64:error=EPERM",
            "Operation not permitted (soft, hard = resource.getrlimit(",
        ),
        (SERVE, "epoll_create1:error=ENOSYS", "Function not implemented (self._poller = epoll("),
        (GET, "epoll_create1:error=ENOSYS", "Function not implemented (self._poller = epoll("),
        (SERVE, "epoll_ctl:error=ENOMEM", "Cannot allocate memory (self._poller.register("),
        (GET, "epoll_ctl:error=ENOMEM", "Cannot allocate memory (self._poller.register("),
        (SERVE, "epoll_ctl:error=EPERM", "Operation not permitted (self._poller.register("),
        (GET, "epoll_ctl:error=EPERM", "Operation not permitted (self._poller.register("),
        (SERVE, "pipe2:error=EPERM", "Operation not permitted (self.i, self.o = os.pipe()"),
        (GET, "pipe2:error=EPERM", "Operation not permitted (self.i, self.o = os.pipe()"),
    ],
)
def test_refused_system_call_is_named(command: tuple[str, ...], refused: str, said: str) -> None:
    """A system call that is refused is named in one line, and is not blamed on standard output."""
    strace = need("strace")
    inject = ["-f", "-o", os.devnull, "-e", f"trace={refused.split(':')[0]}", "-e"]
    done = run([strace, *inject, f"inject={refused}", *POETRY, *command])
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.decode().startswith(f"Error: cannot start: {said}")
    assert done.stderr.count(b"\n") == 1


WITHOUT_MEMORY = """
import builtins, sys
load = builtins.__import__
def loads(name, *rest):
    if name == "{}":
        raise MemoryError("out of memory interning an attribute name")
    return load(name, *rest)
builtins.__import__ = loads
from poetry.__main__ import main
main()
"""


@pytest.mark.parametrize(
    ("command", "module"),
    [
        (SERVE, "twisted.internet"),
        (SERVE, "poetry.daemon.build"),
        (GET, "twisted.internet"),
        (GET, "poetry.download.fetch"),
        (GET, "poetry.addresses"),
        (GET, "poetry.commands.get"),
    ],
)
def test_lack_of_memory_is_one_line(command: tuple[str, ...], module: str) -> None:
    """Whichever part of a command cannot be loaded, there is a line that says why."""
    done = run([sys.executable, "-c", WITHOUT_MEMORY.format(module), *command])
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.startswith(b"Error: ")
    assert b"not enough memory" in done.stderr
    assert done.stderr.count(b"\n") == 1


LOWER = """
import resource
def refuse(*_):
    raise PermissionError(1, "Operation not permitted")
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (500, hard))
resource.setrlimit = refuse
from poetry.__main__ import main
main()
"""
"""`poetry` in a sandbox that lets no limit be raised."""


def test_refused_setrlimit_lowers_the_limit(poem_file: PoemFile) -> None:
    """Where setrlimit(2) is refused the server goes on with the limit that it has."""
    command = [sys.executable, "-c", LOWER, "serve", *JSON, "--max-connections", "600"]
    with running([*command, poem_file(3_000)]) as server:
        assert poetry("get", server.addresses[0]).returncode == 0
        lowered = json.loads(server.stderr.splitlines()[0])
        assert (lowered["event"], lowered["limit"]) == ("limit_lowered", 500 - 48 - 4)


@pytest.mark.parametrize(
    "words",
    [
        ("[::]:{}", "0.0.0.0:{}"),
        ("0.0.0.0:{}", "[::]:{}"),
        ("tcp:{}:interface=0.0.0.0", "[::]:{}"),
        ("tcp6:port={}", "tcp:{}:interface=0.0.0.0"),
    ],
)
def test_overlapping_addresses_are_named(words: tuple[str, str]) -> None:
    """The error names both addresses, rather than advise a free port."""
    if not socket.has_dualstack_ipv6():
        pytest.skip("needs IPv6")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    first, second = (word.format(port) for word in words)
    where = f"[::]:{port}" if "::" in second else f"0.0.0.0:{port}"
    done = poetry("serve", "-l", first, "-l", second)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.decode() == (
        f"Error: cannot listen on {where}: Address already in use, perhaps by {first}:"
        " [::] takes IPv4 too, 0.0.0.0 each address; leave one out\n"
    )


def caused(error: Exception, cause: Exception) -> Exception:
    """Give an error that came up while another one was handled."""
    error.__context__ = cause
    return error


@pytest.mark.parametrize(
    ("addresses", "reason"),
    [
        (["127.0.0.2:9", "127.0.0.1:9"], "; choose another"),
        (["127.0.0.1:9", "0.0.0.0:9"], "; choose another"),
        (["tcp:9:interface=127.0.0.1", "9"], "; it is given twice here"),
        (["tcp:9:127.0.0.1", "ssl:9:k:c:TLSv1_2_METHOD:127.0.0.1"], "; it is given twice here"),
        (["SSL:9:k:c", "9"], ", perhaps by SSL:9:k:c: [::] takes IPv4 too"),
        (["tcp6:9", "unix:9"], ", perhaps by tcp6:9: [::] takes IPv4 too"),
        ([r"tcp6:9:4:\:\:1"], "; choose another"),
    ],
)
def test_used_port_blames_those_that_overlap(addresses: list[str], reason: str) -> None:
    """Two hosts share a port but for those that stand for all, however an address is spelled."""
    taken = CannotListenError("127.0.0.1", 9, OSError(errno.EADDRINUSE, "taken"))
    message = f"cannot listen on 127.0.0.1:9: taken{reason}"
    assert explain_failure(taken, addresses).startswith(message)


TWICE = "it is given twice here: each listener, and --metrics, needs one of its own"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            CannotListenError("", "0", FileNotFoundError(2, "No such file", "/dev/null")),
            "cannot listen on 0: No such file: /dev/null",
        ),
        (
            CannotListenError("", "unix:/x", FileNotFoundError(2, "No such file", "1", None, "/x")),
            "cannot listen on unix:/x: No such file",
        ),
        (
            CannotListenError("::", 9, OSError(errno.EADDRINUSE, "taken")),
            "cannot listen on [::]:9: taken; choose another, or port 0 for any free one",
        ),
        (
            CannotListenError("127.0.0.1", 7, OSError(errno.EADDRINUSE, "taken")),
            "cannot listen on 127.0.0.1:7: taken; " + TWICE,
        ),
        (
            CannotListenError("", 9, caused(KeyError(8), OSError(errno.ENOSPC, "No space left"))),
            "cannot listen on 9: No space left",
        ),
        (OSError(errno.EMFILE, "Too many"), "Too many; raise the limit (ulimit -n)"),
    ],
)
def test_error_of_a_start_says_the_reason(error: Exception, message: str) -> None:
    """A missing file is named, and a port that is not one of ours is just taken."""
    assert explain_failure(error, ["unix:/run/poem", "8", "127.0.0.1:7", "7"]) == message


def test_error_of_another_library_is_one_line() -> None:
    """A module that is damaged has a file and no second one, as errors of the system have."""
    with pytest.raises(SyntaxError) as caught:
        compile("def", "metrics.py", "exec")
    assert explain_failure(caught.value, []).startswith(
        "cannot start: invalid syntax (metrics.py, "
    )


def test_unexpected_error_is_one_line() -> None:
    """An error of another kind is one line with its place in the code."""
    with pytest.raises(RuntimeError) as caught:
        raise RuntimeError
    assert explain_failure(caught.value, []) == "cannot start: RuntimeError (raise RuntimeError)"


TERMINATING = "import os, signal; os.kill(os.getpid(), signal.SIGTERM); raise SystemExit(7)"
"""A module that TERM meets while it is imported."""


@pytest.mark.parametrize(
    ("words", "handler", "code"),
    [
        (("serve",), signal.SIG_DFL, 0),
        (("get", "1"), signal.SIG_DFL, 130),
        (("serve",), signal.SIG_IGN, 7),
    ],
)
def test_term_while_loading(
    tmp_path: Path, words: tuple[str, ...], handler: signal.Handlers, code: int
) -> None:
    """TERM ends a server with 0 and a download with 130, unless the parent process ignores it."""
    (tmp_path / "click.py").write_text(TERMINATING)
    before = partial(signal.signal, signal.SIGTERM, handler)
    done = poetry(*words, env={"PYTHONPATH": str(tmp_path)}, before=before)
    assert (done.returncode, done.stdout, done.stderr) == (code, b"", b"")


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["-l", "0", "-p", "0"], 2, "give --listen, or --port and --interface, not both"),
        (["-l", "nonsense"], 2, "'nonsense' is no address: use PORT, HOST:PORT or an endpoint"),
        (["no-such-poem.txt"], 2, "no-such-poem.txt: No such file or directory"),
        (["-i", "192.0.2.1"], 1, "cannot listen on 192.0.2.1: no interface of this machine"),
    ],
)
def test_failed_start_is_a_json_object(words: list[str], code: int, message: str) -> None:
    """With a log in JSON, the error of a start is an object as well."""
    done = poetry("serve", *JSON, *words)
    assert (done.returncode, done.stdout) == (code, b"")
    [event] = lines(done.stderr.decode())
    assert (event["level"], event["event"]) == ("error", "start_failed")
    assert event["message"] == event["reason"]
    assert event["message"].startswith(message)


def test_start_and_stop_are_json_objects(poem_file: PoemFile, tmp_path: Path) -> None:
    """A log in JSON has the server's addresses, its version, and its stop."""
    listen = ("-l", "0", "-l", f"unix:{tmp_path / 'poem'}")
    with running([*POETRY, "serve", *JSON, *listen, poem_file(3_000)], listeners=2) as server:
        assert server.stop() == 0
        [started, stopped] = lines(server.stderr)
        assert server.lines == [f"Serving 3000.txt on {address}" for address in server.addresses]
    assert (started["event"], started["level"]) == ("started", "info")
    assert started["addresses"].split() == server.addresses
    assert started["version"] == version("twisted-poetry")
    assert (stopped["event"], stopped["level"]) == ("stopped", "info")


def test_failed_announcement_is_a_json_object(poem_file: PoemFile) -> None:
    """With a log in JSON a full standard output is an object, and the server goes on."""
    with Path("/dev/full").open("wb") as full:
        process = subprocess.Popen(
            [*POETRY, "serve", *JSON, str(poem_file(3_000))],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
        with process:
            assert process.stderr is not None
            events = [json.loads(process.stderr.readline()) for _ in range(2)]
            process.terminate()
            assert process.wait(PATIENCE) == 0
    assert [event["event"] for event in events] == ["started", "not_announced"]
    assert events[1]["message"] == "standard output: No space left on device"
