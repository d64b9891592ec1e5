"""OpenAI's published schemas, closed: a field that they do not have is refused in requests, as the API refuses it, and
wrong in answers."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

_TESTS = Path(__file__).parent.parent.parent
REQUESTS, ANSWERS = _TESTS / "providers/fixtures/openai-requests.json", _TESTS / "clients/schemas/openai.json"


@functools.cache
def _definitions(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text())["$defs"]
    for mark in ("PromptCacheBreakpointParam", "PromptCacheBreakpointConfig"):  # the SDK 3.57 types one field more
        if mark in found:
            found[mark]["properties"]["ttl"] = {"enum": ["30m", "12h"]}
    return {name: _closed(schema, found) for name, schema in found.items()}


def _closed(node: Any, found: dict[str, Any]) -> Any:
    """Objects may have no other than their listed properties; what `allOf` says together becomes one object."""
    if isinstance(node, list):
        return [_closed(item, found) for item in node]
    if not isinstance(node, dict):
        return node
    if "allOf" in node:
        node = _joined(node, found)
    made = {("anyOf" if key == "oneOf" else key): _closed(value, found) for key, value in node.items()}
    made.pop("discriminator", None)
    if isinstance(made.get("properties"), dict) and "additionalProperties" not in made:
        made["additionalProperties"] = False
    return made


def _joined(node: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = {key: value for key, value in node.items() if key != "allOf"}
    for part in node["allOf"]:
        while "$ref" in part:
            part = found[part["$ref"].rpartition("/")[2]]  # noqa: PLW2901 - it stands for the other
        if "allOf" in part:
            part = _joined(part, found)  # noqa: PLW2901 - it stands for the other
        if "properties" not in part:
            return {**made, **part} if len(node["allOf"]) == 1 else node
        made["type"] = "object"
        made["properties"] = {**made.get("properties", {}), **part["properties"]}
        made["required"] = [*made.get("required", ()), *part.get("required", ())]
    return made


def complaints_about(name: str, body: Any, more: dict[str, Any] | None = None, *, file: Path = REQUESTS) -> list[str]:
    """What the schema of that name has against a body; `more` are properties that this server knows beside."""
    definitions = _definitions(file)
    if more:
        schema = definitions[name]
        definitions = {**definitions, name: {**schema, "properties": {**schema["properties"], **more}}}
    validator = Draft202012Validator({"$ref": f"#/$defs/{name}", "$defs": definitions})
    return [f"{error.json_path}: {error.message[:300]}" for error in validator.iter_errors(body)]
