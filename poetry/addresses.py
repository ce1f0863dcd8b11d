"""Addresses as text: to Twisted endpoints and back, for server and client.

An address is `PORT`, `HOST:PORT`, `[IPV6]:PORT`, or a Twisted endpoint string such as `unix:/path`.
"""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path
from typing import Any, NamedTuple

from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.endpoints import (
    AdoptedStreamServerEndpoint,
    HostnameEndpoint,
    TCP4ClientEndpoint,
    TCP4ServerEndpoint,
    TCP6ClientEndpoint,
    TCP6ServerEndpoint,
    clientFromString,
    quoteStringArgument,
    serverFromString,
    wrapClientTLS,
)
from twisted.internet.interfaces import (
    IListeningPort,
    IStreamClientEndpoint,
    IStreamServerEndpoint,
)

from poetry.system.adopted import WrongSocket, adopt
from poetry.system.certificates import BadCertificate, TLSEndpoint
from poetry.system.endpoint_strings import argument_of, type_of
from poetry.system.features import UNIX
from poetry.system.unix import LONGEST, check_path, path_in_text, unix_address, unix_reactor
from poetry.text import one_line

BACKLOG = 4096
"""Most readers that wait in the kernel to be accepted. With Twisted's 50, 2,580 of 4,000 at once
were never served (measured). Linux caps it at `net.core.somaxconn`, 4096 by default."""

ENDPOINT_TYPES = frozenset({"haproxy", "ssl", "stdio", "systemd", "tcp", "tcp6", "tls", "unix"})
"""First words that make `WORD:NUMBER` an endpoint string rather than a host and its port."""

_NO_LISTENERS = {
    "haproxy": "the PROXY protocol is not supported: the poem would leave before its header is"
    " read; use 'mode tcp' without send-proxy",
    "stdio": "standard input and output is not a listener",
    # Twisted's takes a directory of certificates, and never reads them again.
    "tls": "tls: is an address for get; to listen, write"
    " ssl:PORT:interface=ADDR:privateKey=FILE:certKey=FILE",
}
"""Types of endpoints on which nothing is served, and why."""

_OF_TCP = frozenset({"ssl", "tcp", "tcp6", "tls"})
_OF_SOCKETS = _OF_TCP | {"unix"}
_NO_TIMEOUT = 10**9
"""Seconds, in the place of Twisted's 30 for each attempt to connect: its caller has its own."""

_HIGHEST_PORT = 65535
_PLAIN = re.compile(
    r"(?:(?:\[(?P<v6>[0-9A-Fa-f.]*:[0-9A-Fa-f:.]*(?:%\w+)?)\]|(?P<host>[^\s:\[\]/=*@?#]+)):)?(?P<port>\d+)"
)
_URL = re.compile(r"(?!unix:)[\w+.-]+://")  # after `unix:` the // begins a path
_NEARLY = re.compile(  # a URL, HOST PORT, HOST:SERVICE, HOST:PORT:MORE, :PORT, *:PORT, IPV6:PORT
    r"\s*(?:(?P<scheme>[\w+.-]+)://)?(?:[^@/]*@)?"
    r"\[?(?P<host>[0-9A-Fa-f:]*::[\w:.%]*?|[^:/?#\s\[\]]*)\]?"
    r"(?:\s*[:\s]\s*(?P<port>\d+))?(?:[:/?#].*)?\s*"
)
_FILE = re.compile(r"[\w./-]*\.(?:txt|text|md|rst)")
_MANY_WORDS = re.compile(r"(?!.*::)\w+:.*:")  # an endpoint string, even of an unknown type
_LABEL = r"(?!(?!xn)..--)(?!-)[a-z0-9-]{1,63}(?<!-)"
_LDH_NAME = re.compile(rf"(?:{_LABEL}\.)*{_LABEL}\.?", re.IGNORECASE | re.ASCII)
"""Letters, digits and hyphens, as IDNA has them (RFC 5891, 4.2.3.1)."""

_ASCII_NAME = re.compile(r"(?:[\w-]{1,63}\.)*[\w-]{1,63}\.?", re.ASCII)


class BadAddress(ValueError):
    """A text is no address; the message is one line with the reason."""


class HostPort(NamedTuple):
    """A plain address; `port` is from 0 to 65535."""

    host: str
    port: int


def split(text: str) -> HostPort | None:
    """Parse `PORT` (of 127.0.0.1), `HOST:PORT` or `[IPV6]:PORT`; None: an endpoint string.

    @raise BadAddress: if the port is out of range, or the IPv6 address is invalid.
    """
    plain = _PLAIN.fullmatch(text)
    if plain is None or (plain["host"] and type_of(text) in ENDPOINT_TYPES):
        return None
    port = _checked_port(text, plain["port"])
    if plain["v6"] is not None and not isIPv6Address(plain["v6"]):
        raise BadAddress(f"{text!r}: {plain['v6']} is no IPv6 address")
    return HostPort(plain["v6"] or plain["host"] or "127.0.0.1", port)


def _checked_port(text: str, digits: str) -> int:
    """Convert a port of an address; Twisted would find out that it is none when it is used."""
    try:
        port = int(digits)
    except ValueError:  # more digits than Python converts
        port = -1
    if not 0 <= port <= _HIGHEST_PORT:
        raise BadAddress(f"{text!r}: port {digits[:20]} is out of range (0 to {_HIGHEST_PORT})")
    return port


def _refuse_zero(text: str, port: int) -> None:
    if port == 0:
        raise BadAddress(f"{text!r}: port 0 is not one to connect to (1 to {_HIGHEST_PORT})")


def server_endpoint(reactor: Any, text: str) -> IStreamServerEndpoint:
    """Make an endpoint to listen on, with a backlog of `BACKLOG` unless the text has one.

    @raise BadAddress: if the text is no address to listen on.
    """
    plain = split(text)
    if plain is not None:
        make = TCP6ServerEndpoint if ":" in plain.host else TCP4ServerEndpoint
        endpoint: IStreamServerEndpoint = make(reactor, plain.port, BACKLOG, plain.host)
        return endpoint
    scheme = type_of(text)
    full = f"{scheme}{text[len(scheme) :]}"  # Twisted ignores the case of some types
    _check_type(scheme, text)
    if scheme in _OF_SOCKETS and argument_of(text, "backlog") is None:
        full += f":backlog={BACKLOG}"
    parser = TLSEndpoint if scheme == "ssl" else serverFromString
    if scheme == "unix":
        reactor = unix_reactor(reactor)
    server: IStreamServerEndpoint = _parse(parser, reactor, full, text)
    if scheme in _OF_TCP:
        _checked_port(text, argument_of(text, "port", 0) or "")
    if isinstance(server, AdoptedStreamServerEndpoint):
        try:
            adopt(server)
        except WrongSocket as error:
            raise BadAddress(f"{text!r}: {error}") from error
    return server


def _check_type(scheme: str, text: str) -> None:
    _check_unix(text)
    if scheme == "unix" and not text.isprintable():
        raise BadAddress(f"{text!r}: its path has characters that cannot be printed")
    if scheme in _NO_LISTENERS:
        raise BadAddress(f"{text!r}: {_NO_LISTENERS[scheme]}")


def client_endpoint(reactor: Any, text: str, trust: Any = None) -> IStreamClientEndpoint:
    """Make an endpoint to connect to, without a timeout unless the text has one.

    @param trust: who signs certificates, of `system.certificates.authorities`; None: the system's.
    @raise BadAddress: if the text is no address to connect to.
    """
    plain = split(text)
    if plain is not None:
        return _plain_client(reactor, plain, text)
    scheme, rest = type_of(text), text.partition(":")[2]
    plain = split(rest) if scheme == "tls" and ":" in rest else None
    if plain is not None:
        return _over_tls(_plain_client(reactor, plain, text), plain.host, text, trust)
    if trust is not None and scheme in ("ssl", "tls"):
        raise BadAddress(f"{text!r}: with --cacert, write tls:HOST:PORT")
    _check_unix(text)
    full, host = text, argument_of(text, "host", 0) or ""
    if scheme in _OF_TCP:
        _check_name(text, host)
    if scheme == "ssl" and argument_of(text, "hostname") is None:
        # Without it Twisted checks the signature of the certificate, but not its name.
        full += f":hostname={quoteStringArgument(host)}"
    if scheme in _OF_SOCKETS and argument_of(text, "timeout", 2) is None:
        full += f":timeout={_NO_TIMEOUT}"
    client: IStreamClientEndpoint = _parse(clientFromString, reactor, full, text)
    if scheme in _OF_TCP and argument_of(text, "endpoint") is None:  # which has its own port
        place = 1 if argument_of(text, "host") is None else 0
        _refuse_zero(text, _checked_port(text, argument_of(text, "port", place) or ""))
    return client


def _plain_client(reactor: Any, plain: HostPort, text: str) -> IStreamClientEndpoint:
    _refuse_zero(text, plain.port)
    # A numeric address needs no resolver, and HostnameEndpoint fails 0.3 s later.
    make: Any = HostnameEndpoint
    if isIPAddress(plain.host):
        make = TCP4ClientEndpoint
    elif isIPv6Address(plain.host):
        make = TCP6ClientEndpoint
    elif plain.host.isascii() and not _LDH_NAME.fullmatch(plain.host):
        if not _ASCII_NAME.fullmatch(plain.host):
            raise BadAddress(f"{text!r}: {plain.host!r} is no host name")
        # IDNA forbids the name, so HostnameEndpoint refuses it; a resolver may have it (IPv4).
        make = TCP4ClientEndpoint
    client: IStreamClientEndpoint = make(reactor, plain.host, plain.port, _NO_TIMEOUT)
    return client


def _check_name(text: str, host: str) -> None:
    """Refuse a host that no resolver is asked for: Twisted's would never answer."""
    try:
        host.encode("idna")
    except UnicodeError as error:
        raise BadAddress(f"{text!r}: {host!r} is no host name") from error


def _over_tls(
    endpoint: IStreamClientEndpoint, host: str, text: str, trust: Any
) -> IStreamClientEndpoint:
    """Make an endpoint over TLS, as Twisted's `tls:` does, which does not accept IPv6.

    @param host: the name that the certificate must have.
    """
    try:
        from twisted.internet.ssl import optionsForClientTLS
    except ImportError as error:
        raise _needs_tls(text, error) from error
    try:
        options = optionsForClientTLS(host.partition("%")[0], trust)
    except UnicodeError as error:
        raise BadAddress(f"{text!r}: no certificate can be for {host!r}: {error}") from error
    return wrapClientTLS(options, endpoint)


def _check_unix(text: str) -> None:
    if type_of(text) != "unix":
        return
    if UNIX is None:
        raise BadAddress(f"{text!r}: this system has no Unix sockets")
    if text.lower() == "unix:":
        raise BadAddress(f"{text!r}: it names no path")


def _parse(parser: Any, reactor: Any, full: str, text: str) -> Any:
    listening = parser is not clientFromString
    if ":" not in text or _URL.match(text):
        raise BadAddress(f"{text!r} is no address: {_hint(text, listening=listening)}")
    try:
        endpoint = parser(reactor, full)
        if type_of(text) == "unix":
            check_path(path_in_text(text))
    except (ImportError, NameError) as error:  # NameError: of what Twisted could not import
        raise _needs_tls(text, error) from error
    except LookupError as error:
        raise BadAddress(
            f"{text!r}: no such socket was passed in (LISTEN_FDS, LISTEN_FDNAMES)"
        ) from error
    except TypeError as error:
        reason = "too few or too many arguments" + _hint_of_arguments(text)
        raise BadAddress(f"{text!r} is no address: {reason}") from error
    except (BadCertificate, MemoryError) as error:  # MemoryError: MemoryDenyWriteExecute of systemd
        raise BadAddress(f"{text!r}: {error}") from error
    except Exception as error:
        reason = _reason(error, text, listening=listening)
        raise BadAddress(f"{text!r} is no address: {reason}") from error
    return endpoint


def _reason(error: Exception, text: str, *, listening: bool) -> str:
    """Describe whatever an endpoint's parser raises: ValueError, OSError, SSL.Error."""
    reason = one_line(error) or type(error).__name__
    reason += _hint_without_tcp(text)
    if reason.startswith("Unknown endpoint type"):
        instead = _hint(text, listening=listening)
        reason = f"{reason}; of a host, {instead}" if _MANY_WORDS.match(text) else instead
    return reason


def _needs_tls(text: str, error: Exception) -> BadAddress:
    return BadAddress(f"{text!r} needs TLS: install twisted-poetry[tls] ({error})")


def _hint_of_arguments(text: str) -> str:
    """Return a hint for an address that may be right but for an argument too many, or ""."""
    if type_of(text) == "unix" and "=" in text:
        return r"; a path has \= for each ="
    return _hint_without_tcp(text)


def _hint_without_tcp(text: str) -> str:
    """Return a hint for an address that is right without its `tcp:`, or ""."""
    rest = text.partition(":")[2]
    return f"; write {rest}" if type_of(text) == "tcp" and _PLAIN.fullmatch(rest) else ""


def _hint_of_path(text: str, *, listening: bool) -> str:
    """Return a hint for what looks like the path of a file or of a Unix socket, or ""."""
    if _FILE.fullmatch(text) or (":" not in text and os.path.isfile(text)):  # noqa: PTH113 (raises)
        to_write = "" if listening else f", `get -o {text} ADDRESS` writes it"
        return f"it looks like a file: `serve {text}` sends it{to_write}"
    if text.startswith(("/", "./", "../")):
        return f"for a Unix socket, write unix:{text}"
    return ""


def _hint(text: str, *, listening: bool) -> str:
    """Return a hint for a text that is nearly an address."""
    if hint := _hint_of_path(text, listening=listening):
        return hint
    nearly = _NEARLY.fullmatch(text)
    has_host = (
        nearly is not None
        and nearly["host"] not in ENDPOINT_TYPES
        and (
            nearly["port"] or ":" in text or "." in nearly["host"] or nearly["host"] == "localhost"
        )
    )
    if nearly is None or not has_host or nearly["host"].isdigit():
        return "use PORT, HOST:PORT or an endpoint string"
    host, port = nearly["host"], nearly["port"] or "PORT"
    number = "" if nearly["port"] else ", the port as a number"
    if host in ("", "*") and listening:
        return f"write {port}, or 0.0.0.0:{port} for all interfaces{number}"
    if host in ("", "*"):
        return f"write 127.0.0.1:{port}{number}"
    if ":" in host and not isIPv6Address(host):
        return f"{host} is no IPv6 address"
    if ":" in host and "[" not in text:
        return f"an IPv6 host goes in brackets, as in [{host}]:{port}{number}"
    if ":" in host:
        host = f"[{host}]"
    tls = "" if listening or nearly["scheme"] not in ("https", "ssl", "tls") else "tls:"
    return f"write {tls}{host}:{port}{number}"


def listening_address(port: IListeningPort, *, secure: bool) -> str:
    """Return the address by which `client_endpoint` reaches a listener.

    @param secure: whether it accepts connections with TLS.
    """
    host = port.getHost()
    if isinstance(host, UNIXAddress) and host.name:
        absolute = os.fsencode(Path(os.fsdecode(host.name)).absolute())
        if len(absolute) <= LONGEST:
            host = UNIXAddress(absolute)
    plain = _format(host)
    return f"tls:{plain}" if secure else plain


def address_of(descriptor: int) -> str:
    """Return the address of a socket that was passed in, as text; of what is none, its number."""
    try:
        with socket.socket(fileno=os.dup(descriptor)) as passed_in:
            return _format(as_address(passed_in.getsockname()))
    except OSError:
        return f"descriptor {descriptor}"


def peer_address(transport: Any) -> str:
    """Return the peer's address, as text for a log line."""
    try:
        return _format(transport.getPeer())
    except NotImplementedError:  # of a process
        return "unknown"


def _format(address: Any) -> str:
    if isinstance(address, UNIXAddress):
        return unix_address(address.name or b"")
    if not hasattr(address, "host"):
        return str(address)
    return (
        f"[{address.host}]:{address.port}"
        if ":" in address.host
        else f"{address.host}:{address.port}"
    )


def as_address(address: Any) -> IPv4Address | IPv6Address | UNIXAddress:
    """Convert an address of Python's sockets to one of Twisted's.

    @param address: as of Python's sockets: a pair, four of IPv6, or the name of a Unix socket.
    """
    if not isinstance(address, tuple):
        return UNIXAddress(os.fsencode(address) or None)
    if len(address) == 2:
        return IPv4Address("TCP", *address)
    return IPv6Address("TCP", *named(address))


def named(address: Any) -> Any:
    """Name the interface in an address that has one (IPv6).

    @param address: as of Python's sockets: a pair, four of IPv6, or the name of a Unix socket.
    """
    if isinstance(address, tuple) and len(address) == 4 and address[3]:
        numeric = socket.NI_NUMERICHOST | socket.NI_NUMERICSERV
        return (socket.getnameinfo(address, numeric)[0], *address[1:])
    return address
