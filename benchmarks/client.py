"""Client: time and memory of one poem by its size, a hundred slow servers at once, cold start."""

from __future__ import annotations

import filecmp
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure import LOAD_CORE, SERVER_CORE, Json, peak, pipe, write_poem
from benchmarks.peers import PROGRAMS, THIS, Peer, missing_tool, serving

SIZES = (1_000_000, 10_000_000, 100_000_000, 1_000_000_000)
SHORT = 3_000
SLOW_SERVERS = 100
PACE, PIECES = 0.02, 10
"""Seconds between the pieces of a slow server, and how many of them: 0.2 s a poem."""
TOO_LONG = 5.0
"""A client that took more seconds than this is not asked for the next size."""
POLL = 0.0005
"""Seconds between two looks at the memory of a client."""


@dataclass(frozen=True)
class Client:
    """A way to fetch a poem to standard output; {port} or {ports} is filled in."""

    name: str
    needs: str
    command: tuple[str, ...]
    several: tuple[str, ...] = ()
    """How it fetches several; {addresses} and {urls} are filled in as words of their own."""


PYTHON = sys.executable
GET = (PYTHON, "-m", "poetry", "get")
TUTORIAL = (PYTHON, str(PROGRAMS / "tutorial_client.py"))
BLOCKING = (PYTHON, str(PROGRAMS / "blocking_client.py"))
NC = ("nc", "-d", "127.0.0.1")
CURL = ("curl", "--silent", "--http0.9")
EACH = 'for address; do nc -d 127.0.0.1 "${address#*:}" & done; wait'

CLIENTS = (
    Client(THIS, "poetry", (*GET, "127.0.0.1:{port}"), (*GET, "{addresses}")),
    Client("tutorial", "twisted", (*TUTORIAL, "127.0.0.1:{port}"), (*TUTORIAL, "{addresses}")),
    Client(
        "tutorial, blocking", "socket", (*BLOCKING, "127.0.0.1:{port}"),
        (*BLOCKING, "{addresses}"),
    ),
    Client("nc", "nc", (*NC, "{port}"), ("sh", "-c", EACH, "sh", "{addresses}")),
    Client(
        "curl", "curl", (*CURL, "http://127.0.0.1:{port}/"),
        (*CURL, "--parallel", "--parallel-immediate", "--parallel-max", "100", "{urls}"),
    ),
    Client("socat", "socat", ("socat", "-u", "TCP:127.0.0.1:{port}", "STDOUT")),
)  # fmt: skip


def missing(client: Client) -> str | None:
    return missing_tool(client.needs)


def pin_client() -> None:
    if SERVER_CORE is not None:
        os.sched_setaffinity(0, {SERVER_CORE})


def pin_source() -> None:
    if LOAD_CORE is not None:
        os.sched_setaffinity(0, {LOAD_CORE})


def timed(command: Sequence[str], output: Path) -> Json:
    """Run a client: seconds, CPU seconds, peak memory. What it fetched is in `output`."""
    with output.open("wb") as out:
        before = time.perf_counter()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.DEVNULL,
            preexec_fn=pin_client,
        )
        memory = 0
        while True:
            memory = max(memory, peak(process.pid))
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            time.sleep(POLL)
        seconds = time.perf_counter() - before
        process.returncode = os.waitstatus_to_exitcode(status)
    return {"seconds": seconds, "cpu": usage.ru_utime + usage.ru_stime, "memory": memory}


@contextmanager
def source(poem: Path, count: int = 1, pace: float = 0.0) -> Iterator[list[int]]:
    """Run a server that is not measured; gives its ports."""
    process = subprocess.Popen(
        [PYTHON, PROGRAMS / "source.py", poem, str(count), str(pace)],
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=pin_source,
    )
    try:
        yield [int(port) for port in pipe(process.stdout).readline().split()]
    finally:
        process.kill()
        process.wait()
        pipe(process.stdout).close()


def fill(words: Sequence[str], ports: Sequence[int]) -> list[str]:
    filled: list[str] = []
    for word in words:
        if word == "{addresses}":
            filled += [f"127.0.0.1:{port}" for port in ports]
        elif word == "{urls}":
            filled += [f"http://127.0.0.1:{port}/" for port in ports]
        else:
            filled.append(word.replace("{port}", str(ports[0])))
    return filled


def by_size(clients: Sequence[Client], directory: Path, quick: bool) -> Json:
    """One poem from a server that is never the slow end."""
    results: Json = {}
    output = directory / "output"
    slow: set[str] = set()
    for size in SIZES[: 1 if quick else None]:
        poem = write_poem(directory, size)
        kept: dict[str, list[Json]] = defaultdict(list)
        with source(poem) as ports:
            for _ in range(1 if quick else 3):
                for client in clients:
                    if client.name in slow:
                        continue
                    run = timed(fill(client.command, ports), output)
                    run["whole"] = filecmp.cmp(poem, output, shallow=False)
                    kept[client.name].append(run)
                    if run["seconds"] > TOO_LONG:
                        slow.add(client.name)
        results[str(size)] = dict(kept)
        output.unlink()
    return results


def hundred(clients: Sequence[Client], directory: Path, quick: bool) -> Json:
    """A hundred servers, each of which takes 0.2 s: one after the other that is 20 s."""
    poem = write_poem(directory, SHORT)
    output = directory / "output"
    kept: dict[str, list[Json]] = defaultdict(list)
    count = 10 if quick else SLOW_SERVERS
    pace = PACE / 10 if quick else PACE
    with source(poem, count, pace) as ports:
        for number in range(1 if quick else 3):
            for client in clients:
                if not client.several or (number and kept[client.name][0]["seconds"] > TOO_LONG):
                    continue
                run = timed(fill(client.several, ports), output)
                run["whole"] = output.stat().st_size == count * SHORT
                kept[client.name].append(run)
    return {"servers": count, "seconds_each": pace * PIECES, "clients": dict(kept)}


def cold(clients: Sequence[Client], peers: Sequence[Peer], directory: Path, quick: bool) -> Json:
    """From nothing to a short poem fetched, and from nothing to a server that listens."""
    poem = write_poem(directory, SHORT)
    output = directory / "output"
    get: dict[str, list[float]] = defaultdict(list)
    serve: dict[str, list[float]] = defaultdict(list)
    with source(poem) as ports:
        for _ in range(2 if quick else 7):
            for client in clients:
                get[client.name].append(timed(fill(client.command, ports), output)["seconds"])
    for _ in range(2 if quick else 7):
        for peer in peers:
            serve[peer.name].append(until_listening(peer, poem))
    return {"get": dict(get), "serve": dict(serve)}


def until_listening(peer: Peer, poem: Path) -> float:
    """Seconds from the start of a server until it listens."""
    before = time.perf_counter()
    with serving(peer, poem):
        return time.perf_counter() - before


def run(peers: Sequence[Peer], directory: Path, quick: bool) -> Json:
    """Every client that is installed; the peers are for the cold start of the servers."""
    clients = [client for client in CLIENTS if not missing(client)]
    return {
        "by_size": by_size(clients, directory, quick),
        "hundred": hundred(clients, directory, quick),
        "cold": cold(clients, peers, directory, quick),
    }
