"""Azure OpenAI: OpenAI's API at other addresses, with a key of its own kind or a token of Microsoft Entra."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlencode

import msgspec

from interlace.config import ModelSettings
from interlace.engines.remote.failures import Complaint
from interlace.engines.remote.providers.openai import OpenAIWire
from interlace.engines.remote.refreshing import Refreshing
from interlace.engines.remote.secret import Secret, read_key
from interlace.engines.remote.wire import Fetch, Outgoing, Usual
from interlace.errors import ConfigError, EngineFailed, EngineUnavailable

_LOGIN = "https://login.microsoftonline.com/{tenant}/oauth2/v2.0/token"
_KEY = "${AZURE_OPENAI_API_KEY}"
_FORM = "application/x-www-form-urlencoded"


class EntraTokens:
    """Tokens for a client and its secret, by OAuth's client credentials; fetched ahead of their end."""

    def __init__(self, settings: ModelSettings, secret: Secret, fetch: Fetch) -> None:
        self._url = settings.token_url or _LOGIN.format(tenant=quote(settings.entra_tenant, safe=""))
        self._form = {
            "grant_type": "client_credentials",
            "client_id": settings.entra_client,
            "scope": settings.token_scope,
        }
        self._secret = secret
        self._send = fetch
        self._tokens: Refreshing[Secret] = Refreshing(self._fetch)

    async def token(self) -> Secret:
        """One that is good now; raises `EngineUnavailable` or `EngineFailed`."""
        return await self._tokens.get()

    def forget(self) -> None:
        """Azure does not take this token: the next request waits for another."""
        self._tokens.forget()

    def hide(self, text: str) -> str:
        """Without the secret and the token."""
        text = self._secret.hidden_in(text)
        held = self._tokens.held
        return text if held is None else held.hidden_in(text)

    async def _fetch(self) -> tuple[Secret, float | None]:
        body = urlencode(self._form | {"client_secret": self._secret.reveal()}).encode()
        answer = await self._send(Outgoing(self._url, body, {"Content-Type": _FORM}))
        try:
            told = msgspec.json.decode(answer.body, type=dict[str, Any])
        except (ValueError, RecursionError):
            told = {}
        token, seconds = told.get("access_token"), told.get("expires_in")
        if answer.status == 200 and isinstance(token, str) and token and token.isascii() and token.isprintable():
            life = float(seconds) if isinstance(seconds, int | float) and seconds > 0 else 300.0
            return Secret(token), time.time() + life
        if answer.status in (408, 429) or answer.status >= 500:
            raise EngineUnavailable(
                "The server that vouches for this gateway is not available. Try again later.", retry_after_seconds=5
            )
        raise EngineFailed(
            "The server that vouches for this gateway refuses to. Tell whoever runs the gateway: client, secret, "
            "tenant or scope is wrong."
        )


class AzureWire(OpenAIWire):
    """One deployment."""

    def __init__(self, settings: ModelSettings, key: Secret | None, tokens: EntraTokens | Secret | None) -> None:
        super().__init__(settings, key)
        self._tokens = tokens
        base = settings.base_url.removesuffix("/openai/v1").removesuffix("/openai") + "/openai"
        if settings.api_version[:1].isdigit():
            self._base = f"{base}/deployments/{quote(settings.model, safe='')}"
            self._query = f"?api-version={quote(settings.api_version, safe='')}"
        else:
            self._base = f"{base}/v1"
            self._query = f"?api-version={quote(settings.api_version, safe='')}" if settings.api_version else ""

    async def outgoing(self, path: str, body: Mapping[str, object], accept: str) -> Outgoing:
        """The deployment is named in the address, or, where there are no versions, as the model."""
        return Outgoing(self._base + path + self._query, msgspec.json.encode(body), await self._authorization(), accept)

    async def _authorization(self) -> dict[str, str]:
        if self._key is not None:
            return {"api-key": self._key.reveal()}
        token = await self._tokens.token() if isinstance(self._tokens, EntraTokens) else self._tokens
        return {} if token is None else {"Authorization": f"Bearer {token.reveal()}"}

    def complaint(self, value: object, headers: Mapping[str, str]) -> Complaint:
        """As OpenAI's; a filter that stopped the request tells so inside the error."""
        complaint = super().complaint(value, headers)
        error = value.get("error") if isinstance(value, dict) else None
        inner = error.get("innererror") if isinstance(error, dict) else None
        if isinstance(inner, dict) and inner.get("code") == "ResponsibleAIPolicyViolation":
            return dataclasses.replace(complaint, code="content_filter")
        if complaint.code == "401" and isinstance(self._tokens, EntraTokens):
            self._tokens.forget()
        if complaint.code == "DeploymentNotFound":
            return dataclasses.replace(complaint, message="The deployment for this model does not exist.")
        return complaint

    def hide(self, text: str) -> str:
        """Without key, secret and token."""
        text = super().hide(text)
        if isinstance(self._tokens, EntraTokens):
            return self._tokens.hide(text)
        return text if self._tokens is None else self._tokens.hidden_in(text)


def usual(settings: ModelSettings, env: Mapping[str, str]) -> Usual:
    """See `wire.Usual`."""
    del env
    entra = settings.entra_token or settings.entra_client or settings.entra_secret or settings.entra_tenant
    return Usual(settings.base_url, settings.api_key or ("" if entra else _KEY))


def make(settings: ModelSettings, env: Mapping[str, str], fetch: Fetch) -> AzureWire:
    """See `wire.Make`. A key goes before a token; without either, the usual variable must hold a key."""
    if settings.api_key:
        return AzureWire(settings, read_key(settings.api_key, env), None)
    if settings.entra_token:
        return AzureWire(settings, None, read_key(settings.entra_token, env))
    if settings.entra_client or settings.entra_secret or settings.entra_tenant:
        secret = read_key(settings.entra_secret, env)
        if secret is None or not settings.entra_client or not (settings.entra_tenant or settings.token_url):
            raise ConfigError(
                f"The model {settings.name} needs `entra_client`, `entra_secret` and `entra_tenant` together. Add "
                "what is missing, or give `api_key`."
            )
        return AzureWire(settings, None, EntraTokens(settings, secret, fetch))
    return AzureWire(settings, read_key(_KEY, env), None)
