"""Logprobs as providers write them: a list of objects (chat), or four columns (completions)."""

from __future__ import annotations

import re

import msgspec

from interlace.engines.types import TokenLogprob, TopLogprob
from interlace.errors import EngineFailed

_ESCAPED = re.compile(r"bytes:((?:\\x[0-9a-fA-F]{2})+)")
_UNKNOWN_ID = -1


class ChatTop(msgspec.Struct, frozen=True):
    """A token that could have been chosen."""

    token: str = ""
    logprob: float = 0.0
    bytes: list[int] | None = None


class ChatToken(msgspec.Struct, frozen=True):
    """A chosen token."""

    token: str
    logprob: float
    bytes: list[int] | None = None
    top_logprobs: list[ChatTop] | None = None


class Logprobs(msgspec.Struct, frozen=True):
    """Both shapes in one: `content` and `refusal` are the chat endpoint's."""

    content: list[ChatToken] | None = None
    refusal: list[ChatToken] | None = None
    tokens: list[str] | None = None
    token_logprobs: list[float | None] | None = None
    top_logprobs: list[dict[str, float] | None] | None = None


_tokens = msgspec.json.Decoder(list[ChatToken] | None)
_decoder = msgspec.json.Decoder(Logprobs | None)


def read_logprobs(raw: msgspec.Raw) -> tuple[TokenLogprob, ...]:
    """The neutral form; token ids are not told by providers. Raises `EngineFailed` for another shape."""
    try:
        wire = _decoder.decode(raw)
    except ValueError:
        raise EngineFailed("The server behind this model sent logprobs that cannot be read.") from None
    if wire is None:
        return ()
    if wire.tokens is None:
        return tuple(_chat(token) for token in [*(wire.content or ()), *(wire.refusal or ())])
    values = wire.token_logprobs or [None] * len(wire.tokens)
    tops = wire.top_logprobs or [None] * len(wire.tokens)
    return tuple(
        TokenLogprob(_UNKNOWN_ID, _token_bytes(token), value, _columns_top(top))
        for token, value, top in zip(wire.tokens, values, tops, strict=False)
    )


def read_tokens(raw: msgspec.Raw) -> tuple[TokenLogprob, ...]:
    """The neutral form of a list of tokens, as the Responses API writes it. Raises `EngineFailed` for another shape."""
    try:
        tokens = _tokens.decode(raw)
    except ValueError:
        raise EngineFailed("The server behind this model sent logprobs that cannot be read.") from None
    return tuple(_chat(token) for token in tokens or ())


def _chat(token: ChatToken) -> TokenLogprob:
    top = tuple(
        TopLogprob(_UNKNOWN_ID, _bytes(other.bytes, other.token), other.logprob) for other in token.top_logprobs or ()
    )
    return TokenLogprob(_UNKNOWN_ID, _bytes(token.bytes, token.token), token.logprob, top)


def _columns_top(top: dict[str, float] | None) -> tuple[TopLogprob, ...]:
    ranked = sorted((top or {}).items(), key=lambda item: -item[1])
    return tuple(TopLogprob(_UNKNOWN_ID, _token_bytes(token), logprob) for token, logprob in ranked)


def _bytes(given: list[int] | None, token: str) -> bytes:
    if given is not None and all(0 <= byte < 256 for byte in given):
        return bytes(given)
    return _token_bytes(token)


def _token_bytes(token: str) -> bytes:
    r"""A token that is no UTF-8 by itself is written `bytes:\xe2\x82`."""
    if escaped := _ESCAPED.fullmatch(token):
        return bytes.fromhex(escaped[1].replace("\\x", ""))
    return token.encode("utf-8", "replace")
