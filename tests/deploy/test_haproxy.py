"""The real HAProxy, with deploy/haproxy.cfg, in front of servers on loopback."""

from __future__ import annotations

import re
import signal
import socket
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.certificates import Certificates
from tests.conftest import PoemFile
from tests.deploy.tools import DEPLOY, replaced, samples, tool
from tests.faults.bad import closed_port
from tests.faults.readers import PAUSES, Crowd, Habit, poem, read_all
from tests.processes import POETRY, Server, eventually, need, poetry, run, running

LONG = 10_000_000
MIDDLE = 1_000_000
CONFIG = DEPLOY / "haproxy.cfg"

CHECKS = {
    "metrics": {},
    "plain": {"option httpchk GET /metrics": "", **{f" port 910{n}": "" for n in (1, 2, 3)}},
}
"""The check as it is, and HAProxy's plain one, which only connects."""


@dataclass
class Balanced:
    """HAProxy at `address`, its log, and the servers behind it."""

    address: str
    log: Path
    servers: Sequence[Server]

    def says(self, text: str) -> bool:
        return re.search(text, self.log.read_text(encoding="utf-8")) is not None


@contextmanager
def balanced(
    directory: Path,
    path: Path,
    *options: str,
    count: int = 3,
    changes: dict[str, str] | None = None,
) -> Iterator[Balanced]:
    """Run HAProxy with its file in front of `count` servers; the others in the file are down."""
    haproxy = need("haproxy")
    with ExitStack() as stack:
        command = [*POETRY, "serve", "--metrics", "0", "--log-format", "json", *options, str(path)]
        servers = [stack.enter_context(running(command, listeners=2)) for _ in range(count)]
        closed = stack.enter_context(closed_port())
        front = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=4096))
        text = replaced(CONFIG.read_text(encoding="utf-8"), changes or {})
        ports: dict[str, object] = {
            "127.0.0.1:10000": f"fd@{front.fileno()}",
            "inter 1s": "inter 200",
        }
        for number in range(3):
            up = number < count
            ports[f"127.0.0.1:1000{number + 1}"] = (
                f"127.0.0.1:{servers[number].port if up else closed}"
            )
            if f"port 910{number + 1}" in text:
                metrics = servers[number].addresses[1].rpartition(":")[2] if up else closed
                ports[f"port 910{number + 1}"] = f"port {metrics}"
        config, log = directory / "haproxy.cfg", directory / "haproxy.log"
        config.write_text(replaced(text, ports), encoding="utf-8")
        stack.enter_context(tool([haproxy, "-db", "-f", config], log, pass_fds=[front.fileno()]))
        yield Balanced(f"127.0.0.1:{front.getsockname()[1]}", log, servers)


def test_configuration_is_valid() -> None:
    """HAProxy accepts the file without a warning."""
    command = [need("haproxy"), "-c", "-dW", "-f", str(CONFIG)]
    done = run(command)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(
    "habit",
    [
        Habit(),
        Habit(says=b"GET / HTTP/1.0\r\n\r\n"),
        # Of those that end at once and say nothing, HAProxy cuts off some before it has a server.
        Habit(says=b"\n", half_closes=True),
        Habit(at_a_time=4096, receive_buffer=4096),
    ],
    ids=["plain", "speaks first", "half-closes first", "slow"],
)
def test_readers_through_haproxy_are_whole(
    poem_file: PoemFile, tmp_path: Path, habit: Habit
) -> None:
    """Readers have the poem whole, whatever they say, and each server takes a part of them."""
    with balanced(tmp_path, poem_file(MIDDLE)) as proxy:
        assert read_all(proxy.address, poem(MIDDLE), habit, count=60, at_once=20) == {"whole": 60}
        assert all(server.stop() == 0 for server in proxy.servers)
        shares = [len(server.logged("transfer")) for server in proxy.servers]
        assert sum(shares) == 60
        assert min(shares) > 0


def test_stop_of_one_server_truncates_no_reader(poem_file: PoemFile, tmp_path: Path) -> None:
    """One server is stopped by TERM under load: every reader has the poem whole, or nothing.

    Nothing, which is no poem, is what those few get whom HAProxy connects as the listener closes.
    """
    with (
        balanced(tmp_path, poem_file(MIDDLE)) as proxy,
        Crowd(proxy.address, poem(MIDDLE), count=600, at_once=40) as crowd,
    ):
        crowd.run(until=lambda: crowd.ends["whole"] >= 100)
        proxy.servers[0].signal(signal.SIGTERM)
        crowd.run()
        assert proxy.servers[0].wait() == 0
        assert eventually(lambda: proxy.says("Server poems/a is DOWN"))
    ends = Counter((reader.end, reader.received) for reader in crowd.ended)
    nothing = ends.pop(("empty", 0), 0)
    assert nothing <= 40
    assert ends == {("whole", MIDDLE): 600 - nothing}


@pytest.mark.parametrize("check", CHECKS)
def test_checks_count_as_no_reader(poem_file: PoemFile, tmp_path: Path, check: str) -> None:
    """Checks find a dead server and one that is back, and no server counts or logs a reader."""
    with balanced(tmp_path, poem_file(MIDDLE), count=2, changes=CHECKS[check]) as proxy:
        assert eventually(lambda: proxy.says("Server poems/c is DOWN"))
        proxy.servers[0].signal(signal.SIGSTOP)
        stopped = check == "plain" or eventually(lambda: proxy.says("Server poems/a is DOWN"))
        proxy.servers[0].signal(signal.SIGCONT)
        assert stopped
        assert check == "plain" or eventually(lambda: proxy.says("Server poems/a is UP"))
        for server in proxy.servers:
            counted = samples(server.addresses[1]).items()
            assert sum(value for name, value in counted if "poems_total" in name) == 0
            assert [event["event"] for event in server.logged()] == ["started"]


@pytest.mark.evidence
def test_killed_server_is_hidden_from_plain_readers(poem_file: PoemFile, tmp_path: Path) -> None:
    """HAProxy hides a killed server from readers of plain TCP: what docs/operating.md warns of."""
    with (
        balanced(tmp_path, poem_file(LONG), count=1) as proxy,
        Crowd(proxy.address, poem(LONG), PAUSES, count=20) as crowd,
    ):
        crowd.run(until=crowd.begun)
        proxy.servers[0].signal(signal.SIGKILL)
        proxy.servers[0].wait()
        crowd.resume()
        ends = crowd.run()
        assert ends["empty"] + ends["truncated"] == 20


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_killed_server_is_known_to_tls_readers(
    poem_file: PoemFile, tmp_path: Path, certificates: Certificates, number: int
) -> None:
    """Readers of TLS know through HAProxy that the server was killed, or its grace is over."""
    options = ["--grace", "0", "--listen", certificates.listen("good")]
    with (
        balanced(tmp_path, poem_file(LONG), *options, count=1) as proxy,
        Crowd(proxy.address, poem(LONG), PAUSES, count=20, context=certificates.context()) as crowd,
    ):
        crowd.run(until=crowd.begun)
        proxy.servers[0].signal(number)
        proxy.servers[0].wait()
        crowd.resume()
        assert crowd.run() == {"reset": 20}


def test_later_readers_are_served_by_the_others(poem_file: PoemFile, tmp_path: Path) -> None:
    """With one of three servers killed, later readers are all served by the others."""
    with balanced(tmp_path, poem_file(MIDDLE)) as proxy:
        proxy.servers[1].signal(signal.SIGKILL)
        proxy.servers[1].wait()
        assert read_all(proxy.address, poem(MIDDLE), count=60, at_once=20) == {"whole": 60}


def test_proxy_protocol_refused(poem_file: PoemFile) -> None:
    """A listener for the PROXY protocol is refused, in a line that says what to do."""
    done = poetry("serve", "--listen", "haproxy:tcp:0:interface=127.0.0.1", poem_file(MIDDLE))
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"without send-proxy" in done.stderr
    assert done.stderr.count(b"\n") == 1
