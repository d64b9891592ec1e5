"""The OpenAPI document, generated from the structs the endpoints really decode and encode."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import msgspec

from interlace import __version__
from interlace.deposits import PURPOSES, BatchView, File
from interlace.gateway.anthropic_models import ModelInfo
from interlace.gateway.batch_pages import BatchBody, BatchList, BatchQuery
from interlace.gateway.dialects import DIALECTS, Spoken
from interlace.gateway.file_pages import FileDeleted, FileList, FileQuery
from interlace.gateway.responses_answer import DeletedResponse, ItemList, Response
from interlace.gateway.responses_pages import Listing, Retrieval
from interlace.gateway.styles import ANTHROPIC, AnthropicError
from interlace.gateway.usage_pages import OwnUsage, Spent
from interlace.gateway.wire import ErrorBody
from interlace.ledger.operations import Period

_REFUSALS = {
    "400": "The request is wrong, or a guard refused it.",
    "401": "No key, or a wrong one.",
    "404": "No such model.",
    "413": "The body is too large.",
    "415": "The body is not JSON.",
    "429": "A rate is used up, or too much is queued; Retry-After says when to come back.",
    "502": "The engine died under this request.",
    "503": "The model, or a classifier that guards the input, is still loading or restarting.",
}
_ANTHROPIC_REFUSALS = {
    **_REFUSALS,
    "402": "A budget cannot hold what the request may cost.",
    "529": "Too much is queued; Retry-After says when to come back.",
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
_MODEL_QUERY = [
    {"name": "limit", "in": "query", "schema": {"type": "integer", "minimum": 1, "maximum": 1000}},
    {"name": "after_id", "in": "query", "schema": {"type": "string"}},
    {"name": "before_id", "in": "query", "schema": {"type": "string"}},
]  # read with the header `anthropic-version` only


def document() -> dict[str, Any]:
    """OpenAPI 3.1."""
    types: list[type] = [
        ErrorBody,
        Period,
        OwnUsage,
        Spent,
        File,
        FileList,
        FileQuery,
        FileDeleted,
        BatchBody,
        BatchView,
        BatchList,
        BatchQuery,
        DeletedResponse,
        ItemList,
        Listing,
        Retrieval,
        AnthropicError,
        ModelInfo,
        *(spoken.body for spoken in DIALECTS.values()),
        *(spoken.answer for spoken in DIALECTS.values()),
    ]
    schemas, components = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    refs = dict(zip(types, schemas, strict=True))
    paths = {
        spoken.path: {"post": _operation(spoken, refs[spoken.body], refs[spoken.answer], refs[spoken.style.error])}
        for spoken in DIALECTS.values()
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "Interlace", "version": __version__},
        "components": {
            "schemas": {**components, "Model": _MODEL},
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer"},
                "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
        "security": [{"key": []}, {"x-api-key": []}],
        "paths": {
            **paths,
            **_responses(refs, components),
            **_files(refs, components["FileQuery"]),
            **_batches(refs, components["BatchQuery"]),
            **_usage(refs, components["Period"]),
            **_pages({"anyOf": [refs[ErrorBody], refs[AnthropicError]]}),
        },
    }


def _operation(spoken: Spoken, body: Any, answer: Any, error: Any) -> dict[str, Any]:
    content: dict[str, Any] = {"application/json": {"schema": answer}}
    if spoken.streams:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    told = _ANTHROPIC_REFUSALS if spoken.style is ANTHROPIC else _REFUSALS
    refusals = {status: described(words, error) for status, words in told.items()}
    return {
        "summary": spoken.about,
        "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
        "responses": {"200": {"description": "The answer.", "content": content}, **refusals},
    }


def _usage(refs: dict[type, Any], period: Any) -> dict[str, Any]:
    error = refs[ErrorBody]
    denied = {status: described(_REFUSALS[status], error) for status in ("400", "401", "503")}
    missing = {"404": described("This key has no such request.", error)}
    return {
        "/v1/usage": {
            "get": {
                "summary": "A key's own use, limits and what is left.",
                "parameters": query_parameters(period),
                "responses": {"200": described("Both.", refs[OwnUsage]), **denied},
            }
        },
        "/v1/usage/{id}": {
            "parameters": [
                {"name": "id", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
            ],
            "get": {
                "summary": "What one request of the key used and cost.",
                "responses": {"200": described("Its usage event.", refs[Spent]), **denied, **missing},
            },
        },
    }


_FORM = {
    "type": "object",
    "required": ["file", "purpose"],
    "properties": {
        "file": {"type": "string", "format": "binary"},
        "purpose": {"enum": list(PURPOSES)},
        "expires_after[anchor]": {"const": "created_at"},
        "expires_after[seconds]": {"type": "integer", "minimum": 3600, "maximum": 2_592_000},
    },
}
_ID = {"name": "id", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}


def _files(refs: dict[type, Any], query: Any) -> dict[str, Any]:
    error = refs[ErrorBody]
    some = {status: described(_REFUSALS[status], error) for status in ("400", "401", "503")}
    missing = {"404": described("This project has no such file.", error)}
    large = {status: described(_REFUSALS[status], error) for status in ("413", "415")}
    content = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
    return {
        "/v1/files": {
            "get": {
                "summary": "The project's files.",
                "parameters": query_parameters(query),
                "responses": {"200": described("A page of them.", refs[FileList]), **some},
            },
            "post": {
                "summary": "Upload a file.",
                "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": _FORM}}},
                "responses": {"200": described("It.", refs[File]), **some, **large},
            },
        },
        "/v1/files/{id}": {
            "parameters": [_ID],
            "get": {"summary": "One file.", "responses": {"200": described("It.", refs[File]), **some, **missing}},
            "delete": {
                "summary": "Delete a file.",
                "responses": {"200": described("It is gone.", refs[FileDeleted]), **some, **missing},
            },
        },
        "/v1/files/{id}/content": {
            "parameters": [_ID],
            "get": {
                "summary": "What is in a file.",
                "responses": {"200": {"description": "Its bytes.", "content": content}, **some, **missing},
            },
        },
    }


def _batches(refs: dict[type, Any], query: Any) -> dict[str, Any]:
    error, body = refs[ErrorBody], {"application/json": {"schema": refs[BatchBody]}}
    some = {status: described(_REFUSALS[status], error) for status in ("400", "401", "503")}
    more = {status: described(_REFUSALS[status], error) for status in ("413", "415", "429")}
    missing = {"404": described("This project has no such batch.", error)}
    one = {"200": described("It.", refs[BatchView])}
    return {
        "/v1/batches": {
            "get": {
                "summary": "The project's batches, the newest first.",
                "parameters": query_parameters(query),
                "responses": {"200": described("A page of them.", refs[BatchList]), **some},
            },
            "post": {
                "summary": "Leave a file of requests, to be answered within a day.",
                "requestBody": {"required": True, "content": body},
                "responses": {**one, **some, **more},
            },
        },
        "/v1/batches/{id}": {
            "parameters": [_ID],
            "get": {"summary": "One batch.", "responses": {**one, **some, **missing}},
        },
        "/v1/batches/{id}/cancel": {
            "parameters": [_ID],
            "post": {
                "summary": "Begin no more of a batch.",
                "responses": {**one, **some, **missing, "409": described("It is over.", error)},
            },
        },
    }


def _responses(refs: dict[type, Any], components: Mapping[str, Any]) -> dict[str, Any]:
    error, events = refs[ErrorBody], {"text/event-stream": {"schema": {"type": "string"}}}
    some = {status: described(_REFUSALS[status], error) for status in ("400", "401", "503")}
    missing = {"404": described("This project has no such response.", error)}
    one = described("It.", refs[Response])
    return {
        "/v1/responses/{id}": {
            "parameters": [_ID],
            "get": {
                "summary": "One stored response.",
                "parameters": query_parameters(components["Retrieval"]),
                "responses": {"200": {**one, "content": {**one["content"], **events}}, **some, **missing},
            },
            "delete": {
                "summary": "Delete a response.",
                "responses": {"200": described("It is gone.", refs[DeletedResponse]), **some, **missing},
            },
        },
        "/v1/responses/{id}/cancel": {
            "parameters": [_ID],
            "post": {"summary": "Stop one that runs in the background.", "responses": {"200": one, **some, **missing}},
        },
        "/v1/responses/{id}/input_items": {
            "parameters": [_ID],
            "get": {
                "summary": "What a response was given.",
                "parameters": query_parameters(components["Listing"]),
                "responses": {"200": described("A page of it.", refs[ItemList]), **some, **missing},
            },
        },
    }


def query_parameters(schema: Mapping[str, Any], without: Collection[str] = ()) -> list[dict[str, Any]]:
    """The fields of a struct as parameters of a query: text, left out or given."""
    required = schema.get("required", ())
    return [
        {"name": name, "in": "query", "required": name in required, "schema": _in_query(field)}
        for name, field in schema["properties"].items()
        if name not in without
    ]


def _in_query(schema: Mapping[str, Any]) -> Any:
    """A parameter that is left out is left out, not null."""
    some = [one for one in schema.get("anyOf", ()) if one != {"type": "null"}]
    return some[0] if len(some) == 1 else {key: value for key, value in schema.items() if key != "default"}


def _pages(error: Any) -> dict[str, Any]:
    model = {"anyOf": [{"$ref": "#/components/schemas/Model"}, {"$ref": "#/components/schemas/ModelInfo"}]}
    models = {"type": "object", "properties": {"data": {"type": "array", "items": model}}, "required": ["data"]}
    version = {"name": "anthropic-version", "in": "header", "required": False, "schema": {"const": "2023-06-01"}}
    thing = {"type": "object"}
    denied = {status: described(_REFUSALS[status], error) for status in ("400", "401")}
    name = {"name": "model", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
    unready = {"503": described("Something is missing.", thing)}
    return {
        "/v1/models": {
            "parameters": [version],
            "get": {
                "summary": "The served models; with the header `anthropic-version`, in Anthropic's shape.",
                "parameters": _MODEL_QUERY,
                "responses": {"200": described("All.", models), **denied},
            },
        },
        "/v1/models/{model}": {
            "parameters": [name, version],
            "get": {
                "summary": "One served model.",
                "responses": {"200": described("It.", model), **denied, "404": described("No such model.", error)},
            },
        },
        "/healthz": _open_page("The process is alive.", {"200": described("Alive.", thing)}),
        "/readyz": _open_page("Every model is ready.", {"200": described("Ready.", thing), **unready}),
        "/": _open_page("Where things are.", {"200": described("Paths.", thing)}),
    }


def _open_page(about: str, responses: dict[str, Any]) -> dict[str, Any]:
    return {"get": {"summary": about, "security": [], "responses": responses}}


def described(words: str, schema: Any) -> dict[str, Any]:
    """One response of an operation."""
    return {"description": words, "content": {"application/json": {"schema": schema}}}
