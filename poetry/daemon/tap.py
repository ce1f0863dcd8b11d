"""The plugin of twistd and twist: the options of `twistd poetry`, and its service."""

from __future__ import annotations

import sys
from typing import Any, ClassVar

from twisted.application.service import Service
from twisted.python import usage

from poetry.daemon.build import UsageError, build_service
from poetry.limits import DEFAULTS, Limits
from poetry.text import printable


class Options(usage.Options):
    """The options of `twistd poetry`: those of `poetry serve` that are not twistd's own affair, as
    logs are, with addresses by `--listen` alone.
    """

    synopsis = "[options] [POEM]..."
    optParameters: ClassVar[list[list[Any]]] = [
        ["max-connections", None, None, "most connections at once", int],
        [
            "idle-timeout",
            None,
            DEFAULTS.idle_timeout,
            "reset a reader that takes nothing for so many seconds",
            float,
        ],
        ["grace", None, DEFAULTS.grace, "seconds that a stop waits for readers in flight", float],
        ["num-bytes", None, None, "the slow poetry server: so many bytes at a time", int],
        ["delay", None, None, "the slow poetry server: so many seconds between them", float],
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
        """Store the POEM arguments."""
        self["poems"] = poems


def makeService(options: Options) -> Service:
    """Make the service, for twistd.

    @raise SystemExit: with 2, after a line on standard error, if the options are wrong.
    """
    from twisted.internet import reactor  # only now: twist has installed the one that was chosen

    try:
        return build_service(
            reactor,
            options["poems"],
            options["listen"],
            limits=Limits(options["max-connections"], options["idle-timeout"], options["grace"]),
            num_bytes=options["num-bytes"],
            delay=options["delay"],
            metrics=options["metrics"],
        )
    except UsageError as error:
        print(f"Error: {printable(str(error))}", file=sys.stderr)
        raise SystemExit(2) from error
