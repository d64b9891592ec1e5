"""Certificates for loopback, made on the spot, and what a server shows of them."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import trustme


@dataclass
class Pair:
    """The two files of a server, replaced as renewals do: each whole, by a rename."""

    folder: Path
    authority: trustme.CA

    @property
    def certificate(self) -> Path:
        """The chain."""
        return self.folder / "server.pem"

    @property
    def key(self) -> Path:
        """The private key."""
        return self.folder / "server.key"

    @property
    def settings(self) -> dict[str, str]:
        """For `tls:` of interlace.yaml."""
        return {"certificate": str(self.certificate), "key": str(self.key)}

    @property
    def trust(self) -> ssl.SSLContext:
        """Of a client that knows the authority."""
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        return context

    def renew(self, not_after: datetime | None = None) -> trustme.LeafCert:
        """Another certificate with another key."""
        leaf = self.issue(not_after)
        self.write(leaf)
        return leaf

    def issue(self, not_after: datetime | None = None) -> trustme.LeafCert:
        """A certificate that lies nowhere yet."""
        return self.authority.issue_cert("localhost", "127.0.0.1", not_after=not_after)

    def write(self, leaf: trustme.LeafCert) -> None:
        """Both files."""
        self.write_key(leaf)
        self.write_certificate(leaf)

    def write_key(self, leaf: trustme.LeafCert) -> None:
        """The key alone: half of a renewal."""
        _replace(self.key, leaf.private_key_pem.bytes())

    def write_certificate(self, leaf: trustme.LeafCert) -> None:
        """The certificate alone."""
        _replace(self.certificate, b"".join(pem.bytes() for pem in leaf.cert_chain_pems))


def pair(folder: Path) -> Pair:
    """A server's files under an authority of their own."""
    folder.mkdir(exist_ok=True)
    made = Pair(folder, trustme.CA())
    made.renew()
    return made


def der(leaf: trustme.LeafCert) -> bytes:
    """The certificate as a handshake shows it."""
    return ssl.PEM_cert_to_DER_cert(leaf.cert_chain_pems[0].bytes().decode())


@contextmanager
def connected(port: int, trust: ssl.SSLContext, name: str | None = "localhost") -> Iterator[ssl.SSLSocket]:
    """An encrypted connection; `name` None sends no server name, as callers by address do."""
    if name is None:
        trust.check_hostname = False
    plain = socket.create_connection(("127.0.0.1", port), timeout=30)
    with plain, trust.wrap_socket(plain, server_hostname=name) as secure:
        yield secure


def shown(port: int, trust: ssl.SSLContext, name: str | None = "localhost") -> bytes:
    """The certificate that a new connection is shown, checked."""
    with connected(port, trust, name) as secure:
        found = secure.getpeercert(binary_form=True)
        assert found is not None
        return found


def _replace(path: Path, content: bytes) -> None:
    partial = path.with_name(f".{path.name}.new")
    partial.write_bytes(content)
    partial.chmod(0o600)
    partial.replace(path)
