"""A certificate that is renewed while readers are in flight."""

from __future__ import annotations

import shutil
import signal
import socket
from pathlib import Path

from tests.certificates import Certificates
from tests.conftest import PoemFile
from tests.deploy.tools import samples
from tests.faults.readers import PAUSES, Crowd, poem, read_all
from tests.processes import PATIENCE, POETRY, eventually, running

LONG = 10_000_000


def shown(port: int, certificates: Certificates) -> bytes | None:
    """The certificate that a server shows to a new reader."""
    context = certificates.context()
    context.check_hostname = False
    with (
        socket.create_connection(("127.0.0.1", port), PATIENCE) as sock,
        context.wrap_socket(sock) as tls,
    ):
        return tls.getpeercert(binary_form=True)


def test_hup_renews_the_certificate(
    poem_file: PoemFile, certificates: Certificates, tmp_path: Path
) -> None:
    """HUP reads the certificate again: readers in flight are whole, new ones see the new one.

    One that cannot be used leaves the old, and is an error that names its listener.
    """
    path = tmp_path / "server.pem"
    shutil.copy(certificates.path("good"), path)
    listen = f"ssl:0:interface=127.0.0.1:privateKey={path}"
    command = [*POETRY, "serve", "--log-format", "json", "--metrics", "0", "--listen", listen]
    with running([*command, poem_file(LONG)], listeners=2) as server:
        address, context = f"127.0.0.1:{server.port}", certificates.context()
        with Crowd(address, poem(LONG), PAUSES, count=5, context=context) as crowd:
            crowd.run(until=crowd.begun)
            first = shown(server.port, certificates)
            shutil.copy(certificates.path("misnamed"), path)
            server.signal(signal.SIGHUP)
            assert eventually(lambda: bool(server.logged("renewed")))
            second = shown(server.port, certificates)
            assert second != first
            crowd.resume()
            assert crowd.run() == {"whole": 5}

        path.write_bytes(b"none")
        server.signal(signal.SIGHUP)
        assert eventually(lambda: bool(server.logged("renewal_failed")))
        [event] = server.logged("renewal_failed")
        assert (event["level"], event["listener"]) == ("error", server.addresses[0])
        assert "OpenSSL refuses its key or certificate" in event["reason"]
        assert eventually(lambda: samples(server.addresses[1])["poetry_last_reload_success"] == 0)
        assert shown(server.port, certificates) == second

        shutil.copy(certificates.path("good"), path)
        server.signal(signal.SIGHUP)
        assert eventually(lambda: len(server.logged("renewed")) == 2)
        assert shown(server.port, certificates) == first
        assert eventually(lambda: samples(server.addresses[1])["poetry_last_reload_success"] == 1)
        assert read_all(address, poem(LONG), context=context) == {"whole": 1}
        assert server.stop() == 0
