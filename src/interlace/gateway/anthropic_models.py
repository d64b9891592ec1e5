"""`/v1/models` in Anthropic's words."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Literal

import msgspec
from starlette.types import Scope

from interlace.engines.types import Capabilities
from interlace.errors import InvalidRequest
from interlace.gateway.http import query_of

LIMIT, LARGEST_LIMIT = 20, 1000  # models on a page


class ModelInfo(msgspec.Struct, frozen=True):
    """One served model. `max_tokens` is the longest answer, which is bounded here by the context alone."""

    id: str
    display_name: str
    created_at: str
    max_input_tokens: int | None
    max_tokens: int | None
    lifecycle: Literal["active"] = "active"
    type: Literal["model"] = "model"


class ModelList(msgspec.Struct, frozen=True):
    """One page of models; `first_id` and `last_id` lead to the pages before and after."""

    data: list[ModelInfo]
    has_more: bool
    first_id: str | None
    last_id: str | None


def model_info(name: str, created: int, can: Capabilities) -> ModelInfo:
    """What is told of a model; `created` in seconds since 1970."""
    moment = datetime.fromtimestamp(created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    longest = can.context_length or None
    return ModelInfo(name, name, moment, longest, longest)


def model_page(scope: Scope, models: Sequence[ModelInfo]) -> ModelList:
    """The page that the query asks for: after `after_id`, or before `before_id`, at most `limit`. Raises
    `InvalidRequest`."""
    query = query_of(scope)
    limit = _limit(query.get("limit"))
    before, after = query.get("before_id"), query.get("after_id")
    if before is not None and after is not None:
        raise InvalidRequest("Give 'before_id' or 'after_id', not both.", param="before_id")
    if before is not None:
        left = models[: _place(models, before, "before_id")]
        shown = left[-limit:]
    else:
        left = models if after is None else models[_place(models, after, "after_id") + 1 :]
        shown = left[:limit]
    ends = (shown[0].id, shown[-1].id) if shown else (None, None)
    return ModelList(list(shown), len(left) > len(shown), *ends)


def _limit(given: str | None) -> int:
    if given is None:
        return LIMIT
    if given.isascii() and given.isdecimal() and len(given) <= 4 and 1 <= int(given) <= LARGEST_LIMIT:
        return int(given)
    raise InvalidRequest(f"'limit' is a number from 1 to {LARGEST_LIMIT}.", param="limit")


def _place(models: Sequence[ModelInfo], id: str, param: str) -> int:
    for i, model in enumerate(models):
        if model.id == id:
            return i
    raise InvalidRequest(f"'{param}' names no model of yours.", param=param)
