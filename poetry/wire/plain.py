"""A poem on a socket of the reactor's: send, sendfile, shut down, linger."""

from __future__ import annotations

from poetry.wire.kernel import MORE, end_stream, make_close_abortive
from poetry.wire.outgoing import Sender


class Plain(Sender):
    """Straight to the socket, past the transport's buffer, which stays empty.

    @cvar turn: so that a fast reader starves nobody: nginx's sendfile_max_chunk. A 10 MB poem
        costs as much CPU with 4 MiB, or without a limit, 1.3 times as much with 512 KiB and 1.5
        times with 256 KiB (measured).
    """

    turn = 2 * 1024 * 1024

    def _start(self) -> None:
        """Send at once as much as the kernel takes: a short poem needs no more."""
        make_close_abortive(self._transport.getHandle())
        if self._pace is not None or self.send(self.turn):
            self.register()

    def resumeProducing(self) -> None:
        """Send, and wait for room: with an empty buffer the transport would not call again."""
        if self._pace is not None:
            super().resumeProducing()
        elif self.send(self.turn):
            self._transport.startWriting()

    def _hand_over(self, limit: int) -> int:
        """Hand the kernel as much as it has room for."""
        flags = MORE if self.size + limit >= len(self.poem.data) else 0
        return self.poem.send(self._transport.getHandle(), self.size, limit, flags)

    def _end(self) -> None:
        """Shut down the sending half; the transport goes on reading until the reader ends."""
        self.unregister()
        end_stream(self._transport.getHandle())
        self.finish()


class PlainOfClient(Plain):
    """On a socket that we have connected: begun in the next turn of the reactor.

    The event by which the reactor learns that it is connected may be one of reading, and then it
    goes on to write, which fails after our end of the stream.
    """

    def _start(self) -> None:
        """Begin in the next turn; until then a close resets the connection."""
        self._stand_by()
        self._timer = self._transport.reactor.callLater(0, self._begin)

    def _begin(self) -> None:
        self._timer = None
        if self._owner.outcome is not None:  # it has failed, and is about to be closed
            return
        self.unregister()
        try:
            super()._start()
        except Exception as error:  # of the reactor: nobody else would hear of it
            self._owner.fail(error)
