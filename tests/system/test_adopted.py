"""Sockets that another program passed in: which are listened on, and which are refused."""

from __future__ import annotations

import errno
import os
import re
import socket
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.endpoints import AdoptedStreamServerEndpoint
from twisted.internet.error import CannotListenError
from twisted.internet.testing import MemoryReactor

from poetry import PoetryServerFactory, PoetryService
from poetry.addresses import BadAddress, server_endpoint
from poetry.system.adopted import WrongSocket, adopt, unserved
from tests.calls import failing
from tests.loop import reactor, wait

Make = Callable[[ExitStack, Path], socket.socket]


def listening(stack: ExitStack, _: Path) -> socket.socket:
    return stack.enter_context(socket.create_server(("127.0.0.1", 0)))


def connected(stack: ExitStack, _: Path) -> socket.socket:
    server = listening(stack, _)
    stack.enter_context(socket.create_connection(server.getsockname()))
    return stack.enter_context(server.accept()[0])


def unbound(stack: ExitStack, _: Path) -> socket.socket:
    return stack.enter_context(socket.socket())


def datagrams(stack: ExitStack, _: Path) -> socket.socket:
    return stack.enter_context(socket.socket(type=socket.SOCK_DGRAM))


def packets(stack: ExitStack, directory: Path) -> socket.socket:
    sock = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
    sock.bind(str(directory / "packets"))
    sock.listen()
    return sock


def unix(stack: ExitStack, directory: Path) -> socket.socket:
    sock = stack.enter_context(socket.socket(socket.AF_UNIX))
    directory.mkdir(exist_ok=True)
    sock.bind(str(directory / "unix"))
    sock.listen()
    return sock


def of_a_host(stack: ExitStack, _: Path) -> socket.socket:
    """One of a virtual machine and its host (vsock(7)), which is of neither family."""
    try:
        sock = stack.enter_context(socket.socket(socket.AF_VSOCK))
        sock.bind((socket.VMADDR_CID_ANY, socket.VMADDR_PORT_ANY))
    except OSError:
        pytest.skip("needs vsock(7)")
    sock.listen()
    return sock


def ipv6(stack: ExitStack, _: Path) -> socket.socket:
    try:
        return stack.enter_context(socket.create_server(("::1", 0), family=socket.AF_INET6))
    except OSError:
        pytest.skip("needs IPv6")


def checked_as(family: int, descriptor: int) -> AdoptedStreamServerEndpoint:
    endpoint = AdoptedStreamServerEndpoint(MemoryReactor(), descriptor, family)
    adopt(endpoint)
    return endpoint


@pytest.mark.parametrize(
    ("make", "family", "reason"),
    [
        (connected, socket.AF_INET, "the socket that was passed in does not listen"),
        (unbound, socket.AF_INET, "the socket that was passed in does not listen"),
        (datagrams, socket.AF_INET, "the socket that was passed in has no streams"),
        (packets, socket.AF_UNIX, "the socket that was passed in has no streams"),
        (unix, socket.AF_INET, "the socket that was passed in is AF_UNIX: write domain=UNIX"),
        (listening, socket.AF_UNIX, "the socket that was passed in is AF_INET: write domain=INET"),
        (of_a_host, socket.AF_INET, "the socket that was passed in is neither IP nor Unix"),
        (of_a_host, socket.AF_UNIX, "the socket that was passed in is neither IP nor Unix"),
    ],
)
def test_wrong_sockets_are_refused_at_the_start(
    tmp_path: Path, make: Make, family: int, reason: str
) -> None:
    """A socket that would be a traceback for each reader, or announce nonsense, is refused."""
    with ExitStack() as stack, pytest.raises(WrongSocket, match=re.escape(reason)):
        checked_as(family, make(stack, tmp_path).fileno())


def test_descriptor_without_a_socket_is_refused() -> None:
    """A descriptor that is a file, or is closed, is refused at the start."""
    with Path(os.devnull).open("rb") as file:
        number = file.fileno()
        with pytest.raises(WrongSocket, match="no socket: Socket operation on non-socket"):
            checked_as(socket.AF_INET, number)
    with pytest.raises(WrongSocket, match="no socket: Bad file descriptor"):
        checked_as(socket.AF_INET, number)


@pytest.mark.parametrize("make", [listening, unix])
def test_endpoint_that_has_listened_takes_no_other_socket(tmp_path: Path, make: Make) -> None:
    """Its descriptor is closed then, and the number may be that of another service."""
    with ExitStack() as stack:
        shared = make(stack, tmp_path)
        endpoint = AdoptedStreamServerEndpoint(reactor, os.dup(shared.fileno()), shared.family)
        first = PoetryService([(endpoint, PoetryServerFactory(b"poem"))], clock=reactor)
        first.startService()
        wait(first.stopService())
        other = make(stack, tmp_path / "other")
        if other.fileno() != endpoint.fileno:  # the number is free, and may be the next
            os.dup2(other.fileno(), endpoint.fileno)
            stack.callback(os.close, endpoint.fileno)
        second = PoetryService([(endpoint, PoetryServerFactory(b"poem"))], clock=reactor)
        with pytest.raises(CannotListenError):
            second.startService()
        assert os.fstat(endpoint.fileno)


def test_socket_for_two_listeners_is_refused(tmp_path: Path) -> None:
    """A socket that was passed in once is not for two listeners of a service."""
    with ExitStack() as stack:
        number = listening(stack, tmp_path).fileno()
        endpoints = [AdoptedStreamServerEndpoint(reactor, number, socket.AF_INET) for _ in "ab"]
        listeners = [(endpoint, PoetryServerFactory(b"poem")) for endpoint in endpoints]
        with pytest.raises(ValueError, match=f"the socket {number} was passed in once, for 2"):
            PoetryService(listeners, clock=reactor)


def test_subclass_of_an_adopted_endpoint_listens_by_itself(tmp_path: Path) -> None:
    """What a subclass does to its factory, as to add TLS, is done."""
    wrapped: list[object] = []

    class Mine(AdoptedStreamServerEndpoint):
        def listen(self, factory: Any) -> Any:
            wrapped.append(factory)
            return super().listen(factory)  # type: ignore[no-untyped-call]

    with ExitStack() as stack:
        number = os.dup(listening(stack, tmp_path).fileno())
        factory = PoetryServerFactory(b"poem")
        endpoint: Any = Mine(reactor, number, socket.AF_INET)  # type: ignore[no-untyped-call]
        service = PoetryService([(endpoint, factory)], clock=reactor)
        service.startService()
        assert wrapped == [factory]
        wait(service.stopService())


@pytest.mark.parametrize(
    ("make", "said", "family"),
    [
        (listening, socket.AF_INET, socket.AF_INET),
        (listening, socket.AF_INET6, socket.AF_INET),
        (ipv6, socket.AF_INET, socket.AF_INET6),
        (unix, socket.AF_UNIX, socket.AF_UNIX),
    ],
)
def test_address_family_is_the_sockets(tmp_path: Path, make: Make, said: int, family: int) -> None:
    """Between INET and INET6 the socket decides."""
    with ExitStack() as stack:
        endpoint = checked_as(said, make(stack, tmp_path).fileno())
        assert endpoint.addressFamily == family


def test_address_of_a_passed_in_socket_is_checked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The address of a socket from systemd is checked with the socket, and its error names it."""
    text = "systemd:domain=INET:index=0"
    with ExitStack() as stack:
        for make, refused in ((listening, False), (datagrams, True)):
            descriptor = make(stack, tmp_path).fileno()
            monkeypatch.setattr(
                "poetry.addresses.serverFromString",
                lambda reactor, _: AdoptedStreamServerEndpoint(reactor, descriptor, socket.AF_INET),  # noqa: B023
            )
            if refused:
                with pytest.raises(BadAddress, match=f"{text}': the socket that was passed in"):
                    server_endpoint(MemoryReactor(), text)
            else:
                endpoint = server_endpoint(MemoryReactor(), text)
                assert isinstance(endpoint, AdoptedStreamServerEndpoint)


def test_start_without_passed_in_sockets_loads_no_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    """To ask Twisted for them would load all its plugins: 9 ms and 32 modules of a start."""
    monkeypatch.delenv("LISTEN_FDNAMES", raising=False)
    monkeypatch.setattr("poetry.system.adopted.serverFromString", failing(errno.EIO))
    assert list(unserved([])) == []
