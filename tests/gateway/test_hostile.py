"""Hostile bodies: whatever arrives, the answer is a 4xx in the endpoint's dialect, soon, and the server serves on."""

from __future__ import annotations

import json
import time

import httpx
import pytest

from tests.support.anthropic_shapes import ERROR, checked
from tests.support.gateway_thread import Gateway
from tests.support.hostile import TARGETS, Hostile, Target, hostile

SOON = 1.0
TRIES = 3  # a busy machine may hold up one answer, not three in a row


def wrongly_answered(client: httpx.Client, gateway: Gateway, target: Target, one: Hostile) -> str | None:
    """What is wrong with the answer to a hostile body, or None."""
    for _ in range(TRIES):
        began = time.monotonic()
        answer = client.post(gateway.url + target.path, content=one.body, headers={**gateway.headers, **one.headers})
        if time.monotonic() - began < SOON:
            break
    else:
        return "took longer than a second, three times"
    if not 400 <= answer.status_code < 500:
        return f"status {answer.status_code}: {answer.text[:200]}"
    return complaint_about_shape(target, answer)


def complaint_about_shape(target: Target, answer: httpx.Response) -> str | None:
    """What is wrong with the shape of an error, or None."""
    body = json.loads(answer.text)
    if target.path.startswith("/v1/messages"):
        detail = checked(ERROR, answer.content).error
        return None if 0 < len(detail.message) <= 2000 else f"an odd error: {answer.text[:200]}"
    if set(body) != {"error"} or set(body["error"]) != {"message", "type", "param", "code"}:
        return f"not the shape of an error of {target.path}: {answer.text[:200]}"
    if not isinstance(body["error"]["code"], str | None) or len(body["error"]["message"]) > 2000:
        return f"an odd error: {answer.text[:200]}"
    return None


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.path)
def test_hostile_bodies_are_refused(gateway: Gateway, target: Target) -> None:
    """No 2xx (something was lost in silence), no 5xx (a bug), no wait; and good requests are answered as before."""
    wrong: dict[str, str] = {}
    bodies = list(hostile(target))
    recorded = len(gateway.events)
    with httpx.Client(trust_env=False, timeout=20) as client:
        for one in bodies:
            if problem := wrongly_answered(client, gateway, target, one):
                wrong[one.name] = problem
        assert not wrong, json.dumps(wrong, indent=1)
        assert len(gateway.events) == recorded, "what is refused uses nothing"
        good = client.post(gateway.url + target.path, json=target.good, headers=gateway.headers)
    assert good.status_code == 200, good.text


def test_good_pictures_and_files_pass(gateway: Gateway) -> None:
    """The bodies above are refused for what is wrong with them, not for having a picture or a file."""
    for target in TARGETS:
        if target.parts is None or target.local_image is None:
            continue
        files = [] if target.file_named is None else [target.file_named("paper.pdf")]
        for part in (target.local_image("https://example.org/x.png"), *files):
            body = {**target.good, "model": "seeing", **target.parts(part)}
            answer = httpx.post(gateway.url + target.path, json=body, headers=gateway.headers, trust_env=False)
            assert answer.status_code == 200, answer.text


def test_there_are_hundreds_of_them() -> None:
    """The corpus shrinks only on purpose; names tell its members apart."""
    for target in TARGETS:
        names = [one.name for one in hostile(target)]
        assert len(set(names)) == len(names)
    assert len(list(hostile(TARGETS[0]))) > 200


def test_every_endpoint_that_takes_json_is_attacked(gateway: Gateway) -> None:
    """A new endpoint without its hostile bodies fails here."""
    document = httpx.get(f"{gateway.url}/openapi.json", trust_env=False).json()
    takes = {
        path
        for path, item in document["paths"].items()
        if "application/json" in item.get("post", {}).get("requestBody", {}).get("content", {})
        and not path.startswith("/admin/")
    }
    takes.remove("/v1/batches")  # a good body names a file: test_files_and_batches.py sends the hostile ones
    assert {target.path for target in TARGETS} == takes
