"""Google's Gemini on loopback: Vertex AI, the Gemini API, and the server that gives tokens to service accounts.

Bodies are held against the types that Google publishes with its SDK (`google.genai.types`, which refuse unknown
members); assertions of service accounts are checked with `cryptography`. The last text of a request says what comes
back; see `SCRIPTS`. It shares nothing with the product.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, unquote

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from google.genai import types
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.alias_generators import to_camel

from tests.providers.servers.http import Asked, Told, serving
from tests.providers.servers.sayings import Saying, cut, saying_of
from tests.providers.servers.sensible import Question, reply

PROJECT, LOCATION, KEY = "my-project", "europe-west4", "AIzaSyExampleKeyForTestsOnly"
ACCOUNT = "gateway@my-project.iam.gserviceaccount.com"
SCOPE = "https://www.googleapis.com/auth/cloud-platform"


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", alias_generator=to_camel, val_json_bytes="base64")


class _Generate(_Body):
    """What generateContent takes, put together from the SDK's types as the SDK puts it together."""

    contents: list[types.Content]
    system_instruction: types.Content | None = None
    tools: list[types.Tool] | None = None
    tool_config: types.ToolConfig | None = None
    generation_config: types.GenerationConfig | None = None
    safety_settings: list[types.SafetySetting] | None = None
    service_tier: types.ServiceTier | None = None
    cached_content: str | None = None
    model: str | None = None


class _Count(_Body):
    contents: list[types.Content] | None = None
    system_instruction: types.Content | None = None
    tools: list[types.Tool] | None = None
    generation_config: types.GenerationConfig | None = None
    generate_content_request: _Generate | None = None


@dataclass
class Vertex:
    """A running server. `life` is how long the tokens it gives are good for; those in `revoked` are not."""

    url: str = ""
    life: int = 3600
    issued: list[str] = field(default_factory=list)
    revoked: set[str] = field(default_factory=set)
    refuses: bool = False  # to give tokens
    sensible: bool = False  # it answers what is asked
    seen: list[tuple[str, dict[str, Any]]] = field(default_factory=list)  # path, body
    keys: Any = None

    @property
    def last(self) -> dict[str, Any]:
        """The body of the last request."""
        return self.seen[-1][1]

    def account(self) -> dict[str, str]:
        """A service account's file, as Google's console gives it out."""
        pem = self.keys.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return {
            "type": "service_account",
            "project_id": PROJECT,
            "private_key_id": "1",
            "private_key": pem.decode(),
            "client_email": ACCOUNT,
            "client_id": "1",
            "token_uri": f"{self.url}/token",
        }


class Refusal(Exception):
    """An error of Google's."""

    def __init__(self, code: int, status: str, message: str, *details: dict[str, Any]) -> None:
        super().__init__(message)
        self.code, self.body = code, {"code": code, "message": message, "status": status, "details": list(details)}


@contextmanager
def running_vertex() -> Iterator[Vertex]:
    """Start one."""
    vertex = Vertex(keys=rsa.generate_private_key(public_exponent=65537, key_size=2048))
    with serving(lambda asked: _answer(vertex, asked)) as url:
        vertex.url = url
        yield vertex


def _answer(vertex: Vertex, asked: Asked) -> Told:
    try:
        if asked.path == "/token":
            return _token(vertex, asked)
        path, _, query = asked.path.partition("?")
        model, _, method = path.rpartition(":")
        model = unquote(model)
        _authenticate(vertex, asked, model)
        body = json.loads(asked.body)
        vertex.seen.append((f"{model}:{method}", body))
        if method == "countTokens":
            _valid(_Count, asked.body)
            return _json({"totalTokens": len(asked.body) // 4})
        if method in {"batchEmbedContents", "embedContent", "predict"}:
            return _json(_embedded(method, body))
        if method not in {"generateContent", "streamGenerateContent"}:
            raise Refusal(404, "NOT_FOUND", "no such method")
        _valid(_Generate, asked.body)
        _check_turns(body, model)
        if (one := saying_of(model)) is not None:
            chunks = _says(one)
        else:
            chunks = sensible(body) if vertex.sensible else SCRIPTS[_wish(body)](body)
        if isinstance(chunks, Told):
            return chunks
        if method == "generateContent":
            return _json(_whole(chunks))
        if query != "alt=sse":
            return Told(200, json.dumps(chunks).encode(), {"Content-Type": "application/json"})
        return events(chunks)
    except Refusal as refusal:
        return Told(
            refusal.code,
            json.dumps({"error": refusal.body}).encode(),
            {"Content-Type": "application/json; charset=UTF-8"},
        )


def _json(body: Any) -> Told:
    return Told(200, json.dumps(body).encode(), {"Content-Type": "application/json; charset=UTF-8"})


def events(chunks: list[dict[str, Any]], *, cut: bool = False) -> Told:
    """A stream of server-sent events, as Google writes it."""
    pieces = [f"data: {json.dumps(chunk, ensure_ascii=False)}\r\n\r\n".encode() for chunk in chunks]
    return Told(200, pieces, {"Content-Type": "text/event-stream"}, cut=cut)


# --- who asks ----------------------------------------------------------------------------------------------------


def _token(vertex: Vertex, asked: Asked) -> Told:
    """A token for an assertion that the account's key signed (RFC 7523)."""
    form = {name: values[0] for name, values in parse_qs(asked.body.decode()).items()}
    head, claims, signature = (_unpacked(part) for part in form["assertion"].split("."))
    signed = form["assertion"].rpartition(".")[0].encode()
    vertex.keys.public_key().verify(signature, signed, padding.PKCS1v15(), hashes.SHA256())
    told = json.loads(claims)
    good = (
        json.loads(head)["alg"] == "RS256"
        and form["grant_type"] == "urn:ietf:params:oauth:grant-type:jwt-bearer"
        and told["iss"] == ACCOUNT
        and told["scope"] == SCOPE
        and told["iat"] <= time.time() + 60 < told["exp"]
    )
    if not good or vertex.refuses:
        refused = {"error": "invalid_grant", "error_description": "Invalid grant: account not found"}
        return Told(400, json.dumps(refused).encode(), {"Content-Type": "application/json"})
    token = f"ya29.token-{len(vertex.issued)}"
    vertex.issued.append(token)
    return _json({"access_token": token, "expires_in": vertex.life, "token_type": "Bearer"})


def _unpacked(part: str) -> bytes:
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


def _authenticate(vertex: Vertex, asked: Asked, model: str) -> None:
    if model.startswith(f"/v1beta1/projects/{PROJECT}/locations/"):
        token = asked.headers.get("authorization", "").removeprefix("Bearer ")
        if token not in vertex.issued or token in vertex.revoked:
            raise Refusal(401, "UNAUTHENTICATED", "Request had invalid authentication credentials.")
    elif model.startswith("/v1/"):
        if asked.headers.get("x-goog-api-key") != KEY:
            reason = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}
            raise Refusal(400, "INVALID_ARGUMENT", "API key not valid. Please pass a valid API key.", reason)
    else:
        raise Refusal(404, "NOT_FOUND", f"no such resource {model}")


# --- what is asked -----------------------------------------------------------------------------------------------


def _valid(kind: type[_Body], body: bytes) -> None:
    try:
        kind.model_validate_json(body, by_alias=True, by_name=True)  # as all of Google's JSON, in either case
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise Refusal(400, "INVALID_ARGUMENT", f"Invalid JSON payload received: {where}: {first['msg']}") from None


def _check_turns(body: dict[str, Any], model: str) -> None:
    """Rules that stand in the guide, not in the types: calls are answered in the next turn, and Gemini 3 wants its
    signature back with the first call of a turn."""
    open_calls: list[str] = []
    for turn in body["contents"]:
        if not turn["parts"]:
            raise Refusal(400, "INVALID_ARGUMENT", "contents.parts must not be empty.")
        answers = [part["functionResponse"]["name"] for part in turn["parts"] if "functionResponse" in part]
        if sorted(answers) != sorted(open_calls):
            raise Refusal(400, "INVALID_ARGUMENT", "the number of function response parts is not that of the calls.")
        calls = [part for part in turn["parts"] if "functionCall" in part]
        open_calls = [part["functionCall"]["name"] for part in calls]
        if calls and "gemini-3" in model and not calls[0].get("thoughtSignature"):
            raise Refusal(
                400, "INVALID_ARGUMENT", "Function call is missing a thought_signature in functionCall parts."
            )


def _wish(body: dict[str, Any]) -> str:
    texts = [part["text"] for turn in body["contents"] for part in turn["parts"] if part.get("text")]
    word = texts[-1].split(" ")[0] if texts else ""
    return word if word in SCRIPTS else "words"


# --- what comes back ---------------------------------------------------------------------------------------------

Chunk = dict[str, Any]
SIGNATURE = base64.b64encode(b"what was thought").decode()


def _chunk(*parts: Chunk, finish: str = "", index: int = 0, **more: Any) -> Chunk:
    candidate: Chunk = {"index": index, "content": {"role": "model", "parts": list(parts)}, **more}
    if finish:
        candidate["finishReason"] = finish
    return {"candidates": [candidate], "modelVersion": "gemini-3-pro", "responseId": "r1"}


def _used(chunk: Chunk, prompt: int = 12, said: int = 7, **more: Any) -> Chunk:
    usage = {"promptTokenCount": prompt, "candidatesTokenCount": said, "trafficType": "ON_DEMAND"} | more
    thought = usage.get("thoughtsTokenCount", 0) + usage.get("toolUsePromptTokenCount", 0)
    usage.setdefault("totalTokenCount", prompt + said + thought)
    return chunk | {"usageMetadata": usage}


def _whole(chunks: list[Chunk]) -> Chunk:
    """The same answer as generateContent tells it: texts of one kind are one part."""
    answer: Chunk = {}
    candidates: dict[int, Chunk] = {}
    for chunk in chunks:
        answer |= {name: value for name, value in chunk.items() if name != "candidates"}
        for told in chunk.get("candidates", ()):
            whole = candidates.setdefault(told["index"], {"content": {"role": "model", "parts": []}})
            parts = whole["content"]["parts"]
            for part in told.get("content", {}).get("parts", ()):
                before = parts[-1] if parts else {}
                if set(part) == set(before) <= {"text", "thought"}:
                    parts[-1] = before | {"text": before["text"] + part["text"]}
                else:
                    parts.append(part)
            whole |= {name: value for name, value in told.items() if name != "content"}
    if candidates:
        answer["candidates"] = [candidates[index] for index in sorted(candidates)]
    return answer


def _words(body: Chunk) -> list[Chunk]:
    count = body.get("generationConfig", {}).get("candidateCount", 1)
    return [
        *(_chunk({"text": piece}, index=i) for piece in ("Grüße", ", ", "world") for i in range(count)),
        *(_used(_chunk({"text": ""}, index=i, finish="STOP"), said=7 * count) for i in range(count)),
    ]


def _call(name: str, args: Chunk | None, id: str = "", signature: str = "") -> Chunk:
    call: Chunk = {"name": name} | ({} if args is None else {"args": args}) | ({"id": id} if id else {})
    return {"functionCall": call} | ({"thoughtSignature": signature} if signature else {})


def _says(one: Saying) -> list[Chunk]:
    """What it is told to; calls come whole, as ever."""
    if one.fault and not one.late:
        raise Refusal(400, "INVALID_ARGUMENT", one.fault)
    chunks = [_chunk({"text": piece, "thought": True}) for piece in cut(one.thought)]
    chunks += [_chunk({"text": piece}) for piece in cut(one.text + one.refusal)]
    chunks += [_chunk(_call(call.name, json.loads(call.arguments), call.id, SIGNATURE)) for call in one.calls]
    last = {"finish": "MALFORMED_FUNCTION_CALL", "finishMessage": one.fault} if one.late else {"finish": "STOP"}
    return [*chunks, _used(_chunk({"text": ""}, **last))]


def _embedded(method: str, body: Chunk) -> Chunk:
    """Embeddings of two numbers: the length of the text, and one."""
    if method == "predict":
        texts = [instance["content"] for instance in body["instances"]]
        parameters = body.get("parameters", {})
        if extra := set(parameters) - {"autoTruncate", "outputDimensionality"}:
            raise Refusal(400, "INVALID_ARGUMENT", f"unknown parameters {sorted(extra)}")
        if any(len(text) > 10_000 for text in texts) and not parameters.get("autoTruncate", True):
            raise Refusal(400, "INVALID_ARGUMENT", "Unable to submit request because the input token count is 9999.")
        rows = [{"values": [float(len(text)), 1.0], "statistics": {"token_count": 2.0}} for text in texts]
        return {"predictions": [{"embeddings": row} for row in rows]}
    contents = [one["content"] for one in body["requests"]] if "requests" in body else [body["content"]]
    rows = [{"values": [float(len(content["parts"][0]["text"])), 1.0]} for content in contents]
    counted = {"usageMetadata": {"promptTokenCount": 3 * len(rows)}}
    return counted | ({"embeddings": rows} if "requests" in body else {"embedding": rows[0]})


def _refused(code: int, status: str, message: str, *details: Chunk) -> Callable[[Chunk], list[Chunk]]:
    def script(body: Chunk) -> list[Chunk]:
        raise Refusal(code, status, message, *details)

    return script


def _ends(reason: str) -> Callable[[Chunk], list[Chunk]]:
    return lambda body: [_used(_chunk({"text": "Sor"}, finish=reason))]


def sensible(body: Chunk) -> list[Chunk]:
    """What the conversation asks for."""
    parts = [turn["parts"] for turn in body["contents"] if turn.get("role") == "user"][-1]
    config = body.get("generationConfig", {})
    declared = [one for tool in body.get("tools", ()) for one in tool.get("functionDeclarations", ())]
    results = [part["functionResponse"]["response"] for part in parts if "functionResponse" in part]
    made = reply(
        Question(
            " ".join(part["text"] for part in parts if "text" in part),
            [one["name"] for one in declared],
            [next(iter(result.values())) if len(result) == 1 else json.dumps(result) for result in results],
            config.get("responseJsonSchema") or config.get("responseSchema"),
            any("inlineData" in part for part in parts),
            config.get("stopSequences", ()),
        ),
        len(json.dumps(body["contents"])),
    )
    used = {"prompt": made.prompt_tokens, "said": made.completion_tokens}
    if made.calls:
        return [
            _chunk(*(_call(name, given, f"fc{i}", SIGNATURE) for i, (name, given) in enumerate(made.calls))),
            _used(_chunk(finish="STOP"), **used),
        ]
    pieces = [made.text[i : i + 5] for i in range(0, len(made.text), 5)]
    return [*(_chunk({"text": piece}) for piece in pieces), _used(_chunk({"text": ""}, finish="STOP"), **used)]


_RETRY = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "36.5s"}
_QUOTA = {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [{"quotaId": "PerMinute"}]}
_LOGPROBS = {
    "chosenCandidates": [{"token": "Grüße", "tokenId": 5, "logProbability": -0.25}],
    "topCandidates": [
        {
            "candidates": [
                {"token": "Grüße", "tokenId": 5, "logProbability": -0.25},
                {"token": "Hallo", "tokenId": 6, "logProbability": -2.0},
            ]
        }
    ],
}

SCRIPTS: dict[str, Callable[[Chunk], list[Chunk] | Told]] = {
    "words": _words,
    "calls": lambda body: [
        _chunk({"text": "Let me look."}),
        _chunk(_call("weather", {"city": "Zürich", "days": 10}, "fc1", SIGNATURE), _call("now", None)),
        _used(_chunk(finish="STOP")),
    ],
    "thinks": lambda body: [
        _chunk({"text": "First ", "thought": True}),
        _chunk({"text": "this.", "thought": True}),
        _chunk({"text": "Done."}),
        _used(_chunk({"text": "", "thoughtSignature": SIGNATURE}, finish="STOP"), thoughtsTokenCount=20),
    ],
    "cached": lambda body: [
        _used(
            _chunk({"text": "ok"}, finish="STOP"),
            prompt=150,
            cachedContentTokenCount=100,
            toolUsePromptTokenCount=5,
            trafficType="ON_DEMAND_PRIORITY",
        )
    ],
    "logprobs": lambda body: [_used(_chunk({"text": "Grüße"}, finish="STOP", logprobsResult=_LOGPROBS), said=1)],
    "json": lambda body: [_chunk({"text": '{"a":'}), _used(_chunk({"text": " 1}"}, finish="STOP"))],
    "long": lambda body: [_used(_chunk({"text": "and so on"}, finish="MAX_TOKENS"))],
    "contradicts": lambda body: [_used(_chunk({"text": "ok"}, finish="STOP"), totalTokenCount=99)],
    "no-usage": lambda body: [_chunk({"text": "almost"}), _chunk({"text": " all"}, finish="STOP")],
    "blocked": lambda body: [
        {
            "promptFeedback": {"blockReason": "PROHIBITED_CONTENT"},
            "usageMetadata": {"promptTokenCount": 12, "totalTokenCount": 12},
        }
    ],
    **{
        f"ends-{reason.lower()}": _ends(reason)
        for reason in ("SAFETY", "RECITATION", "SPII", "BLOCKLIST", "PROHIBITED_CONTENT", "OTHER")
    },
    "ends-malformed": lambda body: [
        _used(_chunk(finish="MALFORMED_FUNCTION_CALL", finishMessage="Malformed function call: print(...)"), said=0)
    ],
    "exhausted": _refused(429, "RESOURCE_EXHAUSTED", "You exceeded your current quota.", _QUOTA, _RETRY),
    "unavailable": _refused(503, "UNAVAILABLE", "The model is overloaded. Please try again later."),
    "internal": _refused(500, "INTERNAL", "secret stack"),
    "denied": _refused(403, "PERMISSION_DENIED", "Permission 'aiplatform.endpoints.predict' denied."),
    "missing": _refused(404, "NOT_FOUND", "Publisher Model was not found."),
    "too-long": _refused(
        400,
        "INVALID_ARGUMENT",
        "The input token count (2000000) exceeds the maximum number of tokens allowed (1048576).",
    ),
    "billing": _refused(400, "FAILED_PRECONDITION", "secret: please enable billing on project 42."),
    "error-inside": lambda body: events(
        [
            _chunk({"text": "half"}),
            {"error": {"code": 429, "message": "slow down", "status": "RESOURCE_EXHAUSTED", "details": [_RETRY]}},
        ]
    ),
    "cut": lambda body: events([_chunk({"text": "half"})], cut=True),
    "unfinished": lambda body: events([_chunk({"text": "half"})]),
    "html": lambda body: Told(200, b"<html>", {"Content-Type": "text/html"}),
    "garbage": lambda body: Told(200, b"data: {garbage\r\n\r\n", {"Content-Type": "text/event-stream"}),
}
