# ruff: noqa: RUF009 (`setting` is a field specifier; ruff knows only `field` itself)
"""What stands between callers and the gateway: TLS, reverse proxies, pages of other origins."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interlace.config.setting import setting


@dataclass(frozen=True, slots=True)
class TlsSettings:
    """Both or neither. The files are watched: what is renewed there is served from the next connection on."""

    certificate: Path | None = setting(
        "The server's certificate with those of its issuers behind it (PEM); left out: plain HTTP.", None
    )
    key: Path | None = setting("The certificate's private key (PEM, without a passphrase).", None)


@dataclass(frozen=True, slots=True)
class CorsSettings:
    """Pages of browsers that may call `/v1/`. None, unless they are named."""

    origins: tuple[str, ...] = setting(
        "Origins of web pages that may call `/v1/` from a browser, such as https://app.example.com; none by default.",
        (),
    )


@dataclass(frozen=True, slots=True)
class ProxySettings:
    """Who may say whom it speaks for."""

    trusted: tuple[str, ...] = setting(
        "Addresses or networks of reverse proxies whose `X-Forwarded-For` and `X-Forwarded-Proto` are believed, such "
        "as 127.0.0.1 or 10.0.0.0/8; nobody's by default.",
        (),
    )


def faults_of_tls(values: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """A certificate without its key, or the other way round: the setting, the problem, the mend."""
    given = [name for name in ("certificate", "key") if values.get(name) is not None]
    if len(given) == 1:
        missing = "key" if given == ["certificate"] else "certificate"
        yield f"tls.{given[0]}", f"is set, but tls.{missing} is not", f"Add `{missing}:`, or remove `tls:`"
