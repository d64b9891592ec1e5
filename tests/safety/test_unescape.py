"""Escapes of JSON text, undone while it arrives in pieces."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from interlace.config import GuardSettings, SecretSettings
from interlace.engines.types import Delta, TokenLogprob, ToolCallDelta, TopLogprob
from interlace.errors import InvalidRequest
from interlace.safety import Guards, OutputGuard
from interlace.safety.unescape import Unescaper
from tests.parity.rig import DENY

KEY = "AKIAIOSFODNN7EXAMPLE"


@given(st.text(st.characters(exclude_categories=["Cs"])), st.integers(1, 7))
def test_any_pieces_give_what_a_reader_of_json_reads(text: str, size: int) -> None:
    """A pair of escapes cut in two, or an escaped backslash before a u, must come out as JSON means them."""
    written = json.dumps(text)[1:-1]
    unescaper = Unescaper()
    pieces = [unescaper.feed(written[at : at + size]) for at in range(0, len(written), size)]
    assert "".join(pieces) + unescaper.end() == text


def test_an_alternative_token_tells_nothing_denied() -> None:
    """The answer is clean, so it goes on; what could have been said instead does not tell the word."""
    guard = Guards.from_settings(GuardSettings(deny=(DENY,))).open_output()
    assert isinstance(guard, OutputGuard)
    top = (TopLogprob(1, b"well", -0.1), TopLogprob(2, b"jabberwocky", -3.0))
    told = guard.feed(Delta(text="well", logprobs=(TokenLogprob(1, b"well", -0.1, top),), finish_reason="stop"))
    assert [one.logprobs[0].top for one in told] == [top[:1]]


def test_logprobs_of_other_tokens_than_are_said_are_guarded() -> None:
    """A provider may tell tokens that are not in its text."""
    guard = Guards.from_settings(GuardSettings(deny=(DENY,))).open_output()
    assert guard is not None
    tokens = (TokenLogprob(1, b"jabber", -0.1), TokenLogprob(2, b"wocky", -0.1))
    shown = guard.feed(Delta(text="well", logprobs=tokens, finish_reason="stop"))
    assert not any(one.logprobs for one in shown)
    assert shown[-1].finish_reason == "content_filter"


def test_a_secret_in_plain_arguments_with_other_escapes_is_still_masked() -> None:
    """Only a secret that is hidden by escapes ends a call; one beside them is masked as ever."""
    guard = Guards.from_settings(GuardSettings(secrets_output=SecretSettings(api_key="mask"))).open_output()
    assert guard is not None
    call = ToolCallDelta(0, "1", "f", f'{{"a": "Gr\\u00fc\\u00dfe\\n{KEY}"}}')
    shown = [*guard.feed(Delta(tool_calls=(call,))), *guard.feed(Delta(finish_reason="tool_calls"))]
    said = "".join(each.arguments for one in shown for each in one.tool_calls)
    assert json.loads(said) == {"a": "Grüße\n[API key removed]"}
    assert shown[-1].finish_reason == "tool_calls"


def test_an_error_loses_its_words_and_nothing_else() -> None:
    """Its kind and so its status stay; a clean one is the very same."""
    guards = Guards.from_settings(GuardSettings(deny=(DENY,)))
    clean, quoting = InvalidRequest("No."), InvalidRequest("No jabber wocky.", param="jabber_wocky")
    assert guards.told(clean) is clean
    told = guards.told(quoting)
    assert (type(told), told.param) == (InvalidRequest, None)
    assert "jabber" not in told.message
