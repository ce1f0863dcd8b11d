"""A transport whose write side belongs to the poem that is sent on it."""

from __future__ import annotations

from typing import Any, NoReturn

from twisted.internet.error import ConnectionAborted


class WriteRefused(RuntimeError):
    """A protocol that sends a poem was made to write beside it."""

    def __init__(self) -> None:
        super().__init__(
            "the write side of this connection is its poem's: another byte would spoil it. To send"
            " each reader something else, override PoetryServerFactory.getPoem"
        )


def _refuse(*_: object) -> NoReturn:
    raise WriteRefused


class ReadOnly:
    """The methods that write on a transport, which raise `WriteRefused`."""

    __slots__ = ()

    write = writeSequence = loseWriteConnection = staticmethod(_refuse)
    registerProducer = unregisterProducer = stopConsuming = staticmethod(_refuse)
    startTLS = sendFileDescriptor = staticmethod(_refuse)


class Sealed(ReadOnly):
    """The transport of a protocol that sends: all that it provides, but for writing.

    Anything else that is written would land inside a poem that the kernel did not take at once.
    """

    __slots__ = ("_protocol", "_sealed")

    def __init__(self, transport: Any, protocol: Any) -> None:
        """@param protocol: its `outgoing` is the poem that it sends, once it has one."""
        self._sealed = transport
        self._protocol = protocol

    def loseConnection(self) -> None:
        """Reset the connection, unless the poem has begun: then it ends with the poem."""
        outgoing = self._protocol.outgoing
        if outgoing is None or not outgoing.begun:
            self.abortConnection()

    def abortConnection(self) -> None:
        """Reset the connection now, whatever the protocol does next."""
        if self._protocol.outcome is None:
            self._protocol.truncate(ConnectionAborted())
        else:
            self._sealed.abortConnection()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sealed, name)

    def __repr__(self) -> str:
        return f"<Sealed {self._sealed!r}>"
