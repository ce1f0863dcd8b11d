"""Poems of three sizes, served plainly and over TLS."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.certificates import Certificates
from tests.interop.tools import SIZES, poem_of
from tests.processes import POETRY, running


@pytest.fixture(scope="session")
def poems(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """One file for each size."""
    directory = tmp_path_factory.mktemp("poems")
    files = {size: directory / f"poem-{size}" for size in SIZES}
    for size, path in files.items():
        path.write_bytes(poem_of(size))
    return files


@pytest.fixture(scope="session")
def plain(poems: dict[int, Path]) -> Iterator[dict[int, int]]:
    """`poetry serve` with all poems: the port by size."""
    with running([*POETRY, "serve", *poems.values()], listeners=len(poems)) as server:
        yield dict(zip(poems, ports(server.addresses), strict=True))


@pytest.fixture(scope="session")
def encrypted(poems: dict[int, Path], certificates: Certificates) -> Iterator[dict[int, int]]:
    """`poetry serve` with all poems over TLS: the port by size."""
    listen = ["--listen", certificates.listen("good")] * len(poems)
    with running([*POETRY, "serve", *listen, *poems.values()], listeners=len(poems)) as server:
        yield dict(zip(poems, ports(server.addresses), strict=True))


def ports(addresses: list[str]) -> list[int]:
    return [int(address.rpartition(":")[2]) for address in addresses]
