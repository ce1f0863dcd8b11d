"""Reports of name lookups and of connection attempts, for `poetry get -v`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IHostnameResolver, IResolutionReceiver
from twisted.python.components import proxyForInterface
from zope.interface import directlyProvides, implementer, providedBy

from poetry.download.fetch import explain_fetch_failure


class VerboseReactor:
    """A reactor for client endpoints that reports name lookups and connection attempts.

    Everything else is the reactor's own.
    """

    def __init__(self, reactor: Any, report: Callable[[str], object]) -> None:
        """@param report: is called with each event, in one line."""
        self._reactor = reactor
        self._report = report
        directlyProvides(self, providedBy(reactor))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)

    @property
    def nameResolver(self) -> IHostnameResolver:
        """The resolver, reporting (IReactorPluggableNameResolver)."""
        return _VerboseResolver(self._reactor.nameResolver, self._report)

    def connectTCP(self, host: str, port: int, factory: Any, *rest: Any, **options: Any) -> Any:
        """Connect by TCP, and report that (IReactorTCP)."""
        verbose = self._verbose(f"[{host}]:{port}" if ":" in host else f"{host}:{port}", factory)
        return self._reactor.connectTCP(host, port, verbose, *rest, **options)

    def connectSSL(self, host: str, port: int, factory: Any, *rest: Any, **options: Any) -> Any:
        """Connect by TLS, and report that (IReactorSSL)."""
        verbose = self._verbose(f"{host}:{port}", factory)
        return self._reactor.connectSSL(host, port, verbose, *rest, **options)

    def connectUNIX(self, address: str, factory: Any, *rest: Any, **options: Any) -> Any:
        """Connect to a Unix socket, and report that (IReactorUNIX)."""
        verbose = self._verbose(address, factory)
        return self._reactor.connectUNIX(address, verbose, *rest, **options)

    def _verbose(self, address: str, factory: Any) -> Any:
        self._report(f"connecting to {address}")
        return _VerboseFactory(factory, address, self._report)


class _VerboseFactory:
    """A client factory that reports a failed attempt."""

    def __init__(self, factory: Any, address: str, report: Callable[[str], object]) -> None:
        self._factory = factory
        self._address = address
        self._report = report

    def __getattr__(self, name: str) -> Any:
        return getattr(self._factory, name)

    def clientConnectionFailed(self, connector: Any, reason: Any) -> None:
        """Report the reason, and pass it on."""
        self._report(f"{self._address}: {explain_fetch_failure(reason.value)}")
        self._factory.clientConnectionFailed(connector, reason)


@implementer(IHostnameResolver)
class _VerboseResolver:
    def __init__(self, resolver: IHostnameResolver, report: Callable[[str], object]) -> None:
        self._resolver = resolver
        self._report = report

    def resolveHostName(
        self, resolutionReceiver: IResolutionReceiver, hostName: str, *rest: Any, **options: Any
    ) -> Any:
        self._report(f"looking up {hostName}")
        receiver = _VerboseReceiver(resolutionReceiver, hostName, self._report)
        return self._resolver.resolveHostName(receiver, hostName, *rest, **options)


class _VerboseReceiver(proxyForInterface(IResolutionReceiver)):  # type: ignore[misc]
    def __init__(
        self, original: IResolutionReceiver, name: str, report: Callable[[str], object]
    ) -> None:
        super().__init__(original)
        self._name = name
        self._report = report
        self._hosts: list[str] = []

    def addressResolved(self, address: Any) -> None:
        self._hosts.append(address.host)
        self.original.addressResolved(address)

    def resolutionComplete(self) -> None:
        self._report(f"{self._name} is {', '.join(self._hosts) or 'unknown'}")
        self.original.resolutionComplete()
