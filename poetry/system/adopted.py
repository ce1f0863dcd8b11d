"""Listening sockets that another program passed in, as systemd does."""

from __future__ import annotations

import os
import socket
from typing import Any

from twisted.internet.endpoints import AdoptedStreamServerEndpoint

from poetry.system.features import UNIX


class WrongSocket(ValueError):
    """What was passed in cannot be listened on; the message says why, in one line."""


def checked(reactor: Any, endpoint: AdoptedStreamServerEndpoint) -> AdoptedStreamServerEndpoint:
    """Check the socket of an endpoint that was passed in, and take its family from it.

    A socket that is connected already (systemd's `Accept=yes`) or takes datagrams would be a
    traceback for each turn of the reactor. An IPv6 one that is called INET would have nonsense for
    peers: of the two the socket knows.

    @return: an endpoint with the family that the socket has.
    @raise WrongSocket: where it is no stream socket that listens, or is a Unix socket by its text
        alone or in fact alone.
    """
    try:
        with socket.socket(fileno=os.dup(endpoint.fileno)) as given:
            if given.type != socket.SOCK_STREAM:
                raise WrongSocket("the socket that was passed in has no streams (ListenStream=)")
            if not given.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                raise WrongSocket(
                    "the socket that was passed in does not listen (systemd's Accept= has to be no)"
                )
            family = given.family
    except OSError as error:
        raise WrongSocket(f"what was passed in is no socket: {error.strerror}") from error
    if (family == UNIX) != (endpoint.addressFamily == UNIX):
        raise WrongSocket(
            f"the socket that was passed in is {family.name}: write domain={family.name[3:]}"
        )
    return AdoptedStreamServerEndpoint(reactor, endpoint.fileno, family)
