"""Sends a poem to whoever connects, and fetches one: whole, or its reader knows.

The names are loaded when they are first used, so that `poetry --help` need not load Twisted.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from poetry.client import get_poem as get_poem
    from poetry.errors import EmptyPoem as EmptyPoem
    from poetry.errors import PoemError as PoemError
    from poetry.errors import PoemMismatch as PoemMismatch
    from poetry.errors import PoemStopped as PoemStopped
    from poetry.errors import PoemTimedOut as PoemTimedOut
    from poetry.errors import PoemTooLong as PoemTooLong
    from poetry.errors import PoemTruncated as PoemTruncated
    from poetry.protocol import PoetryClientFactory as PoetryClientFactory
    from poetry.protocol import PoetryProtocol as PoetryProtocol
    from poetry.protocol import PoetryServerFactory as PoetryServerFactory
    from poetry.server import PoetryService as PoetryService
    from poetry.server import serve_poem as serve_poem

_ROOMS = {
    "EmptyPoem": "errors",
    "PoemError": "errors",
    "PoemMismatch": "errors",
    "PoemStopped": "errors",
    "PoemTimedOut": "errors",
    "PoemTooLong": "errors",
    "PoemTruncated": "errors",
    "PoetryClientFactory": "protocol",
    "PoetryProtocol": "protocol",
    "PoetryServerFactory": "protocol",
    "PoetryService": "server",
    "get_poem": "client",
    "serve_poem": "server",
}

__all__ = sorted(_ROOMS)


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_ROOMS[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *_ROOMS]
