"""OpenAI's published schemas, closed: a field they do not have is as wrong as one they miss."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

_FILE = Path(__file__).parent / "schemas" / "openai.json"
# What our answers say beyond OpenAI's, on purpose: by schema, with the shape it has.
_TEXT, _NUMBER = {"type": ["string", "null"]}, {"type": ["integer", "null"]}
_OURS: dict[str, dict[str, Any]] = {
    "Model": {
        "checkpoint": _TEXT, "context_length": _NUMBER, "dimensions": _NUMBER, "engine": _TEXT, "kind": _TEXT,
        "precision": _TEXT, "state": _TEXT,
    },
}  # fmt: skip


@functools.cache
def _definitions() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(_FILE.read_text())["$defs"]
    for name, more in _OURS.items():
        found[name]["properties"].update(more)
    # The first token of a prompt has no logprob: OpenAI writes null there, though its document does not say so.
    columns = found["CreateCompletionResponse"]["properties"]["choices"]["items"]["properties"]["logprobs"]
    for column in columns["anyOf"][0]["properties"].values():
        column["items"] = {"anyOf": [column["items"], {"type": "null"}]}
    return {name: _closed(schema) for name, schema in found.items()}


def _closed(node: Any) -> Any:
    """Objects may have no other than their listed properties. Parts of an `allOf` are left open: each sees the whole
    object."""
    if isinstance(node, list):
        return [_closed(item) for item in node]
    if not isinstance(node, dict):
        return node
    made = {key: value if key == "allOf" else _closed(value) for key, value in node.items()}
    if isinstance(made.get("properties"), dict) and "additionalProperties" not in made and "allOf" not in made:
        made["additionalProperties"] = False
    return made


def complaints(name: str, answer: Any) -> list[str]:
    """What the schema of that name has against an answer."""
    validator = Draft202012Validator({"$ref": f"#/$defs/{name}", "$defs": _definitions()})
    return [f"{error.json_path}: {error.message[:300]}" for error in validator.iter_errors(answer)]
