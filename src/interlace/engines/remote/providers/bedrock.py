"""Amazon Bedrock's Converse and ConverseStream, signed by AWS credentials or a Bedrock API key."""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import quote

import msgspec

from interlace.config import ModelSettings
from interlace.engines.remote.failures import Complaint
from interlace.engines.remote.providers.bedrock_answer import ConverseAnswer
from interlace.engines.remote.providers.bedrock_fields import family_of, fields_of_bedrock
from interlace.engines.remote.providers.bedrock_request import converse_body, count_body
from interlace.engines.remote.providers.bedrock_signing import Signer
from interlace.engines.remote.providers.eventstream import EventStreamReader
from interlace.engines.remote.secret import Secret, read_key
from interlace.engines.remote.wire import JSON, Fetch, Outgoing, Usual
from interlace.engines.types import Embeddings, EmbedRequest, GenerateRequest
from interlace.errors import EngineFailed, InvalidRequest

AWS_EVENT_STREAM = "application/vnd.amazon.eventstream"
API_KEY = "AWS_BEARER_TOKEN_BEDROCK"

_TOO_LONG = re.compile(r"input is too long|too many (input )?tokens|context (length|window)", re.IGNORECASE)
_SIGNED_BADLY = {"ExpiredTokenException", "ExpiredToken", "UnrecognizedClientException", "InvalidClientTokenId"}

# The status of each exception in the service's model; it is needed where one comes inside a stream.
_STATUS = {
    "AccessDeniedException": 403,
    "InternalServerException": 500,
    "ModelErrorException": 424,
    "ModelNotReadyException": 429,
    "ModelStreamErrorException": 424,
    "ModelTimeoutException": 408,
    "ResourceNotFoundException": 404,
    "ServiceQuotaExceededException": 429,
    "ServiceUnavailableException": 503,
    "ThrottlingException": 429,
    "ValidationException": 400,
}


class BedrockWire:
    """One model on Bedrock. With a `key` it goes along as it is; else `signer` signs each request."""

    def __init__(self, settings: ModelSettings, base: str, key: Secret | None, signer: Signer | None) -> None:
        self._settings = settings
        self._family = family_of(settings.model, settings.publisher)
        self.fields = fields_of_bedrock(self._family)
        self._key, self._signer = key, signer
        # An ARN has `:` and `/` in it, which must not look like the path's own; it is signed as it is sent.
        self._url = f"{base.rstrip('/')}/model/{quote(settings.model, safe='')}"

    def check(self, request: GenerateRequest) -> None:
        """Raises `InvalidRequest` for what Converse cannot say."""
        converse_body(request, self._family)

    async def generate(self, request: GenerateRequest, *, ask_usage: bool) -> Outgoing:
        """A request to ConverseStream, or to Converse where answers come whole."""
        del ask_usage  # always told
        path, accept = ("/converse-stream", AWS_EVENT_STREAM) if self._settings.stream else ("/converse", JSON)
        return await self._outgoing(path, converse_body(request, self._family), accept)

    async def embed(self, request: EmbedRequest) -> Outgoing:
        """Converse makes no embeddings."""
        del request
        raise InvalidRequest("Models on Bedrock make no embeddings here. Choose another model.", param="model")

    async def count(self, request: GenerateRequest) -> Outgoing | None:
        """Bedrock counts for Anthropic's models."""
        if self._family != "anthropic":
            return None
        return await self._outgoing("/count-tokens", count_body(request, self._family), JSON)

    def read_count(self, body: bytes) -> int:
        """`inputTokens`."""
        try:
            return msgspec.json.decode(body, type=_Count).input_tokens
        except (ValueError, RecursionError):
            raise EngineFailed("The server behind this model sent what is no count. Try again.") from None

    def frames(self, content_type: str) -> EventStreamReader | None:
        """AWS's event stream, or JSON."""
        if content_type == AWS_EVENT_STREAM:
            return EventStreamReader()
        if content_type == JSON:
            return None
        raise EngineFailed("The server behind this model sent neither events nor JSON. Try again.")

    def answer(self, request: GenerateRequest, prompt_tokens: int) -> ConverseAnswer:
        """A reader of one answer."""
        return ConverseAnswer(request, prompt_tokens)

    def embeddings(self, request: EmbedRequest, body: bytes, prompt_tokens: int) -> Embeddings:
        """Never asked."""
        raise NotImplementedError

    def complaint(self, value: object, headers: Mapping[str, str]) -> Complaint:
        """An exception: its name stands in a header, or as the one name of an event in a stream."""
        type = headers.get("x-amzn-errortype", "")
        if isinstance(value, dict) and not headers:
            type, value = next(iter(value.items()), ("", None))
        fields = value if isinstance(value, dict) else {}
        type = _plain(_text(fields, "__type") or _text(fields, "code") or type)
        if self._signer is not None and type in _SIGNED_BADLY:
            self._signer.forget()
        message = _text(fields, "message") or _text(fields, "Message")
        code = "context_length_exceeded" if _TOO_LONG.search(message) else ""
        return Complaint(message, type=type, code=code, status=_STATUS.get(type, 0))

    def hide(self, text: str) -> str:
        """Without the key, or the credentials."""
        if self._key is not None:
            return self._key.hidden_in(text)
        return text if self._signer is None else self._signer.hide(text)

    async def _outgoing(self, path: str, body: Mapping[str, object], accept: str) -> Outgoing:
        url, data = self._url + path, msgspec.json.encode(body)
        if self._key is not None:
            headers = {"Authorization": f"Bearer {self._key.reveal()}"}
        else:
            assert self._signer is not None
            headers = await self._signer.headers(url, data)
        return Outgoing(url, data, headers, accept)


class _Count(msgspec.Struct, frozen=True, rename="camel"):
    input_tokens: int


def _text(fields: Mapping[str, object], name: str) -> str:
    value = fields.get(name)
    return value if isinstance(value, str) else ""


def _plain(type: str) -> str:
    """`ThrottlingException` of `ThrottlingException:http://...`, `com.amazon#ThrottlingException` and
    `throttlingException`."""
    name = type.partition(":")[0].rpartition("#")[2].strip()
    return name[:1].upper() + name[1:]


def _address(region: str) -> str:
    return f"https://bedrock-runtime.{region}.{'amazonaws.com.cn' if region.startswith('cn-') else 'amazonaws.com'}"


def usual(settings: ModelSettings, env: Mapping[str, str]) -> Usual:
    """See `wire.Usual`."""
    named = settings.api_key or (f"${{{API_KEY}}}" if env.get(API_KEY) else "")
    region = settings.region or env.get("AWS_REGION") or env.get("AWS_DEFAULT_REGION") or ""
    return Usual(settings.base_url or (_address(region) if region else ""), named, "" if named else "AWS's credentials")


def make(settings: ModelSettings, env: Mapping[str, str], fetch: Fetch) -> BedrockWire:
    """See `wire.Make`. An API key in the usual variable goes before AWS credentials, as it does in AWS's own SDKs."""
    del fetch
    named = settings.api_key or (f"${{{API_KEY}}}" if env.get(API_KEY) else "")
    key, signer = read_key(named, env), None
    region = settings.region or env.get("AWS_REGION") or env.get("AWS_DEFAULT_REGION") or ""
    if key is None or not (region or settings.base_url):
        signer = Signer(region, env)
        region = signer.region
    base = settings.base_url or _address(region)
    return BedrockWire(settings, base, key, None if key is not None else signer)
