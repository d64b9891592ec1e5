"""The proxy that people write by hand: read, parse, put in the model's name, forward, parse, answer. Nothing else.

Runs as `uvicorn bare_proxy:app` in an environment of its own (uvicorn, uvloop, httptools, aiohttp, orjson); streams are
passed on as the bytes they come in.
"""

from __future__ import annotations

import os

import aiohttp
import orjson

UPSTREAM = os.environ.get("BARE_UPSTREAM", "")
JSON = [(b"content-type", b"application/json")]
client = None


async def app(scope, receive, send):  # noqa: ARG001
    """One request."""
    global client  # noqa: PLW0603
    client = client or aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    asked = orjson.loads(body)
    asked["model"] = "upstream"
    async with client.post(UPSTREAM, data=orjson.dumps(asked), headers={"content-type": "application/json"}) as answer:
        if asked.get("stream"):
            head = [(b"content-type", b"text/event-stream")]
            await send({"type": "http.response.start", "status": answer.status, "headers": head})
            async for piece in answer.content.iter_any():
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        else:
            said = orjson.dumps(orjson.loads(await answer.read()))
            await send({"type": "http.response.start", "status": answer.status, "headers": JSON})
            await send({"type": "http.response.body", "body": said})
