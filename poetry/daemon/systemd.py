"""Notifications to systemd (sd_notify(3))."""

from __future__ import annotations

import os
import socket
from time import monotonic_ns

from twisted.logger import Logger

_log = Logger()


def notify(state: str) -> None:
    """Notify systemd of a state, if it started us with NOTIFY_SOCKET; never wait.

    A notification for which there is no room is lost, and logged: a server that waited for its
    supervisor would stop serving, and could not be stopped.

    @param state: READY=1, RELOADING=1 or STOPPING=1.
    """
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return
    if state == "RELOADING=1":
        state += f"\nMONOTONIC_USEC={monotonic_ns() // 1000}"
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notifier:
            notifier.setblocking(False)
            notifier.connect("\0" + path[1:] if path.startswith("@") else path)
            notifier.send(state.encode())
    except OSError as error:
        _log.warn(
            "cannot notify {path}: {reason}",
            event="notify_failed",
            path=path,
            reason=error.strerror or str(error),
        )
