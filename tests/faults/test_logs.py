"""What the logs show of prompts, answers and keys: nothing, unless switched on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.served import (
    CHAT,
    COMPLETIONS,
    EMBEDDINGS,
    HASTY,
    SECRET,
    Answer,
    Served,
    ask,
    decoder,
    embedder,
    long_chat,
    served,
    until,
)

OTHER_KEY = "sk-il-a-strangers-key"


@pytest.fixture(scope="module", params=[False, True], ids=["as it is", "prompts switched on"])
def logging_server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, smollm2_gguf: Path, minilm: Path
) -> Iterator[Served]:
    """A server that logs everything it may."""
    log = {"level": "debug", "prompts": request.param}
    models = [decoder(smollm2_gguf), embedder(minilm)]
    with served(
        tmp_path_factory.mktemp("logs"), models, command=HASTY, log=log, guards={"deny": ["forbidden"]}
    ) as there:
        yield there


async def test_prompts_and_keys_are_not_logged(logging_server: Served) -> None:
    """Not on success, not in any refusal, and not when the engine dies with the prompt in its hands. Where prompts
    are switched on they are there, and keys still are not."""
    there = logging_server
    prompts = "prompts: true" in (there.folder / "interlace.yaml").read_text()
    async with there.callers() as client:
        said = await ask(client, long_chat(12, temperature=0))
        statuses = [said.status]
        for path, body in _requests():
            statuses.append((await ask(client, body, path)).status)
        stranger = await client.post(CHAT, json=long_chat(1), headers={"authorization": f"Bearer {OTHER_KEY}"})
        garbage = await client.post(CHAT, content=f'{{"messages": "{SECRET}'.encode(), headers=_JSON)
        cut = Answer()
        asking = asyncio.create_task(ask(client, long_chat(1000), CHAT, cut))
        await until(lambda: len(cut.events) > 2)
        there.hosts()["talker"].kill()
        await asking
    assert statuses == [200, 200, 200, 400, 400, 400, 400, 400]
    assert (stranger.status_code, garbage.status_code) == (401, 400)
    assert cut.error is not None
    assert len(there.logged("request")) > 10
    log = there.log
    assert (SECRET in log) == prompts
    assert (json.dumps(said.text, ensure_ascii=False)[1:-1] in log) == prompts
    for key in (there.key, OTHER_KEY):
        assert key not in log + (there.folder / "out").read_text()


_JSON = httpx.Headers({"content-type": "application/json"})


def _requests() -> list[tuple[str, dict[str, object]]]:
    """Two that are answered, and five that are refused in different rooms."""
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": SECRET}}}
    return [
        (COMPLETIONS, {"model": "talker", "prompt": SECRET, "max_tokens": 2, "echo": True, "logprobs": 1}),
        (EMBEDDINGS, {"model": "embedder", "input": SECRET}),
        (CHAT, long_chat(4, messages=[{"role": "user", "content": f"{SECRET} is forbidden"}])),
        (CHAT, long_chat(4, messages=[{"role": "user", "content": f"{SECRET} " * 3000}])),
        (CHAT, long_chat(4, response_format=schema)),
        (CHAT, long_chat(4, messages=[{"role": "user", "content": {"text": SECRET}}])),
        (COMPLETIONS, {"model": "talker", "prompt": SECRET, "logit_bias": {"999999": 1}}),
    ]
