"""Listening sockets that another program passed in, as systemd does."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import count
from typing import Any

from twisted.internet.endpoints import (
    AdoptedStreamServerEndpoint,
    SSL4ServerEndpoint,
    TCP4ServerEndpoint,
    TCP6ServerEndpoint,
    UNIXServerEndpoint,
    serverFromString,
)

from poetry.system.certificates import TLSEndpoint
from poetry.system.features import UNIX
from poetry.system.unix import unix_reactor

_KINDS = {socket.AF_INET: "IP", socket.AF_INET6: "IP", UNIX: "Unix"}

_OWN = (TCP4ServerEndpoint, TCP6ServerEndpoint, SSL4ServerEndpoint, TLSEndpoint, UNIXServerEndpoint)
"""Endpoints that make their sockets themselves; a wrapper may have one that was passed in."""


class WrongSocket(ValueError):
    """The passed-in descriptor cannot be listened on; the message is one line with the reason."""


def adopt(endpoint: AdoptedStreamServerEndpoint) -> None:
    """Check that the socket of an endpoint, which was passed in, is a stream socket that listens,
    and leave it as it is for the other processes that have it.

    A socket that is connected already (systemd's `Accept=yes`) or is for datagrams would be a
    traceback in each iteration of the reactor. Peers of an IPv6 socket that is described as INET
    would have wrong addresses, so the endpoint gets the family of the socket. It stays the same
    endpoint, as it listens once: its descriptor is closed then, and the number may be another's.

    @raise WrongSocket: if it is no stream socket that listens, if it is a Unix socket and described
        as another or the other way round, or if its family is neither IP nor Unix, as vsock(7).
    """
    try:
        with socket.socket(fileno=os.dup(endpoint.fileno)) as adopted:
            if adopted.type != socket.SOCK_STREAM:
                raise WrongSocket("the socket that was passed in has no streams (ListenStream=)")
            if not adopted.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                raise WrongSocket(
                    "the socket that was passed in does not listen (systemd's Accept= has to be no)"
                )
            family = adopted.family
    except OSError as error:
        raise WrongSocket(f"what was passed in is no socket: {error.strerror}") from error
    kind = _KINDS.get(family)
    if kind is None:
        raise WrongSocket("the socket that was passed in is neither IP nor Unix")
    if kind != _KINDS.get(endpoint.addressFamily):
        raise WrongSocket(
            f"the socket that was passed in is {family.name}: write domain={family.name[3:]}"
        )
    endpoint.addressFamily = family
    if family == UNIX:
        endpoint.reactor = unix_reactor(endpoint.reactor)


def unserved(endpoints: Iterable[object]) -> Iterator[int]:
    """Generate the descriptors that systemd passed in (sd_listen_fds(3)) and no endpoint has."""
    if "LISTEN_FDNAMES" not in os.environ:  # Twisted takes none without, and loads plugins to tell
        return
    served = {each.fileno for each in endpoints if isinstance(each, AdoptedStreamServerEndpoint)}
    with suppress(LookupError):  # Twisted alone knows how many: it removes that from os.environ
        for index in count():  # pragma: no branch (it has no end)
            passed_in: Any = serverFromString(None, f"systemd:domain=INET:index={index}")
            if passed_in.fileno not in served:
                yield passed_in.fileno


def is_own(endpoint: object) -> bool:
    """Check whether no other process has the socket of an endpoint; in doubt one has."""
    return isinstance(endpoint, _OWN)
