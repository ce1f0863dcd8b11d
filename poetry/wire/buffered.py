"""A poem on any other transport, in memory or a wrapper's: by way of a buffer of Twisted's."""

from __future__ import annotations

from typing import Any

from twisted.internet.interfaces import ISSLTransport

from poetry.wire.closing import make_close_abortive
from poetry.wire.kernel import end_stream, make_close_graceful
from poetry.wire.layers import EndedEarly, handle_of, innermost, is_closing
from poetry.wire.outgoing import SHORT, Sender


class Buffered(Sender):
    """Written to the transport, which keeps it until the kernel takes it.

    It is the transport's producer until all is written, and then that of the reactor's own
    transport below, until its buffer is empty. A wrapper may keep what is written as well: it has
    passed all of it on when it closes its transport.

    @cvar turn: a stalled reader keeps one or two of these in the process.
    """

    turn = 64 * 1024

    def _start(self) -> None:
        """Write a short poem at once in memory; elsewhere, write as the transport asks for it."""
        make_close_abortive(self._transport)
        in_memory = handle_of(self._transport) is None
        if in_memory and len(self.poem.data) <= SHORT and self._pace is None:
            self.send(SHORT)
        else:
            self.register()

    def _hand_over(self, limit: int) -> int:
        """Write a chunk.

        @raise EndedEarly: if the transport is closing: what it still takes may be lost.
        """
        if is_closing(self._transport):
            raise EndedEarly
        piece = self.poem.data[self.size : self.size + limit]
        self._transport.write(piece)
        return len(piece)

    def _end(self) -> None:
        """End the stream once the kernel has the rest.

        @raise EndedEarly: if the transport is closing already.
        """
        transport, handle = self._transport, handle_of(self._transport)
        if is_closing(transport):
            raise EndedEarly
        if handle is None:  # there is no kernel in memory
            self.unregister()
            self.finish()
            transport.loseConnection()  # the connection may be lost already
        elif ISSLTransport.providedBy(transport):  # it ends its stream when it is closed
            make_close_graceful(handle)
            self.unregister()
            self.finish()
            transport.loseConnection()
        else:
            self.unregister()
            self._wait_for_kernel()
            transport.loseConnection()

    def _wait_for_kernel(self) -> None:
        """Become the producer of the reactor's transport, which asks once its buffer is empty."""
        below = innermost(self._transport)
        below.registerProducer(self, False)  # calls resumeProducing now, too early
        self._consumer = below

    def _has_all(self, below: Any) -> bool:
        """Check whether the wrapper has closed the transport below; if so, go on reading there."""
        if not below.disconnecting:
            return False
        below.disconnecting = False
        below.startReading()
        return True

    def resumeProducing(self) -> None:
        """Write the next chunk, or end the stream: the kernel has all that was written."""
        if self.size < len(self.poem.data):
            super().resumeProducing()
        elif self._consumer is not None and self._has_all(self._consumer):
            below = self._consumer
            self.unregister()
            try:
                end_stream(below.socket)
            except OSError as error:
                self._owner.truncate(error)
            else:
                self.finish()
