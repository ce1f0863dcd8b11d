"""`poetry get` at servers made of the tools that people have: every byte, and exit code 0."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.peers import PROGRAMS, Setup, nginx
from tests.certificates import Certificates
from tests.interop.tools import SIZES, poem_of, tool_listening
from tests.processes import need, poetry

Command = Callable[[int, Path], list[str]]
TlsCommand = Callable[[int, Path, Certificates], list[str]]

SERVERS: dict[str, tuple[str, Command]] = {
    "nc": ("nc", lambda port, _: ["nc", "-N", "-l", "127.0.0.1", str(port)]),
    "ncat": ("ncat", lambda port, _: ["ncat", "-l", "--send-only", "127.0.0.1", str(port)]),
    "ncat that runs cat": (
        "ncat",
        lambda port, poem: ["ncat", "-l", "-k", "127.0.0.1", str(port), "-e", f"/bin/cat {poem}"],
    ),
    "socat": (
        "socat",
        lambda port, poem: ["socat", "-U", f"TCP-LISTEN:{port},bind=127.0.0.1", f"OPEN:{poem}"],
    ),
    "Twisted's QOTD": (
        sys.executable,
        lambda port, poem: [sys.executable, f"{PROGRAMS}/qotd_server.py", str(port), str(poem)],
    ),
    "the tutorial's": (
        sys.executable,
        lambda port, poem: [sys.executable, f"{PROGRAMS}/tutorial_server.py", str(port), str(poem)],
    ),
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", SERVERS)
def test_poem_of_each_server_arrives(name: str, size: int, poems: dict[int, Path]) -> None:
    """From each server each poem arrives, byte for byte."""
    tool, command = SERVERS[name]
    need(tool)
    with tool_listening(lambda port: command(port, poems[size]), stdin=poems[size]) as (_, port):
        read = poetry("get", f"127.0.0.1:{port}")
    assert (read.returncode, len(read.stdout), read.stderr) == (0, size, b"")
    assert read.stdout == poem_of(size)


@pytest.mark.parametrize("size", [1, 3_000])
def test_poem_of_nginx_arrives(size: int, tmp_path: Path) -> None:
    """A poem that nginx has in its configuration arrives, byte for byte."""
    need("nginx")
    poem = tmp_path / "poem.txt"
    poem.write_bytes(b"A\n\"line\\ of verse; {or} so'\n"[:size] * (size // 27 + 1))
    poem.write_bytes(poem.read_bytes()[:size])
    with tool_listening(lambda port: nginx(Setup(port, poem, tmp_path))) as (_, port):
        read = poetry("get", f"127.0.0.1:{port}")
    assert (read.returncode, read.stdout) == (0, poem.read_bytes()), read.stderr


TLS_SERVERS: dict[str, tuple[str, TlsCommand]] = {
    "openssl s_server": (
        "openssl",
        # without -nbio it may wait for the reader to say something, and never send the rest
        lambda port, _, made: [
            *("openssl", "s_server", "-quiet", "-nbio", "-naccept", "1"),
            *("-cert", str(made.path("good")), "-key", str(made.path("good"))),
            *("-accept", f"127.0.0.1:{port}"),
        ],
    ),
    "socat": (
        "socat",
        lambda port, poem, made: [
            *("socat", "-U"),
            f"OPENSSL-LISTEN:{port},bind=127.0.0.1,verify=0,cert={made.path('good')}",
            f"OPEN:{poem}",
        ],
    ),
}


@pytest.mark.parametrize("trust", ["environment", "address", "option"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", TLS_SERVERS)
def test_poem_of_each_tls_server_arrives(
    name: str, size: int, trust: str, poems: dict[int, Path], certificates: Certificates
) -> None:
    """From each server each poem arrives over TLS, whichever way its authority is trusted."""
    tool, command = TLS_SERVERS[name]
    need(tool)
    env = {"SSL_CERT_FILE": str(certificates.authority)} if trust == "environment" else {}
    options = f":trustRoots={certificates.roots}" if trust == "address" else ""
    words = ["--cacert", str(certificates.authority)] if trust == "option" else []
    with tool_listening(
        lambda port: command(port, poems[size], certificates), stdin=poems[size]
    ) as (_, port):
        read = poetry("get", *words, f"tls:127.0.0.1:{port}{options}", env=env)
    assert (read.returncode, read.stdout == poem_of(size)) == (0, True), read.stderr


def test_untrusted_authority_is_refused(poems: dict[int, Path], certificates: Certificates) -> None:
    """A server whose authority is not trusted is refused: exit code 1, and no byte of a poem."""
    need("openssl")
    _, command = TLS_SERVERS["openssl s_server"]
    poem = poems[SIZES[1]]
    with tool_listening(lambda port: command(port, poem, certificates), stdin=poem) as (_, port):
        read = poetry("get", f"tls:127.0.0.1:{port}")
    assert (read.returncode, read.stdout) == (1, b""), read.stderr
    assert f"tls:127.0.0.1:{port}".encode() in read.stderr


@pytest.mark.parametrize("size", SIZES)
def test_tls_without_close_notify_is_truncated(
    size: int, poems: dict[int, Path], certificates: Certificates
) -> None:
    """ncat ends TLS without a close_notify, as a cut connection does: truncated."""
    need("ncat")
    files = [
        "--ssl-cert",
        str(certificates.path("good")),
        "--ssl-key",
        str(certificates.path("good")),
    ]
    with tool_listening(
        lambda port: ["ncat", "-l", "--send-only", *files, "127.0.0.1", str(port)],
        stdin=poems[size],
    ) as (_, port):
        env = {"SSL_CERT_FILE": str(certificates.authority)}
        read = poetry("get", f"tls:127.0.0.1:{port}", env=env)
    assert read.returncode == 1
    assert f"truncated after {size:,} bytes".encode() in read.stderr
