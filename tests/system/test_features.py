"""Windows and macOS, as far as Linux can tell: what these lack is taken away from processes.

What a system lacks is hidden once Twisted is imported, which there has code of its own for it; on
what is left, this package has to do.
"""

from __future__ import annotations

import hashlib
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest

from tests.processes import PATIENCE, POETRY, ROOT, Server, run, running

TWISTED = """
import os, resource, select, signal, socket, sys, termios, fcntl
import click, tqdm
from twisted.internet import fdesc, selectreactor
selectreactor.install()
import twisted.application.internet, twisted.internet.endpoints, twisted.protocols.basic
def lack(module, *names):
    for name in names:
        if hasattr(module, name):
            delattr(module, name)
def refuse(*_):
    raise OSError(22, "Invalid argument")
lack(os, "memfd_create", "sendfile")
lack(select, "epoll")
lack(socket, "MSG_MORE", "SOCK_CLOEXEC", "TCP_INFO")
"""
WINDOWS = f"""{TWISTED}
for name in ("fcntl", "grp", "pwd", "resource", "termios"):
    sys.modules[name] = None
fdesc.setNonBlocking = lambda file: os.set_blocking(file, False)  # of a waker for POSIX
lack(os, "O_CLOEXEC", "O_NONBLOCK", "fchmod", "fchown")
lack(select, "PIPE_BUF", "poll")
lack(signal, "SIGHUP")
lack(socket, "AF_UNIX")
sys.platform = "win32"
"""
MACOS = f"""{TWISTED}
def setrlimit(which, limits, real=resource.setrlimit):
    if limits[0] == resource.RLIM_INFINITY:  # macOS has it as a hard limit, but not as a soft one
        raise ValueError("current limit exceeds maximum limit")
    real(which, (limits[0], real_limit[1]))
real_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit = setrlimit
resource.getrlimit = lambda which: (256, resource.RLIM_INFINITY)
fcntl.ioctl = refuse
sys.platform = "darwin"
"""
SYSTEMS = {"Windows": WINDOWS, "macOS": MACOS}
SHORT = b"Said the river: I bring what I have to the sea.\n"
LONG = random.Random(13).randbytes(10_000_000)

system = pytest.mark.parametrize("there", SYSTEMS.values(), ids=list(SYSTEMS))


def python(there: str, program: str) -> list[str]:
    """A command that runs a program there."""
    return [sys.executable, "-c", f"{there}\n{program}"]


def command(there: str) -> list[str]:
    """The command `poetry` there."""
    return python(there, "from poetry.__main__ import main\nmain()")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A short poem and a long one."""
    directory = tmp_path_factory.mktemp("poems")
    for name, text in (("short.txt", SHORT), ("long.txt", LONG)):
        (directory / name).write_bytes(text)
    return [directory / "short.txt", directory / "long.txt"]


@pytest.fixture(scope="module")
def server(files: list[Path]) -> Iterator[Server]:
    """A server of both."""
    with running([*POETRY, "serve", *files], listeners=2) as server:
        yield server


@system
def test_each_module_imports(there: str) -> None:
    """Each module can be imported."""
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in (ROOT / "poetry").rglob("*.py")
    ]
    imports = f"import {', '.join(modules)}\nfrom poetry import *"
    done = run(python(there, imports))
    assert (done.returncode, done.stderr) == (0, b"")


@system
@pytest.mark.parametrize("poem", [SHORT, LONG], ids=["short", "long"])
def test_get_prints_or_writes_a_poem(
    there: str, poem: bytes, server: Server, tmp_path: Path
) -> None:
    """A poem is printed, written to a new file, and written over an old one."""
    address = server.addresses[poem is LONG]
    printed = run([*command(there), "get", address])
    assert (printed.returncode, printed.stdout == poem, printed.stderr) == (0, True, b"")
    for _ in range(2):
        done = run([*command(there), "get", "-o", tmp_path / "poem.txt", address])
        assert (done.returncode, done.stderr) == (0, b"")
        assert (tmp_path / "poem.txt").read_bytes() == poem


@system
def test_get_of_several_keeps_their_order(there: str, server: Server, tmp_path: Path) -> None:
    """Several poems are printed in order, and each has its file in a directory."""
    printed = run([*command(there), "get", *server.addresses])
    assert (printed.returncode, printed.stdout == SHORT + LONG, printed.stderr) == (0, True, b"")
    done = run([*command(there), "get", "-d", tmp_path / "poems", *server.addresses])
    assert (done.returncode, done.stderr) == (0, b"")
    assert sum(path.stat().st_size for path in tmp_path.rglob("*.txt")) == len(SHORT) + len(LONG)


@system
def test_each_failure_is_one_line(there: str, server: Server, tmp_path: Path) -> None:
    """A poem over the limit or with a wrong digest is one line, and leaves no file."""
    digest = hashlib.sha256(SHORT).hexdigest()
    for option in (("--max-bytes", "10"), ("--sha256", digest)):
        done = run(
            [*command(there), "get", "-o", tmp_path / "poem.txt", *option, server.addresses[1]]
        )
        assert (done.returncode, done.stderr.count(b"\n")) == (1, 1)
    assert list(tmp_path.iterdir()) == []


@system
def test_service_reloads(there: str, files: list[Path]) -> None:
    """A service reads its poems again."""
    reload = (
        "from twisted.internet import task\n"
        "from poetry.daemon.build import build_service\n"
        f"service = lambda reactor: build_service(reactor, [{str(files[1])!r}], ['0'])\n"
        "task.react(lambda reactor: service(reactor).reload())"
    )
    done = run(python(there, reload))
    assert (done.returncode, done.stderr) == (0, b"")


@system
def test_serve_until_term(there: str, files: list[Path]) -> None:
    """Both poems are served, several times, beside metrics; TERM ends the server as usual."""
    with running([*command(there), "serve", "--metrics", "0", *files], listeners=3) as here:
        for _ in range(3):
            done = run([*POETRY, "get", *here.addresses[:2]])
            assert (done.returncode, done.stdout == SHORT + LONG, done.stderr) == (0, True, b"")
        with urlopen(f"http://{here.addresses[2]}/metrics", timeout=PATIENCE) as metrics:
            assert b"poetry_waiting_connections 0.0" in metrics.read()
        assert here.stop() == 0
        assert "Traceback" not in here.stderr
        assert here.stderr.count(" sent ") == 6


def test_unix_sockets_are_refused(tmp_path: Path) -> None:
    """Where Unix sockets are missing, both commands say so in one line."""
    for words in (["serve", "-l", f"unix:{tmp_path / 'poem'}"], ["get", "unix:/run/poem"]):
        done = run([*command(WINDOWS), *words])
        assert done.returncode == 2
        assert f"{words[-1]!r}: this system has no Unix sockets" in done.stderr.decode()
        assert done.stderr.count(b"\n") == 1
