"""What a server needs while it serves is loaded before: later it may not be able to."""

from __future__ import annotations

import signal
import sys
from urllib.request import urlopen

import pytest

from tests.certificates import Certificates
from tests.conftest import PoemFile
from tests.faults.readers import PAUSES, PLAIN, SPEAKS, Crowd, poem, read_all
from tests.processes import eventually, running

SHORT, LONG = 3_000, 10_000_000

LOADS_NO_MORE = """
import sys
from twisted.internet import reactor
from poetry.cli import main

class Refuse:
    def find_spec(self, name, *_):
        print("asked for", name, file=sys.stderr, flush=True)
        raise ImportError(name)

reactor.callWhenRunning(reactor.callLater, 0, sys.meta_path.insert, 0, Refuse())
main()
"""


def test_nothing_is_loaded_while_it_serves(certificates: Certificates, poem_file: PoemFile) -> None:
    """In another root (--chroot) or as another user (--uid) nothing can be imported."""
    pytest.importorskip("prometheus_client", reason="needs twisted-poetry[metrics]")
    options = ["-l", "0", "-l", certificates.listen("good"), "--metrics", "0", "--grace", "0.1"]
    for size in (SHORT, LONG):
        program = [sys.executable, "-c", LOADS_NO_MORE]
        with running([*program, "serve", *options, poem_file(size)], listeners=3) as server:
            plain, secure, metrics = server.addresses
            for address in (plain, secure):
                context = certificates.context() if address is secure else None
                for habit in (PLAIN, SPEAKS):
                    counts = read_all(address, poem(size), habit, context=context)
                    assert counts == {"whole": 1}
            for habit in (SPEAKS, SPEAKS._replace(half_closes=True)):  # which is no TLS
                read_all(secure.removeprefix("tls:"), poem(size), habit)
            with urlopen(f"http://{metrics}/metrics", timeout=20) as response:
                assert b"poetry_" in response.read()
            server.signal(signal.SIGHUP)
            assert eventually(lambda: " again" in server.stderr)
            with Crowd(plain, poem(size), PAUSES, count=2) as crowd:
                crowd.run(until=lambda: all(crowd.received))
                assert server.stop() == 0
            assert "asked for" not in server.stderr
