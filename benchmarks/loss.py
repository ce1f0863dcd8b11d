"""Readers whose packets get lost, each way, in a network of their own (Linux, as root).

    python -m benchmarks.loss SHARE SECONDS    in such a network: print what became of the readers

A server is killed in every other round. A reset can be lost as well, and then its reader waits:
`poetry get` has a timeout for that.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from benchmarks.delivery import make_certificate
from tests.faults.readers import ENDS, PLAIN, SPEAKS, Crowd, Habit, poem
from tests.processes import POETRY, running

SHARES = (0.01, 0.1, 0.3)
SIZES = (3_000, 200_000, 2_000_000)
READERS = 20
"""At once."""
QUIET = 15.0
"""Seconds without a packet after which a round is over: past six retries of TCP."""
TOOLS = ("ip", "iptables", "unshare")
NETWORK = """
ip link set lo up
iptables -A INPUT -p tcp -m statistic --mode random --probability "$1" -j DROP
exec "$2" -m benchmarks.loss "$1" "$3"
"""


def missing() -> str | None:
    """What keeps this machine from losing packets, or None."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    absent = [tool for tool in TOOLS if shutil.which(tool, path=path) is None]
    if absent:
        return f"{', '.join(absent)} not installed"
    return None if os.geteuid() == 0 else "not root"


def start(share: float, seconds: float) -> subprocess.Popen[str]:
    """Lose this share of all packets for so long, in another process."""
    command = ["unshare", "--net", "sh", "-ec", NETWORK, "sh"]
    return subprocess.Popen(
        [*command, str(share), sys.executable, str(seconds)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ends_of(process: subprocess.Popen[str]) -> Counter[str]:
    """How its readers ended, once it has."""
    said, errors = process.communicate()
    if process.returncode:
        raise RuntimeError(f"packet loss: {errors.strip()}")
    ends: dict[str, int] = json.loads(said)
    return Counter(ends)


def a_round(directory: Path, chance: random.Random, kill: bool, patience: float) -> Counter[str]:
    """Twenty readers of one server, which is killed in the middle or not."""
    size, tls = chance.choice(SIZES), chance.random() < 0.5
    where = "tcp:0:interface=127.0.0.1"
    context = None
    if tls:
        where = "ssl:0:interface=127.0.0.1:certKey={0}/certificate.pem:privateKey={0}/key.pem"
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    path = directory / f"{size}.txt"
    path.write_bytes(poem(size))
    habit = chance.choice([PLAIN, SPEAKS, Habit(at_a_time=4096, receive_buffer=65536)])
    command = [*POETRY, "serve", "--listen", where.format(directory), str(path)]
    with (
        running(command) as server,
        Crowd(server.addresses[0], poem(size), habit, count=READERS, context=context) as crowd,
    ):
        if kill:
            some = chance.randrange(READERS)
            crowd.run(lambda: crowd.served() + len(crowd.ended) > some, quiet=QUIET)
            server.signal(signal.SIGKILL)
        return crowd.run(quiet=QUIET, patience=patience)


def main(share: str, seconds: str) -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # leaves no server behind
    chance = random.Random(share)
    deadline = time.monotonic() + float(seconds)
    ends: Counter[str] = Counter()
    kill = False
    with tempfile.TemporaryDirectory() as name:
        make_certificate(Path(name))
        while not ends or time.monotonic() < deadline:
            ends += a_round(Path(name), chance, kill, max(deadline - time.monotonic(), QUIET))
            kill = not kill
    print(json.dumps({end: ends[end] for end in ENDS}))


if __name__ == "__main__":
    main(*sys.argv[1:])
