"""The OpenAPI document, generated from the structs the endpoints really decode and encode."""

from __future__ import annotations

from typing import Any

import msgspec

from interlace import __version__
from interlace.gateway.openai_chat import ChatBody
from interlace.gateway.openai_chat_answer import ChatCompletion
from interlace.gateway.openai_completions import CompletionBody
from interlace.gateway.openai_completions_answer import Completion
from interlace.gateway.openai_embeddings import EmbeddingBody, EmbeddingList
from interlace.gateway.wire import ErrorBody

_ENDPOINTS: tuple[tuple[str, str, type, type, bool], ...] = (
    ("/v1/chat/completions", "Continue a conversation.", ChatBody, ChatCompletion, True),
    ("/v1/completions", "Continue one or more prompts.", CompletionBody, Completion, True),
    ("/v1/embeddings", "Embed texts.", EmbeddingBody, EmbeddingList, False),
)
_REFUSALS = {
    "400": "The request is wrong, or a guard refused it.",
    "401": "No key, or a wrong one.",
    "404": "No such model.",
    "413": "The body is too large.",
    "415": "The body is not JSON.",
    "429": "Too much is queued; Retry-After says when to come back.",
    "502": "The engine died under this request.",
    "503": "The model is still loading, or restarting.",
}
_MODEL = {
    "type": "object",
    "required": ["id", "object", "created", "owned_by"],
    "properties": {
        "id": {"type": "string"},
        "object": {"const": "model"},
        "created": {"type": "integer"},
        "owned_by": {"type": "string"},
    },
}


def document() -> dict[str, Any]:
    """OpenAPI 3.1."""
    types = [ErrorBody, *(body for _, _, body, _, _ in _ENDPOINTS), *(answer for _, _, _, answer, _ in _ENDPOINTS)]
    schemas, components = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    refs = dict(zip(types, schemas, strict=True))
    paths = {
        path: {"post": _operation(about, refs[body], refs[answer], refs[ErrorBody], streams=streams)}
        for path, about, body, answer, streams in _ENDPOINTS
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "Interlace", "version": __version__},
        "components": {
            "schemas": {**components, "Model": _MODEL},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}],
        "paths": {**paths, **_pages(refs[ErrorBody])},
    }


def _operation(about: str, body: Any, answer: Any, error: Any, *, streams: bool) -> dict[str, Any]:
    content: dict[str, Any] = {"application/json": {"schema": answer}}
    if streams:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    refusals = {status: _answer(words, error) for status, words in _REFUSALS.items()}
    return {
        "summary": about,
        "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
        "responses": {"200": {"description": "The answer.", "content": content}, **refusals},
    }


def _pages(error: Any) -> dict[str, Any]:
    model = {"$ref": "#/components/schemas/Model"}
    models = {"type": "object", "properties": {"data": {"type": "array", "items": model}}, "required": ["data"]}
    thing = {"type": "object"}
    denied = {"401": _answer(_REFUSALS["401"], error)}
    name = {"name": "model", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
    unready = {"503": _answer("Something is missing.", thing)}
    return {
        "/v1/models": {
            "get": {"summary": "The served models.", "responses": {"200": _answer("All.", models), **denied}}
        },
        "/v1/models/{model}": {
            "parameters": [name],
            "get": {
                "summary": "One served model.",
                "responses": {"200": _answer("It.", model), **denied, "404": _answer("No such model.", error)},
            },
        },
        "/healthz": _open_page("The process is alive.", {"200": _answer("Alive.", thing)}),
        "/readyz": _open_page("Every model is ready.", {"200": _answer("Ready.", thing), **unready}),
        "/": _open_page("Where things are.", {"200": _answer("Paths.", thing)}),
    }


def _open_page(about: str, responses: dict[str, Any]) -> dict[str, Any]:
    return {"get": {"summary": about, "security": [], "responses": responses}}


def _answer(words: str, schema: Any) -> dict[str, Any]:
    return {"description": words, "content": {"application/json": {"schema": schema}}}
