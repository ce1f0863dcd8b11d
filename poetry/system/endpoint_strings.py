"""Endpoint strings of Twisted's, such as `unix:/run/poem:mode=660`, taken apart."""

from __future__ import annotations

import re


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
    words = re.findall(r":((?:[^:\\]|\\.)*)", text)
    pairs = [re.split(r"(?<!\\)=", word, maxsplit=1) for word in words]
    values = [value for word, *rest in pairs for value in rest if word == name]
    if index is not None and not values:
        values = [word for word, *rest in pairs if not rest][index : index + 1]
    return re.sub(r"\\(.)", r"\1", values[-1]) if values else None
