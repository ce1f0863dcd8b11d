"""Poems of three sizes, served plainly and over TLS, and a certificate that a reader can check."""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.interop.tools import SIZES, poem_of
from tests.processes import POETRY, running


@dataclass(frozen=True)
class Certificates:
    """An authority, and a server's certificate and key for 127.0.0.1 and localhost."""

    authority: Path
    certificate: Path
    key: Path


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    def name(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    now = datetime.datetime.now(datetime.timezone.utc)
    day = datetime.timedelta(days=1)
    signer, server = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))

    def builder(subject: str, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(name(subject))
            .issuer_name(name("Test authority"))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - day)
            .not_valid_after(now + day)
        )

    authority = (
        builder("Test authority", signer)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(signer, hashes.SHA256())
    )
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    leaf = (
        builder("localhost", server)
        .add_extension(
            x509.SubjectAlternativeName([address, x509.DNSName("localhost")]), critical=False
        )
        .sign(signer, hashes.SHA256())
    )
    directory = tmp_path_factory.mktemp("certificates")
    # alone in its directory: trustRoots= reads every .pem that it finds
    trusted = tmp_path_factory.mktemp("trusted")
    made = Certificates(trusted / "authority.pem", directory / "leaf.pem", directory / "key.pem")
    pem = serialization.Encoding.PEM
    made.authority.write_bytes(authority.public_bytes(pem))
    made.certificate.write_bytes(leaf.public_bytes(pem))
    made.key.write_bytes(
        server.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return made


@pytest.fixture(scope="session")
def poems(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """A file a size."""
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
    """The same over TLS."""
    files = f"privateKey={certificates.key}:certKey={certificates.certificate}"
    listen = ["--listen", f"ssl:0:{files}:interface=127.0.0.1"] * len(poems)
    with running([*POETRY, "serve", *listen, *poems.values()], listeners=len(poems)) as server:
        yield dict(zip(poems, ports(server.addresses), strict=True))


def ports(addresses: list[str]) -> list[int]:
    return [int(address.rpartition(":")[2]) for address in addresses]
