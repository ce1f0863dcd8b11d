"""Endpoint strings of Twisted's, such as `unix:/run/poem:mode=660`, taken apart."""

from __future__ import annotations

import re
from collections.abc import Iterator


def arguments_of(text: str) -> Iterator[tuple[str, str]]:
    """Generate the name and the value of each argument, the first of which follows the type.

    @param text: a backslash makes `:` and `=` a part of a value.
    @return: the name is "" where there is none.
    """
    for word in re.findall(r"(?:[^:\\]|\\.)+", text)[1:]:
        name, *value = re.split(r"(?<!\\)=", word, maxsplit=1)
        yield (name, _unescaped(value[0])) if value else ("", _unescaped(name))


def _unescaped(word: str) -> str:
    return re.sub(r"\\(.)", r"\1", word)
