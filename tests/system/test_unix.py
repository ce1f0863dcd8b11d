"""Unix sockets that a server left behind, or did not."""

from __future__ import annotations

import errno
import os
import socket
import stat
from pathlib import Path

import pytest
from twisted.internet.error import CannotListenError

from poetry import PoetryServerFactory
from poetry.addresses import server_endpoint
from poetry.system.unix import path_in_text
from poetry.system.unix_ports import remove_stale
from tests.loop import reactor, wait, wait_error


def left_behind(path: Path) -> None:
    """The socket that a killed server leaves."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()


@pytest.mark.parametrize(
    ("form", "mode"),
    [
        ("unix:{}", 0o666),
        ("UNIX:{}:mode=600", 0o600),
        ("unix:address={}", 0o666),
        ("unix:mode=600:address={}", 0o600),
    ],
)
def test_dead_socket_is_taken_over(tmp_path: Path, form: str, mode: int) -> None:
    """A socket without a server is taken over, and nothing is left of its successor."""
    path = tmp_path / "a:poem"
    left_behind(path)
    address = form.format(str(path).replace(":", "\\:"))
    port = wait(server_endpoint(reactor, address).listen(PoetryServerFactory(b"poem")))
    assert stat.S_IMODE(path.stat().st_mode) == mode
    with socket.socket(socket.AF_UNIX) as reader:
        reader.connect(str(path))
    wait(port.stopListening())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("endpoint", ["unix:{}", "unix:{}:lockfile=1"])
def test_file_beside_the_socket_is_left_alone(tmp_path: Path, endpoint: str) -> None:
    """A file that has the name of Twisted's lock is neither read nor removed."""
    path, lock = tmp_path / "poetry", tmp_path / "poetry.lock"
    lock.write_text("of another program", encoding="utf-8")
    address = endpoint.format(path)
    port = wait(server_endpoint(reactor, address).listen(PoetryServerFactory(b"poem")))
    wait(port.stopListening())
    assert [file.name for file in tmp_path.iterdir()] == ["poetry.lock"]
    assert lock.read_text(encoding="utf-8") == "of another program"


@pytest.mark.parametrize("how", ["file", "link", "server", "renamed"])
def test_what_has_taken_the_sockets_place_is_left_alone(tmp_path: Path, how: str) -> None:
    """A stop removes its own socket, and nothing that is at its path by then."""
    path, other = tmp_path / "socket", tmp_path / "other"
    first = wait(server_endpoint(reactor, f"unix:{path}").listen(PoetryServerFactory(b"poem")))
    path.unlink()
    second = None
    if how == "file":
        path.write_text("mine", encoding="utf-8")
    elif how == "link":
        path.symlink_to(other)
    else:
        where = path if how == "server" else other
        listening = server_endpoint(reactor, f"unix:{where}").listen(PoetryServerFactory(b"poem"))
        second = wait(listening)
        where.replace(path)
    wait(first.stopListening())
    assert os.path.lexists(path)
    if second is not None:
        with socket.socket(socket.AF_UNIX) as reader:
            reader.connect(str(path))
        wait(second.stopListening())


@pytest.mark.parametrize("mode", ["77777777777", "10000", "-1"])
def test_failed_start_leaves_no_socket(tmp_path: Path, mode: str) -> None:
    """A server that cannot start leaves nothing at its path."""
    path = tmp_path / "poem"
    again = server_endpoint(reactor, f"unix:{path}:mode={mode}").listen(PoetryServerFactory(b"x"))
    assert f"mode {mode} is out of range" in str(wait_error(again))
    full = server_endpoint(reactor, f"unix:{path}:backlog={2**40}").listen(
        PoetryServerFactory(b"x")
    )
    assert isinstance(wait_error(full), OverflowError)
    assert not list(tmp_path.iterdir())


def test_served_socket_is_left_alone(tmp_path: Path) -> None:
    """A running server is left alone, and the error says so and names the file."""
    path = tmp_path / "poem"
    port = wait(server_endpoint(reactor, f"unix:{path}").listen(PoetryServerFactory(b"poem")))
    again = server_endpoint(reactor, f"unix:{path}").listen(PoetryServerFactory(b"poem"))
    error = wait_error(again)
    assert isinstance(error, CannotListenError)
    assert (error.port, error.socketError.strerror) == (f"unix:{path}", "a server answers on it")
    wait(port.stopListening())


def test_other_file_is_left_alone(tmp_path: Path) -> None:
    """A file that is no socket is not removed."""
    path = tmp_path / "poem"
    path.write_text("not a socket", encoding="utf-8")
    again = server_endpoint(reactor, f"unix:{path}").listen(PoetryServerFactory(b"poem"))
    assert "a file that is no socket is there" in str(wait_error(again))
    assert path.read_text(encoding="utf-8") == "not a socket"


def test_factory_that_cannot_start_leaves_no_socket(tmp_path: Path) -> None:
    """A factory is started before there is a socket."""

    class Broken(PoetryServerFactory):
        def startFactory(self) -> None:
            raise RuntimeError

    path = tmp_path / "poem"
    listening = server_endpoint(reactor, f"unix:{path}").listen(Broken(b"poem"))
    assert isinstance(wait_error(listening), RuntimeError)
    assert not path.exists()


def test_socket_that_is_replaced_while_it_is_probed_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another server that starts in the same moment keeps its socket."""
    path, other = tmp_path / "poem", tmp_path / "other"
    left_behind(path)
    left_behind(other)
    connect = socket.socket.connect_ex

    def replace(probe: socket.socket, where: str) -> int:
        refused = connect(probe, where)
        other.replace(path)
        return refused

    monkeypatch.setattr(socket.socket, "connect_ex", replace)
    with pytest.raises(OSError, match="another server starts on it"):
        remove_stale(str(path))
    assert path.exists()


def test_link_is_left_alone(tmp_path: Path) -> None:
    """A symbolic link is no socket, wherever it leads."""
    path = tmp_path / "poem"
    path.symlink_to("nowhere")
    again = server_endpoint(reactor, f"unix:{path}").listen(PoetryServerFactory(b"poem"))
    assert "a file that is no socket is there" in str(wait_error(again))
    assert path.is_symlink()


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
