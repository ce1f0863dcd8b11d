"""The commands `poetry` and `twisted-poetry`, and `python -m poetry`: signals are heard at once.

Loading the rest takes a quarter of a second. An interrupt that comes meanwhile is a traceback, or
is even lost where a callback is running; and TERM is lost by process 1, a container's, which the
kernel gives only the signals that it has asked for.
"""

try:
    import os
    import signal
    import sys
except KeyboardInterrupt:  # pragma: no cover (these take 3 ms of 180)
    raise SystemExit(130) from None


def main() -> None:
    """Run a command; until its reactor runs, INT and TERM end it here and now."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        # A server that is told to stop has done what it should, as it has when it serves.
        stopped = 0 if sys.argv[1:2] == ["serve"] else 130
        signal.signal(signal.SIGTERM, lambda *_: os._exit(stopped))
    from poetry import cli

    cli.main()


if __name__ == "__main__":
    main()
