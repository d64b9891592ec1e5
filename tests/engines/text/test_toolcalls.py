"""Tool calls out of generated text, in any cutting."""

from __future__ import annotations

import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlace.engines.local.toolcalls import ToolCallParser, call_id
from interlace.engines.types import Tool, ToolCallDelta

_TOOLS = (Tool(name="get"), Tool(name="set"))


def _parse(text: str, size: int = 10_000, *, cut: bool = False) -> tuple[str, list[tuple[int, str | None, str]]]:
    parser = ToolCallParser(_TOOLS, random.Random(1))
    found: list[str | ToolCallDelta] = []
    for start in range(0, len(text), size):
        found += parser.push(text[start : start + size])
    found += parser.finish(cut=cut)
    content = "".join(part for part in found if isinstance(part, str))
    return content, [(part.index, part.name, part.arguments) for part in found if isinstance(part, ToolCallDelta)]


_GOOD = {
    '<tool_call>[{"name": "get", "arguments": {"a": 1.50}}]</tool_call>': [(0, "get", '{"a": 1.50}')],
    '<tool_call>{"name": "get", "arguments": {}}</tool_call>': [(0, "get", "{}")],
    '<tool_call>\n{"arguments": {"é": "😀"}, "name": "set"}\n</tool_call>': [(0, "set", '{"é": "😀"}')],
    '<tool_call>[\n{"name": "get"},\n{"name": "set", "arguments": { }}\n]</tool_call>': [
        (0, "get", "{}"),
        (1, "set", "{ }"),
    ],
    '<tool_call>{"name":"get"}</tool_call>\n<tool_call>{"name":"set"}</tool_call>\n': [
        (0, "get", "{}"),
        (1, "set", "{}"),
    ],
    '<tool_call>[{"name": "get", "arguments": {}}]': [(0, "get", "{}")],  # ended before its closing tag
    "<tool_call>[]</tool_call>": [],  # SmolLM2's "no call is needed"
}


@pytest.mark.parametrize("text", _GOOD)
@pytest.mark.parametrize("size", [1, 3, 10_000])
def test_calls_are_found_as_the_model_wrote_them(text: str, size: int) -> None:
    """Arguments keep their spelling (1.50 stays 1.50), and no tag or blank is left as content."""
    assert _parse(text, size) == ("", _GOOD[text])


@pytest.mark.parametrize(
    "block",
    [
        '{"name": "get", "arguments": [1]}',
        '{"name": "nobody", "arguments": {}}',
        '{"name": "get", "arguments": {"a": NaN}}',
        '{"name": "get", "arguments": {}} and more',
        '[{"name": "get"}{"name": "set"}]',
        '[{"name": "get"}, ]',
        '{"arguments": {}}',
        "get(a=1)",
        "[",
        "",
        '{"name": "get", "arguments": ' + '{"a":' * 100_000,
    ],
)
def test_a_malformed_call_is_content_to_the_letter(block: str) -> None:
    """Nothing a model wrote is lost because it is no call."""
    text = f"before <tool_call>{block}</tool_call> after"
    assert _parse(text) == (text, [])
    assert _parse(text[: -len("</tool_call> after")]) == (text[: -len("</tool_call> after")], [])


def test_text_around_a_call_is_content_and_blanks_next_to_it_are_not() -> None:
    """What OpenAI's clients expect: content without the call's surroundings."""
    content, calls = _parse('Let me see.\n\n<tool_call>{"name": "get"}</tool_call>\n')
    assert (content, len(calls)) == ("Let me see.", 1)


@pytest.mark.parametrize(
    ("block", "calls"),
    [
        ('[{"name": "get", "arguments": {"a": "x', [(0, "get", '{"a": "x')]),
        ('{"name": "set", "arguments": {"a": {}, ', [(0, "set", '{"a": {}, ')]),
        ('[{"name": "get", "arguments": {"a": 1}}, {"name": "set", "argum', [(0, "get", '{"a": 1}'), (1, "set", "")]),
        ('[{"name": "get", "arguments": {"a": 1}}, {"na', [(0, "get", '{"a": 1}')]),
        ('[{"name": "ge', []),
        ("", []),
    ],
)
def test_a_call_that_is_cut_off_is_one_as_far_as_it_came(block: str, calls: list[tuple[int, str, str]]) -> None:
    """As OpenAI has it: what was to be a call never shows as text, and its arguments are what there is of them."""
    for size in (1, 10_000):
        assert _parse(f"So: <tool_call>{block}", size, cut=True) == ("So:" if calls else "So: ", calls)


@pytest.mark.parametrize("block", ['{"name": "nobody", "arguments": {', '{"name": "get", "other": 1', "get(a=1", "{3"])
def test_what_is_cut_off_and_could_be_no_call_is_content(block: str) -> None:
    """Nothing a model wrote is lost because it was cut."""
    assert _parse(f"<tool_call>{block}", cut=True) == (f"<tool_call>{block}", [])


_FRAGMENTS = ("<tool_call>", "</tool_call>", "<tool", " \n", "word", '{"name"')


@given(st.lists(st.sampled_from([*_GOOD, *_FRAGMENTS]), max_size=6))
def test_how_the_text_was_cut_changes_nothing(parts: list[str]) -> None:
    """One character at a time or all at once: the same content, the same calls."""
    text = "".join(parts)
    assert _parse(text, 1) == _parse(text)


@given(st.text(" \nab<tool_call>", max_size=60))
def test_text_without_calls_comes_out_unchanged(text: str) -> None:
    """Blanks at the end too."""
    assert _parse(text, 2)[0] == text


def test_ids_look_like_openais_and_come_from_the_given_randomness() -> None:
    """`call_` and 24 letters or digits; the same randomness gives the same id."""
    made = call_id(random.Random(5))
    assert re.fullmatch(r"call_[a-zA-Z0-9]{24}", made)
    assert made == call_id(random.Random(5)) != call_id(random.Random(6))
