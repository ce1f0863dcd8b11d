"""Unix sockets that a server left behind, or did not."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

import pytest
from twisted.internet.error import CannotListenError

from poetry import PoetryServerFactory
from poetry.addresses import server_endpoint
from poetry.system.unix import path_in_text, remove_stale
from tests.loop import reactor, wait, wait_error


def left_behind(path: Path, pid: str) -> None:
    """The socket and lock that a killed server leaves."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
    path.with_name(f"{path.name}.lock").symlink_to(pid)


@pytest.mark.parametrize(
    "form", ["unix:{}", "unix:{}:mode=600", "unix:address={}", "unix:mode=600:address={}"]
)
@pytest.mark.parametrize("pid", ["1", str(os.getpid()), "nonsense"], ids=["1", "own", "none"])
def test_dead_socket_is_taken_over(tmp_path: Path, form: str, pid: str) -> None:
    """A socket without a server is taken over, whichever process has its lock's number by now."""
    path = tmp_path / "a:poem"
    left_behind(path, pid)
    address = form.format(str(path).replace(":", "\\:"))
    port = wait(server_endpoint(reactor, address).listen(PoetryServerFactory(b"poem")))
    with socket.socket(socket.AF_UNIX) as reader:
        reader.connect(str(path))
    wait(port.stopListening())
    assert not list(tmp_path.iterdir())


def test_lock_without_a_socket_is_ignored(tmp_path: Path) -> None:
    """Without a socket a lock hinders no server."""
    path = tmp_path / "poem"
    left_behind(path, "1")
    path.unlink()
    port = wait(server_endpoint(reactor, f"unix:{path}").listen(PoetryServerFactory(b"poem")))
    wait(port.stopListening())


def test_served_socket_is_left_alone(tmp_path: Path) -> None:
    """A running server is left alone, and the error says so and names the file."""
    path = tmp_path / "poem"
    port = wait(server_endpoint(reactor, f"unix:{path}").listen(PoetryServerFactory(b"poem")))
    again = server_endpoint(reactor, f"unix:{path}").listen(PoetryServerFactory(b"poem"))
    error = wait_error(again)
    assert isinstance(error, CannotListenError)
    assert (error.port, error.socketError.strerror) == (str(path), "a server answers on it")
    wait(port.stopListening())


def test_other_file_is_left_alone(tmp_path: Path) -> None:
    """A file that is no socket is not removed."""
    path = tmp_path / "poem"
    path.write_text("not a socket", encoding="utf-8")
    again = server_endpoint(reactor, f"unix:{path}").listen(PoetryServerFactory(b"poem"))
    assert "a file that is no socket is there" in str(wait_error(again))
    assert path.read_text(encoding="utf-8") == "not a socket"


def test_socket_that_cannot_be_probed_is_left_alone(tmp_path: Path) -> None:
    """A socket of another kind is not taken over, and the reason is the system's."""
    path = tmp_path / "poem"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(str(path))
        with pytest.raises(OSError, match="wrong type") as caught:
            remove_stale(str(path))
    assert caught.value.errno == errno.EPROTOTYPE
    assert path.exists()


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("unix:/run/poem", "/run/poem"),
        ("unix:/run/poem:mode=660:lockfile=1", "/run/poem"),
        ("unix:mode=660:address=/run/poem", "/run/poem"),
        ("unix:path=/run/poem", "/run/poem"),
        (r"unix:/run/a\:b", "/run/a:b"),
        (r"unix:/run/a\\b:mode=660", "/run/a\\b"),
    ],
)
def test_path_in_an_address_is_parsed_as_by_twisted(text: str, path: str) -> None:
    """A path is read as Twisted reads it, quoted or named."""
    assert path_in_text(text) == path
