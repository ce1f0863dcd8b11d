"""Endpoint strings of Twisted's, such as `unix:/run/poem:mode=660`, taken apart."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import count

TLS_TYPES = frozenset({"tls", "ssl"})
"""Types of endpoints that speak TLS."""

_ARGUMENT = re.compile(r":((?:[^:\\]|\\.)*)")
_EQUALS = re.compile(r"(?<!\\)=")


def type_of(text: str) -> str:
    """Return the type in lower case: Twisted ignores the case of some types, and here of all."""
    return text.partition(":")[0].lower()


def argument_of(text: str, name: str, index: int | None = None) -> str | None:
    """Return the value of an argument that has this name, or has none and the place `index`.

    @param text: the type, and its arguments after colons; a backslash makes `:` and `=` a part of a
        value.
    @param index: from 0, among the arguments without a name; None: the argument always has it.
    @return: None: there is none.
    """
    pairs = [_EQUALS.split(word, maxsplit=1) for word in _ARGUMENT.findall(text)]
    values = [value for word, *rest in pairs for value in rest if word == name]
    if index is not None and not values:
        values = [word for word, *rest in pairs if not rest][index : index + 1]
    return _unquote(values[-1]) if values else None


def replace_argument(text: str, name: str, index: int | None, change: Callable[[str], str]) -> str:
    """Return a text in which an argument, as of `argument_of`, has a changed value."""
    places = count()

    def changed(argument: re.Match[str]) -> str:
        *its_name, value = _EQUALS.split(argument[1], maxsplit=1)
        if its_name != [name] if its_name else next(places) != index:
            return argument[0]
        new = re.sub(r"([\\:=])", r"\\\1", change(_unquote(value)))
        return ":" + "=".join([*its_name, new])

    return _ARGUMENT.sub(changed, text)


def _unquote(value: str) -> str:
    return re.sub(r"\\(.)", r"\1", value)
