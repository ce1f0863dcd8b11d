"""The tutorial's server over TLS: killed in the middle of a poem, it fools its readers again.

python step8_tls.py PORT POEM CERTIFICATE KEY
"""

from __future__ import annotations

import sys
from pathlib import Path

from step0_tutorial import PoetryFactory, reactor
from twisted.internet.ssl import DefaultOpenSSLContextFactory


def serve(number: str, poem: str, certificate: str, key: str) -> None:
    """Listen on the port, say so, and run."""
    factory = PoetryFactory(Path(poem).read_bytes())
    context = DefaultOpenSSLContextFactory(key, certificate)
    port = reactor.listenSSL(int(number), factory, context, interface="127.0.0.1")
    print(f"Serving {poem} on 127.0.0.1:{port.getHost().port}", flush=True)
    reactor.run()


if __name__ == "__main__":
    serve(*sys.argv[1:])
