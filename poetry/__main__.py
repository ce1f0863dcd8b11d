"""The entry point of `poetry`, `twisted-poetry` and `python -m poetry`: handles signals early.

Loading the rest takes a quarter of a second. Without these handlers an interrupt in that time would
be a traceback, or be lost in a callback; and TERM would be lost in a container, whose process 1
gets only signals that it has a handler for. A HUP, which a server takes for a reload, waits; it
ends one whose poem comes from a stream, which a terminal that closes may have cut short.
"""

try:
    import os
    import signal
    import sys
except KeyboardInterrupt:  # pragma: no cover (these take 3 ms of 180)
    raise SystemExit(130) from None


def main() -> None:
    """Run a command; INT, TERM and HUP exit at once until its reactor runs, but HUP waits for a
    server that can reload.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    serves = sys.argv[1:2] == ["serve"]
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        # A server that is stopped by TERM has succeeded, as later when it serves.
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0 if serves else 130))
    hangup = getattr(signal, "SIGHUP", None)
    if hangup is not None and signal.getsignal(hangup) is signal.SIG_DFL:
        if serves and not any(map(_is_stream, sys.argv[2:])):
            signal.pthread_sigmask(signal.SIG_BLOCK, [hangup])
        else:
            signal.signal(hangup, lambda *_: os._exit(130))
    try:
        from poetry import cli
    except MemoryError:
        raise SystemExit("Error: there is not enough memory to start (ulimit -v)") from None

    cli.main()


def _is_stream(word: str) -> bool:
    return word == "-" or (os.path.exists(word) and not os.path.isfile(word))  # noqa: PTH110, PTH113


if __name__ == "__main__":
    main()
