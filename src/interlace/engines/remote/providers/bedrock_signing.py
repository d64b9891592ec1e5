"""AWS's signature version 4, made by botocore's signer with the credentials of the standard chain.

The one module that knows botocore. The chain (environment, profiles, single sign-on, roles, the instance itself) may
ask a network, so it runs on a thread (see `refreshing`); signing is arithmetic and happens where the request is.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Mapping
from typing import Any

from interlace.engines.remote.refreshing import Refreshing
from interlace.engines.remote.wire import JSON
from interlace.errors import ConfigError, EngineFailed

_log = logging.getLogger(__name__)

SERVICE = "bedrock"


class Signer:
    """Signs requests to Bedrock in one region. Raises `ConfigError` where botocore is not installed, or no region is
    known."""

    def __init__(self, region: str, env: Mapping[str, str]) -> None:
        if importlib.util.find_spec("botocore") is None:
            raise ConfigError("Engine bedrock needs the package botocore. Install it: pip install 'interlace[bedrock]'")
        self.region = region or env.get("AWS_REGION") or env.get("AWS_DEFAULT_REGION") or _region_of_profile()
        self._chain: Any = None  # botocore's credentials, which renew themselves when they are asked for
        self._credentials: Refreshing[Any] = Refreshing(self._resolve)

    async def headers(self, url: str, body: bytes) -> dict[str, str]:
        """The headers that sign a POST of JSON to `url`, which must go out exactly as it stands."""
        credentials = await self._credentials.get()
        from botocore.auth import SigV4Auth  # loaded by then, on the thread that looked for credentials
        from botocore.awsrequest import AWSRequest

        request = AWSRequest(method="POST", url=url, data=body, headers={"Content-Type": JSON})
        SigV4Auth(credentials, SERVICE, self.region).add_auth(request)
        return dict(request.headers.items())

    def forget(self) -> None:
        """The service does not take these credentials: look for others."""
        self._chain = None
        self._credentials.forget()

    def hide(self, text: str) -> str:
        """The text without the credentials."""
        held = self._credentials.held
        for secret in () if held is None else (held.secret_key, held.token, held.access_key):
            text = text.replace(secret, "***") if secret else text
        return text

    def _resolve(self) -> tuple[Any, float | None]:
        """Credentials as they are now, and when they end. Runs on a thread."""
        import botocore.auth  # noqa: F401 - loaded here, on the thread, so that signing does not load it on the loop
        from botocore.exceptions import BotoCoreError
        from botocore.session import Session

        try:
            if self._chain is None:
                self._chain = Session().get_credentials()
            frozen = None if self._chain is None else self._chain.get_frozen_credentials()
        except (BotoCoreError, OSError, ValueError, KeyError, RuntimeError) as error:
            _log.warning("AWS credentials cannot be had", extra={"fields": {"error": type(error).__name__}})
            frozen = None
        if frozen is None:
            self._chain = None
            raise EngineFailed(
                "This gateway has no AWS credentials for the server behind this model. Tell whoever runs the gateway."
            )
        end = getattr(self._chain, "_expiry_time", None)
        return frozen, None if end is None else end.timestamp()


def _region_of_profile() -> str:
    from botocore.exceptions import BotoCoreError
    from botocore.session import Session

    try:
        region = Session().get_config_variable("region")
    except BotoCoreError as error:  # a profile that is not there, a file that cannot be read
        raise ConfigError(f"AWS's configuration cannot be used: {error}. Mend it, or write `region:`.") from None
    if not region:
        raise ConfigError("No AWS region is known. Write `region:` at the model, or set the variable AWS_REGION.")
    return str(region)
