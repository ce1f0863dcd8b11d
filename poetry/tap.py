"""What twistd and twist need: the options of `twistd poetry`, and the service that they make."""

from __future__ import annotations

import sys
from typing import Any, ClassVar

from twisted.application.service import Service
from twisted.python import usage

from poetry.build import UsageError, build_service

LIMITS = ("max_connections", "idle_timeout", "grace", "metrics")


class Options(usage.Options):
    """The options of `twistd poetry`, as `poetry serve` has them."""

    synopsis = "[options] [POEM]..."
    optParameters: ClassVar[list[list[Any]]] = [
        ["max-connections", None, None, "most connections at once", int],
        [
            "idle-timeout",
            None,
            60.0,
            "reset a reader that takes nothing for so many seconds",
            float,
        ],
        ["grace", None, 30.0, "seconds that a stop waits for readers in flight", float],
        ["metrics", None, None, "Prometheus metrics at [HOST:]PORT/metrics"],
    ]

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self["listen"] = []
        self["poems"] = ()

    def opt_listen(self, address: str) -> None:
        """where to listen: PORT, HOST:PORT or an endpoint string; repeatable"""
        self["listen"].append(address)

    opt_l = opt_listen

    def parseArgs(self, *poems: str) -> None:
        """Take the POEMs."""
        self["poems"] = poems


def makeService(options: Options) -> Service:
    """The service, for twistd.

    @raise SystemExit: with 2, after a line on standard error, where the options make no sense.
    """
    from twisted.internet import reactor  # not before twist has installed the one asked for

    limits = {key: options[key.replace("_", "-")] for key in LIMITS}
    try:
        return build_service(reactor, options["poems"], options["listen"], **limits)
    except UsageError as error:
        print(f"Error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
