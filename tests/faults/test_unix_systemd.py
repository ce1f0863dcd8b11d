"""The same promise on Unix sockets, as far as they can keep it, and on a socket from systemd."""

from __future__ import annotations

import signal
import socket
import sys
from pathlib import Path

import pytest

from tests.conftest import PoemFile
from tests.faults.readers import (
    PAUSES,
    PLAIN,
    SPEAKS,
    Crowd,
    Habit,
    listens,
    poem,
    read_all,
    refuses,
)
from tests.processes import POETRY, SERVE, eventually, need, passed_in, poetry, run, running

LONG = 10_000_000

HABITS = {
    "plain": PLAIN,
    "speaks first": SPEAKS,
    "floods": Habit(says=bytes(2_000_000)),
    "half-closes first": Habit(half_closes=True),
}


def serving(given: str) -> tuple[str, ...]:
    """A server on a socket, a Python expression, that is passed in."""
    return passed_in(given, *POETRY, "serve", "-l", "systemd:domain=INET:index=0")


UNIX_SOCKET = "socket.socket(socket.AF_UNIX); given.bind(''); given.listen()"

SYSTEMD = serving('socket.create_server(("127.0.0.1", 0), backlog=4096)')


@pytest.mark.parametrize("habit", HABITS)
@pytest.mark.parametrize("size", [3_000, 1_000_000])
def test_unix_readers_are_whole(poem_file: PoemFile, tmp_path: Path, habit: str, size: int) -> None:
    """On a Unix socket too, whatever a reader says, it has the poem and a clean end."""
    path = tmp_path / "socket"
    with running([*SERVE, "-l", f"unix:{path}", poem_file(size)]) as server:
        assert server.addresses == [f"unix:{path}"]
        assert read_all(f"unix:{path}", poem(size), HABITS[habit], count=20) == {"whole": 20}


def test_stop_serves_unix_readers_in_flight(poem_file: PoemFile, tmp_path: Path) -> None:
    """A stop removes the socket, and readers in flight have the poem whole."""
    path = tmp_path / "socket"
    with (
        running([*SERVE, "-l", f"unix:{path}", poem_file(LONG)]) as server,
        Crowd(f"unix:{path}", poem(LONG), PAUSES, count=20) as crowd,
    ):
        crowd.run(until=crowd.begun)
        server.signal(signal.SIGTERM)
        assert eventually(lambda: refuses(f"unix:{path}"))
        crowd.resume()
        assert crowd.run() == {"whole": 20}
        assert server.wait() == 0


def test_unix_socket_left_behind_is_taken_over(poem_file: PoemFile, tmp_path: Path) -> None:
    """The socket that a killed server leaves is taken over by the next."""
    command = [*SERVE, "-l", f"unix:{tmp_path / 'socket'}", poem_file(3_000)]
    with running(command) as server:
        server.signal(signal.SIGKILL)
        server.wait()
    with running(command) as server:
        assert read_all(server.addresses[0], poem(3_000), count=5) == {"whole": 5}


@pytest.mark.parametrize("habit", HABITS)
def test_systemd_readers_are_whole(poem_file: PoemFile, habit: str) -> None:
    """On a socket that systemd hands over, every reader has the poem whole."""
    size = 1_000_000
    with running([*SYSTEMD, poem_file(size)]) as server:
        ends = read_all(server.addresses[0], poem(size), HABITS[habit], count=20)
        assert ends == {"whole": 20}
        assert server.stop() == 0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_killed_or_impatient_server_resets_systemd_readers(
    poem_file: PoemFile, number: int
) -> None:
    """A killed server and one without grace reset the readers of a socket from systemd."""
    with (
        running([*SYSTEMD, "--grace", "0", poem_file(LONG)]) as server,
        Crowd(server.addresses[0], poem(LONG), PAUSES, count=20) as crowd,
    ):
        crowd.run(until=crowd.begun)
        server.signal(number)
        server.wait()
        crowd.resume()
        assert crowd.run() == {"reset": 20}


def test_systemd_max_connections(poem_file: PoemFile) -> None:
    """The limit of connections holds on a socket from systemd."""
    size = 1_000_000
    with running([*SYSTEMD, "--max-connections", "10", poem_file(size)]) as server:
        with Crowd(server.addresses[0], poem(size), count=200) as crowd:
            ends = crowd.run(until=lambda: crowd.served() > 10)
        assert ends == {"whole": 200}


def test_systemd_socket_activation(poem_file: PoemFile, tmp_path: Path) -> None:
    """The first reader starts the server through the real systemd-socket-activate."""
    activate = need("systemd-socket-activate")
    path = tmp_path / "socket"
    command = [*SERVE, "-l", "systemd:domain=UNIX:index=0", poem_file(3_000)]
    with running([activate, "--fdname", "poem", "-l", path, *command], listeners=0) as server:
        assert eventually(lambda: listens(path))
        assert read_all(f"unix:{path}", poem(3_000)) == {"whole": 1}
        assert Path(f"/proc/{server.pid}/exe").readlink() == Path(sys.executable).resolve()
        assert read_all(f"unix:{path}", poem(3_000), count=5) == {"whole": 5}
        assert server.stop() == 0


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("socket.socketpair()[0]", "does not listen (systemd's Accept= has to be no)"),
        ("socket.socket(type=socket.SOCK_DGRAM)", "has no streams (ListenStream=)"),
        (UNIX_SOCKET, "is AF_UNIX: write domain=UNIX"),
    ],
)
def test_wrong_systemd_socket_is_refused(poem_file: PoemFile, given: str, reason: str) -> None:
    """A socket from systemd that is of the wrong kind is refused in a line."""
    done = run([*serving(given), poem_file(3_000)])
    said = f"'systemd:domain=INET:index=0': the socket that was passed in {reason}"
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.decode().startswith(f"Error: {said}")
    assert done.stderr.count(b"\n") == 1


def test_systemd_socket_is_announced_with_its_family(poem_file: PoemFile) -> None:
    """A socket from systemd is announced with its own family, whatever the text says."""
    if not socket.has_dualstack_ipv6():
        pytest.skip("needs IPv6")
    given = 'socket.create_server(("::1", 0), family=socket.AF_INET6)'
    with running([*serving(given), poem_file(3_000)]) as server:
        assert server.addresses[0].startswith("[::1]:")
        assert poetry("get", server.addresses[0]).stdout == poem(3_000)
