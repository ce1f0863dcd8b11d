"""Sends a poem to whoever connects, and fetches one: whole, or its reader knows.

The names are loaded when they are first used, so that `poetry --help` need not load Twisted.
"""

from __future__ import annotations

TYPE_CHECKING = False  # as type checkers know it; `typing` takes 6 ms, and each command begins here

__all__ = [
    "EmptyPoem",
    "PoemError",
    "PoemFactory",
    "PoemMismatch",
    "PoemStopped",
    "PoemTimedOut",
    "PoemTooLong",
    "PoemTruncated",
    "PoetryClientFactory",
    "PoetryProtocol",
    "PoetryServerFactory",
    "PoetryService",
    "get_poem",
    "send_poem",
    "serve_poem",
]

if TYPE_CHECKING:
    from poetry.client import get_poem, send_poem
    from poetry.errors import (
        EmptyPoem,
        PoemError,
        PoemMismatch,
        PoemStopped,
        PoemTimedOut,
        PoemTooLong,
        PoemTruncated,
    )
    from poetry.protocol import PoetryClientFactory, PoetryProtocol, PoetryServerFactory
    from poetry.server import PoetryService, serve_poem
    from poetry.serving.poems import PoemFactory

    __version__: str
else:  # a `__getattr__` that type checkers see hides every wrong name from them

    def __getattr__(name):
        if name == "__version__":
            from importlib.metadata import version

            return version("twisted-poetry")
        from importlib import import_module

        rooms = ("errors", "protocol", "client", "serving.poems", "server")  # from the lowest up
        if name in rooms:  # `poetry.errors` without an import, as mypy allows
            return import_module(f"{__name__}.{name}")
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        modules = (import_module(f"{__name__}.{room}") for room in rooms)
        return next(getattr(module, name) for module in modules if hasattr(module, name))


def __dir__() -> list[str]:
    return [*globals(), *__all__, "__version__"]
