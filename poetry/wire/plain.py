"""A socket of the reactor's: send, sendfile, shut down, wait."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

from twisted.internet.error import ConnectionDone
from twisted.python.failure import Failure

from poetry.wire.kernel import MORE, NOW, send_on_close
from poetry.wire.layers import forbid_end, is_closing
from poetry.wire.poem import Poem
from poetry.wire.sender import Wire

if TYPE_CHECKING:
    from poetry.protocol import PoetryProtocol


class Plain(Wire):
    """Straight to the socket, past the transport's buffer, which stays empty.

    @cvar turn: so that a fast reader starves nobody: nginx's sendfile_max_chunk. A 10 MB poem
        costs as much CPU with 4 MiB, or without a limit, and 1.1 to 1.6 times as much with 512 KiB
        (measured).
    """

    turn = 2 * 1024 * 1024

    def send(self, protocol: PoetryProtocol, poem: Poem) -> None:
        """At once what the kernel takes; a short poem needs no more than that."""
        if protocol.factory.pace is None:
            forbid_end(protocol.transport)
            if not self.write(protocol, poem, self.turn):
                return
        super().send(protocol, poem)

    def handOver(self, protocol: PoetryProtocol, poem: Poem, limit: int) -> int:
        """As much as the kernel has room for."""
        flags = MORE if protocol.size + limit >= len(poem.data) else 0
        return poem.send(protocol.transport.getHandle(), protocol.size, limit, flags)

    def askAgain(self, transport: Any) -> None:
        """The transport's buffer is empty, so that it sees no reason to ask."""
        transport.startWriting()

    def end(self, protocol: PoetryProtocol, poem: Poem) -> None:  # noqa: ARG002
        """Shut down the sending half, and go on discarding input until the reader ends."""
        transport = protocol.transport
        if protocol.sender is not None:
            transport.unregisterProducer()
        handle = transport.getHandle()
        send_on_close(handle)
        handle.shutdown(socket.SHUT_WR)
        protocol.streamEnded()
        transport.startReading()  # what came before is reported now, an end too

    def wasReceived(self, transport: Any, reason: Failure) -> bool:
        """A FIN, unless it is we who close."""
        return isinstance(reason.value, ConnectionDone) and not is_closing(transport)

    def wasSent(self, reason: Failure) -> bool:
        """A FIN."""
        return isinstance(reason.value, ConnectionDone)


class LeanWire(Plain):
    """The same on a lean transport, whose socket may block and is armed since it was accepted."""

    def send(self, protocol: PoetryProtocol, poem: Poem) -> None:
        """At once, or else as on the transport that takes its place."""
        if self.write(protocol, poem, len(poem.data)):
            forbid_end(protocol.transport)
            if protocol.transport.promote() is not None:
                PLAIN.send(protocol, poem)

    def handOver(self, protocol: PoetryProtocol, poem: Poem, limit: int) -> int:  # noqa: ARG002
        """Once, and from the start."""
        count: int = protocol.transport.socket.send(poem.data, NOW)
        return count


PLAIN = Plain()
LEAN = LeanWire()
