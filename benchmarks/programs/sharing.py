"""Several servers on one socket, on all cores, as systemd would start them.

sharing.py COUNT PORT COMMAND...
"""

from __future__ import annotations

import os
import socket
import sys


def main(count: str, port: str, *command: str) -> None:
    os.sched_setaffinity(0, range(os.cpu_count() or 1))
    given = socket.create_server(("127.0.0.1", int(port)), backlog=4096)
    for _ in range(int(count)):
        if not os.fork():
            os.dup2(given.fileno(), 3)
            os.set_inheritable(3, True)
            os.environ.update(LISTEN_FDS="1", LISTEN_FDNAMES="poem", LISTEN_PID=str(os.getpid()))
            os.execv(command[0], command)
    given.close()
    for _ in range(int(count)):
        os.wait()


if __name__ == "__main__":
    main(*sys.argv[1:])
