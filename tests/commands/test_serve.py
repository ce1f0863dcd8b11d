"""`poetry serve`, as a user meets it: its lines, its errors, its logs and exit codes."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
import sys
import tempfile
import termios
import urllib.request
from contextlib import closing
from pathlib import Path

import pytest
from twisted.internet.error import CannotListenError

from poetry.commands.serve import explain_listen_failure
from poetry.system.descriptors import LEAST
from tests.certificates import Certificates
from tests.commands.tools import LONG, QUICK, RUN, SHORT, Run, error_of, port_of, started
from tests.processes import PATIENCE, SAMPLE, SERVE, eventually, poetry, running


@pytest.mark.parametrize(
    ("words", "stdin", "expected"),
    [
        ((), b"", [("sample.txt", SAMPLE)]),
        (("-",), SHORT, [("-", SHORT)]),
        (("{short}",), b"", [("short.txt", SHORT)]),
        (("{short}", "{long}"), b"", [("short.txt", SHORT), ("long.txt", LONG)]),
        (("-p", "0", "{short}", "-"), LONG, [("short.txt", SHORT), ("-", LONG)]),
        (("-l", "0", "-l", "tcp:0:interface=127.0.0.1"), b"", [("sample.txt", SAMPLE)] * 2),
        (("-l", "unix:{place}", "-l", "0", "-"), SHORT, [("-", SHORT)] * 2),
        (("--num-bytes", "20", "{short}"), b"", [("short.txt", SHORT)]),
        (("--delay", "0.001", "{short}"), b"", [("short.txt", SHORT)]),
    ],
)
def test_each_poem_is_announced_and_served(
    poems: Path,
    tmp_path: Path,
    words: tuple[str, ...],
    stdin: bytes,
    expected: list[tuple[str, bytes]],
) -> None:
    """Each poem is announced with its address, and the address gets the poem."""
    names = {path.stem: str(path) for path in poems.iterdir()}
    given = [word.format(**names, place=tmp_path / "poem") for word in words]
    with running([*QUICK, *given], stdin=stdin, listeners=len(expected)) as server:
        for (name, _), address, line in zip(expected, server.addresses, server.lines, strict=True):
            assert line == f"Serving {name} on {address}"
        assert poetry("get", *server.addresses).stdout == b"".join(poem for _, poem in expected)
        assert server.stop() == 0
        assert server.stderr == ""


@pytest.mark.parametrize("interface", ["::1", "[::1]"])
def test_ipv6_address_is_announced_in_brackets(poems: Path, interface: str) -> None:
    """An IPv6 interface is announced in brackets, and may be given in them."""
    try:
        with closing(socket.create_server(("::1", 0), family=socket.AF_INET6)):
            pass
    except OSError:
        pytest.skip("needs IPv6")
    with running([*QUICK, "-i", interface, poems / "short.txt"]) as server:
        assert server.addresses[0].startswith("[::1]:")
        assert poetry("get", server.addresses[0]).stdout == SHORT


def test_tls_listener_is_announced_as_tls(certificates: Certificates, poems: Path) -> None:
    """A TLS listener is announced as `tls:`, and clients that trust it get the poem."""
    with running([*QUICK, "-l", certificates.listen("good"), poems / "long.txt"]) as server:
        [address] = server.addresses
        assert address.startswith("tls:127.0.0.1:")
        trusting = {"SSL_CERT_FILE": str(certificates.authority)}
        assert poetry("get", address, env=trusting).stdout == LONG
        assert "refused: TLS failed: " in error_of(poetry("get", address), 1)
    with running([*QUICK, "-l", certificates.listen("misnamed")]) as server:
        result = poetry("get", server.addresses[0], env=trusting)
        assert "refused: the server's certificate is for another name" in error_of(result, 1)


def test_stop_waits_and_a_second_signal_resets() -> None:
    """A stop waits for readers in flight, and a second signal resets them at once."""
    command = [*SERVE, "--num-bytes", "10", "--delay", "3600", "--grace", "3600"]
    with running(command) as server:
        reader = socket.create_connection(("127.0.0.1", server.port), PATIENCE)
        with reader:
            assert reader.recv(10) == SAMPLE[:10]
            server.signal(signal.SIGINT)

            def closed() -> bool:
                with socket.socket() as other:
                    return other.connect_ex(("127.0.0.1", server.port)) != 0

            assert eventually(closed)
            assert server.process.poll() is None
            server.signal(signal.SIGTERM)
            with pytest.raises(ConnectionResetError):
                reader.recv(10)
        assert server.wait() == 0
        assert "Traceback" not in server.stderr


def test_hup_reloads(tmp_path: Path) -> None:
    """HUP reads the poem again; a file that is empty or gone leaves the old one in place."""
    path = tmp_path / "poem.txt"
    path.write_bytes(b"old")
    with running([*SERVE, "--log-format", "json", path]) as server:
        path.write_bytes(b"new")
        server.signal(signal.SIGHUP)
        assert eventually(lambda: server.logged("reloaded"))
        assert poetry("get", server.addresses[0]).stdout == b"new"
        path.write_bytes(b"")
        server.signal(signal.SIGHUP)
        assert eventually(lambda: server.logged("reload_failed"))
        path.unlink()
        server.signal(signal.SIGHUP)
        assert eventually(lambda: len(server.logged("reload_failed")) == 2)
        assert poetry("get", server.addresses[0]).stdout == b"new"
        assert server.stop() == 0
        [empty, gone] = server.logged("reload_failed")
        assert str(path) in empty["message"]
        assert "empty" in empty["message"]
        assert "No such file or directory" in gone["message"]
        assert [line["level"] for line in (empty, gone)] == ["error", "error"]


@pytest.mark.parametrize(("level", "count"), [("debug", 1), ("info", 1), ("warn", 0)])
def test_transfer_is_logged_in_json(poems: Path, level: str, count: int) -> None:
    """Each transfer is a line, of which `--log-format json` makes an object."""
    words = ("--log-format", "json", "--log-level", level)
    with running([*SERVE, *words, poems / "short.txt"]) as server:
        assert poetry("get", server.addresses[0]).returncode == 0
        assert server.stop() == 0
        transfers = server.logged("transfer")
        assert len(transfers) == count
        for line in transfers:
            expected = {
                "outcome": "sent",
                "bytes": len(SHORT),
                "poem": "short.txt",
                "listener": server.addresses[0],
            }
            assert {key: line[key] for key in expected} == expected
            assert line["peer"].startswith("127.0.0.1:")


def test_metrics_are_announced() -> None:
    """`--metrics` is announced after the poems, and counts their readers."""
    pytest.importorskip("prometheus_client", reason="needs twisted-poetry[metrics]")
    with running([*QUICK, "--metrics", "0"], listeners=2) as server:
        assert poetry("get", server.addresses[0]).stdout == SAMPLE
        assert server.lines[1] == f"Serving metrics on {server.addresses[1]}"
        with urllib.request.urlopen(f"http://{server.addresses[1]}/metrics", timeout=60) as page:
            assert b'poetry_poems_total{outcome="sent",poem="sample.txt"} 1.0' in page.read()


def test_name_with_a_line_end_is_one_line(tmp_path: Path) -> None:
    """A file's name is announced in one line, whatever is in it."""
    path = tmp_path / "new\nline\x1b"
    path.write_bytes(b"a poem")
    with running([*QUICK, path]) as server:
        assert server.lines == [f"Serving new\\nline\\x1b on {server.addresses[0]}"]


def test_metrics_without_prometheus_client_say_what_to_install(poems: Path) -> None:
    """Where prometheus-client is not installed, the error says what to install."""
    blocked = poems / "a directory" / "prometheus_client.py"
    blocked.write_text("raise ImportError('not here')\n")
    result = poetry("serve", "--metrics", "0", env={"PYTHONPATH": str(blocked.parent)})
    assert error_of(result, 2).startswith("metrics need twisted-poetry[metrics]: not here")


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("no-such-file.txt", "No such file or directory"),
        (".", "Is a directory"),
        ("{empty}", "it is empty, and there is no empty poem"),
        ("-", "it is empty, and there is no empty poem"),
        ("/dev/fd/4", "Bad file descriptor"),
        ("10000", "No such file or directory; to listen on that port: -p 10000"),
        ("[::1]:80", "No such file or directory; to listen there: -l [::1]:80"),
    ],
)
def test_unusable_poem_is_one_line(poems: Path, word: str, message: str) -> None:
    """A poem that cannot be served is one line, without a hint at the help."""
    given = word.format(empty=poems / "empty.txt")
    assert error_of(poetry("serve", given), 2) == f"{given}: {message}"


def test_error_line_shows_control_characters() -> None:
    """A name cannot set the terminal's title."""
    assert error_of(poetry("serve", "x\x1by"), 2) == r"x\x1by: No such file or directory"


def test_poem_of_a_nonblocking_pipe_is_read_to_its_end(pipe: tuple[int, int]) -> None:
    """A standard input that another process has set not to block has no end before its end."""
    reading, writing = pipe
    os.set_blocking(reading, False)
    with started("serve", "-p", "0", "-", stdin=reading) as process:
        os.write(writing, SHORT)
        assert eventually(lambda: fcntl.ioctl(reading, termios.FIONREAD, bytes(4)) == bytes(4))
        os.write(writing, SHORT)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, writing)  # closes the pipe; the fixture closes the number
        os.close(nowhere)
        assert process.stdout is not None
        address = process.stdout.readline().split()[-1].decode()
        assert poetry("get", address).stdout == SHORT * 2
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0


def test_announcement_that_is_cut_short_is_an_error() -> None:
    """A standard output with room for a part of the line is told of."""
    with tempfile.TemporaryFile() as output:
        limit = ("import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10)); " + RUN,)
        words = [sys.executable, "-c", *limit, "serve", "-p", "0"]
        with started(command=tuple(words), stdout=output) as process:
            assert process.stderr is not None
            line = process.stderr.readline()
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE) == 0
    assert line == b"Error: standard output: File too large\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "-p {taken}",
            "cannot listen on 127.0.0.1:{taken}: Address already in use; choose another",
        ),
        ("--metrics {taken}", "cannot listen on 127.0.0.1:{taken}: Address already in use"),
        ("-i 192.0.2.1", "cannot listen on 192.0.2.1: no interface of this machine has that"),
        (
            "-l unix:{file}",
            "cannot listen on unix:{file}: a file that is no socket is there; choose another",
        ),
        ("-l unix:/no/such/place", "cannot listen on unix:/no/such/place: No such file"),
    ],
)
def test_unusable_address_is_one_line(
    peer: socket.socket, poems: Path, words: str, message: str
) -> None:
    """An address that cannot be listened on is one line that says what to do, and 1."""
    names = {"taken": port_of(peer), "file": str(poems / "short.txt")}
    given = [word.format(**names) for word in words.split()]
    result = poetry("serve", *given)
    assert result.stdout == b""
    assert error_of(result, 1).startswith(message.format(**names))


def test_served_unix_socket_is_left_alone(tmp_path: Path) -> None:
    """A second server on a Unix socket fails, and the first one stays."""
    address = f"unix:{tmp_path / 'poem'}"
    with running([*QUICK, "-l", address]) as server:
        message = f"cannot listen on {address}: a server answers on it; choose another"
        assert error_of(poetry("serve", "-l", address), 1).startswith(message)
        assert poetry("get", server.addresses[0]).stdout == SAMPLE


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            CannotListenError("127.0.0.1", 80, OSError(errno.EACCES, "Permission denied")),
            "cannot listen on 127.0.0.1:80: Permission denied; ports below 1024 need privileges",
        ),
        (
            CannotListenError(None, "unix:/run/x", OSError(errno.EACCES, "Permission denied")),
            "cannot listen on unix:/run/x: Permission denied",
        ),
        (
            CannotListenError("::1", 80, OSError(errno.EADDRNOTAVAIL, "odd")),
            "cannot listen on [::1]:80: no interface of this machine has that address",
        ),
        (
            CannotListenError("x", 1, OSError(errno.EMFILE, "Too many open files")),
            "cannot listen on x:1: Too many open files; raise the limit (ulimit -n)",
        ),
        (CannotListenError("x", 0, OSError("odd")), "cannot listen on x: odd"),
        (
            CannotListenError("", "onion:80", ValueError("there is no Tor")),
            "cannot listen on onion:80: there is no Tor",
        ),
    ],
)
def test_error_of_listening_says_what_to_do(error: Exception, message: str) -> None:
    """Where the reason is known, the error says what to do about it."""
    assert explain_listen_failure(error) == message


def test_too_few_descriptors_say_the_least(
    in_process: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server with hardly any descriptors says how many it takes."""
    monkeypatch.setattr("poetry.system.descriptors.raise_limit", lambda: 6)
    message = f"6 open files (ulimit -n) do not do: it takes {LEAST}"
    assert error_of(in_process("serve"), 1) == message


def test_lack_of_descriptors_is_named(in_process: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lack of descriptors is not blamed on standard output."""

    def fail() -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("poetry.system.descriptors.raise_limit", fail)
    assert error_of(in_process("serve"), 1) == "Too many open files; raise the limit (ulimit -n)"
