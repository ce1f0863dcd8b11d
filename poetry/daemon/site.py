"""The web site that has the metrics: one page, for scrapers of any kind, at hardly any cost."""

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
"""Connections at once, and how long each may take in all: half of what Prometheus waits for."""

FRESH_SECONDS = 1.0
"""For so long a page is answered as it was rendered."""


class Page(Resource):
    """What `render` gives, at most once in `FRESH_SECONDS`."""

    isLeaf = True

    def __init__(self, render: Callable[[], bytes], content_type: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._render = render
        self._content_type = content_type.encode()
        self._rendered = b""
        self._stale_at = 0.0

    def render_GET(self, request: Request) -> bytes:
        """The page, and for HEAD its headers."""
        now = monotonic()
        if not self._rendered or now >= self._stale_at:
            self._rendered = self._render()
            self._stale_at = now + FRESH_SECONDS
        request.setHeader(b"content-type", self._content_type)
        return self._rendered


class Scrape(HTTPChannel):
    """One request without a body, and a deadline for all of it, however it drips."""

    site: ScrapeSite
    transport: Any

    def connectionMade(self) -> None:
        """Set the deadline."""
        super().connectionMade()  # type: ignore[no-untyped-call]
        self.site.scrapes.append(self)
        self._deadline = self.callLater(SCRAPE_SECONDS, self.transport.abortConnection)

    def allHeadersReceived(self) -> None:
        """Take what follows for another request, which nobody will read."""
        self.length = 0
        super().allHeadersReceived()  # type: ignore[no-untyped-call]

    def checkPersistence(self, request: Request, version: bytes) -> bool:  # noqa: ARG002
        """Close after the answer."""
        request.setHeader(b"connection", b"close")
        return False

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Be in time."""
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
        """The page, or 404."""
        return self.resource if request.path == b"/metrics" else notFound()

    def acceptableProtocols(self) -> list[bytes]:
        """For TLS: no HTTP/2."""
        return [b"http/1.1"]

    def buildProtocol(self, addr: Any) -> Any:
        """Abort the oldest for it; that takes a turn, in which not too many may come."""
        too_many = len(self.scrapes) - SCRAPES
        if too_many >= SCRAPES:
            return None
        if too_many >= 0:
            self.scrapes[too_many].transport.abortConnection()
        return super().buildProtocol(addr)  # type: ignore[no-untyped-call]
