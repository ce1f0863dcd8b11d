"""Who is measured: one table, from a name to the command that serves a poem."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.measure import Served, free_port, started

PROGRAMS = Path(__file__).with_name("programs")
THIS = "twisted-poetry"
TUTORIAL = "tutorial"


@dataclass(frozen=True)
class Setup:
    """What a server is to serve, and where; `tls` is the certificate and its key."""

    port: int
    poem: Path
    directory: Path
    tls: tuple[Path, Path] | None = None


Command = Callable[[Setup], list[str]]


def this_server(*options: str) -> Command:
    """`poetry serve`; without options it logs no transfers, as its peers do."""

    def command(setup: Setup) -> list[str]:
        where = ["--port", str(setup.port)]
        if setup.tls:
            certificate, key = setup.tls
            where = ["--listen", f"ssl:{setup.port}:certKey={certificate}:privateKey={key}"]
            where[1] += ":interface=127.0.0.1"
        words = options or ("--log-level", "warn")
        return [sys.executable, "-m", "poetry", "serve", *words, *where, str(setup.poem)]

    return command


def sharing(count: int) -> Command:
    """So many of this server on one socket."""

    def command(setup: Setup) -> list[str]:
        serve = [sys.executable, "-m", "poetry", "serve", "--log-level", "warn"]
        serve += ["--listen", "systemd:domain=INET:index=0", str(setup.poem)]
        return [sys.executable, str(PROGRAMS / "sharing.py"), str(count), str(setup.port), *serve]

    return command


def program(name: str, *first: str) -> Command:
    def command(setup: Setup) -> list[str]:
        last = map(str, [setup.port, setup.poem, *(setup.tls or ())])
        return [sys.executable, str(PROGRAMS / name), *first, *last]

    return command


def socat(setup: Setup) -> list[str]:
    listen = f"TCP-LISTEN:{setup.port},bind=127.0.0.1,reuseaddr,fork"
    if setup.tls:
        certificate, key = setup.tls
        listen = listen.replace("TCP", "OPENSSL") + f",cert={certificate},key={key},verify=0"
    return ["socat", "-U", listen, f"OPEN:{setup.poem},rdonly"]


def ncat(setup: Setup) -> list[str]:
    where = ["-l", "-k", "127.0.0.1", str(setup.port)]
    if setup.tls:
        certificate, key = setup.tls
        where += ["--ssl-cert", str(certificate), "--ssl-key", str(key)]
    return ["ncat", *where, "-e", f"/bin/cat {setup.poem}"]


MODULES = (
    "/usr/lib/nginx/modules/ngx_stream_module.so",
    "/usr/lib64/nginx/modules/ngx_stream_module.so",
)


def nginx(setup: Setup, more: str = "") -> list[str]:
    """One process, so that it is compared with the others' one; the poem stands in the file.

    @param more: for its `stream`; {directory} is filled in.
    """
    module = next((path for path in MODULES if Path(path).exists()), None)
    tls = ""
    if setup.tls:
        tls = "ssl_certificate {}; ssl_certificate_key {};".format(*setup.tls)
    text = setup.poem.read_text(encoding="utf-8")
    for special in ("\\", '"'):
        text = text.replace(special, "\\" + special)
    configuration = setup.directory / f"nginx-{setup.port}.conf"
    configuration.write_text(
        f"""{f"load_module {module};" if module else ""}
        daemon off; master_process off; pid {configuration}.pid; error_log stderr crit;
        events {{ worker_connections 16384; }}
        stream {{ {more.format(directory=setup.directory)} server {{
            listen 127.0.0.1:{setup.port}{" ssl" if tls else ""}; {tls}
            return "{text}";
        }} }}""",
        encoding="utf-8",
    )
    return ["nginx", "-p", str(setup.directory), "-c", str(configuration), "-e", "stderr"]


def missing_tool(name: str) -> str | None:
    """None where `name` is a module or a command of this machine, or else a sentence."""
    found = shutil.which(name) or importlib.util.find_spec(name)
    return None if found else f"{name} is not installed"


@dataclass(frozen=True)
class Peer:
    """One server: what it needs to run, how to run it, and how much can be asked of it."""

    name: str
    needs: str
    command: Command
    largest: int = 1_000_000_000
    """The longest poem it can serve, in bytes."""
    forks: bool = False
    """A process a reader, and few in its queue: thousands would measure the machine."""
    tls: bool = True

    @property
    def together(self) -> int:
        """How many readers come at once where it is the cost that is measured."""
        return 4 if self.forks else 32

    def missing(self) -> str | None:
        """What it needs and is not installed, or None."""
        return missing_tool(self.needs)


PEERS = (
    Peer(THIS, "poetry", this_server()),
    Peer(TUTORIAL, "twisted", program("tutorial_server.py")),
    Peer("asyncio", "asyncio", program("asyncio_server.py", "asyncio")),
    Peer("uvloop", "uvloop", program("asyncio_server.py", "uvloop")),
    Peer("socat", "socat", socat, forks=True),
    Peer("ncat", "ncat", ncat, forks=True),
    Peer("nginx", "nginx", nginx, largest=3_000),
    Peer("QOTD", "twisted", program("qotd_server.py"), tls=False),
)

NAMED = {peer.name: peer for peer in PEERS}

LIBRARY = (
    NAMED[THIS],
    Peer(f"{THIS}, bare factory", "poetry", program("library_server.py", "bare"), tls=False),
    Peer(f"{THIS}, subclass", "poetry", program("library_server.py", "subclass"), tls=False),
    NAMED[TUTORIAL],
    Peer(f"{TUTORIAL}, with the promise", "twisted", program("promise_server.py"), tls=False),
)

ACCESS_LOG = (
    "log_format a '$time_iso8601 $remote_addr $remote_port $status $bytes_sent $session_time';"
    " access_log {directory}/access.log a;"
)

LOGGING = (
    NAMED[THIS],
    Peer(f"{THIS}, text", "poetry", this_server("--log-format", "text")),
    Peer(f"{THIS}, JSON", "poetry", this_server("--log-format", "json")),
    NAMED["asyncio"],
    Peer("asyncio, logging", "asyncio", program("asyncio_server.py", "asyncio-log")),
    NAMED["uvloop"],
    Peer("uvloop, logging", "uvloop", program("asyncio_server.py", "uvloop-log")),
    NAMED["nginx"],
    Peer("nginx, access_log", "nginx", partial(nginx, more=ACCESS_LOG), largest=3_000),
)

SHARING = (NAMED[THIS], Peer(f"{THIS}, two processes", "poetry", sharing(2), tls=False))


@contextmanager
def serving(
    peer: Peer,
    poem: Path,
    *,
    tls: tuple[Path, Path] | None = None,
    descriptors: int | None = None,
) -> Iterator[Served]:
    """Run `peer` until the block ends."""
    setup = Setup(free_port(), poem, poem.parent, tls)
    with started(peer.command(setup), setup.port, descriptors) as served:
        yield served
