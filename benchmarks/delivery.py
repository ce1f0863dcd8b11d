"""Delivery: what becomes of the readers when something is not as it should be. All are counted."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.load import Spec
from benchmarks.measure import Json, Served, available_memory, loading, measured, write_poem
from benchmarks.peers import Peer, serving
from tests.faults.readers import ENDS

REQUEST = "GET / HTTP/1.1\r\nHost: poem\r\nAccept: */*\r\n\r\n"
HELD = 100_000
"""Bytes each reader has taken, of 10 MB, when the server is killed or told to stop."""
PAUSE = 0.001
"""Seconds between 64 KiB: 60 MB/s or so. A reader as fast as the server hides what gets lost."""
PATIENCE = 6.0
"""Seconds without any news after which a reader counts as waiting: past two retries of TCP."""
LONG, MIDDLE, SHORT = 10_000_000, 1_000_000, 3_000


@dataclass(frozen=True)
class Scenario:
    """One thing that happens to readers; a peer that cannot serve `size` is given its largest."""

    name: str
    title: str
    size: int
    readers: int
    together: int
    say: str = ""
    half_close: bool = False
    pause: float = 0.0
    signal: int = 0
    descriptors: int | None = None
    knowing: bool = False
    """Nobody can get the whole poem here: what counts is that the reader knows it is not whole."""
    quick: int = 3
    """Readers in a quick run."""


SCENARIOS = (
    Scenario("speaks", "reader speaks first", LONG, 20, 1, say=REQUEST, pause=PAUSE),
    Scenario("half-closes", "reader half-closes first", LONG, 20, 1, half_close=True, pause=PAUSE),
    Scenario("stopped", "server told to stop (TERM)", LONG, 50, 1, signal=signal.SIGTERM),
    Scenario(
        "killed", "server killed (KILL)", LONG, 50, 1, signal=signal.SIGKILL, knowing=True
    ),
    Scenario(
        "descriptors", "256 descriptors, 3,000 readers", MIDDLE, 3_000, 3_000,
        descriptors=256, quick=300,
    ),
    Scenario("burst", "4,000 readers at once", SHORT, 4_000, 4_000, quick=500),
)  # fmt: skip


RSA, P_256 = "RSA", "P-256"
KEYS = {RSA: ["rsa:2048"], P_256: ["ec", "-pkeyopt", "ec_paramgen_curve:P-256"]}
"""The kinds of a certificate's key, as openssl's `-newkey` has them."""


def make_certificate(directory: Path, kind: str = RSA) -> tuple[Path, Path]:
    """A certificate that signs itself, and its key: the load checks bytes, not names."""
    certificate, key = directory / "certificate.pem", directory / "key.pem"
    command = ["openssl", "req", "-x509", "-nodes", "-days", "2", "-newkey", *KEYS[kind]]
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"]
    files = ["-out", str(certificate), "-keyout", str(key)]
    subprocess.run([*command, *names, *files], check=True, capture_output=True)
    return certificate, key


def interrupt(server: Served, number: int) -> None:
    """Signal the server, and give it a second to act on it before the readers go on."""
    server.signal(number)
    with suppress(subprocess.TimeoutExpired):
        server.process.wait(1.0)
    time.sleep(0.1)


def counts(result: Json) -> Json:
    return {key: result[key] for key in ("readers", *ENDS)}


def deliver(scenario: Scenario, peer: Peer, directory: Path, quick: bool) -> Json:
    """Count how the readers of one peer ended in one scenario."""
    size = min(scenario.size, peer.largest)
    poem = write_poem(directory, size)
    readers = scenario.quick if quick else scenario.readers
    spec = Spec(
        port=0,
        poem=str(poem),
        readers=readers,
        together=min(scenario.together, readers),
        say=scenario.say,
        half_close=scenario.half_close,
        pause=scenario.pause,
        hold_after=min(HELD, size) if scenario.signal else 0,
        patience=0.5 if quick else PATIENCE,
    )
    with (
        serving(peer, poem, descriptors=scenario.descriptors) as server,
        loading(spec.at(server.port)) as load,
    ):
        load.go()
        if scenario.signal:
            load.until("holding")
            interrupt(server, scenario.signal)
            load.go()
        result = load.result()
    return {"size": size, "seconds": result["seconds"], **counts(result)}


def stall(peer: Peer, poem: Path, readers: int, tls: tuple[Path, Path] | None) -> Json:
    """Bytes of memory, of the server and the machine, for a reader that takes one byte and rests;
    then let them all read on."""
    with serving(peer, poem, tls=tls) as server:
        spec = Spec(server.port, str(poem), readers, 1, hold_after=1, tls=tls is not None)
        # the first readers load what all the others share
        measured(server, replace(spec, readers=2, hold_after=0))
        with loading(spec) as load:
            before, available = server.memory(), available_memory()
            load.go()
            load.until("holding")
            used, of_machine = server.memory() - before, available - available_memory()
            load.go()
            result = load.result()
    each = {"bytes_a_reader": used / readers, "of_machine": of_machine / readers}
    return {"size": poem.stat().st_size, **each, **counts(result)}


def applies(scenario: Scenario, peer: Peer) -> bool:
    """Whether a scenario applies: a poem that the kernel takes whole is not interrupted mid-way."""
    return not (scenario.signal and peer.largest < HELD)


def run(peers: Sequence[Peer], directory: Path, quick: bool) -> Json:
    """Every scenario, every peer in turn."""
    results: Json = {
        scenario.name: {
            peer.name: deliver(scenario, peer, directory, quick)
            for peer in peers
            if applies(scenario, peer)
        }
        for scenario in SCENARIOS
    }
    certificate = make_certificate(directory)
    for name, tls in (("stalled", None), ("stalled-tls", certificate)):
        results[name] = {
            peer.name: stall(peer, write_poem(directory, LONG), 3 if quick else 100, tls)
            for peer in peers
            if peer.largest >= LONG and (peer.tls or not tls)
        }
    return results
