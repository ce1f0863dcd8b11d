"""Transfers that have ended, and what was logged of them, for the tests of logs and metrics."""

from __future__ import annotations

from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.testing import StringTransport
from twisted.logger import ILogObserver, LogEvent
from twisted.python.failure import Failure
from zope.interface import implementer

from poetry.protocol import PoetryProtocol
from poetry.serving.poems import PoemFactory


@implementer(ILogObserver)
class Log(list[LogEvent]):
    """The events that were logged."""

    def __call__(self, event: LogEvent) -> None:
        """Keep one."""
        self.append(event)

    @property
    def names(self) -> list[str]:
        """The names of the package's own events, in their order."""
        return [event["event"] for event in self if "event" in event]


def transferred(*observers: Any, whole: bool) -> PoetryProtocol:
    """A transfer of a short poem that has ended, well or not."""
    factory = PoemFactory(b"a poem", "poem.txt")
    factory.listener = "127.0.0.1:10000"
    factory.observers = observers
    protocol = factory.buildProtocol(None)
    assert isinstance(protocol, PoetryProtocol)
    protocol.makeConnection(StringTransport(peerAddress=IPv4Address("TCP", "127.0.0.1", 5)))
    protocol.connectionLost(Failure(ConnectionDone() if whole else ConnectionLost()))
    return protocol
