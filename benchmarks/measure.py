"""Processes measured: start one on its own core, read what it has used, end it by its id."""

from __future__ import annotations

import ctypes
import json
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import IO, Any

from benchmarks.load import Spec

Json = dict[str, Any]

CORES = sorted(os.sched_getaffinity(0))
SERVER_CORE = CORES[0] if len(CORES) > 1 else None
LOAD_CORE = CORES[1] if len(CORES) > 1 else None
DESCRIPTORS = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
ALPHABET = b"abcdefghijklmnopqrstuvwxyz     \n"
STARTING = 20.0
"""Seconds that a server may take to listen."""


def write_poem(directory: Path, size: int) -> Path:
    """Make a poem of `size` bytes: letters and line ends, without a period a chunk could hide."""
    path = directory / f"poem-{size}.txt"
    if not path.exists():
        letters = bytes(random.Random(865).choices(ALPHABET, k=1_000_003))
        with path.open("wb") as file:
            for start in range(0, size, len(letters)):
                file.write(letters[: size - start])
    return path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def listening(port: int) -> bool:
    """Whether a server listens on `port`, found without a connection to be served."""
    wanted = f":{port:04X} 00000000:0000 0A "
    return wanted in Path("/proc/net/tcp").read_text(encoding="ascii")


def stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the third on: state, parent..."""
    return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()


def tree(root: int) -> list[int]:
    """`root` and every process below it."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            children.setdefault(int(stat(int(entry.name))[1]), []).append(int(entry.name))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found


def cpu(root: int) -> float:
    """CPU seconds used by `root`, by the processes below it, and by those it has waited for."""
    total = 0.0
    for pid in tree(root):
        with suppress(OSError):
            for task in Path(f"/proc/{pid}/task").iterdir():
                total += int((task / "schedstat").read_text(encoding="ascii").split()[0]) / 1e9
            fields = stat(pid)
            total += (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")
    return total


def files_in_memory(pid: int) -> int:
    """Bytes that `pid` has in files in memory, which count for no process (memfd_create(2))."""
    total = 0
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            if str(descriptor.readlink()).startswith("/memfd:"):
                total += descriptor.stat().st_blocks * 512
    return total


def memory(root: int) -> int:
    """Bytes of memory of the whole tree, shared pages divided among those who share them."""
    total = 0
    for pid in tree(root):
        with suppress(OSError):
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
            total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024
            total += files_in_memory(pid)
    return total


def available_memory() -> int:
    """Bytes that the machine has left for all; what its kernel buffers is missing there."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


def peak(pid: int) -> int:
    """The most memory that `pid` has had so far, in bytes; 0 when it is gone."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 + files_in_memory(pid)
    return 0


class Served:
    """A server process that listens on `port`."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.process = process
        self.port = port
        self.pid = process.pid

    def cpu(self) -> float:
        """CPU seconds so far, once it has nothing left to do."""
        before = cpu(self.pid)
        for _ in range(100):
            time.sleep(0.02)
            now = cpu(self.pid)
            if now - before < 0.0005:
                break
            before = now
        return now

    def memory(self) -> int:
        """Bytes of memory, once they no longer change."""
        before = memory(self.pid)
        for _ in range(100):
            time.sleep(0.05)
            now = memory(self.pid)
            if abs(now - before) < 65536:
                break
            before = now
        return now

    def signal(self, number: int) -> None:
        """Send `number` to every process of the server, as a service manager does."""
        for pid in tree(self.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, number)


@contextmanager
def started(
    command: Sequence[str | Path], port: int, descriptors: int | None = None
) -> Iterator[Served]:
    """Run a server until the block ends; it listens on `port` by then."""

    def prepare() -> None:
        if SERVER_CORE is not None:
            os.sched_setaffinity(0, {SERVER_CORE})
        limit = min(descriptors or DESCRIPTORS, DESCRIPTORS)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))

    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            preexec_fn=prepare,
        )
        served = Served(process, port)
        try:
            for _ in range(int(STARTING / 0.002)):
                if listening(port) or process.poll() is not None:
                    break
                time.sleep(0.002)
            if process.poll() is not None or not listening(port):
                errors.seek(0)
                raise RuntimeError(f"{command[0]} does not listen: {errors.read()[-2000:]!r}")
            yield served
        finally:
            served.signal(signal.SIGKILL)
            process.wait(STARTING)


class Load:
    """The load process, from the parent's side."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def line(self) -> str:
        """Read its next line."""
        line = pipe(self.process.stdout).readline()
        if not line:
            raise RuntimeError("the load generator failed")
        return line.strip()

    def go(self) -> None:
        """Let it begin, or go on after it was "holding"."""
        pipe(self.process.stdin).write("\n")
        pipe(self.process.stdin).flush()

    def until(self, line: str) -> None:
        said = self.line()
        if said != line:
            raise RuntimeError(f"the load generator said {said!r} instead of {line!r}")

    def result(self) -> Json:
        answer: Json = json.loads(self.line())
        return answer


def pipe(end: IO[str] | None) -> IO[str]:
    assert end is not None
    return end


@contextmanager
def loading(spec: Spec) -> Iterator[Load]:
    """Start the load process; it is ready, and waits for `go`."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.load"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        pipe(process.stdin).write(replace(spec, core=LOAD_CORE).line())
        pipe(process.stdin).flush()
        load = Load(process)
        load.until("ready")
        yield load
    finally:
        process.kill()
        process.wait()
        pipe(process.stdin).close()
        pipe(process.stdout).close()


def measured(server: Served, spec: Spec) -> Json:
    """Run `spec` against `server`: what the load says, and the server's CPU seconds."""
    with loading(spec) as load:
        before = server.cpu()
        load.go()
        result = load.result()
        result["server_cpu"] = server.cpu() - before
    return result


NEW_NETWORK = 0x40000000
"""CLONE_NEWNET of unshare(2)."""


def with_congestion(congestion: str, measure: Callable[[], Json]) -> Json:
    """Measure in a network with this congestion control (Linux, as root)."""

    def in_network() -> None:
        if ctypes.CDLL(None, use_errno=True).unshare(NEW_NETWORK):
            raise OSError(ctypes.get_errno(), "unshare")
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        # a namespace may not choose every default, but each of its routes has one (ip-route(8))
        for where in ("127.0.0.0/8", "127.0.0.1"):
            route = f"ip route replace local {where} dev lo proto kernel scope host table local"
            control = f"src 127.0.0.1 congctl {congestion}"
            subprocess.run([*route.split(), *control.split()], check=True)
        theirs.send(measure())

    fork = get_context("fork")
    ours, theirs = fork.Pipe(duplex=False)
    with ours:
        process = fork.Process(target=in_network)
        process.start()
        theirs.close()
        result: Json = ours.recv()
        process.join()
    return result
