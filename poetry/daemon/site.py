"""The web site of the metrics: one page, with limits on connections, time and CPU."""

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
"""Most connections at once, and most seconds for each: half of Prometheus's default timeout."""

FRESH_SECONDS = 1.0
"""Seconds for which a rendered page is sent again."""


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
        """Return the page; for HEAD twisted.web sends only its headers."""
        now = monotonic()
        if now >= self._stale_at:
            self._rendered = self._render()
            self._stale_at = now + FRESH_SECONDS
        request.setHeader(b"content-type", self._content_type)
        return self._rendered


class Scrape(HTTPChannel):
    """An HTTP connection for one request, with a deadline for all of it."""

    site: ScrapeSite
    transport: Any

    def connectionMade(self) -> None:
        """Set the deadline."""
        super().connectionMade()  # type: ignore[no-untyped-call]
        self.site.scrapes.append(self)
        self._deadline = self.callLater(SCRAPE_SECONDS, self.transport.abortConnection)

    def allHeadersReceived(self) -> None:
        """Answer without waiting for a body, which would be read into memory."""
        self.length = 0
        super().allHeadersReceived()  # type: ignore[no-untyped-call]

    def checkPersistence(self, request: Request, version: bytes) -> bool:  # noqa: ARG002
        """Close the connection after its first answer."""
        request.setHeader(b"connection", b"close")
        return False

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Cancel the deadline."""
        self.site.scrapes.remove(self)
        if self._deadline.active():
            self._deadline.cancel()
        super().connectionLost(reason)  # type: ignore[no-untyped-call]


class ScrapeSite(Site):
    """A site with a page at `/metrics`; the oldest of `SCRAPES` connections yields to a new one.

    A scraper sends its request as soon as it is connected, so the oldest is unlikely to be one.

    @ivar address: the address to serve it on, as text.
    """

    address = ""
    noisy = False
    protocol: Any = Scrape

    def __init__(self, page: Page, clock: Any) -> None:
        """@param clock: an IReactorTime."""
        super().__init__(page, timeout=None, reactor=clock)  # type: ignore[no-untyped-call]
        self.scrapes: list[Scrape] = []

    def getResourceFor(self, request: Request) -> IResource:
        """Return the page at its path, and 404 elsewhere."""
        return self.resource if request.path == b"/metrics" else notFound()

    def log(self, request: Any) -> None:
        """Log nothing: a scraper comes every few seconds."""

    def acceptableProtocols(self) -> list[bytes]:
        """Return HTTP/1.1 alone, for ALPN: twisted.web would offer HTTP/2 too."""
        return [b"http/1.1"]

    def buildProtocol(self, addr: Any) -> Any:
        """Make a protocol; if there are too many connections, abort the oldest.

        An abort takes an iteration of the reactor. As many again may come in it, and no more.

        @return: None: refuse the connection.
        """
        too_many = len(self.scrapes) - SCRAPES
        if too_many >= SCRAPES:
            return None
        if too_many >= 0:
            self.scrapes[too_many].transport.abortConnection()
        return super().buildProtocol(addr)  # type: ignore[no-untyped-call]
