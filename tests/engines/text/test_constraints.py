"""Constrained output over the real vocabulary, and the check of what came out."""

from __future__ import annotations

import json
import threading
from typing import Any

import numpy as np
import pytest

from interlace.engines.local.constraints import Constraint, GrammarCompiler, validate_output
from interlace.engines.local.tokenizer import Tokenizer
from interlace.engines.local.toolcalls import ToolFormat
from interlace.engines.types import OutputRule, Tool
from interlace.errors import EngineFailed, InvalidRequest

_SCHEMA = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"], "additionalProperties": False}
_STRICT = Tool(name="get", parameters={"properties": {"a": {"$ref": "#/$defs/n"}}, "required": ["a"],
               "additionalProperties": False, "$defs": {"n": {"type": "integer"}}}, strict=True)  # fmt: skip
_TOOLS = (_STRICT, Tool(name="two"))


def _schema(schema: Any) -> OutputRule:
    return OutputRule(kind="json_schema", rule=json.dumps(schema))


def _allows(constraint: Constraint, token: int) -> bool:
    return bool((constraint.mask()[token // 32] >> (token % 32)) & 1)


def _takes(constraint: Constraint | None, tokenizer: Tokenizer, text: str) -> bool:
    """Whether every token of the text is allowed in turn, and then the end."""
    assert constraint is not None
    for token in tokenizer.encode(text, special=False):
        if not _allows(constraint, token):
            return False
        constraint.advance(token)
    return _allows(constraint, 2)


@pytest.mark.parametrize(
    ("rule", "good", "bad"),
    [
        (OutputRule(kind="json_object"), '{"a": [1, null, "é"]}', "[1]"),
        (_schema(_SCHEMA), '{\n  "x": 12\n}', '{"x": "12"}'),
        (_schema({"type": "array", "items": {"enum": ["a", 2]}, "maxItems": 2}), '["a", 2]', '["a", 2, 2]'),
        (_schema({"type": "string", "pattern": "^[a-c]{2,3}$"}), '"abc"', '"abcd"'),
        (_schema({"type": "number", "multipleOf": 0.1, "minimum": 0, "maximum": 1}), "0.3", "0.35"),
        (OutputRule(kind="regex", rule=r"(yes|no)[.!]?"), "yes!", "maybe"),
        (OutputRule(kind="regex", rule=r"(a+)+b"), "aaab", "aaa"),
        (OutputRule(kind="grammar", rule='start: "a" NUMBER\nNUMBER: /[0-9]+/'), "a42", "a"),
    ],
)
def test_only_what_the_rule_says_can_come_out(
    compiler: GrammarCompiler, smollm2: Tokenizer, rule: OutputRule, good: str, bad: str
) -> None:
    """Token by token, and again when the whole is looked at."""
    assert _takes(compiler.compile(rule), smollm2, good)
    assert not _takes(compiler.compile(rule), smollm2, bad)
    assert validate_output(rule, good) is None
    assert validate_output(rule, bad) is not None


def test_mask_has_a_bit_for_each_token_and_ends_with_eos_alone(compiler: GrammarCompiler, smollm2: Tokenizer) -> None:
    """Also for logits wider than the tokenizer, whose spare ids are never allowed."""
    for made, words in ((compiler, 1536), (GrammarCompiler(smollm2, vocabulary=49_200), 1538)):
        constraint = made.compile(OutputRule(kind="regex", rule="ab"))
        assert constraint is not None
        assert constraint.mask().shape == (words,)
        assert constraint.mask().dtype == np.int32
        assert not constraint.finished
        assert not _allows(constraint, 2)
        for token in smollm2.encode("ab", special=False):
            constraint.advance(token)
        assert constraint.finished
        bits = np.unpackbits(constraint.mask().view(np.uint8), bitorder="little")
        assert np.flatnonzero(bits).tolist() == [2]
        constraint.advance(2)
        constraint.advance(77)  # past the end: ignored


def test_copies_go_their_own_ways(compiler: GrammarCompiler, smollm2: Tokenizer) -> None:
    """One choice's tokens, or its error, leave the others where they are."""
    first = compiler.compile(OutputRule(kind="regex", rule="[0-9]{4}"))
    assert first is not None
    second = first.copy()
    with pytest.raises(EngineFailed):
        second.advance(smollm2.encode("x", special=False)[0])
    assert _takes(first, smollm2, "1234")


def test_json_never_drifts_into_blank_lines(compiler: GrammarCompiler, smollm2: Tokenizer) -> None:
    """Small models would fill their whole answer with them."""
    constraint = compiler.compile(OutputRule(kind="json_object"))
    assert not _takes(constraint, smollm2, "{" + "\n" * 60 + "}")


_CALL = '{"name": "get", "arguments": {"a": 3}}'
_TWO = '{"name": "two", "arguments": {}}'


@pytest.mark.parametrize(
    ("form", "one", "both", "wrong"),
    [
        ("list", f"<tool_call>[{_CALL}]</tool_call>", f"<tool_call>[\n{_CALL},\n{_TWO}\n]</tool_call>",
         '<tool_call>[{"name": "get", "arguments": {"b": 1}}]</tool_call>'),
        ("object", f"<tool_call>\n{_CALL}\n</tool_call>",
         f"<tool_call>{_CALL}</tool_call>\n<tool_call>{_TWO}</tool_call>",
         '<tool_call>{"name": "get", "arguments": {"a": "3"}}</tool_call>'),
    ],
)  # fmt: skip
def test_tool_choice(
    compiler: GrammarCompiler, smollm2: Tokenizer, form: ToolFormat, one: str, both: str, wrong: str
) -> None:
    """Forced calls in the model's own form; with "auto" free text too, held to the schema from the tag on."""

    def takes(text: str, choice: str, *, parallel: bool = True, rule: OutputRule | None = None) -> bool:
        return _takes(compiler.compile(rule, _TOOLS, choice, parallel, form), smollm2, text)

    assert takes(one, "required")
    assert takes(both, "required")
    assert not takes(both, "required", parallel=False)
    assert not takes("Hello", "required")
    assert not takes(wrong, "required")
    assert takes(one, "function:get")
    assert not takes(one, "function:two")
    assert takes("Hello {<b>} there", "auto")
    assert takes(one, "auto")
    assert takes(f"Let me see. {both}", "auto")
    assert not takes(f"Let me see. {wrong}", "auto")
    assert takes('{"x": 1}', "auto", rule=_schema(_SCHEMA))
    assert takes(one, "auto", rule=_schema(_SCHEMA))
    assert not takes("Hello", "auto", rule=_schema(_SCHEMA))


def test_nothing_to_hold_to_is_no_constraint(compiler: GrammarCompiler) -> None:
    """Tools that are not strict are parsed afterwards; "none" offers none."""
    assert compiler.compile(None) is None
    assert compiler.compile(None, (Tool(name="two"),)) is None
    assert compiler.compile(None, _TOOLS, "none") is None


def _doubling(depth: int) -> dict[str, Any]:
    """A schema of 2 ** depth branches, written in a few lines."""
    names = {f"a{i}": {"allOf": [{"$ref": f"#/$defs/a{i + 1}"}] * 2} for i in range(depth)}
    return {"$defs": {**names, f"a{depth}": {"type": "string"}}, "$ref": "#/$defs/a0"}


_SCHEMA_PARAM = "response_format.json_schema.schema"
_BROKEN = {
    "no JSON": (OutputRule(kind="json_schema", rule="{"), _SCHEMA_PARAM),
    "no object": (OutputRule(kind="json_schema", rule="[]"), _SCHEMA_PARAM),
    "unknown type": (_schema({"type": "strin"}), _SCHEMA_PARAM),
    "unsupported keyword": (_schema({"not": {"type": "string"}}), _SCHEMA_PARAM),
    "unsatisfiable": (_schema({"type": "string", "minLength": 5, "maxLength": 2}), _SCHEMA_PARAM),
    "only itself": (_schema({"$ref": "#"}), _SCHEMA_PARAM),
    "elsewhere": (_schema({"$ref": "http://127.0.0.1:1/x"}), _SCHEMA_PARAM),
    "too deep": (OutputRule(kind="json_schema", rule='{"items":' * 50_000 + "{}" + "}" * 50_000), _SCHEMA_PARAM),
    "deep": (OutputRule(kind="json_schema", rule='{"items":' * 300 + "{}" + "}" * 300), _SCHEMA_PARAM),
    "huge enum": (_schema({"enum": [f"value number {i}" for i in range(100_000)]}), _SCHEMA_PARAM),
    "many branches": (
        _schema({"allOf": [{"anyOf": [{"properties": {f"p{i}{j}": {}}} for j in range(4)]} for i in range(10)]}),
        _SCHEMA_PARAM,
    ),
    "broken regex": (OutputRule(kind="regex", rule="(a"), "structured_outputs.regex"),
    "look-ahead": (OutputRule(kind="regex", rule="(?=a)b"), "structured_outputs.regex"),
    "broken grammar": (OutputRule(kind="grammar", rule="start: nowhere"), "structured_outputs.grammar"),
}


@pytest.mark.parametrize("name", _BROKEN)
def test_a_broken_rule_is_refused_by_field_and_disturbs_nobody(
    compiler: GrammarCompiler, smollm2: Tokenizer, name: str
) -> None:
    """Also what would take for ever to compile; a matcher made before goes on."""
    rule, param = _BROKEN[name]
    neighbour = compiler.compile(_schema(_SCHEMA))
    with pytest.raises(InvalidRequest) as caught:
        compiler.compile(rule)
    assert caught.value.param == param
    assert _takes(neighbour, smollm2, '{"x": 1}')


@pytest.mark.parametrize("regex", ["(a+)+b", "((a{1,1000}){1,1000}){1,1000}", "(a|b)*a(a|b){40}", ".*a.*b.*c" * 30])
def test_exploding_regexes_end_in_bounded_work(compiler: GrammarCompiler, smollm2: Tokenizer, regex: str) -> None:
    """Each either runs, or says that it grew too complex; none hangs."""
    try:
        constraint = compiler.compile(OutputRule(kind="regex", rule=regex))
        _takes(constraint, smollm2, "ab" * 300)
    except InvalidRequest:
        pass  # too complex, and said so
    validate_output(OutputRule(kind="regex", rule=regex), "ab" * 300)


@pytest.mark.parametrize(
    ("tools", "choice", "param"),
    [
        ((Tool(name="a"), Tool(name="b", parameters={"type": "strin"})), "required", "tools[1].function.parameters"),
        ((Tool(name="b", parameters={"properties": {"x": {"not": {}}}}, strict=True),), "auto",
         "tools[0].function.parameters"),
        ((Tool(name='"]'),), "required", "tools[0].function.name"),
        ((), "required", "tool_choice"),
        ((Tool(name="a"),), "function:b", "tool_choice"),
    ],
)  # fmt: skip
def test_a_broken_tool_is_named(compiler: GrammarCompiler, tools: tuple[Tool, ...], choice: str, param: str) -> None:
    """The one at fault, by its place in the request."""
    with pytest.raises(InvalidRequest) as caught:
        compiler.compile(None, tools, choice)
    assert caught.value.param == param


def test_compiling_beside_stepping(compiler: GrammarCompiler, smollm2: Tokenizer) -> None:
    """`prepare` compiles on other threads while this one steps."""
    stop, failures = threading.Event(), []

    def compile_on() -> None:
        while not stop.is_set():
            try:
                compiler.compile(_schema(_SCHEMA))
                compiler.compile(OutputRule(kind="regex", rule="(a"))
            except InvalidRequest:
                continue
            failures.append("a broken regex was taken")

    workers = [threading.Thread(target=compile_on) for _ in range(2)]
    for worker in workers:
        worker.start()
    try:
        assert all(_takes(compiler.compile(_schema(_SCHEMA)), smollm2, '{"x": 123}') for _ in range(20))
    finally:
        stop.set()
        for worker in workers:
            worker.join()
    assert not failures


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (OutputRule(kind="json_object"), "[]"),
        (OutputRule(kind="json_object"), '{"a": NaN}'),
        (OutputRule(kind="json_object"), "[" * 100_000),
        (_schema(_SCHEMA), '{"x": 1'),
        (_schema(_SCHEMA), '{"x": 1.5}'),
        (_schema({"$ref": "http://127.0.0.1:1/x"}), "1"),
        (_schema({"type": "string", "pattern": "^(a+)+b$"}), json.dumps("a" * 3000)),
        (_schema({"type": "object", "patternProperties": {"^(a+)+b$": {"type": "integer"}},
                  "additionalProperties": False}), json.dumps({"a" * 300: 1})),
        (_schema(_doubling(40)), "1"),
    ],
)  # fmt: skip
def test_the_last_check_sees_what_is_wrong_in_bounded_time(rule: OutputRule, text: str) -> None:
    """Cut output, patterns that backtrack for ever elsewhere, references to other machines, doubling schemas."""
    assert validate_output(rule, text) is not None


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (_schema({"type": "object", "additionalProperties": {"type": "integer"}}), '{"zebra": "zebra"}'),
        (_schema({"enum": ["quartz"]}), '"zebra"'),
        (_schema({"type": "string", "pattern": "quartz"}), '"zebra"'),
        (_schema({"$ref": "#/quartz"}), '"zebra"'),
        (OutputRule(kind="json_object"), '{"a": zebra}'),
        (OutputRule(kind="regex", rule="quartz"), "zebra"),
    ],
)
def test_the_last_check_quotes_neither_output_nor_rule(rule: OutputRule, text: str) -> None:
    """What it says of a stream that failed is logged, and logs hold no text of prompts or answers."""
    fault = validate_output(rule, text)
    assert fault is not None
    assert "zebra" not in fault
    assert "quartz" not in fault


def test_a_costly_schema_can_still_be_met() -> None:
    """Where the plain check gives up, the automaton decides."""
    assert validate_output(_schema(_doubling(40)), '"text"') is None
