"""Makes `openai.json` from OpenAI's published OpenAPI document: `python trim.py openapi.json > openai.json`.

Kept are the schemas of what our endpoints answer and all they refer to, without prose.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

WANTED = (
    "CreateChatCompletionResponse", "CreateChatCompletionStreamResponse", "CreateCompletionResponse",
    "CreateEmbeddingResponse", "ListModelsResponse", "Model", "ErrorResponse",
    "Response", "ResponseStreamEvent", "OpenAIFile", "ListFilesResponse", "DeleteFileResponse",
    "Batch", "ListBatchesResponse", "ResponseItemList",
)  # fmt: skip
_PROSE = {"description", "title", "example", "examples", "deprecated"}


def bare(node: Any, *, names: bool = False) -> Any:
    """Without prose; `nullable`, which JSON Schema does not know, becomes a choice with null. `names`: the keys of
    this object are names of properties, not words of the schema."""
    if isinstance(node, list):
        return [bare(item) for item in node]
    if not isinstance(node, dict):
        return node
    if names:
        return {key: bare(value) for key, value in node.items()}
    kept = {
        key: bare(value, names=key == "properties")
        for key, value in node.items()
        if key not in _PROSE and not key.startswith("x-") and key != "nullable"
    }
    return {"anyOf": [kept, {"type": "null"}]} if node.get("nullable") else kept


def references(node: Any) -> set[str]:
    """The schemas a schema refers to."""
    if isinstance(node, list):
        return set().union(*map(references, node)) if node else set()
    if not isinstance(node, dict):
        return set()
    found = set().union(*(references(value) for value in node.values())) if node else set()
    if isinstance(node.get("$ref"), str):
        found.add(node["$ref"].rpartition("/")[2])
    return found


def trimmed(document: dict[str, Any]) -> dict[str, Any]:
    """The wanted schemas, and what they need, as the `$defs` of one JSON Schema."""
    schemas = document["components"]["schemas"]
    kept: dict[str, Any] = {}
    todo = [name for name in WANTED if name in schemas]
    while todo:
        name = todo.pop()
        if name not in kept:
            kept[name] = bare(schemas[name])
            todo += references(kept[name])
    text = json.dumps({"$defs": dict(sorted(kept.items()))}).replace("#/components/schemas/", "#/$defs/")
    made: dict[str, Any] = json.loads(text)
    return made


if __name__ == "__main__":
    print(json.dumps(trimmed(json.loads(Path(sys.argv[1]).read_text())), indent=0, separators=(",", ":")))
