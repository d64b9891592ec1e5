"""Nothing is lost of what the official SDKs let callers say: their types, path by path, and random requests of them.

`test_requests` draws from the structs that read bodies; here bodies come from the types that OpenAI and Anthropic
publish. A body is read, and goes to every provider and back; or it gets a 400 that names what the table refuses, or
what is not valid about it.
"""

from __future__ import annotations

import re
from collections import Counter
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from interlace.errors import InvalidRequest
from interlace.gateway.dialects import DIALECTS
from interlace.gateway.translation import Denied
from tests.support.drawing import Json
from tests.support.provider_readers import asked
from tests.support.published import BODIES, body_of, known_by, paths_of
from tests.support.published_drawing import PUBLISHED, is_published, published, refused
from tests.translation.test_requests import there_and_back

VALIDITY: dict[str, set[str]] = {
    "openai.chat": set(),
    "openai.completions": set(),
    "openai.responses": {"input[].content[].type", "reasoning.mode", "truncation"},
    "anthropic.messages": {"messages[].content[].type"},
}
"""What can be wrong with a value that the published type allows."""


@pytest.mark.parametrize("dialect", BODIES)
def test_every_published_path_has_its_row(dialect: str) -> None:
    """A field that an SDK knows and the table does not would be refused, or lost, without the page saying so."""
    known = known_by(DIALECTS[dialect].table)
    assert {path for path in paths_of(body_of(dialect), known) if not known(path)} == set()


def through(dialect: str, body: Json) -> str:
    """The body to every provider and back; says whether it was answered or refused, and by which path."""
    try:
        asked(dialect, body)
    except InvalidRequest as error:
        _check_refusal(dialect, body, error)
        return f"refused {_plain(error.param)}"
    there_and_back(dialect, body, {})
    return "accepted"


def _plain(param: str | None) -> str:
    return re.sub(r"\[\d+\]", "[]", param or "")


def _check_refusal(dialect: str, body: Json, error: InvalidRequest) -> None:
    """A refusal names what the table refuses, or what is not valid."""
    table, param = DIALECTS[dialect].table, _plain(error.param)
    assert error.status == 400
    denied = {path for path, place in table.items() if isinstance(place, Denied)}
    named = {row for row in denied if _names(row, param)}
    if any("=" not in row or _is_of_kind(body, row) for row in named):
        return
    assert param in VALIDITY[dialect], f"{param}: {error.message}"
    assert error.code != "unknown_parameter", f"{param}: {error.message}"


def _names(row: str, param: str) -> bool:
    """Whether an error at `param` is about a row: it, or something in it; of a kind, also the object itself."""
    where, kind, _ = row.partition("=")
    holder = where.rpartition(".")[0] if kind else where
    return param == where or param.startswith((f"{holder}.", f"{holder}["))


def _is_of_kind(body: Json, row: str) -> bool:
    """Whether the body has an object of the kind."""
    where, _, word = row.partition("=")
    *steps, tag = where.split(".")
    values: list[Any] = [body]
    for step in steps:
        name, *many = step.split("[]")
        values = [one[name] for one in values if isinstance(one, dict) and one.get(name) is not None]
        for _ in many:
            values = [each for one in values if isinstance(one, list) for each in one]
    return any(isinstance(one, dict) and re.sub(r"_2\d{3}\w*$", "", str(one.get(tag))) == word for one in values)


@pytest.mark.parametrize("dialect", PUBLISHED)
def test_what_is_refused_is_named(dialect: str) -> None:
    """A field or a kind of object that nobody here can honour would be passed over, or refused by another's name."""
    for row, place in DIALECTS[dialect].table.items():
        if not isinstance(place, Denied) or not is_published(dialect, row):
            continue
        for seed in range(3):
            body = refused(dialect, Random(seed), row)
            with pytest.raises(InvalidRequest) as caught:
                asked(dialect, body)
            assert _names(row, _plain(caught.value.param)), f"{row}: {caught.value.param} {body}"


@pytest.mark.parametrize("dialect", PUBLISHED)
@given(random=st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_what_an_sdk_says_comes_back(dialect: str, random: Random) -> None:
    """A field would be lost between a client's SDK and a provider without anybody having said so."""
    event(through(dialect, published(dialect, random)))


@pytest.mark.nightly
@pytest.mark.parametrize("dialect", PUBLISHED)
@given(random=st.randoms(use_true_random=False))
@settings(max_examples=6000, deadline=None, suppress_health_check=list(HealthCheck))
def test_what_an_sdk_says_comes_back_all_night(dialect: str, random: Random) -> None:
    """As above, for the rare."""
    event(through(dialect, published(dialect, random)))


@pytest.mark.parametrize("dialect", PUBLISHED)
def test_most_of_what_an_sdk_says_is_answered(dialect: str) -> None:
    """Requests that are all refused at their first field would prove nothing of the others. The same every time."""
    fates = Counter(through(dialect, published(dialect, Random(seed))).partition(" ")[0] for seed in range(100))
    assert fates["accepted"] >= 60, fates
