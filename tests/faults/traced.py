"""A command under test that any process of its user may trace (prctl(2), PR_SET_PTRACER).

    python traced.py poetry|twistd WORDS...

Of the environment: GATE is a descriptor, from which a byte is read before the command begins; GIVEN
is that of a socket, which it gets as systemd would hand it over.
"""

from __future__ import annotations

import ctypes
import os
import sys

SET_PTRACER, ANYBODY = 0x59616D61, ctypes.c_ulong(-1)


def main() -> None:
    ctypes.CDLL(None).prctl(SET_PTRACER, ANYBODY, 0, 0, 0)
    if gate := os.environ.pop("GATE", ""):
        os.read(int(gate), 1)
    if given := os.environ.pop("GIVEN", ""):
        os.dup2(int(given), 3)
        os.environ.update(LISTEN_FDS="1", LISTEN_FDNAMES="poem", LISTEN_PID=str(os.getpid()))
    sys.argv = sys.argv[1:]
    if sys.argv[0] == "twistd":
        from twisted.scripts.twistd import run
    else:
        from poetry.__main__ import main as run
    run()


if __name__ == "__main__":
    main()
