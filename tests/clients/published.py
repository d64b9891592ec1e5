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
    _mend(found)
    shared = _parts(found)
    closed = {name: _closed(schema) for name, schema in found.items()}
    for name in shared:
        closed[name].pop("additionalProperties", None)
    for schema in closed.values():
        if "allOf" in schema:  # the whole of such an object is closed by what its parts know together
            schema["unevaluatedProperties"] = False
    return closed


def _mend(found: dict[str, Any]) -> None:
    """Where OpenAI's document is stricter than its own examples and answers."""
    # The first token of a prompt has no logprob, and null stands there.
    columns = found["CreateCompletionResponse"]["properties"]["choices"]["items"]["properties"]["logprobs"]
    for column in columns["anyOf"][0]["properties"].values():
        column["items"] = {"anyOf": [column["items"], {"type": "null"}]}
    # `"user": null` stands in every example of a response, and `"usage": null` in each that is not done.
    found["ModelResponseProperties"]["properties"]["user"] = {"type": ["string", "null"]}
    last = found["Response"]["allOf"][-1]["properties"]
    last["usage"] = {"anyOf": [last["usage"], {"type": "null"}]}


def _parts(node: Any) -> set[str]:
    """The schemas that are parts of an `allOf`: each sees the whole object, and cannot be closed alone."""
    children = node if isinstance(node, list) else node.values() if isinstance(node, dict) else ()
    found = {name for child in children for name in _parts(child)}
    if isinstance(node, dict):
        found |= {part["$ref"].rpartition("/")[2] for part in node.get("allOf", ()) if "$ref" in part}
    return found


def _closed(node: Any) -> Any:
    """Objects may have no other than their listed properties, but for parts of an `allOf`."""
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
