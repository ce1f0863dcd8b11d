"""A peer that asks for new keys without end (TLS 1.3, RFC 8446, 4.6.3), and is answered each time.

Neither `ssl` nor pyOpenSSL can send a KeyUpdate, so its records are made here.
"""

from __future__ import annotations

import hashlib
import hmac
import socket
import ssl
import tempfile

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tests.processes import PATIENCE

CIPHER = "TLS_AES_256_GCM_SHA384"
"""The first choice of OpenSSL at both ends."""

UPDATE = b"\x18\0\0\1\1\x16"
"""A KeyUpdate with update_requested, and the type of a handshake record."""

HEADER = b"\x17\x03\x03\x00\x16"
"""Of an encrypted record that has one, and its tag of 16 bytes."""


def _expand(secret: bytes, label: bytes, size: int) -> bytes:
    """HKDF-Expand-Label (RFC 8446, 7.1), of at most one block."""
    label = b"tls13 " + label
    info = size.to_bytes(2, "big") + bytes([len(label)]) + label + b"\0\1"
    return hmac.new(secret, info, hashlib.sha384).digest()[:size]


def key_updates(secret: bytes, count: int) -> bytes:
    """Make so many records, the first ones after a handshake with this traffic secret."""
    records = bytearray()
    for _ in range(count):
        key = AESGCM(_expand(secret, b"key", 32))
        records += HEADER + key.encrypt(_expand(secret, b"iv", 12), UPDATE, HEADER)
        secret = _expand(secret, b"traffic upd", 48)
    return bytes(records)


def shake(sock: socket.socket, context: ssl.SSLContext) -> bytes:
    """Do a handshake, and give our side's traffic secret; from then on the socket is raw."""
    server = context.protocol is ssl.PROTOCOL_TLS_SERVER
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    if server:
        context.num_tickets = 0  # each would be a record before ours
    with tempfile.NamedTemporaryFile("r", encoding="ascii") as keys:
        context.keylog_filename = keys.name
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        host = None if server else "127.0.0.1"
        tls = context.wrap_bio(incoming, outgoing, server_side=server, server_hostname=host)
        sock.settimeout(PATIENCE)
        done = False
        while not done:
            try:
                tls.do_handshake()
                done = True
            except ssl.SSLWantReadError:
                sock.sendall(outgoing.read())
                incoming.write(sock.recv(65536))
        sock.sendall(outgoing.read())
        cipher = tls.cipher()
        assert cipher is not None
        assert cipher[0] == CIPHER
        name = f"{'SERVER' if server else 'CLIENT'}_TRAFFIC_SECRET_0"
        [secret] = [line.split()[2] for line in keys if line.startswith(name)]
        return bytes.fromhex(secret)
