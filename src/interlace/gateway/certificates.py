"""A certificate and its key, read from PEM files: sound, of one another and valid now, or an error that says how to
mend it."""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from interlace.config import TlsSettings
from interlace.errors import ConfigError

_BLOCK = re.compile(rb"-----BEGIN CERTIFICATE-----\s+[A-Za-z0-9+/=\s]+?-----END CERTIFICATE-----")
_SEQUENCE, _VERSION, _UTC_TIME, _TIME = 0x30, 0xA0, 0x17, 0x18
_VALIDITY = 3  # of a certificate's fields behind its version: serial, signature, issuer, validity


class _Passphrase(Exception):
    """OpenSSL asks for one."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What a server shows from one handshake on, and the moments between which its certificate is valid."""

    context: ssl.SSLContext
    since: datetime
    until: datetime


def read_identity(settings: TlsSettings, now: datetime | None = None) -> Identity:
    """Read both files; raises `ConfigError`, also for a certificate that is not valid `now`."""
    assert settings.certificate is not None
    assert settings.key is not None
    now = now or datetime.now(UTC)
    since, until = validity(settings.certificate)
    if now >= until:
        raise ConfigError(f"tls.certificate: {settings.certificate} expired on {_shown(until)}. Renew it.")
    if now < since:
        raise ConfigError(
            f"tls.certificate: {settings.certificate} is valid from {_shown(since)} on only. Check the machine's clock."
        )
    return Identity(_context(settings.certificate, settings.key), since, until)


def validity(certificate: Path) -> tuple[datetime, datetime]:
    """From when until when the first certificate of a file is valid; raises `ConfigError`."""
    try:
        return _validity(leaf(certificate))
    except (ValueError, IndexError):
        raise ConfigError(f"tls.certificate: {certificate} holds a certificate that cannot be read.") from None


def leaf(certificate: Path) -> bytes:
    """The first certificate of a file, which is the server's own, as DER; raises `ConfigError`."""
    found = _BLOCK.search(_bytes(certificate, "tls.certificate"))
    if found is None:
        raise ConfigError(
            f"tls.certificate: {certificate} holds no certificate. Name a PEM file: -----BEGIN CERTIFICATE-----, the "
            "server's own first."
        )
    try:
        return ssl.PEM_cert_to_DER_cert(found[0].decode("ascii"))
    except ValueError:
        raise ConfigError(f"tls.certificate: {certificate} holds a certificate that cannot be read.") from None


def trusting(certificate: Path) -> ssl.SSLContext:
    """What a client needs that trusts the server of this very certificate and no other, whatever its name; raises
    `ConfigError`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    try:
        context.load_verify_locations(cadata=leaf(certificate))
    except ssl.SSLError:
        raise ConfigError(f"tls.certificate: {certificate} holds a certificate that cannot be read.") from None
    return context


def _context(certificate: Path, key: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    _bytes(key, "tls.key")  # load_cert_chain's errors do not say which of the two it means
    try:
        context.load_cert_chain(certificate, key, password=_no_passphrase)
    except _Passphrase:
        raise ConfigError(
            f"tls.key: {key} needs a passphrase, which nobody can type when the server restarts. Write it without: "
            f"openssl pkey -in {key.name} -out server.key"
        ) from None
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise ConfigError(
                f"tls.key: {key} is not the key of {certificate}. Name the pair that was made together."
            ) from None
        raise ConfigError(
            f"tls.key: {key} with {certificate} cannot be used: {error.reason or error}. Name PEM files: a private "
            "key, and the server's certificate with its issuers behind it."
        ) from None
    return context


def _no_passphrase() -> str:
    raise _Passphrase


def _bytes(path: Path, setting: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{setting}: {path} cannot be read: {error.strerror or error}.") from error


def _shown(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"


# --- DER -------------------------------------------------------------------------------------------------------------


def _validity(der: bytes) -> tuple[datetime, datetime]:
    """RFC 5280, 4.1: SEQUENCE { SEQUENCE { [0] version?, serial, signature, issuer, validity, ... }, ... }."""
    ((_, certificate),) = _fields(der)
    (_, inner), *_ = _fields(certificate)
    fields = [(tag, value) for tag, value in _fields(inner) if tag != _VERSION]
    tag, both = fields[_VALIDITY]
    if tag != _SEQUENCE:
        raise ValueError(tag)
    since, until = (_moment(tag, value.decode("ascii")) for tag, value in _fields(both))
    return since, until


def _fields(der: bytes) -> Iterator[tuple[int, bytes]]:
    """Tag and content of each field, one after the other; raises `ValueError` and `IndexError`."""
    at = 0
    while at < len(der):
        tag, length = der[at], der[at + 1]
        at += 2
        if length & 0x80:
            size = length & 0x7F
            length = int.from_bytes(der[at : at + size])
            at += size
        if at + length > len(der):
            raise ValueError(length)
        yield tag, der[at : at + length]
        at += length


def _moment(tag: int, text: str) -> datetime:
    if tag == _UTC_TIME:  # two digits of a year: 50 to 99 are of the last century
        text = ("19" if text >= "50" else "20") + text
    elif tag != _TIME:
        raise ValueError(tag)
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)
