"""The service of `poetry serve`, `twistd poetry` and `twist poetry`, built from their arguments."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IStreamServerEndpoint
from twisted.logger import Logger

from poetry.addresses import address_of, server_endpoint
from poetry.daemon.logs import TransferLog
from poetry.daemon.metrics import Metrics
from poetry.daemon.systemd import notify
from poetry.errors import EmptyPoem
from poetry.limits import DEFAULTS, Limits, check_count, check_seconds
from poetry.server import PoetryService
from poetry.serving.poems import (
    NamedPoem,
    PoemFactory,
    explain_read_failure,
    printable_name,
    read_at_start,
)
from poetry.system.adopted import unserved
from poetry.system.certificates import TLSEndpoint
from poetry.system.clock import use_monotonic_time
from poetry.system.descriptors import given_descriptor
from poetry.system.features import HANGUP
from poetry.system.threads import in_daemon_thread
from poetry.text import one_line
from poetry.wire.outgoing import Pace
from poetry.wire.poem import Poem

_log = Logger()


class UsageError(ValueError):
    """The command line is wrong; the message is one line with the reason."""


class BadPoem(UsageError):
    """A poem on the command line cannot be read, or is empty."""


def pair(poems: Sequence[str], addresses: Sequence[str]) -> list[tuple[str | None, str]]:
    """Pair poems with addresses. Without poems the sample (None) is served; without addresses each
    poem has a free port.

    @raise UsageError: if there are several poems, and not one address for each.
    """
    arguments: list[str | None] = list(poems) or [None]
    if not addresses:
        return [(poem, "0") for poem in arguments]
    if len(arguments) == 1:
        return [(arguments[0], address) for address in addresses]
    if len(arguments) != len(addresses):
        raise UsageError(
            f"{len(arguments)} poems and {len(addresses)} addresses:"
            " give one address a poem, or none"
        )
    return list(zip(arguments, addresses, strict=True))


def read_poem(argument: str | None) -> NamedPoem:
    """Read the poem of a POEM argument; None: the sample.

    @raise BadPoem: if it cannot be read or is empty.
    """
    if argument == "":
        raise BadPoem("POEM: it names no file")
    try:
        given_descriptor(argument or "")
        return read_at_start(argument)
    except (EmptyPoem, MemoryError, OverflowError, OSError) as error:
        raise BadPoem(f"{argument}: {explain_read_failure(error)}") from error


def read_poems(arguments: Iterable[str | None]) -> dict[str | None, NamedPoem]:
    """Read the poems of POEM arguments, each once.

    Poems whose files have the same name are named by their paths, so that logs and metrics tell
    them apart.

    @raise BadPoem: for the first that cannot be read or is empty.
    """
    poems = {argument: read_poem(argument) for argument in dict.fromkeys(arguments)}
    names = Counter(poem.name for poem in poems.values())
    return {
        path: poem._replace(name=printable_name(path)) if path and names[poem.name] > 1 else poem
        for path, poem in poems.items()
    }


def make_pace(num_bytes: int | None, delay: float | None, clock: Any) -> Pace | None:
    """Make the pace of the slow server; None if neither number is given: no rate limit.

    @param num_bytes: bytes at a time; None: 10.
    @param delay: seconds between them; None: 0.1.
    @raise UsageError: if one is out of range; the message names it.
    """
    if num_bytes is None and delay is None:
        return None
    pace = Pace(10 if num_bytes is None else num_bytes, 0.1 if delay is None else delay, clock)
    try:
        check_count("num_bytes", pace.num_bytes)
        check_seconds("delay", pace.delay)
    except ValueError as error:
        raise UsageError(str(error)) from error
    return pace


def build_service(
    reactor: Any,
    poems: Sequence[str],
    addresses: Sequence[str],
    *,
    limits: Limits = DEFAULTS,
    num_bytes: int | None = None,
    delay: float | None = None,
    metrics: str | None = None,
    log_level: str = "info",
) -> PoetryService:
    """Build the service for the arguments of a command line.

    @param num_bytes: of the slow server, as is `delay`: see `make_pace`.
    @param metrics: the address to serve metrics on, `[HOST:]PORT`; None: no metrics.
    @raise UsageError: if an argument is wrong.
    """
    transfers = TransferLog(log_level)
    pace = make_pace(num_bytes, delay, reactor)
    sending: dict[str | None, Poem | None] = {}
    listeners = []
    pairs = pair(poems, addresses)
    read = read_poems(argument for argument, _ in pairs)
    try:
        for argument, address in pairs:
            factory = PoemFactory(*read[argument], address=address)
            factory.sending = sending.setdefault(argument, factory.sending)
            factory.observers = (transfers,)
            factory.pace = pace
            listeners.append((server_endpoint(reactor, address), factory))
        service = DaemonService(listeners, **limits._asdict(), clock=reactor)
        if metrics is not None:
            site = Metrics(service).site()
            site.address = metrics
            service.others.append((metrics_endpoint(reactor, metrics), site))
        for descriptor in unserved(endpoint for endpoint, _ in [*listeners, *service.others]):
            _log.warn(
                "{address} was passed in, and nothing is served on it: its readers wait",
                event="socket_unserved",
                address=address_of(descriptor),
            )
    except ValueError as error:
        raise UsageError(str(error)) from error
    except ImportError as error:
        raise UsageError(f"metrics need twisted-poetry[metrics]: {error}") from error
    return service


def metrics_endpoint(reactor: Any, text: str) -> IStreamServerEndpoint:
    """Make the endpoint of the metrics, and name the option in its errors.

    @raise ValueError: if the text is no address.
    """
    try:
        return server_endpoint(reactor, text)
    except ValueError as error:
        raise ValueError(f"{error} (--metrics)") from error


class DaemonService(PoetryService):
    """The service as a process: reads its files again on HUP, and notifies systemd."""

    def privilegedStartService(self) -> None:
        """Listen, with timers that are independent of the wall clock."""
        use_monotonic_time(self.clock)
        super().privilegedStartService()

    def startService(self) -> None:
        """Start the service, and reload at each HUP."""
        super().startService()
        if HANGUP is not None:
            signal.signal(HANGUP, lambda *_: self.clock.callFromThread(self.reload))
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [HANGUP])  # one may have come already
        self.whenListening().addCallbacks(self._ready, lambda _: None)

    def _ready(self, _: object) -> None:
        for endpoint, listener in self._certified():
            warn_if_expired(endpoint, listener)
        notify("READY=1")

    def _certified(self) -> Iterator[tuple[TLSEndpoint, str]]:
        """Generate the endpoints that have certificates, each with the name of its listener."""
        for endpoint, factory in [*self.listeners, *self.others]:
            if isinstance(endpoint, TLSEndpoint):
                yield endpoint, getattr(factory, "listener", "metrics")

    async def read_again(self) -> bool:
        """Read the certificates of TLS listeners again, and then the poems as PoetryService does.

        A poem or certificate that cannot be read is logged, and the old one stays.
        """
        if self.running:  # else systemd knows that it is stopping
            notify("RELOADING=1")
        well = True
        for endpoint, listener in self._certified():
            well &= await renew(endpoint, listener)
        well &= await super().read_again()
        if self.running:
            notify("READY=1")
        return well

    def stopService(self) -> Deferred[None]:
        """Notify systemd, and stop as PoetryService does."""
        notify("STOPPING=1")
        return super().stopService()


async def renew(endpoint: TLSEndpoint, listener: str) -> bool:
    """Read the key and certificate of an endpoint again, in a thread, and log the result.

    @param listener: the name of its listener, for the log.
    @return: whether they could be read.
    """
    try:
        await in_daemon_thread(endpoint.renew)
    except Exception as error:
        _log.error(
            "kept the old certificate of {listener}: {reason}",
            event="renewal_failed",
            listener=listener,
            reason=one_line(error),
        )
        return False
    _log.info("read the certificate of {listener} again", event="renewed", listener=listener)
    warn_if_expired(endpoint, listener)
    return True


def warn_if_expired(endpoint: TLSEndpoint, listener: str) -> None:
    """Log a certificate that had expired when it was read: readers will refuse it."""
    if endpoint.expired:
        _log.warn(
            "the certificate of {listener} has expired",
            event="certificate_expired",
            listener=listener,
        )
