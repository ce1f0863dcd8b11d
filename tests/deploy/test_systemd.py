"""The units, and what they rely on: passed sockets, shared ones too, and notifications."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from benchmarks.measure import free_port
from tests.conftest import PoemFile
from tests.deploy.tools import DEPLOY, replaced
from tests.faults.readers import PAUSES, Crowd, poem, read_all
from tests.processes import (
    PATIENCE,
    POETRY,
    Server,
    eventually,
    listening_port,
    need,
    passed_in,
    run,
    running,
)

LONG = 10_000_000
SHORT = 100_000
UNITS = ("poetry.socket", "poetry.service", "poetry@.service")
INSTALLED = "/opt/twisted-poetry/bin/poetry"


@contextmanager
def sharing(path: Path, count: int, *options: str) -> Iterator[tuple[str, list[Server]]]:
    """Run `count` servers on one socket; give its address and the servers."""
    with socket.create_server(("127.0.0.1", 0), backlog=4096) as given, ExitStack() as stack:
        serve = passed_in(f"socket.socket(fileno={given.fileno()})", *POETRY, "serve")
        listen = ["--listen", "systemd:domain=INET:index=0", "--log-format", "json"]
        command = [*serve, *listen, *options, str(path)]
        servers = [
            stack.enter_context(running(command, pass_fds=[given.fileno()])) for _ in range(count)
        ]
        yield f"127.0.0.1:{given.getsockname()[1]}", servers


def directives(unit: str) -> list[str]:
    """The directives of a unit, without comments."""
    lines = (DEPLOY / unit).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def command_of(unit: str) -> list[str]:
    """The words of a unit's ExecStart."""
    [line] = [line for line in directives(unit) if line.startswith("ExecStart=")]
    return shlex.split(line.removeprefix("ExecStart="))


@pytest.fixture
def installed(tmp_path: Path) -> list[Path]:
    """The units, with a command that this machine has."""
    paths = [Path(shutil.copy(DEPLOY / unit, tmp_path)) for unit in UNITS]
    for path in paths[1:]:
        text = path.read_text(encoding="utf-8")
        path.write_text(replaced(text, {INSTALLED: f"{sys.executable} -m poetry"}))
    return paths


def test_units_are_valid(installed: list[Path]) -> None:
    """`systemd-analyze verify` has no complaint about the units."""
    command = [need("systemd-analyze"), "verify", "--man=no", *map(str, installed)]
    done = run(command)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_units_are_sandboxed(installed: list[Path]) -> None:
    """`systemd-analyze security` rates the services as well as docs/operating.md says (1.2)."""
    for path in installed[1:]:
        limits = ["--offline=true", "--threshold=12"]
        command = [need("systemd-analyze"), "--no-pager", "security", *limits, str(path)]
        done = run(command)
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("service", ["poetry.service", "poetry@9101.service"])
def test_service_is_enabled_with_its_socket(tmp_path: Path, service: str) -> None:
    """Enabling a service enables its socket too, which starts before it."""
    units = tmp_path / "etc" / "systemd" / "system"
    units.mkdir(parents=True)
    for unit in UNITS:
        shutil.copy(DEPLOY / unit, units)
    command = [need("systemctl"), f"--root={tmp_path}", "enable", service]
    done = run(command)
    assert done.returncode == 0, done.stderr
    wanted = {path.name for path in units.glob("*.wants/*")}
    assert wanted == {service, "poetry.socket"}
    assert {"Requires=poetry.socket", "After=poetry.socket"} <= set(directives("poetry.service"))


def test_two_services_differ_in_name_and_metrics() -> None:
    """The two services differ in the socket's name and the metrics, and share it unblocking."""
    one, several = directives("poetry.service"), directives("poetry@.service")
    differing = {line.partition("=")[0] for line in set(one) ^ set(several)}
    assert differing == {"Description", "ExecStart", "Sockets"}
    assert [word.replace("%i", "9101") for word in command_of("poetry@.service")] == command_of(
        "poetry.service"
    )
    assert "NonBlocking=yes" in one


def test_stop_timeout_outlasts_the_grace() -> None:
    """systemd waits longer than the server's own grace before it kills."""
    command = command_of("poetry.service")
    [timeout] = [line for line in directives("poetry.service") if line.startswith("TimeoutStop")]
    assert int(timeout.partition("=")[2]) > float(command[command.index("--grace") + 1])


@contextmanager
def activated(*command: str) -> Iterator[tuple[Server, str]]:
    """Have systemd-socket-activate, which takes no port 0, hold an address for the command."""
    for _ in range(5):  # the port may be taken meanwhile
        address = f"127.0.0.1:{free_port()}"
        # Twisted looks for names, which systemd always gives.
        activate = [need("systemd-socket-activate"), "--fdname", "poetry.socket", "-l", address]
        with running([*activate, *command], listeners=0) as server:
            assert eventually(lambda: bool(listening_port(server.pid) or server.process.poll()))
            if server.process.poll() is None:
                yield server, address
                return
    pytest.fail(f"it does not listen: {server.stderr}")


def test_first_reader_starts_the_service(poem_file: PoemFile) -> None:
    """The first reader starts the service's own command, and all readers are served."""
    poem_path = str(poem_file(LONG))
    changes = {INSTALLED: shlex.join(POETRY), ":9101": ":0", "/etc/poetry/poem.txt": poem_path}
    command = shlex.split(replaced(shlex.join(command_of("poetry.service")), changes))
    with activated(*command) as (server, address):
        ends = read_all(address, poem(LONG), count=20)
        assert ends == {"whole": 20}
        assert server.stop() == 0


def test_two_servers_share_a_socket(poem_file: PoemFile) -> None:
    """Two servers on one socket both take a part of the readers, and all are served."""
    with sharing(poem_file(SHORT), 2) as (address, servers):
        assert read_all(address, poem(SHORT), count=400, at_once=20) == {"whole": 400}
        assert all(server.stop() == 0 for server in servers)
        shares = [len(server.logged("transfer")) for server in servers]
        assert sum(shares) == 400
        assert min(shares) > 0


@pytest.mark.parametrize(
    ("number", "ends"),
    [(signal.SIGKILL, {"reset": 10, "whole": 30}), (signal.SIGTERM, {"whole": 40})],
)
def test_one_of_two_servers_ends(poem_file: PoemFile, number: int, ends: dict[str, int]) -> None:
    """One of two ends with readers waiting in the queue, and the other serves them all."""
    with sharing(poem_file(LONG), 2, "--max-connections", "10") as (address, servers):
        with Crowd(address, poem(LONG), PAUSES, count=40) as crowd:
            crowd.run(until=lambda: sum(map(bool, crowd.received)) == 20)
            assert sum(map(bool, crowd.received)) == 20
            servers[0].signal(number)
            crowd.resume()
            assert crowd.run() == ends
        servers[0].wait()
        assert servers[1].stop() == 0


def test_documented_program_shares_a_socket(tmp_path: Path) -> None:
    """The program in docs/operating.md lets two servers share a socket, and ends when they end."""
    page = (DEPLOY.parent / "docs" / "operating.md").read_text(encoding="utf-8")
    [program] = re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    program = replaced(program, {"10000": 0, "(9101, 9102)": "(0, 0)"})
    (tmp_path / "poem.txt").write_bytes(poem(SHORT))
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    command = [sys.executable, "-c", program]
    with running(command, listeners=4, cwd=tmp_path, env={"PATH": path}) as parent:
        children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
        try:
            addresses = {line.split()[-1] for line in parent.lines if "poem.txt" in line}
            [address] = addresses
            assert read_all(address, poem(SHORT), count=100, at_once=10) == {"whole": 100}
            os.kill(int(children[0]), signal.SIGTERM)
            assert read_all(address, poem(SHORT), count=100, at_once=10) == {"whole": 100}
        finally:
            os.kill(int(children[1]), signal.SIGTERM)
        assert parent.wait() == 0


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_is_notified(poem_file: PoemFile, tmp_path: Path, abstract: bool) -> None:
    """systemd learns that the server is ready, reloading (since when) and stopping."""
    name = f"poetry-test-{os.getpid()}" if abstract else os.path.relpath(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(f"\0{name}" if abstract else name)
        listener.settimeout(PATIENCE)
        address = f"@{name}" if abstract else str(Path(name).absolute())
        began = time.monotonic_ns() // 1000
        with running(
            [*POETRY, "serve", poem_file(SHORT)], env={"NOTIFY_SOCKET": address}
        ) as server:
            assert listener.recv(1024) == b"READY=1"
            server.signal(signal.SIGHUP)
            reloading = listener.recv(1024).decode()
            assert listener.recv(1024) == b"READY=1"
            assert (found := re.fullmatch(r"RELOADING=1\nMONOTONIC_USEC=(\d+)\n?", reloading))
            assert began <= int(found[1]) <= time.monotonic_ns() // 1000
            assert server.stop() == 0
            assert listener.recv(1024) == b"STOPPING=1"
