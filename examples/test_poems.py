"""Tests of code of one's own: python -m twisted.trial test_poems, or pytest test_poems.py."""

from typing import Any

from twisted.internet import reactor
from twisted.internet.endpoints import clientFromString, serverFromString
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import TestCase

from poetry import PoetryServerFactory, get_poem, serve_poem


class InMemory(TestCase):
    def test_a_poem_is_sent_and_ended(self) -> None:
        transport = StringTransport()
        protocol: Any = PoetryServerFactory(b"So brief.").buildProtocol(None)
        protocol.makeConnection(transport)
        assert transport.value() == b"So brief."
        assert transport.disconnecting


class OnASocket(TestCase):
    async def test_a_poem_arrives(self) -> None:
        here = serverFromString(reactor, "tcp:0:interface=127.0.0.1")
        port: Any = await serve_poem(here, b"So brief.")
        self.addCleanup(port.stopListening)
        there = clientFromString(reactor, f"tcp:127.0.0.1:{port.getHost().port}")
        assert await get_poem(there) == b"So brief."
