"""A server that is killed resets its readers: the kernel is told so before the first byte.

python step3_kill.py PORT POEM
"""

from __future__ import annotations

import struct
from socket import SO_LINGER, SOL_SOCKET
from typing import Any

from step0_tutorial import PoetryFactory, serve
from step2_half_close import WaitsForBoth


def reset_on_close(transport: Any, on: bool) -> None:
    """Whether a close resets the connection, whoever closes it: the kernel, too."""
    transport.getHandle().setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", on, 0))


class ResetsUnlessSent(WaitsForBoth):
    def makeConnection(self, transport: Any) -> None:
        reset_on_close(transport, True)
        super().makeConnection(transport)

    def writeConnectionLost(self) -> None:
        reset_on_close(self.transport, False)
        super().writeConnectionLost()


class Poems(PoetryFactory):
    protocol = ResetsUnlessSent


if __name__ == "__main__":
    serve(Poems)
