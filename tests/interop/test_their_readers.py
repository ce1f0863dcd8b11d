"""`poetry serve` read by the tools that people have: every byte, and a clean end."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.peers import PROGRAMS
from tests.certificates import Certificates
from tests.interop.tools import SIZES, poem_of, tool_listening
from tests.processes import need, poetry, run

ERLANG = """
main([Port]) ->
    {ok, Socket} = gen_tcp:connect({127,0,0,1}, list_to_integer(Port), [binary, {active, false}]),
    io:setopts(standard_io, [{encoding, latin1}]),
    read(Socket).

read(Socket) ->
    case gen_tcp:recv(Socket, 0) of
        {ok, Bytes} -> ok = file:write(standard_io, Bytes), read(Socket);
        {error, closed} -> halt(0);
        {error, _} -> halt(1)
    end.
"""

ASYNCIO = """
import asyncio, sys
async def main(port):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    sys.stdout.buffer.write(await reader.read())
    writer.close()
asyncio.run(main(int(sys.argv[1])))
"""

READERS: dict[str, tuple[str, list[str]]] = {
    "nc": ("nc", ["nc", "127.0.0.1", "{port}"]),
    "nc that does not read its input": ("nc", ["nc", "-d", "127.0.0.1", "{port}"]),
    "nc that half-closes first": ("nc", ["nc", "-N", "127.0.0.1", "{port}"]),
    "ncat that half-closes first": ("ncat", ["ncat", "127.0.0.1", "{port}"]),
    "ncat that only receives": ("ncat", ["ncat", "--recv-only", "127.0.0.1", "{port}"]),
    "socat": ("socat", ["socat", "-u", "TCP:127.0.0.1:{port}", "STDOUT"]),
    "socat that half-closes first": ("socat", ["socat", "-t60", "-", "TCP:127.0.0.1:{port}"]),
    "curl, which speaks first": (
        "curl", ["curl", "--silent", "--fail", "--http0.9", "http://127.0.0.1:{port}/"],
    ),
    "bash": ("bash", ["bash", "-c", "cat </dev/tcp/127.0.0.1/{port}"]),
    "erlang": ("escript", ["escript", "{script}", "{port}"]),
    "asyncio": (sys.executable, [sys.executable, "-c", ASYNCIO, "{port}"]),
    "the tutorial's blocking client": (
        sys.executable, [sys.executable, f"{PROGRAMS}/blocking_client.py", "127.0.0.1:{port}"],
    ),
    "the tutorial's Twisted client": (
        sys.executable, [sys.executable, f"{PROGRAMS}/tutorial_client.py", "127.0.0.1:{port}"],
    ),
}  # fmt: skip

TLS_READERS: dict[str, tuple[str, list[str]]] = {
    "openssl s_client": (
        "openssl",
        [
            "openssl", "s_client", "-quiet", "-verify_return_error", "-verify_ip", "127.0.0.1",
            "-CAfile", "{authority}", "-connect", "127.0.0.1:{port}",
        ],
    ),
    "ncat": (
        "ncat",
        [
            "ncat", "--recv-only", "--ssl-verify", "--ssl-trustfile", "{authority}",
            "localhost", "{port}",
        ],
    ),
    "socat": (
        "socat",
        ["socat", "-u", "OPENSSL:localhost:{port},cafile={authority}", "STDOUT"],
    ),
    "curl, which speaks first": (
        "curl",
        [
            "curl", "--silent", "--no-alpn", "--http0.9", "--cacert", "{authority}",
            "https://127.0.0.1:{port}/",
        ],
    ),
}  # fmt: skip


# what it does with 10 MB takes it half a minute: its buffer grows by 1,024 bytes a copy
PAIRS = [
    (name, size)
    for name in READERS
    for size in SIZES
    if name != "the tutorial's blocking client" or size < 10_000_000
]


@pytest.mark.parametrize(("name", "size"), PAIRS)
def test_tool_reads_each_poem(name: str, size: int, plain: dict[int, int], tmp_path: Path) -> None:
    """Each tool gets each poem, byte for byte, and ends well."""
    tool, command = READERS[name]
    need(tool)
    script = tmp_path / "reader.escript"
    script.write_text(f"#!/usr/bin/env escript\n{ERLANG}", encoding="utf-8")
    words = [word.format(port=plain[size], script=script) for word in command]
    read = run(words)
    assert (read.returncode, read.stdout == poem_of(size)) == (0, True), read.stderr


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", TLS_READERS)
def test_tool_reads_each_poem_over_tls(
    name: str, size: int, encrypted: dict[int, int], certificates: Certificates
) -> None:
    """Each tool that checks the certificate gets each poem over TLS, and a close_notify."""
    tool, command = TLS_READERS[name]
    need(tool)
    values = {"port": encrypted[size], "authority": certificates.authority}
    read = run([word.format(**values) for word in command])
    assert (read.returncode, read.stdout == poem_of(size)) == (0, True), read.stderr


def test_reader_with_alpn_is_whole(encrypted: dict[int, int], certificates: Certificates) -> None:
    """A reader that offers application protocols, as curl and browsers do, gets the poem."""
    need("curl")
    size = SIZES[1]
    curl = ["curl", "--silent", "--http0.9", "--cacert", str(certificates.authority)]
    read = run([*curl, f"https://127.0.0.1:{encrypted[size]}/"])
    assert (read.returncode, read.stdout == poem_of(size)) == (0, True)


HAPROXY = """
defaults
    mode tcp
    timeout connect 10s
    timeout client 60s
    timeout server 60s
listen poem
    bind 127.0.0.1:{port}
    server one 127.0.0.1:{behind}
"""


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("reader", ["nc", "poetry"])
def test_poem_through_haproxy_is_whole(
    reader: str, size: int, plain: dict[int, int], tmp_path: Path
) -> None:
    """Through HAProxy in TCP mode a poem arrives whole, at nc and at `poetry get`."""
    need("haproxy")
    configuration = tmp_path / "haproxy.cfg"

    def command(port: int) -> list[str]:
        configuration.write_text(HAPROXY.format(port=port, behind=plain[size]), encoding="utf-8")
        return ["haproxy", "-q", "-f", str(configuration)]

    with tool_listening(command) as (_, port):
        if reader == "nc":
            need("nc")
            read = run(["nc", "-d", "127.0.0.1", str(port)])
        else:
            read = poetry("get", f"127.0.0.1:{port}")
    assert (read.returncode, read.stdout == poem_of(size)) == (0, True), read.stderr
