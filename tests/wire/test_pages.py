"""Large pages."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from poetry.wire.pages import LARGE, collapse
from poetry.wire.poem import Poem
from tests.faults.readers import poem


def maps() -> str:
    return Path("/proc/self/maps").read_text(encoding="ascii")


@pytest.mark.parametrize("size", [LARGE - 1, LARGE, 2 * LARGE + 1])
def test_collapse_changes_no_byte(size: int) -> None:
    """With or without large pages the bytes are the same, and no mapping is left."""
    before = maps().count("memfd:")
    descriptor = os.memfd_create("poem")
    with os.fdopen(descriptor, "r+b") as file:
        file.write(poem(size))
        file.flush()
        collapsed = collapse(descriptor, size)
        assert not (collapsed and size < LARGE)
        file.seek(0)
        assert file.read() == poem(size)
    assert maps().count("memfd:") == before


def test_collapse_ignores_a_file_without_mapping() -> None:
    """A file that cannot be mapped is passed over, and so is a size beyond all addresses."""
    reading, writing = os.pipe()
    assert not collapse(reading, LARGE)
    assert not collapse(reading, 2**62)
    os.close(reading)
    os.close(writing)


def test_poem_in_large_pages_is_sent() -> None:
    """A long poem's file, sealed afterwards, has the poem."""
    text = Poem(poem(LARGE + 5))
    text.share()
    assert text._file is not None
    with tempfile.TemporaryFile() as copy:
        assert os.sendfile(copy.fileno(), text._file, 0, LARGE + 5) == LARGE + 5
        copy.seek(0)
        assert copy.read() == poem(LARGE + 5)
    text.retire()
