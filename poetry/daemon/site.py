"""The web site of the metrics: one page, bounded in connections, seconds and renderings."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Any

from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel
from twisted.web.pages import notFound
from twisted.web.resource import IResource, Resource
from twisted.web.server import Request, Site

SCRAPES, SCRAPE_SECONDS = 8, 5.0
"""Most connections at once, and most seconds for each: half of what Prometheus waits by default."""

FRESH_SECONDS = 1.0
"""Seconds for which a page is answered as it was rendered."""


class Page(Resource):
    """A page that is rendered at most once in `FRESH_SECONDS`."""

    isLeaf = True

    def __init__(self, render: Callable[[], bytes], content_type: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._render = render
        self._content_type = content_type.encode()
        self._rendered = b""
        self._stale_at = 0.0

    def render_GET(self, request: Request) -> bytes:
        """Give the page; for HEAD twisted.web leaves it out."""
        now = monotonic()
        if not self._rendered or now >= self._stale_at:
            self._rendered = self._render()
            self._stale_at = now + FRESH_SECONDS
        request.setHeader(b"content-type", self._content_type)
        return self._rendered


class Scrape(HTTPChannel):
    """A connection that answers one request without a body, within a deadline for all of it."""

    site: ScrapeSite
    transport: Any

    def connectionMade(self) -> None:
        """Set the deadline."""
        super().connectionMade()  # type: ignore[no-untyped-call]
        self.site.scrapes.append(self)
        self._deadline = self.callLater(SCRAPE_SECONDS, self.transport.abortConnection)

    def allHeadersReceived(self) -> None:
        """Answer at the end of the headers: a body would be read into memory."""
        self.length = 0
        super().allHeadersReceived()  # type: ignore[no-untyped-call]

    def checkPersistence(self, request: Request, version: bytes) -> bool:  # noqa: ARG002
        """Have the connection closed after its first answer."""
        request.setHeader(b"connection", b"close")
        return False

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Cancel the deadline."""
        self.site.scrapes.remove(self)
        if self._deadline.active():
            self._deadline.cancel()
        super().connectionLost(reason)  # type: ignore[no-untyped-call]


class ScrapeSite(Site):
    """A page at `/metrics`. Of `SCRAPES` connections the oldest makes room for a new one.

    A scraper asks as soon as it is connected, so that the oldest is one that does not.

    @ivar address: where to serve it, as text.
    """

    address = ""
    noisy = False
    protocol: Any = Scrape

    def __init__(self, page: Page, clock: Any) -> None:
        """@param clock: an IReactorTime."""
        super().__init__(page, timeout=None, reactor=clock)  # type: ignore[no-untyped-call]
        self.scrapes: list[Scrape] = []

    def getResourceFor(self, request: Request) -> IResource:
        """Give the page at its path, and 404 elsewhere."""
        return self.resource if request.path == b"/metrics" else notFound()

    def acceptableProtocols(self) -> list[bytes]:
        """Offer HTTP/1.1 alone over TLS: twisted.web would offer HTTP/2 too."""
        return [b"http/1.1"]

    def buildProtocol(self, addr: Any) -> Any:
        """Make a protocol, and abort the oldest connection for it where there are too many.

        An abort takes a turn of the reactor, in which as many again may come, and no more.
        """
        too_many = len(self.scrapes) - SCRAPES
        if too_many >= SCRAPES:
            return None
        if too_many >= 0:
            self.scrapes[too_many].transport.abortConnection()
        return super().buildProtocol(addr)  # type: ignore[no-untyped-call]
