"""The load: many readers in one process, on raw non-blocking sockets and epoll.

Runs as a process of its own, so that its CPU is never the server's. It takes one line of JSON (the
fields of Spec), says "ready", waits for a line, and answers with one line of JSON. If readers are
to hold still it says "holding" once all of them do, and they go on at the next line.

Every byte of every reader is counted, and compared with the poem. A reader ends up as one of:

    whole     all bytes, then a clean end
    told      an error instead of a clean end: it knows that the poem is not whole
    fooled    a clean end before the last byte (or before the first): it cannot know
    waiting   nothing came for `patience` seconds: it may wait for ever
    wrong     other bytes than the poem's
"""

from __future__ import annotations

import gc
import json
import os
import resource
import select
import socket
import ssl
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

OUTCOMES = ("whole", "told", "fooled", "waiting", "wrong")
CHUNK, PACED = 1 << 20, 1 << 16
NON_BLOCKING = socket.SOCK_STREAM | socket.SOCK_NONBLOCK


@dataclass(frozen=True)
class Spec:
    """What one run of the load is to do."""

    port: int
    poem: str
    readers: int
    together: int
    """How many are busy at once, those that hold still not counted."""
    say: str = ""
    half_close: bool = False
    hold_after: int = 0
    """Bytes after which a reader stops reading until all others have got as far; 0: never."""
    pause: float = 0.0
    """Seconds of rest after every 64 KiB: a reader at the pace of a network, not of a loopback."""
    patience: float = 10.0
    tls: bool = False
    compare_every: int = 1
    """One reader in so many compares its bytes; the others only count them, which is cheaper."""
    core: int | None = None

    def at(self, port: int) -> Spec:
        return replace(self, port=port)

    def line(self) -> str:
        return json.dumps(asdict(self)) + "\n"


class Reader:
    """One connection and how far it has come."""

    __slots__ = ("compare", "got", "sock")

    def __init__(self, sock: socket.socket, compare: bool) -> None:
        self.sock = sock
        self.compare = compare
        self.got = 0


class Load:
    """All readers of one run."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.poem = Path(spec.poem).read_bytes()
        self.view = memoryview(bytearray(CHUNK))
        self.epoll = select.epoll()
        self.readers: dict[int, Reader] = {}
        self.held: list[Reader] = []
        self.hold_after = spec.hold_after
        self.chunk = PACED if spec.pause else CHUNK
        self.opened = 0
        self.last = 0.0
        self.bytes = 0
        self.outcomes: Counter[str] = Counter()
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.context.check_hostname = False
        self.context.verify_mode = ssl.CERT_NONE

    def run(self) -> None:
        while self.outcomes.total() < self.spec.readers:
            while self.opened < self.spec.readers and self.active() < self.spec.together:
                self.open()
            events = self.epoll.poll(self.spec.patience, 1024)
            for descriptor, event in events:
                self.handle(self.readers[descriptor], event)
            if self.hold_after and (not events or self.all_held()):
                self.go_on()
            elif not events:
                break
        self.outcomes["waiting"] += len(self.readers)

    def handle(self, reader: Reader, event: int) -> None:
        if event & select.EPOLLOUT:
            self.begin(reader)
        if event & ~select.EPOLLOUT:
            self.take(reader)
        self.last = time.perf_counter()

    def active(self) -> int:
        return len(self.readers) - len(self.held)

    def open(self) -> None:
        self.opened += 1
        try:
            sock = self.connected_tls() if self.spec.tls else socket.socket(type=NON_BLOCKING)
        except OSError:
            self.outcomes["told"] += 1
            return
        reader = Reader(sock, self.opened % self.spec.compare_every == 0 or self.spec.tls)
        self.readers[sock.fileno()] = reader
        if not self.spec.tls:
            sock.connect_ex(("127.0.0.1", self.spec.port))
        speaks = self.spec.say or self.spec.half_close
        self.epoll.register(sock, select.EPOLLIN | (select.EPOLLOUT if speaks else 0))
        if self.spec.tls:
            self.take(reader)  # decrypted bytes may wait where epoll does not see them

    def connected_tls(self) -> ssl.SSLSocket:
        sock = socket.create_connection(("127.0.0.1", self.spec.port), self.spec.patience)
        wrapped = self.context.wrap_socket(sock, suppress_ragged_eofs=False)
        wrapped.setblocking(False)
        return wrapped

    def begin(self, reader: Reader) -> None:
        self.epoll.modify(reader.sock, select.EPOLLIN)
        try:
            if self.spec.say:
                reader.sock.send(self.spec.say.encode())
            if self.spec.half_close:
                reader.sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # a refused or reset connection: the next read tells

    def take(self, reader: Reader) -> None:
        try:
            while self.took(reader):
                pass
        except (BlockingIOError, ssl.SSLWantReadError):
            pass
        except OSError:
            self.end(reader, "told")

    def took(self, reader: Reader) -> bool:
        """Take once, and tell whether to try again at once."""
        room = self.hold_after - reader.got if self.hold_after else self.chunk
        count = reader.sock.recv_into(self.view, room)
        if not count:
            self.end(reader, "whole" if reader.got == len(self.poem) else "fooled")
            return False
        if reader.compare and not self.poem.startswith(self.view[:count], reader.got):
            self.end(reader, "wrong")
            return False
        reader.got += count
        if self.spec.pause:
            time.sleep(self.spec.pause)
        if self.hold_after == reader.got:
            self.epoll.unregister(reader.sock)
            self.held.append(reader)
            return False
        return self.spec.tls or count == room or reader.got >= len(self.poem)

    def end(self, reader: Reader, outcome: str) -> None:
        del self.readers[reader.sock.fileno()]
        reader.sock.close()
        self.bytes += reader.got
        self.outcomes[outcome] += 1

    def all_held(self) -> bool:
        return self.opened == self.spec.readers and not self.active()

    def go_on(self) -> None:
        print("holding", flush=True)
        sys.stdin.readline()
        self.hold_after = 0
        for reader in self.held:
            self.epoll.register(reader.sock, select.EPOLLIN)
            self.take(reader)
        self.held.clear()


def answer(spec: Spec) -> dict[str, Any]:
    """Run `spec` and give what came of it."""
    if spec.core is not None:
        os.sched_setaffinity(0, {spec.core})
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    gc.disable()
    load = Load(spec)
    print("ready", flush=True)
    sys.stdin.readline()
    wall, cpu = time.perf_counter(), time.process_time()
    load.run()
    return {
        "readers": spec.readers,
        **{outcome: load.outcomes[outcome] for outcome in OUTCOMES},
        "bytes": load.bytes,
        "seconds": max(load.last - wall, 0.0),
        "load_cpu": time.process_time() - cpu,
    }


if __name__ == "__main__":
    print(json.dumps(answer(Spec(**json.loads(sys.stdin.readline())))), flush=True)
