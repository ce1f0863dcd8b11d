"""From words to a service."""

from __future__ import annotations

import io
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from twisted.internet.endpoints import _SystemdParser
from twisted.internet.testing import MemoryReactorClock
from twisted.python.systemd import ListenFDs

from poetry.addresses import address_of
from poetry.daemon.build import UsageError, build_service, pair, read_poem
from poetry.limits import Limits
from poetry.server import PoetryService
from poetry.serving.poems import PoemFactory
from poetry.system.certificates import TLSEndpoint
from poetry.wire.outgoing import Pace
from tests.certificates import Certificates, self_signed
from tests.loop import until, wait
from tests.processes import PATIENCE
from tests.transfers import Log


class Reactor(MemoryReactorClock):
    """A reactor in memory that can be called from a signal handler."""

    def callFromThread(self, function: Any, *args: Any, **kwargs: Any) -> None:
        """Do it when the clock goes on."""
        self.callLater(0, function, *args, **kwargs)


@pytest.fixture
def reactor() -> Iterator[Reactor]:
    """A reactor in memory; the handler of HUP is restored afterwards."""
    before = signal.getsignal(signal.SIGHUP)
    yield Reactor()  # type: ignore[no-untyped-call]
    signal.signal(signal.SIGHUP, before)


def factories(service: PoetryService) -> list[PoemFactory]:
    return [factory for _, factory in service.listeners if isinstance(factory, PoemFactory)]


@pytest.mark.parametrize(
    ("poems", "addresses", "expected"),
    [
        ([], [], [(None, "0")]),
        ([], ["1", "2"], [(None, "1"), (None, "2")]),
        (["a"], [], [("a", "0")]),
        (["a"], ["1", "2", "3"], [("a", "1"), ("a", "2"), ("a", "3")]),
        (["a", "b"], [], [("a", "0"), ("b", "0")]),
        (["a", "b"], ["1", "2"], [("a", "1"), ("b", "2")]),
    ],
)
def test_poems_and_addresses_are_paired(
    poems: list[str], addresses: list[str], expected: list[tuple[str | None, str]]
) -> None:
    """One poem goes to every address, several go to one address each."""
    assert pair(poems, addresses) == expected


@pytest.mark.parametrize("count", [1, 3])
def test_unpaired_poems_are_a_usage_error(count: int) -> None:
    """Other numbers of poems and addresses are a usage error."""
    with pytest.raises(UsageError, match=f"2 poems and {count} addresses"):
        pair(["a", "b"], ["1"] * count)


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("none.txt", "No such file or directory"),
        (".", "Is a directory"),
        ("/dev/null", "it is empty, and there is no empty poem"),
        ("-", "standard input is closed"),
    ],
)
def test_missing_or_empty_poem_is_a_usage_error(
    monkeypatch: pytest.MonkeyPatch, word: str, reason: str
) -> None:
    """A poem that cannot be read or is empty is a usage error that names it."""
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(UsageError) as caught:
        read_poem(word)
    assert str(caught.value) == f"{word}: {reason}"


def test_poem_without_a_name_is_a_usage_error() -> None:
    """An empty argument, as of a variable that is not set, is no directory."""
    with pytest.raises(UsageError, match="POEM: it names no file"):
        read_poem("")


def test_poem_beyond_memory_is_a_usage_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A poem that does not fit into memory is a usage error that names it."""

    def too_large(*_: object) -> bytes:
        raise MemoryError

    monkeypatch.setattr("poetry.serving.poems._read_all", too_large)
    with pytest.raises(UsageError, match="it does not fit into memory"):
        read_poem("-")


def test_unreadable_poem_is_a_usage_error(tmp_path: Path) -> None:
    """A file that may not be read is a usage error that names it."""
    path = tmp_path / "poem.txt"
    path.touch(mode=0)
    user = os.geteuid()
    os.seteuid(user or 65534)  # root may read everything
    try:
        with pytest.raises(UsageError, match=f"{path}: Permission denied"):
            read_poem(str(path))
    finally:
        os.seteuid(user)


def test_standard_input_is_read_once(monkeypatch: pytest.MonkeyPatch, reactor: Reactor) -> None:
    """On two listeners one reading of a poem is shared."""
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b"given")))
    service = build_service(reactor, ["-"], ["1", "2"], limits=Limits(7, 60.0, 8.0))
    first, second = factories(service)
    assert first.poem is second.poem
    assert first.sending is second.sending
    assert (service.max_connections, service.grace, service.clock) == (7, 8.0, reactor)
    assert (first.address, second.address) == ("1", "2")


def test_poems_of_one_name_have_their_paths(
    monkeypatch: pytest.MonkeyPatch, reactor: Reactor, tmp_path: Path
) -> None:
    """Logs and metrics tell files of one name apart by the path on the command line."""
    monkeypatch.chdir(tmp_path)
    words = ["a/poem.txt", "b/poem.txt", "envoi.txt"]
    for word in words:
        Path(word).parent.mkdir(exist_ok=True)
        Path(word).write_text(word, encoding="utf-8")
    service = build_service(reactor, words, [])
    assert [factory.name for factory in factories(service)] == words
    assert [factory.path for factory in factories(service)] == [tmp_path / word for word in words]
    [only] = factories(build_service(reactor, ["a/poem.txt"], []))
    assert only.name == "poem.txt"


@pytest.mark.parametrize(
    ("num_bytes", "delay", "expected"),
    [(None, None, None), (3, 0.5, (3, 0.5)), (3, None, (3, 0.1)), (None, 0.5, (10, 0.5))],
)
def test_pace_makes_a_slow_server(
    reactor: Reactor, num_bytes: int | None, delay: float | None, expected: tuple[int, float] | None
) -> None:
    """Either option of the pace alone makes the slow poetry server."""
    [factory] = factories(build_service(reactor, [], [], num_bytes=num_bytes, delay=delay))
    assert factory.pace == (None if expected is None else Pace(*expected, reactor))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"addresses": ["nonsense"]}, "'nonsense' is no address"),
        ({"metrics": "nonsense"}, "'nonsense' is no address"),
        ({"limits": Limits(max_connections=0)}, "max_connections has to be at least 1"),
        ({"num_bytes": 0}, "num_bytes has to be at least 1, not 0"),
        ({"num_bytes": 5, "delay": 0.0}, "delay has to be more than 0 s, not 0"),
        ({"delay": float("nan")}, "delay has to be more than 0 s, not nan"),
    ],
)
def test_nonsense_is_a_usage_error(
    reactor: Reactor, arguments: dict[str, Any], message: str
) -> None:
    """A value out of range and a malformed address are usage errors."""
    if "metrics" in arguments:
        pytest.importorskip("prometheus_client", reason="needs twisted-poetry[metrics]")
    with pytest.raises(UsageError, match=message):
        build_service(reactor, [], **{"addresses": [], **arguments})


def test_metrics_need_prometheus_client(reactor: Reactor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Metrics are served beside the poems, and need prometheus-client."""
    pytest.importorskip("prometheus_client", reason="needs twisted-poetry[metrics]")
    assert len(build_service(reactor, [], [], metrics="0").others) == 1
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(UsageError, match=r"metrics need twisted-poetry\[metrics\]: "):
        build_service(reactor, [], [], metrics="0")


def test_hup_reloads(reactor: Reactor, tmp_path: Path) -> None:
    """Once started, HUP reloads the poems, in the reactor's own time."""
    path = tmp_path / "poem.txt"
    path.write_bytes(b"old")
    service = build_service(reactor, [str(path)], ["127.0.0.1:1"])
    service.startService()
    path.write_bytes(b"new")
    signal.raise_signal(signal.SIGHUP)
    assert factories(service)[0].poem == b"old"
    reactor.advance(0)
    until(lambda: factories(service)[0].poem == b"new")
    assert service.stopService().called


@pytest.mark.parametrize("served", [0, 1])
def test_socket_that_nothing_is_served_on_is_named(
    reactor: Reactor, monkeypatch: pytest.MonkeyPatch, log: Log, served: int
) -> None:
    """The kernel accepts readers of each socket that is passed in: a forgotten one is logged."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2)]
        numbers = [os.dup(each.fileno()) for each in sockets]
        passed_in = ListenFDs(numbers, ("poetry.socket", "poetry.socket"))
        monkeypatch.setattr(_SystemdParser, "_sddaemon", passed_in)
        monkeypatch.setenv("LISTEN_FDNAMES", "poetry.socket:poetry.socket")
        build_service(reactor, [], [f"systemd:domain=INET:index={served}"])
        for number in numbers:
            os.close(number)
        [event] = log
        host, port = sockets[1 - served].getsockname()
    assert (event["event"], event["address"]) == ("socket_unserved", f"{host}:{port}")


def test_descriptor_that_is_no_socket_has_its_number() -> None:
    """What is passed in may be anything."""
    with Path(os.devnull).open("rb") as file:
        assert address_of(file.fileno()) == f"descriptor {file.fileno()}"


def test_reload_without_a_thread_notifies_systemd(
    reactor: Reactor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no thread can be started systemd still learns that the reload is over."""
    path = tmp_path / "poem.txt"
    path.write_bytes(b"a poem")
    service = build_service(reactor, [str(path)], ["127.0.0.1:1"])
    service.running = True
    notifications: list[str] = []
    monkeypatch.setattr("poetry.daemon.build.notify", notifications.append)

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert service.reload().called
    assert notifications == ["RELOADING=1", "READY=1"]
    service.running = False
    assert service.reload().called
    assert len(notifications) == 2  # a server that stops is not ready


def test_certificate_that_has_expired_is_a_warning(
    reactor: Reactor, tmp_path: Path, log: Log
) -> None:
    """An expired certificate is served, as nginx does, and said to be: after a reload as well."""
    path = self_signed(tmp_path, days=-1)
    service = build_service(reactor, [], ["127.0.0.1:1", f"ssl:0:{path}:{path}"])
    service.startService()
    wait(service.reload())
    expired = [event for event in log if event.get("event") == "certificate_expired"]
    assert [event["listener"] for event in expired] == [service.addresses[1]] * 2
    service.stopService()


def test_reload_reads_certificates(
    reactor: Reactor, certificates: Certificates, tmp_path: Path, log: Log
) -> None:
    """A reload reads the certificates of TLS listeners too; an unreadable one is no success."""
    path = tmp_path / "server.pem"
    path.write_bytes(certificates.path("good").read_bytes())
    service = build_service(reactor, [], ["1", f"ssl:0:privateKey={path}"])
    wait(service.reload())
    assert service.reloaded_well
    path.write_bytes(b"none")
    wait(service.reload())
    assert not service.reloaded_well
    assert log.names == ["renewed", "reloaded", "renewal_failed", "reloaded"]


def test_reloads_of_certificates_run_one_at_a_time(
    reactor: Reactor, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A renewal that is slow ends before the next begins, and so cannot undo it."""
    service = build_service(reactor, [], [f"ssl:0:privateKey={certificates.path('good')}"])
    begun, go = [threading.Event(), threading.Event()], threading.Event()
    ended: list[int] = []

    def renew(_: TLSEndpoint) -> None:
        number = len(ended)
        begun[number].set()
        if number == 0:
            go.wait(PATIENCE)
        ended.append(number)

    monkeypatch.setattr(TLSEndpoint, "renew", renew)
    first, second = service.reload(), service.reload()
    until(begun[0].is_set)
    assert not begun[1].is_set()
    go.set()
    wait(first)
    wait(second)
    assert ended == [0, 1]
