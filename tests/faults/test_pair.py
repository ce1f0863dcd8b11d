"""Both ends on a real connection, in any order of turns, pauses, half-closes and losses."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from twisted.internet.error import ConnectionLost
from twisted.internet.protocol import Factory
from twisted.protocols.policies import WrappingFactory
from twisted.python.failure import Failure

from poetry import PoetryClientFactory
from tests.ends import Server, tcp_pair
from tests.faults.readers import poem
from tests.loop import reactor, until

SENDER, RECEIVER = 0, 1

Steps = list[tuple[int, str]]
"""Who does something, and what."""


class Client(PoetryClientFactory):
    """Keeps the result of its Deferred."""

    def __init__(self, poem: bytes | None) -> None:
        super().__init__(poem)
        self.results: list[Any] = []
        self.received.addCallbacks(
            self.results.append, lambda reason: self.results.append(reason.value)
        )


Wrap = Callable[[Factory], Factory]


def bare(factory: Factory) -> Factory:
    return factory


@contextmanager
def connected(factories: Sequence[Factory]) -> Iterator[list[Any]]:
    """A connection between two factories; give the transports of Twisted's."""
    transports: list[Any] = []
    with tcp_pair() as ends:
        for end, factory in zip(ends, factories, strict=True):
            end.setblocking(False)
            transport = reactor.adoptStreamConnection(end.fileno(), socket.AF_INET, factory)
            transports.append(transport)
    try:
        yield transports
    finally:
        for transport in transports:
            transport.abortConnection()
        until(lambda: not any(transport.connected for transport in transports))


def half_close(transport: Any) -> None:
    with suppress(OSError):  # the other end has reset it
        transport.getHandle().shutdown(socket.SHUT_WR)


DOES: dict[str, Callable[[Any], object]] = {
    "turn": lambda _: reactor.iterate(0),
    "pause": lambda transport: transport.pauseProducing(),
    "resume": lambda transport: transport.resumeProducing(),
    "half-close": half_close,
    "lose": lambda transport: transport.connectionLost(Failure(ConnectionLost())),  # a stop does
    "stop": lambda transport: transport.loseConnection(),
    "abort": lambda transport: transport.abortConnection(),
}


def play(wrap: Wrap, sends: bytes, steps: Steps, server_sends: bool) -> list[Any]:
    """Connect two factories and take the steps; give the receiver's results."""
    server = Server(sends if server_sends else None)
    client = Client(None if server_sends else sends)
    sender, receiver = (server, client) if server_sends else (client, server)
    with connected([wrap(sender), wrap(receiver)]) as transports:
        for who, step in steps:
            if transports[who].connected:
                DOES[step](transports[who])
        for transport in transports:
            if transport.connected:
                transport.resumeProducing()
        until(lambda: receiver.results)
        for _ in range(3):
            reactor.iterate(0)  # no further result comes
        return receiver.results


def moves(sender: Sequence[str], receiver: Sequence[str]) -> st.SearchStrategy[Steps]:
    """Up to 40 steps of these kinds."""
    one = st.one_of(
        st.tuples(st.just(SENDER), st.sampled_from(sender)),
        st.tuples(st.just(RECEIVER), st.sampled_from(receiver)),
    )
    return st.lists(one, max_size=40)


GENTLE = ("turn", "pause", "resume")
LOSSES = ("lose", "stop", "abort")

POEMS = {size: poem(size) for size in (1, 9, 16_384, 16_385, 65_536, 6_000_000)}

sizes = st.sampled_from(list(POEMS))
patiently = settings(deadline=None, max_examples=200)


@pytest.mark.parametrize("wrap", [bare, WrappingFactory])
@patiently
@given(
    size=sizes,
    steps=moves([*GENTLE, *LOSSES], [*GENTLE, *LOSSES, "half-close"]),
    server_sends=st.booleans(),
)
@example(size=9, steps=[(RECEIVER, "stop"), (RECEIVER, "turn")], server_sends=True)
@example(size=9, steps=[(SENDER, "turn"), (SENDER, "lose")], server_sends=True)
@example(size=6_000_000, steps=[(SENDER, "turn"), (SENDER, "lose")], server_sends=False)
def test_receiver_has_the_poem_or_an_error(
    wrap: Wrap, size: int, steps: Steps, server_sends: bool
) -> None:
    """The receiver has the exact poem or an error: never both, and never neither."""
    results = play(wrap, POEMS[size], steps, server_sends)
    assert len(results) == 1
    assert results[0] == POEMS[size] or isinstance(results[0], Exception)


@pytest.mark.parametrize(
    ("wrap", "ends"),
    # A wrapper hides the half-close: a reader that ends first gets a reset.
    [(bare, ["half-close"]), (WrappingFactory, [])],
)
@patiently
@given(data=st.data(), size=sizes, server_sends=st.booleans())
def test_receiver_has_the_poem_without_a_loss(
    wrap: Wrap, ends: list[str], data: st.DataObject, size: int, server_sends: bool
) -> None:
    """Where no connection is lost and no end gives up, the receiver has the poem."""
    steps = data.draw(moves(GENTLE, [*GENTLE, *ends]))
    assert play(wrap, POEMS[size], steps, server_sends) == [POEMS[size]]
