"""`poetry get -v`: what happens, on standard error, and nothing else than without it."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import pytest

from tests.certificates import Certificates
from tests.commands.tools import QUICK, SHORT, accept, port_of, started
from tests.faults.readers import reset
from tests.processes import PATIENCE, Server, poetry, running


def told(stderr: bytes, address: str) -> list[str]:
    """What was told of an address, with all figures as N."""
    lines = stderr.decode().splitlines()
    assert all(line.startswith(f"{address}: ") for line in lines), lines
    return [re.sub(r"\d[\d.,]*", "N", line.removeprefix(f"{address}: ")) for line in lines]


ENDED = "ended after N bytes and N s: Connection was closed cleanly."


def test_a_whole_poem(served: Server) -> None:
    """The attempt, the connection, the first byte and the end are told."""
    [address, _] = served.addresses
    result = poetry("get", "-v", address)
    assert (result.returncode, result.stdout) == (0, SHORT)
    assert told(result.stderr, address) == [
        "connecting to N:N",
        "connected to N:N",
        "first byte after N s",
        ENDED,
    ]


@pytest.mark.parametrize("form", ["localhost:{}", "tcp:localhost:{}"])
def test_a_name(served: Server, form: str) -> None:
    """Where a name is looked up, its addresses are told, and each attempt."""
    address = form.format(served.port)
    lines = told(poetry("get", "-v", address).stderr, address)
    assert lines[-3:] == ["connected to N:N", "first byte after N s", ENDED]
    if not form.startswith("tcp:"):
        assert lines[0] == "looking up localhost"
        assert lines[1].startswith("localhost is ")


def test_an_unknown_name() -> None:
    """A name that nobody knows is told to have no address."""
    result = poetry("get", "--verbose", "host.invalid:80")
    *lines, error = result.stderr.decode().splitlines()
    assert lines == [
        "host.invalid:80: looking up host.invalid",
        "host.invalid:80: host.invalid is unknown",
    ]
    assert error.startswith("Error: host.invalid:80: no such host")


def test_a_unix_socket_that_is_not_there() -> None:
    """An attempt that fails is told beside the error."""
    address = "unix:/no/such/socket"
    result = poetry("get", "-v", address)
    reason = "no connection: No such file or directory"
    assert result.stderr.decode().splitlines() == [
        f"{address}: connecting to /no/such/socket",
        f"{address}: /no/such/socket: {reason}",
        f"Error: {address}: {reason}",
    ]


@pytest.mark.parametrize("form", ["tls:localhost:{}", "ssl:localhost:{}"])
def test_tls(certificates: Certificates, form: str) -> None:
    """The version of TLS, and whose the certificate is, are told."""
    with running([*QUICK, "-l", certificates.listen("good")]) as server:
        address = form.format(server.port)
        result = poetry("get", "-v", address, env={"SSL_CERT_FILE": str(certificates.authority)})
    assert result.returncode == 0
    lines = result.stderr.decode()
    assert ": TLSv1.3; the certificate is for localhost, 127.0.0.1, ::1\n" in lines
    assert f"{address}: connecting to " in lines


def test_a_reset_and_a_retry(peer: socket.socket, tmp_path: Path) -> None:
    """How each attempt ended is told, and that there is another one."""
    words = ("get", "-v", "--retries", "1", "-o", tmp_path / "poem.txt", port_of(peer))
    with started(*words) as process:
        assert process.stderr is not None
        with accept(peer) as connection:
            connection.sendall(b"half")
            begun = b"".join(process.stderr.readline() for _ in range(3))
            reset(connection)
        with accept(peer) as connection:
            connection.sendall(SHORT)
        _, stderr = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    lines = told(begun + stderr, port_of(peer))
    assert lines[3].startswith("ended after N bytes and N s: Connection to the other side was lost")
    assert "; retry N of N in " in lines[4]
    assert lines[5:7] == ["connecting to N:N", "connected to N:N"]


def test_names_that_a_terminal_would_obey(tmp_path: Path) -> None:
    """What a line repeats of somebody's is shown, and not obeyed."""
    result = poetry("get", "-v", f"unix:{tmp_path}/\x1b[2J")
    assert b"\x1b" not in result.stderr
    assert b"/^[[2J: no connection: No such file" in result.stderr
