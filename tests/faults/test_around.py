"""What is around the promise must not stop the serving: logs, clocks, forks, files, descriptors."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest

from poetry import PoetryProtocol
from poetry.system.descriptors import LEAST
from tests.certificates import Certificates
from tests.conftest import PoemFile
from tests.ends import LONG, Server, ended_with_reset, listening, reader
from tests.faults.readers import PAUSES, Crowd, listens, poem, read_all, refuses
from tests.loop import until
from tests.processes import PATIENCE, SERVE, eventually, limit_descriptors, need, poetry, running

SHORT = 3_000


def text_in(descriptor: int) -> str:
    """All that is in a pipe now."""
    os.set_blocking(descriptor, False)
    parts = []
    with suppress(BlockingIOError):
        while part := os.read(descriptor, 1 << 20):
            parts.append(part)
    return b"".join(parts).decode()


@contextmanager
def serving(
    path: Path, options: Sequence[str | Path], *, stdout: int, stderr: int
) -> Iterator[subprocess.Popen[bytes]]:
    """A server on a Unix socket, with streams of ours; it is up."""
    command = [*SERVE, "-l", f"unix:{path}", *options]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr)
    try:
        assert eventually(lambda: listens(path) or process.poll() is not None)
        yield process
    finally:
        process.kill()
        process.wait(PATIENCE)


# Logs


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_unread_standard_error_does_not_stop_serving(
    poem_file: PoemFile, tmp_path: Path, log_format: str
) -> None:
    """All readers are served, TERM is heard, and lost lines are counted once there is room."""
    reading, writing = os.pipe()
    path = tmp_path / "socket"
    options = ["--log-format", log_format, str(poem_file(SHORT))]
    with serving(path, options, stdout=subprocess.DEVNULL, stderr=writing) as process:
        ends = read_all(f"unix:{path}", poem(SHORT), count=2000, at_once=50)
        assert ends == {"whole": 2000}
        lines = text_in(reading)
        assert 0 < lines.count("sent") < 2000

        def counted() -> bool:
            nonlocal lines
            lines += text_in(reading)
            return "log lines were lost" in lines

        assert eventually(counted)
        if log_format == "json":
            events = [json.loads(line) for line in lines.splitlines()]
            (lost,) = [event["count"] for event in events if event["event"] == "lines_lost"]
            assert lost + sum(event["event"] == "transfer" for event in events) == 2000
        read_all(f"unix:{path}", poem(SHORT), count=2000, at_once=50)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
    os.close(writing)
    os.close(reading)


def test_unread_standard_output_does_not_stop_serving(poem_file: PoemFile, tmp_path: Path) -> None:
    """A full pipe as standard output takes no announcement, and the poems are served."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writing, bytes(4096))
    os.set_blocking(writing, True)
    errors, complaints = os.pipe()
    path = tmp_path / "socket"
    with serving(path, [poem_file(SHORT)], stdout=writing, stderr=complaints) as process:
        assert read_all(f"unix:{path}", poem(SHORT), count=5) == {"whole": 5}
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
    assert "Error: standard output: nobody reads it\n" in text_in(errors)
    for descriptor in (reading, writing, errors, complaints):
        os.close(descriptor)


def test_stop_logs_the_count_of_a_flood(poem_file: PoemFile) -> None:
    """Where no event follows a flood, its count is logged all the same."""
    with (
        running([*SERVE, "--grace", "0", poem_file(10_000_000)]) as server,
        Crowd(server.addresses[0], poem(10_000_000), PAUSES, count=20) as crowd,
    ):
        crowd.run(until=crowd.begun)
        assert server.stop() == 0
        assert "10 more of transfer stopped were not logged" in server.stderr


# Clocks

JUMPS = """
import os, sys, time
real, flag, by = time.time, sys.argv.pop(1), float(sys.argv.pop(1))
time.time = lambda: real() + by * os.path.exists(flag)
from poetry.__main__ import main
main()
"""
"""`poetry` on a machine whose clock is set when a file is made."""


@pytest.mark.parametrize("by", [-3600, 3600], ids=["back", "ahead"])
def test_jump_of_the_clock_changes_no_timeout(poem_file: PoemFile, tmp_path: Path, by: int) -> None:
    """With the clock set back or ahead, idle readers are reset, and the grace is unchanged."""
    flag = tmp_path / "set"
    command = [sys.executable, "-c", JUMPS, str(flag), str(by), "serve", str(poem_file(10_000_000))]
    with (
        running([*command, "--idle-timeout", "1"]) as server,
        Crowd(server.addresses[0], poem(10_000_000), PAUSES, count=3) as crowd,
    ):
        crowd.run(until=crowd.begun)
        flag.touch()
        assert crowd.run() == {"reset": 3}
    flag.unlink()
    with (
        running([*command, "--grace", "2" if by < 0 else "1800"]) as server,
        Crowd(server.addresses[0], poem(10_000_000), PAUSES, count=3) as crowd,
    ):
        crowd.run(until=crowd.begun)
        server.signal(signal.SIGTERM)
        assert eventually(lambda: refuses(server.addresses[0]))
        flag.touch()
        if by > 0:  # an hour ahead must not use the grace up
            crowd.run(until=lambda: False, quiet=2)
            crowd.resume()
        assert crowd.run() == {"whole" if by > 0 else "reset": 3}
        assert server.wait() == 0


# Forks


def test_forked_child_does_not_delay_a_reset() -> None:
    """Readers are reset although a child of the process still has their connections."""
    server = Server(LONG)
    with listening(server) as port, reader(port) as connection:
        until(lambda: server.connections)
        (protocol,) = server.connections
        stay, go = os.pipe()
        child = os.fork()
        if not child:  # pragma: no cover (another process)
            os.close(go)
            os.read(stay, 1)
            os._exit(0)
        try:
            protocol.stop()
            assert ended_with_reset(connection)
        finally:
            os.close(go)
            os.close(stay)
            os.waitpid(child, 0)
    assert server.outcomes == ["stopped"]


# TLS


SLOWLY = ["--num-bytes", "500", "--delay", "0.1"]
"""Between two parts the kernel holds nothing, so that a FIN would arrive."""


@pytest.mark.parametrize("options", [[], SLOWLY], ids=["fast", "slow"])
def test_killed_tls_server_resets_tcp(
    poem_file: PoemFile, certificates: Certificates, options: list[str]
) -> None:
    """TCP ends in a reset too: some readers take a FIN without close_notify for the end."""
    command = [*SERVE, *options, "-l", certificates.listen("good"), str(poem_file(10_000_000))]
    for _ in range(5):
        with (
            running(command) as server,
            socket.create_connection(("127.0.0.1", server.port), PATIENCE) as sock,
            certificates.context().wrap_socket(sock, server_hostname="localhost") as tls,
        ):
            assert tls.recv(100)
            server.signal(signal.SIGKILL)
            server.wait()
            with socket.socket(fileno=os.dup(tls.fileno())) as tcp:
                assert ended_with_reset(tcp)


# A stop


HUNG_RELOAD = """
import threading
from poetry.serving import poems
def hang(*_):
    print("reads on ", flush=True)
    threading.Event().wait()
poems._read_again = hang
from poetry.__main__ import main
main()
"""
"""`poetry` on a machine whose network file system does not answer to a reload."""


def test_hanging_reload_does_not_stop_serving(poem_file: PoemFile) -> None:
    """Readers are served and TERM ends the server, although a file system does not answer."""
    command = [sys.executable, "-c", HUNG_RELOAD, "serve", str(poem_file(SHORT))]
    with running(command) as server:
        server.signal(signal.SIGHUP)
        server.await_listeners(2)  # it reads, and will for ever
        assert read_all(server.addresses[0], poem(SHORT), count=5) == {"whole": 5}
        assert server.stop() == 0


def test_unread_notifications_do_not_stop_serving(poem_file: PoemFile, tmp_path: Path) -> None:
    """A supervisor that does not read is logged; readers are served, HUP and TERM are heard."""
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
        supervisor.bind(str(path))
        with running([*SERVE, poem_file(SHORT)], env={"NOTIFY_SOCKET": str(path)}) as server:

            def failed() -> bool:
                server.signal(signal.SIGHUP)
                return "cannot notify" in server.stderr

            assert eventually(failed)
            assert read_all(server.addresses[0], poem(SHORT), count=5) == {"whole": 5}
            assert server.stop() == 0


LOADING = """
import os, sys
os.write(1, b"loads on \\n")
os.read(0, 1)
"""
"""A module that tells when it is imported, and waits."""


@pytest.mark.parametrize(("words", "code"), [(["serve"], 0), (["get", "1"], 130)])
@pytest.mark.parametrize("module", ["click", "twisted"])
def test_process_1_hears_term_while_loading(
    tmp_path: Path, module: str, words: list[str], code: int
) -> None:
    """A container's first process, which ignores signals by default, hears TERM."""
    unshare = need("unshare")
    (tmp_path / f"{module}.py").write_text(LOADING)
    command = [unshare, "--user", "--map-root-user", "--pid", "--fork", *SERVE[:-1], *words]
    with subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        if process.stdout.readline() != b"loads on \n":
            pytest.skip("no namespace can be made here")
        [first] = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(first), signal.SIGTERM)
        try:
            assert process.wait(PATIENCE) == code
        finally:
            if process.poll() is None:
                os.kill(int(first), signal.SIGKILL)
                process.wait(PATIENCE)
        assert process.stderr is not None
        assert process.stderr.read() == b""


# Descriptors


@pytest.mark.parametrize("descriptors", [5, 6, 8, 12, 23])
def test_hardly_any_descriptors(poem_file: PoemFile, descriptors: int) -> None:
    """With too low a limit, both commands fail in a line."""
    for words in (["serve", poem_file(SHORT)], ["get", "unix:/no/such/socket"]):
        result = poetry(*words, before=partial(limit_descriptors, descriptors, descriptors))
        assert (result.returncode, result.stdout) == (1, b"")
        assert result.stderr.startswith(b"Error: ")
        assert result.stderr.count(b"\n") == 1


def test_least_descriptors_serve(poem_file: PoemFile) -> None:
    """The least number of descriptors that a server accepts is enough to serve."""
    with running([*SERVE, poem_file(10_000_000)], descriptors=LEAST) as server:
        assert read_all(server.addresses[0], poem(10_000_000), count=20) == {"whole": 20}
        server.signal(signal.SIGHUP)
        assert eventually(lambda: "read the poems again" in server.stderr)
        assert "Traceback" not in server.stderr


# Programs of one's own


def test_error_in_connectionMade_resets() -> None:
    """A mistake in a subclass's `connectionMade` ends in a reset, under a bare factory too."""

    class Mistaken(PoetryProtocol):
        def connectionMade(self) -> None:
            raise RuntimeError("a mistake")

    server = Server(b"poem")
    server.protocol = Mistaken
    with listening(server) as port, reader(port) as connection:
        assert ended_with_reset(connection)
    assert not server.connections
