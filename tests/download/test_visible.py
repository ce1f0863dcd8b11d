"""Control characters that are made visible, wherever a text is cut."""

from __future__ import annotations

import pytest

from poetry.download.visible import VisibleControls, visible

PAIRS = [
    (b"a poem\n\tof two lines\r\n", b"a poem\n\tof two lines\r\n"),
    (b"\x1b]0;title\x07\x1b[2J", b"^[]0;title^G^[[2J"),
    (b"over\rwritten\r", b"over^Mwritten^M"),
    (b"\r\r\n", b"^M\r\n"),
    (b"\0\x0b\x0c\x7f", b"^@^K^L^?"),
    ("CSI in UTF-8: \x9b2J".encode(), b"CSI in UTF-8: <U+009B>2J"),
    (b"CSI in one byte: \x9b2J", b"CSI in one byte: <9B>2J"),
    ("é — 詩 🪶".encode(), "é — 詩 🪶".encode()),
    ("詩".encode()[:2], b"<E8><A9>"),
    (b"caf\xe9!", b"caf<E9>!"),
]


@pytest.mark.parametrize(("given", "shown"), PAIRS)
def test_control_characters_are_visible(given: bytes, shown: bytes) -> None:
    """All but newlines, tabs and the ends of lines are shown as less and git do."""
    assert VisibleControls("utf-8").convert(given, last=True) == shown


@pytest.mark.parametrize(("given", "shown"), PAIRS)
def test_cuts_make_no_difference(given: bytes, shown: bytes) -> None:
    """The result is the same wherever a part ends, also in the middle of a character."""
    for size in range(1, len(given)):
        controls = VisibleControls("utf-8")
        parts = [given[at : at + size] for at in range(0, len(given), size)]
        seen = b"".join(map(controls.convert, parts)) + controls.convert(b"", last=True)
        assert seen == shown


def test_unfinished_end_of_a_poem_stays_with_it() -> None:
    """The unfinished end of one poem is no part of the next one."""
    controls = VisibleControls("utf-8")
    seen = [controls.convert("é".encode()[:1], last=True), controls.convert(b"\xa9!", last=True)]
    assert seen == [b"<C3>", b"<A9>!"]


def test_encoding_of_the_terminal_counts() -> None:
    """On a terminal of Latin-1 its letters are letters, and C1 controls are controls."""
    controls = VisibleControls("latin-1")
    assert controls.convert(b"caf\xe9 \x9b2J", last=True) == b"caf\xe9 <U+009B>2J"


def test_control_characters_of_a_text_are_visible() -> None:
    """A text is shown in the same way."""
    assert visible("a\x1b[2J") == "a^[[2J"
