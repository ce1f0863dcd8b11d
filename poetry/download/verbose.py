"""Reports of name lookups and of connection attempts, for `poetry get -v`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IHostnameResolver, IResolutionReceiver
from twisted.python.components import proxyForInterface
from zope.interface import directlyProvides, implementer, providedBy

from poetry.download.fetch import explain

Tell = Callable[[str], object]
"""Takes one line of a report."""


class VerboseReactor:
    """A reactor for client endpoints that reports name lookups and connection attempts.

    All but its client connections and its resolver are the reactor's own.
    """

    def __init__(self, reactor: Any, tell: Tell) -> None:
        self._reactor = reactor
        self._tell = tell
        directlyProvides(self, providedBy(reactor))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)

    @property
    def nameResolver(self) -> IHostnameResolver:
        """For IReactorPluggableNameResolver."""
        return _VerboseResolver(self._reactor.nameResolver, self._tell)

    def connectTCP(self, host: str, port: int, factory: Any, *rest: Any, **options: Any) -> Any:
        """For IReactorTCP."""
        told = self._told(f"[{host}]:{port}" if ":" in host else f"{host}:{port}", factory)
        return self._reactor.connectTCP(host, port, told, *rest, **options)

    def connectSSL(self, host: str, port: int, factory: Any, *rest: Any, **options: Any) -> Any:
        """For IReactorSSL."""
        told = self._told(f"{host}:{port}", factory)
        return self._reactor.connectSSL(host, port, told, *rest, **options)

    def connectUNIX(self, address: str, factory: Any, *rest: Any, **options: Any) -> Any:
        """For IReactorUNIX."""
        return self._reactor.connectUNIX(address, self._told(address, factory), *rest, **options)

    def _told(self, where: str, factory: Any) -> Any:
        self._tell(f"connecting to {where}")
        return _VerboseFactory(factory, where, self._tell)


class _VerboseFactory:
    """A client factory that reports a failed attempt."""

    def __init__(self, factory: Any, where: str, tell: Tell) -> None:
        self._factory = factory
        self._where = where
        self._tell = tell

    def __getattr__(self, name: str) -> Any:
        return getattr(self._factory, name)

    def clientConnectionFailed(self, connector: Any, reason: Any) -> None:
        """Report the reason."""
        self._tell(f"{self._where}: {explain(reason.value)}")
        self._factory.clientConnectionFailed(connector, reason)


@implementer(IHostnameResolver)
class _VerboseResolver:
    def __init__(self, resolver: IHostnameResolver, tell: Tell) -> None:
        self._resolver = resolver
        self._tell = tell

    def resolveHostName(
        self, resolutionReceiver: IResolutionReceiver, hostName: str, *rest: Any, **options: Any
    ) -> Any:
        self._tell(f"looking up {hostName}")
        receiver = _VerboseReceiver(resolutionReceiver)
        receiver.told = (hostName, self._tell)
        return self._resolver.resolveHostName(receiver, hostName, *rest, **options)


class _VerboseReceiver(proxyForInterface(IResolutionReceiver)):  # type: ignore[misc]
    told: tuple[str, Tell]

    def __init__(self, original: IResolutionReceiver) -> None:
        super().__init__(original)
        self._hosts: list[str] = []

    def addressResolved(self, address: Any) -> None:
        self._hosts.append(address.host)
        self.original.addressResolved(address)

    def resolutionComplete(self) -> None:
        name, tell = self.told
        tell(f"{name} is {', '.join(self._hosts) or 'unknown'}")
        self.original.resolutionComplete()
