"""`poetry get -v`: notes on standard error beside the same results."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import pytest

from tests.certificates import Certificates
from tests.commands.tools import QUICK, SHORT, accept, port_of, started
from tests.faults.readers import reset
from tests.processes import PATIENCE, Server, poetry, running


def notes_on(stderr: bytes, address: str) -> list[str]:
    """The notes on an address, with all figures as N."""
    lines = stderr.decode().splitlines()
    assert all(line.startswith(f"{address}: ") for line in lines), lines
    return [re.sub(r"\d[\d.,]*", "N", line.removeprefix(f"{address}: ")) for line in lines]


ENDED = "ended after N bytes and N s: Connection was closed cleanly."


def test_notes_on_a_whole_poem(served: Server) -> None:
    """The notes are the attempt, the connection, the first byte and the end."""
    [address, _] = served.addresses
    result = poetry("get", "-v", address)
    assert (result.returncode, result.stdout) == (0, SHORT)
    assert notes_on(result.stderr, address) == [
        "connecting to N:N",
        "connected to N:N",
        "first byte after N s",
        ENDED,
    ]


@pytest.mark.parametrize("form", ["localhost:{}", "tcp:localhost:{}"])
def test_notes_on_a_name(served: Server, form: str) -> None:
    """A name's addresses and each attempt are noted."""
    address = form.format(served.port)
    lines = notes_on(poetry("get", "-v", address).stderr, address)
    assert lines[-3:] == ["connected to N:N", "first byte after N s", ENDED]
    if not form.startswith("tcp:"):
        assert lines[0] == "looking up localhost"
        assert lines[1].startswith("localhost is ")


def test_note_on_an_unknown_name() -> None:
    """An unknown name is noted to have no address."""
    result = poetry("get", "--verbose", "host.invalid:80")
    *lines, error = result.stderr.decode().splitlines()
    assert lines == [
        "host.invalid:80: looking up host.invalid",
        "host.invalid:80: host.invalid is unknown",
    ]
    assert error.startswith("Error: host.invalid:80: no such host")


def test_note_on_a_missing_unix_socket() -> None:
    """An attempt that fails is noted beside the error."""
    address = "unix:/no/such/socket"
    result = poetry("get", "-v", address)
    reason = "no connection: No such file or directory"
    assert result.stderr.decode().splitlines() == [
        f"{address}: connecting to /no/such/socket",
        f"{address}: /no/such/socket: {reason}",
        f"Error: {address}: {reason}",
    ]


@pytest.mark.parametrize("form", ["tls:localhost:{}", "ssl:localhost:{}"])
def test_note_on_tls(certificates: Certificates, form: str) -> None:
    """The version of TLS and the certificate's name are noted."""
    with running([*QUICK, "-l", certificates.listen("good")]) as server:
        address = form.format(server.port)
        result = poetry("get", "-v", address, env={"SSL_CERT_FILE": str(certificates.authority)})
    assert result.returncode == 0
    lines = result.stderr.decode()
    assert ": TLSv1.3; the certificate is for localhost, 127.0.0.1, ::1\n" in lines
    assert f"{address}: connecting to " in lines


def test_notes_on_a_retry(peer: socket.socket, tmp_path: Path) -> None:
    """The end of each attempt is noted, and that another one follows."""
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
    lines = notes_on(begun + stderr, port_of(peer))
    assert lines[3].startswith("ended after N bytes and N s: Connection to the other side was lost")
    assert "; retry N of N in " in lines[4]
    assert lines[5:7] == ["connecting to N:N", "connected to N:N"]


def test_notes_escape_control_characters(tmp_path: Path) -> None:
    """Control characters in the text of others are shown, and not obeyed."""
    result = poetry("get", "-v", f"unix:{tmp_path}/\x1b[2J")
    assert b"\x1b" not in result.stderr
    assert b"/\\x1b[2J: no connection: No such file" in result.stderr
