"""The connection limiter: holds all listeners of a service to one limit."""

from __future__ import annotations

from collections import deque
from typing import Protocol

from twisted.logger import Logger

_log = Logger()


class Pausable(Protocol):
    """A listener that can stop accepting for a time."""

    def pause(self) -> None: ...
    def resume(self) -> None: ...


class ConnectionLimiter:
    """Counts connections from their accept to their close; at the limit all listeners pause.

    None is refused, as one that is accepted and closed looks like an empty poem: new readers wait
    in the kernel's queues. A reactor reads first what was resumed first, and that may take all the
    room there is: so the listeners take turns at being the first.

    @ivar limit: most connections at once.
    @ivar count: open connections.
    @ivar full: whether the limit is reached, so that the listeners are paused.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.count = 0
        self.full = False
        self._listeners: deque[Pausable] = deque()
        self._logged = False

    def add(self, listener: Pausable) -> None:
        """Add a listener, to pause it whenever the limit is reached."""
        self._listeners.append(listener)

    def remove(self, listener: Pausable) -> None:
        """Remove a listener that is closed."""
        self._listeners.remove(listener)

    @property
    def room(self) -> int:
        """Number of connections that may still be accepted."""
        return self.limit - self.count

    @property
    def accepting(self) -> bool:
        """Whether any listener is open, so that it accepts now or later."""
        return bool(self._listeners)

    def enter(self) -> None:
        """Count a connection that was accepted."""
        self.count += 1

    def leave(self) -> None:
        """Uncount a connection that is closed; resume the listeners if there is room again."""
        self.count -= 1
        if self.full and self.room > 0:
            self.full = False
            self._listeners.rotate()
            for listener in list(self._listeners):
                listener.resume()

    def pause_if_full(self) -> None:
        """Pause all listeners if the limit is reached."""
        if self.room > 0:
            return
        self.full = True
        for listener in list(self._listeners):
            listener.pause()
        if not self._logged:
            self._logged = True
            _log.warn(
                "{limit} connections are open, the most there may be: new readers wait",
                event="limit_reached",
                limit=self.limit,
            )

    def report(self) -> None:
        """Log if there is room again; called seldom, as a busy server has room for moments."""
        if self._logged and not self.full and self.room > 0:
            self._logged = False
            _log.warn("below {limit} connections again", event="limit_left", limit=self.limit)
