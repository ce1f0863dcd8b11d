"""Who is measured: one table, from a name to the command that serves a poem."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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


def this_server(setup: Setup) -> list[str]:
    where = ["--port", str(setup.port)]
    if setup.tls:
        certificate, key = setup.tls
        endpoint = f"ssl:{setup.port}:certKey={certificate}:privateKey={key}:interface=127.0.0.1"
        where = ["--listen", endpoint]
    poem = str(setup.poem)
    return [sys.executable, "-m", "poetry", "serve", "--log-level", "warn", *where, poem]


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


def nginx(setup: Setup) -> list[str]:
    """One process, so that it is compared with the others' one; the poem stands in the file."""
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
        stream {{ server {{
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
    Peer(THIS, "poetry", this_server),
    Peer(TUTORIAL, "twisted", program("tutorial_server.py")),
    Peer("asyncio", "asyncio", program("asyncio_server.py", "asyncio")),
    Peer("uvloop", "uvloop", program("asyncio_server.py", "uvloop")),
    Peer("socat", "socat", socat, forks=True),
    Peer("ncat", "ncat", ncat, forks=True),
    Peer("nginx", "nginx", nginx, largest=3_000),
    Peer("QOTD", "twisted", program("qotd_server.py"), tls=False),
)


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
