"""Certificates: of a TLS endpoint, read again while it listens; of the authorities of a client."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import SSL4ServerEndpoint, serverFromString
from twisted.internet.error import VerifyError
from twisted.internet.interfaces import (
    IListeningPort,
    IOpenSSLContextFactory,
    IStreamServerEndpoint,
)
from twisted.internet.protocol import Factory
from zope.interface import implementer

from poetry.system.descriptors import given_descriptor
from poetry.system.endpoint_strings import argument_of, replace_argument
from poetry.text import text_of

_FILES = {"privateKey": 1, "certKey": 2, "extraCertChain": None, "dhParameters": None}
"""Arguments of a description that are files."""

_MOST_AUTHORITIES = 64 * 1024 * 1024
"""Bytes read of a file of authorities, which may be endless; Debian's has 0.2 MB."""

_CERTIFICATE = re.compile("-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)


class BadCertificate(ValueError):
    """A key or a certificate cannot be used; the message is one line with the reason."""


@implementer(IStreamServerEndpoint, IOpenSSLContextFactory)
class TLSEndpoint:
    """A TLS server endpoint, from a description of Twisted's (`ssl:PORT:privateKey=...`).

    Its key and certificate are read when it is made, and again by `renew`, for connections from
    then on. It is its own context factory, which Twisted calls for each connection.

    @ivar expired: whether the certificate had expired when it was read.
    """

    def __init__(self, reactor: Any, description: str) -> None:
        """@raise BadCertificate: if a file cannot be read, OpenSSL refuses it, or it is encrypted.

        @raise Exception: what Twisted raises for a malformed description.
        """
        if argument_of(description, "privateKey", 1) is None:
            description += ":privateKey=server.pem"  # Twisted's default
        for name, index in _FILES.items():  # a daemon changes its directory
            description = replace_argument(description, name, index, os.path.abspath)
        self._description = description
        recorded = self._read()
        self._endpoint = SSL4ServerEndpoint(
            reactor, recorded.port, self, recorded.backlog, recorded.interface
        )

    def listen(self, factory: Factory) -> Deferred[IListeningPort]:  # type: ignore[override]
        """Listen on the port (IStreamServerEndpoint)."""
        listening: Deferred[IListeningPort] = self._endpoint.listen(factory)
        return listening

    def getContext(self) -> Any:
        """Return the OpenSSL context for a new connection (IOpenSSLContextFactory)."""
        return self._context

    def renew(self) -> None:
        """Read the files again. If that fails, what was read before stays.

        @raise BadCertificate: as well for what is no regular file: a FIFO could be waited for, for
            ever.
        @raise Exception: as `__init__` does.
        """
        for path in _paths_in(self._description):
            if path.exists() and not path.is_file():
                raise BadCertificate(f"{path} is no regular file")
        self._read()

    def _read(self) -> _ListenRecorder:
        recorded = _read_files(self._description)
        self._context, self.expired = recorded.context, recorded.expired
        return recorded


class _ListenRecorder:
    """A reactor (IReactorSSL) that records the arguments of `listenSSL` instead of listening."""

    def listenSSL(
        self, port: int, _: Any, contextFactory: Any, backlog: int = 50, interface: str = ""
    ) -> None:
        """Record the arguments; make the context now, or OpenSSL would refuse each handshake."""
        self.port, self.backlog, self.interface = port, backlog, interface
        self.context = contextFactory.getContext()
        self.expired = contextFactory.certificate.has_expired()


def _read_files(description: str) -> _ListenRecorder:
    """Parse a description, and read its key and certificate."""
    from OpenSSL import SSL, crypto

    recorder = _ListenRecorder()
    _check_files(description)
    files = ", ".join(dict.fromkeys(map(str, _paths_in(description))))
    both = argument_of(description, "certKey", 2)
    hint = "" if both else "; to name both files: ssl:PORT:privateKey=FILE:certKey=FILE"
    results: list[Any] = []
    try:
        endpoint = serverFromString(recorder, description)
        endpoint.listen(Factory()).addErrback(results.append)
        for failure in results:
            failure.raiseException()
    except (SSL.Error, crypto.Error, VerifyError) as error:
        reason = f"{text_of(error).rstrip('.')} ({files}){hint}"
        raise BadCertificate(f"OpenSSL refuses its key or certificate: {reason}") from error
    except OSError as error:
        raise BadCertificate(f"{error.filename or files}: {error.strerror}{hint}") from error
    return recorder


def _check_files(description: str) -> None:
    """Refuse a device, which may have no end, as /dev/zero; and an encrypted key: OpenSSL would ask
    for its password at the terminal, deaf to TERM.
    """
    for path in _paths_in(description):
        if path.is_char_device():
            raise BadCertificate(f"{path} is no regular file")
        with suppress(OSError):
            if path.is_file() and b"ENCRYPTED" in path.read_bytes():
                raise BadCertificate(
                    f"{path} is encrypted, and a server starts without anybody to ask;"
                    f" decrypt it: openssl pkey -in {path} -out KEY"
                )


def _paths_in(description: str) -> Iterator[Path]:
    """Generate the paths in a description, `ssl:PORT:KEY:CERTIFICATE` or with names."""
    for name, index in _FILES.items():
        path = argument_of(description, name, index)
        if path is not None:
            yield Path(path)


def authorities(path: str) -> Any:
    """Read the authorities that sign certificates from a PEM file.

    @return: an IOpenSSLTrustRoot.
    @raise BadCertificate: if the file has none, or cannot be read.
    """
    try:
        from OpenSSL.crypto import Error
        from twisted.internet.ssl import Certificate, trustRootFromCertificates

        given_descriptor(path)
        with Path(path).open(encoding="latin-1") as file:
            found = _CERTIFICATE.findall(file.read(_MOST_AUTHORITIES))
        if not found:
            raise BadCertificate(f"{path}: no certificate is in it (PEM)")
        return trustRootFromCertificates(map(Certificate.loadPEM, found))
    except ImportError as error:
        raise BadCertificate(f"{path} needs TLS: install twisted-poetry[tls] ({error})") from error
    except OSError as error:
        raise BadCertificate(f"{path}: {error.strerror}") from error
    except Error as error:
        raise BadCertificate(f"{path}: a certificate in it is damaged") from error
