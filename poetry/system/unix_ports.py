"""Ports on Unix sockets, which leave alone what is not theirs.

Twisted's would set the mode and the queue of a passed-in socket, shut it down at their end for all
processes that have it, and remove whatever is at their path and beside it (`NAME.lock`) by then.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from twisted.internet import tcp, unix
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort
from twisted.internet.protocol import Factory
from twisted.python.failure import Failure

from poetry.system.features import AT_ONCE
from poetry.system.unix import unix_address


class UnixReactor:
    """Listens for Twisted's endpoints in the place of the reactor; and has no other method."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor

    def listenUNIX(
        self,
        address: str,
        factory: Factory,
        backlog: int = 50,
        mode: int = 0o666,
        wantPID: bool = False,  # noqa: ARG002 (there is no lock)
    ) -> IListeningPort:
        """Listen at a path (IReactorUNIX); a stale socket, on which no server answers, is replaced.

        Twisted does so too, unless the process that its lock names is alive. But after a crash
        another process may have that number, our own included: in a container it is 1 again.

        @raise CannotListenError: if a server answers there, or it is no socket.
        """
        return self._listen(SocketFile(address, mode, backlog), address, factory)

    def adoptStreamPort(self, fileDescriptor: int, _: int, factory: Factory) -> IListeningPort:
        """Listen on a socket that was passed in (IReactorSocket), by a duplicate of it."""
        passed_in = PassedIn(os.dup(fileDescriptor))
        return self._listen(passed_in, passed_in.path, factory)

    def _listen(self, source: Source, path: Any, factory: Factory) -> IListeningPort:
        port = UnixPort(source, path, factory, self._reactor)
        port.startListening()
        return port


class Source(Protocol):
    """Where a port has its socket from."""

    def open(self) -> socket.socket:
        """Return a socket that listens.

        @raise OSError: if there is none.
        """

    def remove(self) -> None:
        """Remove what `open` has made in the file system.

        @raise OSError: if it cannot be removed.
        """


class UnixPort(unix.Port):
    """A port of Twisted's on a socket of which it changes nothing but its own descriptor."""

    def __init__(self, source: Source, path: Any, factory: Factory, reactor: Any) -> None:
        super().__init__(path, factory, reactor=reactor)
        self._source = source
        self._path = path

    def startListening(self) -> None:
        """Listen.

        @raise CannotListenError: if there is no socket to listen on.
        """
        assert self.factory is not None
        self.factory.doStart()
        try:
            self.socket = self._source.open()
        except BaseException as error:
            self.factory.doStop()
            if isinstance(error, OSError):
                raise CannotListenError(None, unix_address(self._path), error) from error
            raise
        self.fileno = self.socket.fileno  # type: ignore[method-assign]
        self.connected = True
        self.numberAccepts = AT_ONCE
        self.startReading()

    def connectionLost(self, reason: Failure) -> None:
        """Close; the descriptor first, as Twisted would shut the socket down."""
        self.stopReading()
        try:
            self._source.remove()
        finally:
            self.socket.close()
            tcp.Port.connectionLost(self, reason)


class SocketFile:
    """A Unix socket that is made at a path, and removed as long as it is there."""

    def __init__(self, path: str, mode: int, backlog: int) -> None:
        """@param mode: the permissions of the file.

        @param backlog: most connections that wait to be accepted.
        """
        self._path = path
        self._mode = mode
        self._backlog = backlog
        self._file = Path(path).absolute()  # a daemon changes its directory
        self._made: os.stat_result | None = None

    def open(self) -> socket.socket:
        """Make the socket, in the place of a stale one.

        @raise OSError: if the path is taken, or the mode is none.
        """
        if not 0 <= self._mode <= 0o7777:
            raise OSError(errno.EINVAL, f"mode {self._mode:o} is out of range (0 to 7777)")
        listening = socket.socket(socket.AF_UNIX)
        try:
            listening.setblocking(False)
            remove_stale(self._path)
            listening.bind(self._path)
            self._made = self._file.lstat()
            self._file.chmod(self._mode)
            listening.listen(self._backlog)
        except BaseException:
            self.remove()
            listening.close()
            raise
        return listening

    def remove(self) -> None:
        """Remove the socket, unless another file is in its place by now."""
        made, self._made = self._made, None
        with suppress(FileNotFoundError):
            if made is not None and os.path.samestat(made, self._file.lstat()):
                self._file.unlink()


class PassedIn:
    """A Unix socket that another process has made, and other processes may have."""

    def __init__(self, descriptor: int) -> None:
        """@param descriptor: is closed with the port."""
        self._socket = socket.socket(fileno=descriptor)
        self.path = self._socket.getsockname()

    def open(self) -> socket.socket:
        """Return the socket, once."""
        if self._socket.fileno() == -1:
            raise OSError(errno.EBADF, "the socket that was passed in is closed")
        return self._socket

    def remove(self) -> None:
        """Remove nothing."""


def remove_stale(path: str) -> None:
    """Remove a socket on which no server answers.

    @raise OSError: if a server answers, that cannot be checked, or it is no socket.
    """
    with suppress(FileNotFoundError):
        found = Path(path).lstat()
        if not stat.S_ISSOCK(found.st_mode):
            raise OSError(errno.EADDRINUSE, "a file that is no socket is there")
        with socket.socket(socket.AF_UNIX) as probe:
            probe.setblocking(False)
            refused = probe.connect_ex(path)
        if refused in (0, errno.EAGAIN):
            raise OSError(errno.EADDRINUSE, "a server answers on it")
        if refused != errno.ECONNREFUSED:
            raise OSError(refused, os.strerror(refused))
        if not os.path.samestat(found, Path(path).lstat()):
            raise OSError(errno.EADDRINUSE, "another server starts on it")
        Path(path).unlink()
