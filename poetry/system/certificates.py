"""TLS endpoints whose certificates can be read again while they listen."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import SSL4ServerEndpoint, serverFromString
from twisted.internet.interfaces import (
    IListeningPort,
    IOpenSSLContextFactory,
    IStreamServerEndpoint,
)
from twisted.internet.protocol import Factory
from zope.interface import implementer


class BadCertificate(ValueError):
    """A key or a certificate cannot be used; the message says why, in one line."""


@implementer(IStreamServerEndpoint, IOpenSSLContextFactory)
class TLSEndpoint:
    """Listens as a description of Twisted's says (`ssl:PORT:privateKey=...`).

    Its files are read when it is made, and again by `renew`: connections that are made from then on
    get what they hold then. It is itself the context factory that Twisted asks at each connection.
    """

    def __init__(self, reactor: Any, description: str) -> None:
        """@raise BadCertificate: where OpenSSL refuses a file, or a key is encrypted.

        @raise Exception: what Twisted raises where the description makes no sense.
        """
        self._description = description
        wanted = _read(description)
        self._context = wanted.context
        self._endpoint = SSL4ServerEndpoint(
            reactor, wanted.port, self, wanted.backlog, wanted.interface
        )

    def listen(self, factory: Factory) -> Deferred[IListeningPort]:  # type: ignore[override]
        """Listen, as Twisted's endpoint does."""
        listening: Deferred[IListeningPort] = self._endpoint.listen(factory)
        return listening

    def getContext(self) -> Any:
        """The OpenSSL context of the next connection."""
        return self._context

    def renew(self) -> None:
        """Read the files again. Where that fails, what was read before stays.

        @raise Exception: as at the start.
        """
        self._context = _read(self._description).context


class _Wanted:
    """A reactor (IReactorSSL) that only remembers how it was to listen, and makes the context."""

    def listenSSL(
        self, port: int, _: Any, contextFactory: Any, backlog: int = 50, interface: str = ""
    ) -> None:
        """Make the context: what OpenSSL refuses would be refused at each handshake otherwise."""
        self.port, self.backlog, self.interface = port, backlog, interface
        self.context = contextFactory.getContext()


def _read(description: str) -> _Wanted:
    from OpenSSL import SSL, crypto

    wanted = _Wanted()
    _check_keys(description)
    results: list[Any] = []
    try:
        endpoint = serverFromString(wanted, description)
        endpoint.listen(Factory()).addErrback(results.append)
        for failure in results:
            failure.raiseException()
    except (SSL.Error, crypto.Error) as error:  # with a queue of (library, function, reason)
        reasons = ", ".join(reason for *_, reason in error.args[0] if reason)
        raise BadCertificate(f"OpenSSL refuses its key or certificate: {reasons}") from error
    return wanted


def _check_keys(description: str) -> None:
    """Refuse a key that is encrypted, for which OpenSSL would ask at the terminal, deaf to TERM."""
    for part in re.split(r"(?<!\\):", description):
        path = Path(re.sub(r"\\(.)", r"\1", part.partition("=")[2] or part))
        with suppress(OSError):
            if path.is_file() and b"ENCRYPTED" in path.read_bytes():
                raise BadCertificate(
                    f"{path} is encrypted, and a server starts without anybody to ask;"
                    f" decrypt it: openssl pkey -in {path} -out KEY"
                )
