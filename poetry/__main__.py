"""The commands `poetry` and `twisted-poetry`, and `python -m poetry`: heard from the first line on.

Loading the rest takes long enough for an interrupt to come meanwhile, and Python answers one with a
traceback, or even loses it where a callback is running.
"""

try:
    import os
    import signal
except KeyboardInterrupt:  # pragma: no cover (these take 3 ms of 180)
    raise SystemExit(130) from None


def main() -> None:
    """Run a command; until its reactor runs, an interrupt ends it here and now."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    from poetry import cli

    cli.main()


if __name__ == "__main__":
    main()
