"""What the lines of a batch may ask: a table from endpoint to parser."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from interlace.deposits import Batch, Deposits
from interlace.errors import InvalidRequest
from interlace.gateway.calls import Ask
from interlace.gateway.dialects import PARSED
from interlace.gateway.rendering import Dialect
from interlace.gateway.responses import ask_of, read_body, references_of
from interlace.gateway.responses_endpoint import Keeping
from interlace.gateway.responses_rendering import ResponseRendering
from interlace.gateway.styles import OPENAI, Style
from interlace.ledger import Write


@dataclass(frozen=True)
class LineEndpoint:
    """One endpoint: its name in usage events, its parser, and how it tells errors.

    `accept` hears, with the rendering, the ask as guards let it pass; `keep` says what else is written with a good
    answer.
    """

    name: str
    parse: Dialect
    style: Style = OPENAI
    accept: Callable[[Any, Ask], None] = lambda _rendering, _ask: None
    keep: Callable[[Any, Batch, Deposits], tuple[Write, ...]] = lambda _rendering, _batch, _deposits: ()


def _parse_response(body: bytes, request_id: str, max_sequences: int) -> tuple[Ask, ResponseRendering]:  # noqa: ARG001 - one answer is one sequence
    """A response that stands by itself."""
    read = read_body(body)
    wrong = {
        "previous_response_id": read.previous_response_id is not None,
        "background": read.background,
        "input": references_of(read),
    }
    for param, there in wrong.items():
        if there:
            raise InvalidRequest(
                "A request of a batch stands by itself: it has its whole input, and is no background work.",
                param=param,
                code="unsupported_parameter",
            )
    return ask_of(read, request_id, (), {})


def _accept_response(rendering: ResponseRendering, ask: Ask) -> None:
    rendering.accept(ask.generate[0])


def _keep_response(rendering: ResponseRendering, batch: Batch, deposits: Deposits) -> tuple[Write, ...]:
    """The response is stored as one that somebody waited for, unless `store` is false."""
    responses = deposits.responses
    now = responses.now()
    keeping = Keeping(responses, rendering, batch.project_id, (), now, responses.expires_at(now))
    return keeping.last_words(failed=False)


ENDPOINTS: dict[str, LineEndpoint] = {
    **{path: LineEndpoint(spoken.name, parse, spoken.style) for path, (spoken, parse) in PARSED.items()},
    "/v1/responses": LineEndpoint("responses", _parse_response, accept=_accept_response, keep=_keep_response),
}
