"""Certificates for the tests, good and bad, made when they run."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Certificates:
    """Certificates with their keys, as NAME.pem; `roots` trusts all but the one named untrusted."""

    directory: Path

    @property
    def roots(self) -> Path:
        return self.directory / "roots"

    @property
    def authority(self) -> Path:
        return self.roots / "ca.pem"

    def path(self, name: str) -> Path:
        return self.directory / f"{name}.pem"

    def listen(self, name: str) -> str:
        """Where a TLS server with this certificate listens."""
        path = self.path(name)
        return f"ssl:0:interface=127.0.0.1:privateKey={path}:certKey={path}"

    def trusting(self, port: int, host: str = "127.0.0.1") -> str:
        """The address of a client that trusts `roots`."""
        return f"tls:{host}:{port}:trustRoots={self.roots}"

    def context(self, version: ssl.TLSVersion | None = None) -> ssl.SSLContext:
        """A client's, which trusts `roots`."""
        context = ssl.create_default_context(cafile=str(self.authority))
        if version is not None:
            context.minimum_version = context.maximum_version = version
        return context

    def server_context(self, name: str) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.path(name))
        return context


def make_certificates(directory: Path) -> Certificates:
    """Certificates named good, misnamed, nameless (no SAN, only a common name) and untrusted."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    made = Certificates(directory)
    made.roots.mkdir()
    now = datetime.datetime.now(datetime.timezone.utc)
    day = datetime.timedelta(days=1)

    def subject(name: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])

    no, yes = False, True
    signs_certificates = x509.KeyUsage(no, no, no, no, no, yes, no, no, no)

    def certify(
        name: str,
        alternatives: list[x509.GeneralName],
        issuer: x509.Name,
        signer: ec.EllipticCurvePrivateKey | None,
    ) -> ec.EllipticCurvePrivateKey:
        key = ec.generate_private_key(ec.SECP256R1())
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject("127.0.0.1") if signer else issuer)
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - day)
            .not_valid_after(now + day)
            .add_extension(x509.BasicConstraints(ca=signer is None, path_length=None), True)
            # Python 3.13 and newer ask for these (VERIFY_X509_STRICT).
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key((signer or key).public_key()),
                False,
            )
        )
        if signer is None:
            builder = builder.add_extension(signs_certificates, True)
        if alternatives:
            builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), False)
        pem = serialization.Encoding.PEM
        certificate = builder.sign(signer or key, hashes.SHA256()).public_bytes(pem)
        if name == "ca":
            (made.roots / "ca.pem").write_bytes(certificate)
        private = key.private_bytes(
            pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        made.path(name).write_bytes(private + certificate)
        return key

    here: list[x509.GeneralName] = [
        x509.DNSName("localhost"),
        x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
        x509.IPAddress(ipaddress.ip_address("::1")),
    ]
    authority = subject("The authority of the tests")
    ca = certify("ca", [], authority, None)
    certify("good", here, authority, ca)
    certify("misnamed", [x509.DNSName("elsewhere.example")], authority, ca)
    certify("nameless", [], authority, ca)
    certify("mail", [x509.RFC822Name("poet@example.org")], authority, ca)
    certify("star", [x509.DNSName("*.com")], authority, ca)
    certify("untrusted", here, subject("Nobody"), None)
    return made


def self_signed(directory: Path, *, size: int = 2048, days: int = 1) -> Path:
    """A certificate that signs itself, for so many days, with an RSA key of `size` bits."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(65537, size)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.timezone.utc)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=2))
        .not_valid_after(now + datetime.timedelta(days=days))
        .sign(key, hashes.SHA256())
    )
    pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    path = directory / "self_signed.pem"
    path.write_bytes(
        key.private_bytes(pem, form, serialization.NoEncryption()) + certificate.public_bytes(pem)
    )
    return path
