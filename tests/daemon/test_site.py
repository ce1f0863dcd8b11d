"""The page of the metrics: requests, how often it is rendered, and its deadline."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

import poetry.daemon.site
from poetry.daemon.site import FRESH_SECONDS, SCRAPE_SECONDS, SCRAPES, Page, ScrapeSite
from tests.transfers import Log

ASK = b"GET /metrics HTTP/1.1\r\nHost: poem\r\n\r\n"
DONE = Failure(ConnectionDone())


@pytest.fixture
def clock() -> Clock:
    """Both the site's and, for how fresh a page is, the machine's."""
    return Clock()


@pytest.fixture
def site(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Iterator[ScrapeSite]:
    """A page that has the number of its rendering."""
    monkeypatch.setattr(poetry.daemon.site, "monotonic", clock.seconds)
    numbers = count(1)
    site = ScrapeSite(Page(lambda: b"rendered: %d\n" % next(numbers), "text/plain"), clock)
    yield site
    for scrape in list(site.scrapes):
        scrape.connectionLost(DONE)
    assert not clock.getDelayedCalls()


def connected(site: ScrapeSite) -> tuple[Any, StringTransport]:
    """A scrape that has sent no request yet, and its transport."""
    transport = StringTransport()
    scrape = site.buildProtocol(None)
    scrape.makeConnection(transport)
    return scrape, transport


def answer(site: ScrapeSite, request: bytes = ASK) -> bytes:
    """The answer to a scrape, in one piece, after which the connection is closed."""
    scrape, transport = connected(site)
    scrape.dataReceived(request)
    assert transport.disconnecting
    scrape.connectionLost(DONE)
    answered: bytes = transport.value()
    return answered


def test_get_answers_the_page(site: ScrapeSite) -> None:
    """The page is at /metrics, with its type, and the connection ends after it."""
    head, _, page = answer(site).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert {b"Content-Type: text/plain", b"Connection: close"} <= set(head.split(b"\r\n"))
    assert page == b"rendered: 1\n"


def test_scrape_is_not_logged(site: ScrapeSite, log: Log) -> None:
    """Under twistd, where Twisted's own lines are logged, a scrape has none."""
    site.doStart()
    answer(site)
    site.doStop()
    assert log == []


def test_head_answers_the_headers(site: ScrapeSite) -> None:
    """HEAD has the headers of GET, and no page."""
    head, _, page = answer(site, ASK.replace(b"GET", b"HEAD")).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert b"Content-Length: 12" in head
    assert page == b""


@pytest.mark.filterwarnings("ignore:twisted.web.resource:DeprecationWarning")  # Twisted's own
def test_other_requests_are_refused(site: ScrapeSite) -> None:
    """Another path is 404, another method 405, and a malformed request 400."""
    assert answer(site, ASK.replace(b"/metrics", b"/")).startswith(b"HTTP/1.1 404 ")
    assert answer(site, ASK.replace(b"GET", b"POST")).startswith(b"HTTP/1.1 405 ")
    assert answer(site, b"What do you have?\r\n").startswith(b"HTTP/1.1 400 ")


def test_only_the_first_request_is_answered(site: ScrapeSite) -> None:
    """Of several requests at once the first is answered."""
    assert answer(site, 1000 * ASK).count(b"rendered: ") == 1


def test_body_of_a_request_is_not_read(site: ScrapeSite) -> None:
    """A request is answered before its body, which is kept nowhere."""
    announced = ASK.replace(b"\r\n\r\n", b"\r\nContent-Length: 9999999999\r\n\r\n")
    assert b"rendered: 1" in answer(site, announced + bytes(100_000))


def test_page_is_rendered_once_a_second(site: ScrapeSite, clock: Clock) -> None:
    """A page is answered again until a second has passed, and then rendered anew."""
    assert b"rendered: 1\n" in answer(site)
    clock.advance(FRESH_SECONDS * 0.9)
    assert b"rendered: 1\n" in answer(site)
    clock.advance(FRESH_SECONDS * 0.2)
    assert b"rendered: 2\n" in answer(site)


def test_slow_scrape_is_cut_at_the_deadline(site: ScrapeSite, clock: Clock) -> None:
    """A scrape that drips is cut in time, and so is one that does not take its answer."""
    dripping, drips_on = connected(site)
    asking, takes_nothing = connected(site)
    asking.dataReceived(ASK)
    for byte in ASK[:10]:
        dripping.dataReceived(bytes([byte]))
        assert not drips_on.disconnected
        clock.advance(SCRAPE_SECONDS / 10)
    assert drips_on.disconnected
    assert takes_nothing.disconnected


def test_oldest_scrape_makes_room(site: ScrapeSite) -> None:
    """One connection too many is served, and the oldest one is cut for it."""
    transports = [connected(site)[1] for _ in range(SCRAPES)]
    for cut in range(2):
        scrape, transport = connected(site)
        scrape.dataReceived(ASK)
        assert b"rendered: 1" in transport.value()
        assert [each.disconnected for each in transports] == [n <= cut for n in range(SCRAPES)]


def test_cut_scrapes_count_until_closed(site: ScrapeSite) -> None:
    """Cut connections take descriptors until they are gone: a flood of new ones is closed."""
    for _ in range(2 * SCRAPES):
        connected(site)
    assert site.buildProtocol(None) is None
    site.scrapes[0].connectionLost(DONE)
    assert site.buildProtocol(None) is not None


def test_tls_without_http_2(site: ScrapeSite) -> None:
    """Over TLS HTTP/1.1 is agreed on, whatever Twisted can do."""
    assert site.acceptableProtocols() == [b"http/1.1"]
