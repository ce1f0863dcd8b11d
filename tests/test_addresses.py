"""Text to endpoints and back."""

from __future__ import annotations

import re
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.address import HostnameAddress, IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IHostnameResolver
from twisted.internet.protocol import ServerFactory
from twisted.internet.ssl import optionsForClientTLS
from twisted.internet.testing import MemoryReactorClock, StringTransport
from zope.interface import implementer

from poetry.addresses import (
    BACKLOG,
    BadAddress,
    client_endpoint,
    listening_address,
    named,
    peer_address,
    server_endpoint,
    split,
)
from poetry.client import get_poem
from poetry.protocol import PoetryServerFactory
from poetry.system.certificates import BadCertificate, authorities
from poetry.wire.layers import serves_tls
from tests.certificates import Certificates
from tests.loop import reactor, wait
from tests.processes import run


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10000", ("127.0.0.1", 10000)),
        ("0", ("127.0.0.1", 0)),
        ("poems.example.org:65535", ("poems.example.org", 65535)),
        ("0.0.0.0:1", ("0.0.0.0", 1)),
        ("[::1]:8000", ("::1", 8000)),
        ("[fe80::1%lo]:8000", ("fe80::1%lo", 8000)),
        ("tcp:8000", None),
        ("unix:/run/poem", None),
        ("systemd:domain=INET:index=0", None),
        ("tcp:8000:interface=127.0.0.1", None),
    ],
)
def test_split_leaves_endpoint_strings_to_twisted(
    text: str, expected: tuple[str, int] | None
) -> None:
    """A plain address is a host and a port; the rest is for Twisted."""
    assert split(text) == expected


BAD = [
    ("", "use PORT, HOST:PORT or an endpoint string"),
    ("nonsense", "use PORT, HOST:PORT or an endpoint string"),
    ("unix", "use PORT, HOST:PORT or an endpoint string"),
    ("-1", "use PORT, HOST:PORT or an endpoint string"),
    ("65536", "port 65536 is out of range (0 to 65535)"),
    ("localhost:99999", "port 99999 is out of range (0 to 65535)"),
    ("[::1]:99999", "port 99999 is out of range (0 to 65535)"),
    ("frob:1:2", "Unknown endpoint type: 'frob'; of a host, write frob:1"),
    ("[1:2]:80", "1:2 is no IPv6 address"),
    ("[::1x]:80", "is no address: ::1x is no IPv6 address"),
    ("::g", "is no address: ::g is no IPv6 address"),
    ("*", "use PORT, HOST:PORT or an endpoint string"),
    ("8000:localhost", "use PORT, HOST:PORT or an endpoint string"),
    ("my host:8000", "use PORT, HOST:PORT or an endpoint string"),
    (f"unix:/{'x' * 107}", "its path has 108 bytes, and a Unix socket's at most 107"),
    (f"unix:/{'é' * 54}", "its path has 109 bytes, and a Unix socket's at most 107"),
]


@pytest.mark.parametrize("parse", [server_endpoint, client_endpoint])
@pytest.mark.parametrize(("text", "reason"), BAD)
def test_nonsense_is_refused(parse: Any, text: str, reason: str) -> None:
    """Nonsense is refused on either side in one line that quotes it."""
    with pytest.raises(BadAddress) as caught:
        parse(MemoryReactorClock(), text)
    message = str(caught.value)
    assert message.startswith(repr(text))
    assert reason in message
    assert "\n" not in message


@pytest.mark.parametrize("parse", [server_endpoint, client_endpoint])
@pytest.mark.parametrize(
    ("text", "instead"),
    [
        ("tcp://127.0.0.1:10000", "write 127.0.0.1:10000"),
        ("tcp://[::1]:10000/", "write [::1]:10000"),
        ("poetry://poems.example:10000", "write poems.example:10000"),
        ("http://me:word@localhost:8000/poem?x=y", "write localhost:8000"),
        ("http://localhost/", "write localhost:PORT, the port as a number"),
        ("localhost:http", "write localhost:PORT, the port as a number"),
        ("localhost:", "write localhost:PORT, the port as a number"),
        ("127.0.0.1", "write 127.0.0.1:PORT, the port as a number"),
        ("[::1]", "write [::1]:PORT, the port as a number"),
        ("::1:8000", "an IPv6 host goes in brackets, as in [::1]:8000"),
        ("2001:db8::1:8000", "an IPv6 host goes in brackets, as in [2001:db8::1]:8000"),
        ("[localhost]:8000", "write localhost:8000"),
        ("127.0.0.1:8000:extra", "write 127.0.0.1:8000"),
        ("127.0.0.1 8000", "write 127.0.0.1:8000"),
        (" 127.0.0.1: 8000", "write 127.0.0.1:8000"),
    ],
)
def test_near_miss_is_refused_with_a_correction(parse: Any, text: str, instead: str) -> None:
    """The error of a near miss has the right address, which is accepted."""
    with pytest.raises(BadAddress) as caught:
        parse(MemoryReactorClock(), text)
    assert str(caught.value) == f"{text!r} is no address: {instead}"
    written = re.search(r"\S+:(\d+|PORT)", instead)
    assert written
    assert parse(MemoryReactorClock(), written[0].replace("PORT", "8000"))


@pytest.mark.parametrize(
    ("parse", "text", "reason"),
    [
        (server_endpoint, "tcp:x", "invalid literal for int()"),
        (server_endpoint, "tcp:", "invalid literal for int()"),
        (server_endpoint, "TCP:65536", "port 65536 is out of range (0 to 65535)"),
        (server_endpoint, "tcp6:port=-1", "port -1 is out of range (0 to 65535)"),
        (client_endpoint, "tcp:localhost:65536", "port 65536 is out of range (0 to 65535)"),
        (client_endpoint, "tcp:host=localhost:-1", "port -1 is out of range (0 to 65535)"),
        (client_endpoint, "ssl:localhost:port=70000", "port 70000 is out of range (0 to 65535)"),
        (client_endpoint, "tls:localhost:-1", "port -1 is out of range (0 to 65535)"),
        (server_endpoint, "tcp:0:frob=1", "too few or too many arguments"),
        (server_endpoint, "ssl:0:privateKey=/no/such/key", "No such file or directory"),
        (server_endpoint, "systemd:domain=INET:index=0", "no such socket was passed in"),
        (server_endpoint, "stdio:", "not a listener"),
        (server_endpoint, "HAProxy:tcp:0", "the PROXY protocol is not supported"),
        (server_endpoint, "unix:mode=660", "too few or too many arguments"),
        (client_endpoint, "ssl:host=:port=1", "Empty domain"),
        (server_endpoint, "unix:/a=b", "too few or too many arguments; a path has \\= for each ="),
        (client_endpoint, "unix:/a=b", "too few or too many arguments; a path has \\= for each ="),
        (server_endpoint, "tls:127.0.0.1:0", "to listen, write ssl:PORT:interface=ADDR:"),
        (server_endpoint, "tls:pems:port=0", "to listen, write ssl:PORT:interface=ADDR:"),
        (server_endpoint, "haproxy:tcp:0", "the PROXY protocol is not supported"),
        (client_endpoint, "tcp:x", "too few or too many arguments"),
        (server_endpoint, ":8999", "write 8999, or 0.0.0.0:8999 for all interfaces"),
        (server_endpoint, "*:8998", "write 8998, or 0.0.0.0:8998 for all interfaces"),
        (server_endpoint, "tcp:127.0.0.1:8000", "; write 127.0.0.1:8000"),
        (client_endpoint, ":8999", "write 127.0.0.1:8999"),
        (client_endpoint, "*:8998", "write 127.0.0.1:8998"),
        (client_endpoint, "tcp:8000", "too few or too many arguments; write 8000"),
        (client_endpoint, "https://localhost:8000/", "write tls:localhost:8000"),
        (client_endpoint, "a..b:80", "'a..b' is no host name"),
        (client_endpoint, "tls:a..b:80", "'a..b' is no host name"),
        (client_endpoint, "tls:127.0.0.1:0", "port 0 is not one to connect to"),
        (client_endpoint, "tls:poem_server:80", "no certificate can be for 'poem_server'"),
        (client_endpoint, "tcp:127.0.0.1:0", "port 0 is not one to connect to"),
        (client_endpoint, "127.0.0.1:0", "port 0 is not one to connect to"),
    ],
)
def test_bad_arguments_are_refused(
    monkeypatch: pytest.MonkeyPatch, parse: Any, text: str, reason: str
) -> None:
    """Endpoint strings with bad arguments are refused in one line that quotes them."""
    monkeypatch.delenv("LISTEN_FDS", raising=False)
    with pytest.raises(BadAddress, match=r"\A'.*\Z") as caught:
        parse(MemoryReactorClock(), text)
    assert repr(text) in str(caught.value)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("command", "address"), [("serve -l", "ssl:0"), ("get", "ssl:h:1"), ("get", "tls:h:1")]
)
def test_tls_without_pyopenssl_says_what_to_install(command: str, address: str) -> None:
    """Where TLS is not installed, the error says what to install."""
    script = "import sys; sys.modules['OpenSSL'] = None; from poetry.cli import main; main()"
    words = [sys.executable, "-c", script, *command.split(), address]
    result = run(words)
    assert result.returncode == 2
    said = f"Error: {address!r} needs TLS: install twisted-poetry[tls]"
    assert result.stderr.startswith(said.encode())
    assert result.stderr.count(b"\n") == 1


def test_authorities_without_pyopenssl_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where TLS is not installed, a file of authorities says what to install."""
    monkeypatch.setitem(sys.modules, "OpenSSL", None)
    monkeypatch.setitem(sys.modules, "OpenSSL.crypto", None)
    with pytest.raises(BadCertificate, match="needs TLS: install twisted-poetry"):
        authorities("ca.pem")


@pytest.mark.parametrize(
    ("text", "port", "host", "backlog"),
    [
        ("10000", 10000, "127.0.0.1", BACKLOG),
        ("[::1]:10000", 10000, "::1", BACKLOG),
        ("tcp:10000", 10000, "", BACKLOG),
        ("tcp:10000:backlog=7:interface=127.0.0.1", 10000, "127.0.0.1", 7),
    ],
)
def test_listener_has_our_backlog(text: str, port: int, host: str, backlog: int) -> None:
    """A listener has our backlog unless its text has one."""
    memory = MemoryReactorClock()
    server_endpoint(memory, text).listen(ServerFactory())
    [(listened, _, queue, interface)] = memory.tcpServers
    assert (listened, interface, queue) == (port, host, backlog)


@pytest.mark.parametrize(
    ("listen", "connect"),
    [
        ("0", "{port}"),
        ("127.0.0.1:0", "127.0.0.1:{port}"),
        ("tcp:0:interface=127.0.0.1", "tcp:127.0.0.1:{port}"),
        ("0", "{announced}"),
        ("unix:{directory}/po\\:em", "{announced}"),
        ("unix:{directory}/po\\=em", "{announced}"),
        ("unix:{directory}/{longest}", "{announced}"),
    ],
)
def test_announced_address_reaches_the_listener(tmp_path: Path, listen: str, connect: str) -> None:
    """The announced address reaches its listener, and so does every other spelling."""
    longest = "x" * (107 - len(f"{tmp_path}/"))
    endpoint = server_endpoint(reactor, listen.format(directory=tmp_path, longest=longest))
    port = wait(endpoint.listen(PoetryServerFactory(b"a poem")))
    announced = listening_address(port, secure=False)
    address = connect.format(announced=announced, port=announced.rpartition(":")[2])
    assert wait(get_poem(client_endpoint(reactor, address))) == b"a poem"
    wait(port.stopListening())


@pytest.mark.parametrize("deep", [False, True])
def test_socket_of_a_relative_path_is_announced_with_the_absolute_one(
    deep: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`get` may run elsewhere; a path that would be too long for a socket stays as it is."""
    directory = tmp_path / ("x" * 107 if deep else "x")
    directory.mkdir()
    monkeypatch.chdir(directory)
    port = wait(server_endpoint(reactor, "unix:poem").listen(PoetryServerFactory(b"a poem")))
    announced = listening_address(port, secure=False)
    assert announced == ("unix:poem" if deep else f"unix:{directory}/poem")
    wait(port.stopListening())


@implementer(IHostnameResolver)
class OneHost:
    """A resolver for which all names are one machine's."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def resolveHostName(
        self,
        resolutionReceiver: Any,
        hostName: str,
        portNumber: int = 0,
        addressTypes: object = None,  # noqa: ARG002
        transportSemantics: str = "TCP",  # noqa: ARG002
    ) -> Any:
        self.asked.append(hostName)
        resolutionReceiver.resolutionBegan(None)
        resolutionReceiver.addressResolved(IPv4Address("TCP", "127.0.0.1", portNumber))
        resolutionReceiver.resolutionComplete()


@pytest.fixture
def one_host() -> Iterator[OneHost]:
    """Replace the reactor's resolver during a test."""
    resolver = OneHost()
    before = reactor.installNameResolver(resolver)
    yield resolver
    reactor.installNameResolver(before)


@pytest.mark.parametrize(
    "host", ["poem_server", "r3---sn-x", "-x-", "poems.example.", "xn--gedicht-0za.example"]
)
def test_resolver_decides_about_ascii_names(one_host: OneHost, host: str) -> None:
    """A name of ASCII is for the resolver to know, IDNA's rules or not."""
    port = wait(server_endpoint(reactor, "0").listen(PoetryServerFactory(b"a poem")))
    for address in (f"{host}:{port.getHost().port}", f"tcp:{host}:{port.getHost().port}"):
        assert wait(get_poem(client_endpoint(reactor, address))) == b"a poem"
    wait(port.stopListening())
    assert one_host.asked == [host, host]


@pytest.mark.parametrize(
    ("host", "outcome"),
    [
        ("localhost", b"a poem"),
        ("127.0.0.1", b"a poem"),
        ("elsewhere.example", "VerificationError"),
    ],
)
def test_certificate_is_compared_with_any_name(
    one_host: OneHost,
    certificates: Certificates,
    monkeypatch: pytest.MonkeyPatch,
    host: str,
    outcome: bytes | str,
) -> None:
    """Over TLS the resolver decides as well, and the certificate is compared with any name."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates.authority))
    port = wait(
        server_endpoint(reactor, certificates.listen("good")).listen(PoetryServerFactory(b"a poem"))
    )
    address = f"tls:{host}:{port.getHost().port}"
    got = get_poem(client_endpoint(reactor, address))
    assert wait(got.addErrback(lambda failure: type(failure.value).__name__)) == outcome
    wait(port.stopListening())
    assert one_host.asked == ([] if host == "127.0.0.1" else [host])


def test_announced_tls_address_on_ipv6_reaches_the_listener(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The announced address of a TLS listener on IPv6 reaches it."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates.authority))
    text = certificates.listen("good").replace("127.0.0.1", "\\:\\:1")
    try:
        port = wait(server_endpoint(reactor, text).listen(PoetryServerFactory(b"a poem")))
    except CannotListenError:
        pytest.skip("needs IPv6")
    address = listening_address(port, secure=serves_tls(port))
    assert address.startswith("tls:[::1]:")
    assert wait(get_poem(client_endpoint(reactor, address))) == b"a poem"
    wait(port.stopListening())


@pytest.mark.parametrize(
    ("text", "attempts"),
    [
        ("127.0.0.1:1", "tcpClients"),
        ("tcp:127.0.0.1:1", "tcpClients"),
        ("ssl:127.0.0.1:1", "sslClients"),
        ("unix:/run/poem", "unixClients"),
    ],
)
def test_whoever_connects_has_the_timeout(text: str, attempts: str) -> None:
    """An endpoint waits longer than any caller, unless its address has a timeout of its own."""
    clock = MemoryReactorClock()
    client_endpoint(clock, text).connect(ServerFactory())
    if text != "127.0.0.1:1":
        client_endpoint(clock, f"{text}:timeout=7").connect(ServerFactory())
    waits = [wait for attempt in getattr(clock, attempts) for wait in attempt if type(wait) is int]
    assert [wait for wait in waits if wait > 1] == [10**9, 7][: len(getattr(clock, attempts))]
    client_endpoint(clock, "tls:poems.example.org:1:30")  # by place
    client_endpoint(clock, r"tls:poems.example.org:0:endpoint=tcp\:127.0.0.1\:9")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("ssl:poems.example.org:1", "poems.example.org"),
        ("SSL:poems.example.org:1", "poems.example.org"),
        ("ssl:poems.example.org:1:hostname=other.example.org", "other.example.org"),
        ("ssl:host=poems.example.org:port=1", "poems.example.org"),
        ("ssl:port=1:host=poems.example.org", "poems.example.org"),
        ("ssl:1:host=poems.example.org", "poems.example.org"),
    ],
)
def test_ssl_endpoint_checks_the_certificates_name(
    monkeypatch: pytest.MonkeyPatch, text: str, name: str
) -> None:
    """`ssl:` is given the name of its host to compare, however that is written."""
    checked: list[str] = []
    make = optionsForClientTLS

    def options(hostname: str, **rest: Any) -> Any:
        checked.append(hostname)
        return make(hostname, **rest)

    monkeypatch.setattr("twisted.internet.ssl.optionsForClientTLS", options)
    monkeypatch.setattr("twisted.internet.endpoints.optionsForClientTLS", options)
    client_endpoint(MemoryReactorClock(), text)
    assert checked == [name]


@pytest.mark.parametrize(
    "form", ["ssl:127.0.0.1:{}", "ssl:host=127.0.0.1:port={}", "SSL:{}:host=127.0.0.1"]
)
def test_certificate_for_another_name_is_refused(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    """A certificate for another name is refused, in whichever form an address has its host."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates.authority))
    text = certificates.listen("misnamed")
    port = wait(server_endpoint(reactor, text).listen(PoetryServerFactory(b"a poem")))
    got = get_poem(client_endpoint(reactor, form.format(port.getHost().port)))
    assert wait(got.addErrback(lambda failure: type(failure.value).__name__)) == "VerificationError"
    wait(port.stopListening())


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        (IPv4Address("TCP", "127.0.0.1", 1), "127.0.0.1:1"),
        (IPv6Address("TCP", "::1", 1), "[::1]:1"),
        (UNIXAddress(b"/run/poem"), "unix:/run/poem"),
        (UNIXAddress(b"/a:b"), "unix:/a\\:b"),
        (UNIXAddress(b"/a=b"), "unix:/a\\=b"),
        (UNIXAddress(None), "unix:"),
        (HostnameAddress(b"h", 1), "HostnameAddress(hostname=b'h', port=1)"),
    ],
)
def test_format_writes_what_get_reads(address: Any, expected: str) -> None:
    """Addresses are written as `poetry get` reads them."""
    transport: Any = StringTransport(hostAddress=address, peerAddress=address)
    assert listening_address(transport, secure=False) == expected
    assert peer_address(transport) == expected


def test_link_local_address_has_its_interface() -> None:
    """The address of a peer on one link has the name of its interface, as in Twisted."""
    name = socket.if_indextoname(1)
    assert named(("fe80::1", 5, 0, 1)) == (f"fe80::1%{name}", 5, 0, 1)
    assert named(("::1", 5, 0, 0)) == ("::1", 5, 0, 0)
