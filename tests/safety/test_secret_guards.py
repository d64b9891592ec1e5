"""Secrets in requests and in answers: what is masked, what is refused, what else must not tell them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlace.config import GuardSettings, SecretSettings
from interlace.engines.types import (
    Delta,
    EmbedRequest,
    GenerateRequest,
    Message,
    OutputRule,
    TokenLogprob,
    Tool,
    ToolCall,
    ToolCallDelta,
)
from interlace.errors import ContentFiltered
from interlace.safety import Guards

CARD, SPACED = "4111111111111111", "4111 1111 1111 1111"
AWS = "AKIAIOSFODNN7EXAMPLE"
BEGIN, END = "-----BEGIN PRIVATE KEY-----", "-----END PRIVATE KEY-----"
OFF = SecretSettings()
MASK = SecretSettings(card="mask", api_key="mask", private_key="mask")
REFUSE = SecretSettings(card="refuse", api_key="refuse", private_key="refuse")


def guards(*, into: SecretSettings = OFF, out: SecretSettings = OFF, **more: Any) -> Guards:
    """Guards with these settings for secrets."""
    return Guards.from_settings(GuardSettings(secrets_input=into, secrets_output=out, **more))


def run(made: Guards, *deltas: Delta, rule: OutputRule | None = None) -> list[Delta]:
    """Everything the output guard lets out of these deltas."""
    output = made.open_output(rule)
    assert output is not None
    return [shown for delta in deltas for shown in output.feed(delta)]


def text_of(deltas: list[Delta], index: int = 0) -> str:
    """The shown text of one choice."""
    return "".join(delta.text for delta in deltas if delta.index == index)


def arguments_of(deltas: list[Delta], call: int = 0) -> str:
    """The shown arguments of one tool call."""
    return "".join(piece.arguments for delta in deltas for piece in delta.tool_calls if piece.index == call)


def logprob(text: str) -> TokenLogprob:
    """A token of this text."""
    return TokenLogprob(id=1, bytes=text.encode(), logprob=-1.0)


# --- input -------------------------------------------------------------------------------------------------------


async def test_every_text_of_a_conversation_is_masked() -> None:
    """A text that is left out would reach the engine; what has no secret stays the very same."""
    clean = Message("user", "hello")
    request = GenerateRequest(
        id="1",
        messages=(
            Message("system", f"card {CARD}."),
            clean,
            Message("user", "x", name=AWS),
            Message("assistant", tool_calls=(ToolCall("c", "f", f'{{"card": {CARD}, "key": "{AWS}"}}'),)),
        ),
        tools=(Tool("f", f"{BEGIN}\nabc\n{END}!"),),
    )
    (masked,) = await guards(into=MASK).clean((request,), param="messages")
    assert masked.messages is not None
    assert masked.messages[0].content == "card [card number removed]."
    assert masked.messages[1] is clean
    assert masked.messages[2].name == "[API key removed]"
    arguments = masked.messages[3].tool_calls[0].arguments
    assert json.loads(arguments) == {"card": "[card number removed]", "key": "[API key removed]"}
    assert masked.tools[0].description == "[private key removed]!"


async def test_prompts_and_texts_to_embed_are_masked() -> None:
    """The other two ways in; a request without secrets comes back as it was."""
    made = guards(into=MASK)
    (prompt,) = await made.clean((GenerateRequest("1", prompt=f"a {SPACED} b"),), param="prompt")
    assert prompt.prompt == "a [card number removed] b"
    (embed,) = await made.clean((EmbedRequest("1", texts=("x", CARD)),), param="input")
    assert embed.texts == ("x", "[card number removed]")
    plain = GenerateRequest("1", prompt="nothing here " * 5000)
    assert (await made.clean((plain,), param="prompt"))[0] is plain


REQUESTS = {
    "message": GenerateRequest("1", messages=(Message("user", CARD),)),
    "prompt": GenerateRequest("1", prompt=f"{'long ' * 10_000} {CARD}"),
    "embedding": EmbedRequest("1", texts=("x", CARD)),
}
NOT_MASKABLE = {
    "function": GenerateRequest("1", messages=(), tools=(Tool(AWS),)),
    "called function": GenerateRequest("1", messages=(Message("assistant", tool_calls=(ToolCall("c", AWS, "{}"),)),)),
    "parameters": GenerateRequest("1", messages=(), tools=(Tool("f", parameters={"const": CARD}),)),
    "rule": GenerateRequest("1", prompt="x", output=OutputRule("regex", CARD)),
}


@pytest.mark.parametrize(
    ("settings", "request_"),
    [
        *((REFUSE, request) for request in [*REQUESTS.values(), *NOT_MASKABLE.values()]),
        *((MASK, request) for request in NOT_MASKABLE.values()),
    ],
)
async def test_refused_input_names_the_kind_and_never_the_value(settings: SecretSettings, request_: Any) -> None:
    """400 `content_filter`, which is shown and logged: the secret must not be in it."""
    with pytest.raises(ContentFiltered) as caught:
        await guards(into=settings).clean((request_,), param="messages")
    assert (caught.value.status, caught.value.code, caught.value.param) == (400, "content_filter", "messages")
    assert "looks like a card number" in str(caught.value) or "looks like an API key" in str(caught.value)
    assert CARD not in str(caught.value)
    assert AWS not in str(caught.value)


@pytest.mark.parametrize("settings", [MASK, REFUSE])
async def test_decoded_token_ids_are_refused(settings: SecretSettings) -> None:
    """Tokens cannot be masked, and must be decoded as soon as there is anything to look for."""
    made = guards(into=settings)
    assert made.reads_text
    await made.check_decoded("nothing", param="prompt")
    with pytest.raises(ContentFiltered):
        await made.check_decoded(f"card {CARD}", param="prompt")


@pytest.mark.parametrize(("part", "text"), [("may_find", "hello"), ("start", "sk-hello")])
async def test_a_failing_secret_guard_refuses(monkeypatch: pytest.MonkeyPatch, part: str, text: str) -> None:
    """Default deny, on both sides: an error inside the search, or inside the glance before it, is no pass and no 500.
    An answer that comes whole is no exception."""
    made = guards(into=MASK, out=MASK)
    monkeypatch.setattr(f"interlace.safety.redactor.Search.{part}", lambda *_, **__: 1 / 0)
    with pytest.raises(ContentFiltered, match="could not be checked"):
        await made.clean((REQUESTS["message"],), param="messages")
    with pytest.raises(ContentFiltered, match="could not be checked"):
        await made.check_decoded(text, param="prompt")
    for deltas in (
        [Delta(text=text), Delta(text="more", finish_reason="stop")],
        [Delta(text=text, finish_reason="stop")],
    ):
        shown = run(made, *deltas)
        assert (text_of(shown), shown[-1].finish_reason, len(shown)) == ("", "content_filter", 1)


def test_off_is_off() -> None:
    """By default nothing is looked for, nothing held, and token ids stay welcome."""
    made = guards()
    assert made.open_output() is None
    assert not made.reads_text
    assert made.redacted([CARD]) == [CARD]


def test_logs_show_no_secret_that_is_looked_for() -> None:
    """With `log.prompts`, a refused or masked secret must not stand in the log instead."""
    assert guards(into=REFUSE).redacted([f"a {CARD} {AWS}"]) == ["a [card number removed] [API key removed]"]
    assert guards(out=SecretSettings(card="mask")).redacted([f"{CARD} {AWS}"]) == [f"[card number removed] {AWS}"]


# --- output ------------------------------------------------------------------------------------------------------


def test_a_masked_answer_keeps_its_order_its_end_and_its_tokens() -> None:
    """Tokens are counted where they came; the finish reason is the engine's."""
    shown = run(
        guards(out=MASK),
        Delta(text="Pay ", tokens=1),
        Delta(text="4111 11", tokens=2),
        Delta(text="11 1111 1111", tokens=3),
        Delta(text=" now", tokens=1),
        Delta(finish_reason="stop"),
    )
    assert text_of(shown) == "Pay [card number removed] now"
    assert sum(delta.tokens for delta in shown) == 7
    assert [delta.finish_reason for delta in shown if delta.finish_reason] == ["stop"]


def test_a_refused_answer_keeps_the_clean_text_before() -> None:
    """As with a denied pattern: the choice ends, others go on, later deltas are dropped."""
    shown = run(
        guards(out=REFUSE),
        Delta(index=0, text="Pay 4111 11"),
        Delta(index=1, text=f"key: {AWS[:9]}"),
        Delta(index=0, text="11 1111 1111."),
        Delta(index=0, text="more", finish_reason="stop"),
        Delta(index=1, text=" is none", finish_reason="stop"),
    )
    assert (text_of(shown, 0), text_of(shown, 1)) == ("Pay ", f"key: {AWS[:9]} is none")
    assert {d.index: d.finish_reason for d in shown if d.finish_reason} == {0: "content_filter", 1: "stop"}


def test_a_mask_before_a_refusal_stays_a_mask() -> None:
    """Kinds have actions of their own; the clean text in front of the refused secret is masked like any."""
    made = guards(out=SecretSettings(card="mask", api_key="refuse"))
    shown = run(made, Delta(text=f"{CARD} and {AWS}!", finish_reason="stop"))
    assert (text_of(shown), shown[-1].finish_reason) == ("[card number removed] and ", "content_filter")


def test_a_private_key_is_dropped_until_its_end() -> None:
    """It is longer than any window: decided by its BEGIN line, gone until END, and the answer goes on."""
    shown = run(
        guards(out=MASK),
        Delta(text=f"Key:\n{BEGIN}\n", tokens=1),
        *(Delta(text="abcdefgh" * 10 + "\n", tokens=1) for _ in range(100)),
        Delta(text=f"{END}\nDone", tokens=1, finish_reason="stop"),
    )
    assert text_of(shown) == "Key:\n[private key removed]\nDone"
    assert sum(delta.tokens for delta in shown) == 102


def test_tool_arguments_are_masked_and_stay_json() -> None:
    """Inside a string the mask is text, a bare number becomes a string; id and name come through."""
    arguments = json.dumps({"card": int(CARD), "note": f"pay {SPACED}\nnow", "pem": f"{BEGIN}\nabc"})
    pieces = [arguments[i : i + 5] for i in range(0, len(arguments), 5)]
    shown = run(
        guards(out=MASK),
        Delta(tool_calls=(ToolCallDelta(index=0, id="call_1", name="pay"),)),
        *(Delta(tool_calls=(ToolCallDelta(index=0, arguments=piece),), tokens=1) for piece in pieces),
        Delta(finish_reason="tool_calls"),
    )
    assert json.loads(arguments_of(shown)) == {
        "card": "[card number removed]",
        "note": "pay [card number removed]\nnow",
        "pem": "[private key removed]",
    }
    assert (shown[0].tool_calls[0].id, shown[0].tool_calls[0].name) == ("call_1", "pay")
    assert sum(delta.tokens for delta in shown) == len(pieces)


@pytest.mark.parametrize(("name", "arguments"), [("pay", f'{{"card": "{CARD}"}}'), (AWS, "{}")])
def test_tool_calls_with_secrets_are_refused(name: str, arguments: str) -> None:
    """In arguments, and in a name the model made up."""
    half = len(arguments) // 2
    shown = run(
        guards(out=REFUSE),
        Delta(text="Well"),
        Delta(tool_calls=(ToolCallDelta(index=0, id="call_1", name=name, arguments=arguments[:half]),)),
        Delta(tool_calls=(ToolCallDelta(index=0, arguments=arguments[half:]),)),
        Delta(finish_reason="tool_calls"),
    )
    assert text_of(shown) == "Well"
    assert shown[-1].finish_reason == "content_filter"
    assert CARD not in str(shown)
    assert AWS not in str(shown)


def test_an_answer_in_json_stays_json() -> None:
    """With an output rule for JSON the text is JSON: a bare card number must not break it."""
    rule = OutputRule("json_schema", "{}")
    deltas = (Delta(text='{"card": 4111'), Delta(text="111111111111", tokens=1), Delta(text="}", finish_reason="stop"))
    assert text_of(run(guards(out=MASK), *deltas, rule=rule)) == '{"card": "[card number removed]"}'
    assert text_of(run(guards(out=MASK), *deltas)) == '{"card": [card number removed]}'


def test_logprobs_do_not_tell_what_the_text_does_not() -> None:
    """Those of masked tokens go; those of tokens that are not shown as text (a tool call under way) go; others stay."""
    shown = run(
        guards(out=MASK),
        Delta(text="Pay ", logprobs=(logprob("Pay "),)),
        Delta(text="4111 1111", logprobs=(logprob("4111 1111"),)),
        Delta(text=" 1111 1111.", logprobs=(logprob(" 1111 1111"), logprob("."))),
        Delta(text=" Now", logprobs=(logprob(" Now"),)),
        Delta(text="", logprobs=(logprob(f'<tool_call>{{"card": {CARD}}}'),)),
        Delta(text=" ab", logprobs=(logprob(" ab" + CARD),)),
        Delta(text="", finish_reason="stop"),
    )
    assert [token.bytes for delta in shown for token in delta.logprobs] == [b"Pay ", b" Now"]


def test_denied_patterns_see_the_text_as_it_was() -> None:
    """A pattern that an operator wrote for card numbers refuses, whatever a mask would make of it."""
    made = guards(out=MASK, deny=("4111 ?1111",))
    shown = run(made, Delta(text=f"{AWS} then {SPACED}", finish_reason="stop"))
    assert (text_of(shown), shown[-1].finish_reason) == ("[API key removed] then ", "content_filter")


def test_what_is_found_is_counted_once_and_without_its_value() -> None:
    """Direction, kind and action: what a metric may show."""
    seen: list[tuple[str, str, str]] = []
    made = Guards.from_settings(
        GuardSettings(secrets_output=SecretSettings(card="mask", api_key="refuse")), lambda *what: seen.append(what)
    )
    run(made, Delta(text=f"{CARD} "), Delta(text=f"{SPACED} "), Delta(text=AWS), Delta(text="x", finish_reason="stop"))
    assert seen == [("output", "card", "mask"), ("output", "card", "mask"), ("output", "api_key", "refuse")]


@given(text=st.text(max_size=80), pieces=st.integers(1, 7))
def test_clean_deltas_pass_as_they_are(text: str, pieces: int) -> None:
    """An answer without secrets comes out as the very deltas that went in."""
    size = len(text) // pieces + 1
    deltas = [Delta(text=text[i : i + size], tokens=1) for i in range(0, len(text), size)]
    deltas.append(Delta(finish_reason="stop"))
    assert all(a is b for a, b in zip(run(guards(out=MASK), *deltas), deltas, strict=True))
