"""Looks at a reader that has ended: how often, and until when."""

from __future__ import annotations

from typing import Any

from twisted.internet.error import ConnectionLost
from twisted.python.failure import Failure

from poetry.wire.acknowledging import FIRST, MOST, Acknowledging
from tests.memory import MemoryReactor


class Reactor(MemoryReactor):
    """A reactor in memory."""

    @property
    def rests(self) -> bool:
        """Whether nothing is left in it."""
        return not self.getDelayedCalls() and not self.at_shutdown


class Below:
    """A transport of the reactor's."""

    def __init__(self) -> None:
        self.reactor = Reactor()
        self.socket: Any = object()
        self.looks: list[float] = []
        self.lost: list[Any] = []
        self.waiting = Acknowledging(self, lambda: self.looks.append(self.reactor.seconds()))

    def connectionLost(self, reason: Failure) -> None:
        self.lost.append(reason.type)
        self.waiting.cancel()


def test_looks_become_seldom() -> None:
    """Each wait is twice the one before, up to a bound, until the end."""
    below = Below()
    for _ in range(10):
        (call,) = below.reactor.getDelayedCalls()
        below.reactor.advance(call.getTime() - below.reactor.seconds())
    waits = [round(b - a, 6) for a, b in zip([0, *below.looks], below.looks, strict=False)]
    assert waits[:5] == [0.1, 0.2, 0.4, 0.8, MOST]
    assert set(waits[4:]) == {MOST}
    below.waiting.cancel()
    below.waiting.cancel()
    assert below.reactor.rests


def test_lost_connection_is_not_looked_at() -> None:
    """Whoever does not pass the loss on, nothing is left."""
    below = Below()
    below.socket = None
    below.reactor.advance(FIRST)
    assert (below.looks, below.reactor.rests) == ([], True)


def test_shutdown_of_the_reactor_ends_it() -> None:
    """The reactor has nothing of the connection that it could lose."""
    below = Below()
    below.reactor.at_shutdown.pop()()
    assert (below.lost, below.reactor.rests) == ([ConnectionLost], True)
