"""The OpenAPI document of the admin API, generated from the table of operations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args, get_origin

import msgspec

from interlace import __version__
from interlace.gateway.openapi import described, query_parameters
from interlace.gateway.wire import ErrorBody
from interlace.ledger.operations import Operation

_REFUSALS = {
    "400": "The request is wrong; `param` names the field.",
    "401": "No key, or a wrong one.",
    "403": "The key has not the scope `admin`.",
    "404": "No such thing.",
    "409": "It is there already, or not in a state for this.",
    "413": "The body is too large.",
    "415": "The body is not JSON.",
    "503": "The ledger cannot write or be read now.",
}


def admin_document(operations: Mapping[str, Operation], prefix: str) -> dict[str, Any]:
    """OpenAPI 3.1."""
    outputs = [_item(operation) for operation in operations.values()]
    types: list[type] = [ErrorBody, *(operation.input for operation in operations.values()), *outputs]
    schemas, components = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    refs: dict[type, Any] = dict(zip(types, schemas, strict=True))
    refusals = {status: described(words, refs[ErrorBody]) for status, words in _REFUSALS.items()}
    paths: dict[str, Any] = {}
    for operation in operations.values():
        fields = components[operation.input.__name__]
        paths.setdefault(prefix + operation.path, {})[operation.method.lower()] = {
            "operationId": operation.name,
            "summary": operation.about,
            **_input(operation, fields),
            "responses": {"200": described("There is now.", _output(operation, refs)), **refusals},
        }
    return {
        "openapi": "3.1.0",
        "info": {"title": "Interlace, administration", "version": __version__},
        "components": {
            "schemas": _without_path_fields(operations, components),
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}],
        "paths": paths,
    }


def _item(operation: Operation) -> type:
    """What the operation gives, or gives a list of."""
    item: type = get_args(operation.output)[0] if get_origin(operation.output) is list else operation.output
    return item


def _output(operation: Operation, refs: Mapping[type, Any]) -> Any:
    one = refs[_item(operation)]
    if get_origin(operation.output) is not list:
        return one
    properties = {"object": {"const": "list"}, "data": {"type": "array", "items": one}}
    return {"type": "object", "required": ["object", "data"], "properties": properties}


def _input(operation: Operation, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of path and query, and the body."""
    properties: dict[str, Any] = fields["properties"]
    in_path = [
        {"name": name, "in": "path", "required": True, "schema": _in_path(properties[name])}
        for name in operation.in_path
    ]
    rest = [name for name in properties if name not in operation.in_path]
    if operation.method == "GET":
        query = query_parameters(fields, without=operation.in_path)
        return {"parameters": [*in_path, *query], "description": fields.get("description", "")}
    body = {"$ref": f"#/components/schemas/{operation.input.__name__}"}
    needed = any(name in fields.get("required", ()) for name in rest)
    content = {"required": needed, "content": {"application/json": {"schema": body}}}
    return {"parameters": in_path, "requestBody": content, "description": fields.get("description", "")}


def _in_path(schema: dict[str, Any]) -> dict[str, Any]:
    return {**schema, "minLength": 1} if schema.get("type") == "string" else schema


def _without_path_fields(operations: Mapping[str, Operation], components: Mapping[str, Any]) -> dict[str, Any]:
    """The schemas of bodies, without what stands in the path instead."""
    found = dict(components)
    for operation in operations.values():
        name = operation.input.__name__
        schema = dict(found[name])
        schema["properties"] = {k: v for k, v in schema["properties"].items() if k not in operation.in_path}
        schema["required"] = [field for field in schema.get("required", ()) if field not in operation.in_path]
        found[name] = schema
    return found
