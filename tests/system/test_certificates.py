"""TLS endpoints: which keys and certificates are refused, and how they are read again."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

import pytest
from twisted.internet.testing import MemoryReactor

from poetry.addresses import BadAddress, server_endpoint
from poetry.system.certificates import BadCertificate, TLSEndpoint
from tests.calls import failing
from tests.certificates import Certificates, self_signed
from tests.loop import reactor


def encrypted(directory: Path, *, traditional: bool = False) -> Path:
    """A key that needs a passphrase."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    form = serialization.PrivateFormat
    path = directory / "a:key.pem"
    path.write_bytes(
        ec.generate_private_key(ec.SECP256R1()).private_bytes(
            serialization.Encoding.PEM,
            form.TraditionalOpenSSL if traditional else form.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    return path


def reason(text: str) -> str:
    """Why an address is refused, without the address."""
    with pytest.raises(BadAddress) as caught:
        server_endpoint(MemoryReactor(), text)
    assert str(caught.value).startswith(f"{text!r}: ")
    return str(caught.value).removeprefix(f"{text!r}: ")


def test_key_refused_by_openssl_is_refused_at_the_start(tmp_path: Path) -> None:
    """A key with which each handshake would fail is refused at the start, in OpenSSL's words."""
    path = self_signed(tmp_path, size=1024)
    refused = f"OpenSSL refuses its key or certificate: ee key too small ({path})"
    assert reason(f"ssl:0:privateKey={path}:certKey={path}") == refused
    path.write_bytes(b"no key")
    said = reason(f"ssl:0:privateKey={path}:certKey={path}")
    assert re.fullmatch(f"OpenSSL refuses its key or certificate: [a-z ]+ \\({path}\\)", said)


@pytest.mark.parametrize("traditional", [False, True])
def test_encrypted_key_is_refused(
    tmp_path: Path, certificates: Certificates, *, traditional: bool
) -> None:
    """A key that needs a passphrase is refused: OpenSSL would ask for it, where it can."""
    path = encrypted(tmp_path, traditional=traditional)
    quoted = str(path).replace(":", "\\:")
    for words in (f"privateKey={quoted}", quoted):
        said = reason(f"ssl:0:{words}:certKey={certificates.path('good')}")
        assert said.startswith(f"{path} is encrypted, and a server starts without anybody to ask")


def test_renewal_takes_usable_files_only(
    tmp_path: Path, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Usable files replace the key and certificate in use; other files leave them."""
    path = tmp_path / "server.pem"
    path.write_bytes(certificates.path("good").read_bytes())
    endpoint = server_endpoint(reactor, f"ssl:0:privateKey={path}:interface=lo")
    assert isinstance(endpoint, TLSEndpoint)
    first = endpoint.getContext()
    path.write_bytes(b"")
    with pytest.raises(BadCertificate):
        endpoint.renew()
    assert endpoint.getContext() is first
    path.write_bytes(certificates.path("good").read_bytes())
    for word in ("ssl", "0", "lo"):
        (tmp_path / word).mkdir()
    monkeypatch.chdir(tmp_path)
    endpoint.renew()  # none of these is a file of the endpoint's
    first = endpoint.getContext()
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(BadCertificate, match=f"{path} is no regular file"):
        endpoint.renew()
    path.unlink()
    path.write_bytes(certificates.path("misnamed").read_bytes())
    endpoint.renew()
    assert endpoint.getContext() is not first


def test_key_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """A file that is not there is at fault, and not the address; without a name, how to name it."""
    path = tmp_path / "no key"
    assert reason(f"ssl:0:{path}:{path}") == f"{path}: No such file or directory"
    hint = "; to name both files: ssl:PORT:privateKey=FILE:certKey=FILE"
    assert reason("ssl:0") == f"{Path('server.pem').absolute()}: No such file or directory{hint}"


def test_key_of_another_certificate_is_refused(tmp_path: Path) -> None:
    """A key and a certificate that do not match are both named."""
    for name in ("key", "certificate"):
        (tmp_path / name).mkdir()
    key = self_signed(tmp_path / "key")
    certificate = self_signed(tmp_path / "certificate")
    certificate.write_bytes(certificate.read_bytes().partition(b"END PRIVATE KEY-----\n")[2])
    said = reason(f"ssl:0:privateKey={key}:certKey={certificate}")
    assert said.endswith(f"do not match ({key}, {certificate})")


@pytest.mark.parametrize(
    "words",
    [("privateKey=a=\\:.pem", "certKey=b.pem"), ("a\\=\\:.pem", "b.pem"), ("certKey=b.pem",), ()],
)
def test_renewal_reads_the_same_files(
    tmp_path: Path,
    certificates: Certificates,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
) -> None:
    """A daemon changes its directory, and its files stay where they were."""
    for name in ("a=:.pem", "b.pem", "server.pem"):
        (tmp_path / name).write_bytes(certificates.path("good").read_bytes())
    monkeypatch.chdir(tmp_path)
    endpoint = server_endpoint(reactor, ":".join(["ssl", "0", *words, "interface=127.0.0.1"]))
    monkeypatch.chdir("/")
    assert isinstance(endpoint, TLSEndpoint)
    first = endpoint.getContext()
    endpoint.renew()
    assert endpoint.getContext() is not first


def test_file_that_cannot_be_read_to_its_end_is_named(
    monkeypatch: pytest.MonkeyPatch, certificates: Certificates
) -> None:
    """An error of read(2) names no file: then those of the address are named."""
    monkeypatch.setattr("twisted.python.filepath.FilePath.getContent", failing(errno.EIO))
    path = certificates.path("good")
    assert reason(f"ssl:0:{path}:{path}") == f"{path}: Input/output error"


def test_device_is_no_key() -> None:
    """A device may have no end: it is refused at the start."""
    with pytest.raises(BadCertificate, match="/dev/zero is no regular file"):
        TLSEndpoint(reactor, "ssl:0:privateKey=/dev/zero:certKey=/dev/zero")
