"""What the parity table runs on: a gateway of each kind of guard before every provider, and eyes on all that leaves.

The forbidden words are `jabber wocky` (a denied pattern) and a card number and a key (secrets). Nothing else that is
said here has `jab`, `AKIA` or such digits in it, so that a part of a forbidden word is found wherever it got to.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import regex

from interlace.config import (
    PRESETS,
    GuardSettings,
    LimitSettings,
    ModelSettings,
    RouteSettings,
    SecretSettings,
    Settings,
)
from interlace.engines.fields import ALL_KEPT
from interlace.engines.types import Delta, Engine, Thought, ToolCallDelta
from interlace.gateway.serve import build_engine
from interlace.ledger import UsageEvent
from interlace.ledger.audit import audit, audit_book
from tests.providers.servers import anthropic, bedrock, openai, vertex
from tests.providers.servers.sayings import SAYINGS, Saying, cut
from tests.support.gateway_thread import Gateway, running_gateway, wait_for
from tests.support.prices import costing
from tests.support.scripted_engine import ScriptedEngine

WORD, KEY, CARD = "jabber wocky", "AKIAIOSFODNN7EXAMPLE", "4111 1111 1111 1111"
FORBIDDEN = f"{WORD} {KEY} {CARD}"
DENY = r"jabber[ _-]?wocky"
TRACES = {
    "deny": regex.compile("jab|wock", regex.IGNORECASE),
    "mask": regex.compile(r"AKIA|OSFODN|4111[ -]?1111|1111[ -]?1111"),
    "refuse": regex.compile(r"AKIA|OSFODN|4111[ -]?1111|1111[ -]?1111"),
}
"""What of the forbidden words must be nowhere, behind each kind of guard."""

ON_DISK = TRACES | {
    "deny": regex.compile("jabber|wocky", regex.IGNORECASE)
}  # between digests, three letters are chance

_NUMBERS = itertools.count()


def guards_of(kind: str) -> GuardSettings:
    """`deny`: a denied pattern; `mask` and `refuse`: that, of every secret, both ways."""
    if kind == "deny":
        return GuardSettings(deny=(DENY,), max_input_characters=20_000)
    secrets = SecretSettings(card=kind, api_key=kind, private_key=kind)
    return GuardSettings(secrets_input=secrets, secrets_output=secrets)


# --- what is before the gateway ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Servers:
    """The providers, on loopback."""

    openai: openai.OpenAI
    anthropic: anthropic.Anthropic
    bedrock: bedrock.Bedrock
    vertex: vertex.Vertex

    def seen(self) -> str:
        """Every body that any of them was sent."""
        return json.dumps([each.seen for each in vars(self).values()], ensure_ascii=False)

    def forget(self) -> None:
        """Of what they were asked until now."""
        for each in vars(self).values():
            each.seen.clear()

    def asked(self) -> int:
        """How often one of them was asked."""
        return sum(len(each.seen) for each in vars(self).values())


def providers(at: Servers) -> dict[str, dict[str, Any]]:
    """The row of each provider: settings of a model there. A new one in `config.PROVIDERS` needs its row."""
    return {
        "openai": {"base_url": f"{at.openai.url}/v1", "api_key": "${OPENAI_API_KEY}"},
        "openai:responses": {
            "base_url": f"{at.openai.url}/v1",
            "api_key": "${OPENAI_API_KEY}",
            "api": "responses",
        },
        "azure": {"base_url": at.openai.url},
        "anthropic": {"base_url": at.anthropic.url},
        "bedrock": {"base_url": at.bedrock.url, "region": bedrock.REGION},
        "vertex": {"base_url": f"{at.vertex.url}/v1beta1", "project": vertex.PROJECT},
        **{name: {"base_url": f"{at.openai.url}/v1", "api_key": "${OPENAI_API_KEY}"} for name in PRESETS},
    }


ENVIRONMENT = {
    "OPENAI_API_KEY": openai.KEY,
    "AZURE_OPENAI_API_KEY": openai.AZURE_KEY,
    "ANTHROPIC_API_KEY": anthropic.KEY,
    "AWS_ACCESS_KEY_ID": bedrock.ACCESS,
    "AWS_SECRET_ACCESS_KEY": bedrock.SECRET,
}


def spoken(one: Saying) -> tuple[Delta, ...]:
    """The same as a local engine says it."""
    deltas = [Delta(thought=Thought(text=piece), tokens=1) for piece in cut(one.thought)]
    deltas += [Delta(text=piece, tokens=1) for piece in cut(one.text)]
    deltas += [Delta(text=piece, tokens=1, refused=True) for piece in cut(one.refusal)]
    for at, call in enumerate(one.calls):
        deltas.append(Delta(tool_calls=(ToolCallDelta(at, call.id, call.name),), tokens=1))
        deltas += [Delta(tool_calls=(ToolCallDelta(at, arguments=piece),), tokens=1) for piece in cut(call.arguments)]
    return (*deltas, Delta(finish_reason="tool_calls" if one.calls else "stop"))


# --- what is behind it -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """What came back of one request. `tag` marks its usage event, `texts` are all texts in it, those that came in
    pieces put together."""

    tag: str
    status: int
    headers: httpx.Headers
    raw: str
    texts: Mapping[str, str]

    @property
    def whole(self) -> str:
        """All of it, headers too: where a forbidden word would be found, cut up or not."""
        return "\n".join([self.raw, *self.texts.values(), *self.headers.values()])

    @property
    def log_id(self) -> str:
        """By which the access log has it."""
        return self.headers["x-request-id"]


@dataclass
class Log(logging.Handler):
    """Everything that is logged, as the log's own lines have it and more."""

    lines: list[str] = field(default_factory=list)
    access: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__(logging.DEBUG)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it."""
        fields = vars(record).get("fields", {})
        shown = self.format(record) if record.exc_info else record.getMessage()
        self.lines.append(f"{record.name} {shown} {json.dumps(fields, default=str, ensure_ascii=False)}")
        if record.name == "interlace.access":
            self.access[fields["request_id"]] = fields

    def __hash__(self) -> int:
        return id(self)


@dataclass
class Rig:
    """One gateway with one kind of guard. `local` are the engines of this machine, by model."""

    kind: str
    gateway: Gateway
    servers: Servers
    local: Mapping[str, ScriptedEngine]
    log: Log
    uploads: set[bytes] = field(default_factory=set)
    clients: dict[int, httpx.Client] = field(default_factory=dict)

    @property
    def client(self) -> httpx.Client:
        """This thread's."""
        one = threading.get_ident()
        if one not in self.clients:
            self.clients[one] = httpx.Client(
                base_url=self.gateway.url, headers=self.gateway.headers, trust_env=False, timeout=30
            )
        return self.clients[one]

    def ask(self, path: str, body: Any = None, *, method: str = "POST", **more: Any) -> Answer:
        """One request, with a tag of its own."""
        tag = f"cell-{next(_NUMBERS)}"
        told = self.client.request(method, path, json=body, headers={"x-interlace-tags": tag}, **more)
        return Answer(tag, told.status_code, told.headers, told.text, texts_in(told.text))

    def traces(self, text: str) -> list[str]:
        """What of the forbidden words is in a text."""
        return [text[max(0, m.start() - 30) : m.end() + 30] for m in TRACES[self.kind].finditer(text)][:3]

    def events(self) -> dict[str, list[UsageEvent]]:
        """Usage events by tag."""
        found: dict[str, list[UsageEvent]] = {}
        for event in self.gateway.events:
            for tag in event.tags:
                found.setdefault(tag, []).append(event)
        return found

    def logged(self, answer: Answer) -> dict[str, Any]:
        """The line of the access log, which is written once the answer is out."""
        wait_for(lambda: answer.log_id in self.log.access)
        return self.log.access[answer.log_id]

    def asked(self) -> int:
        """How often a model was asked, here or elsewhere."""
        return self.servers.asked() + sum(len(engine.seen) for engine in self.local.values())

    def on_disk(self) -> list[str]:
        """Files of the gateway with a trace of the forbidden words in them, what callers themselves uploaded aside."""
        found = []
        for path in self.gateway.registry.settings.home.rglob("*"):
            if path.is_file() and (content := path.read_bytes()) not in self.uploads:
                found += [f"{path.name}: {one[0]}" for one in ON_DISK[self.kind].finditer(content.decode("latin-1"))]
        return found

    def audited(self) -> list[str]:
        """What is wrong with the books; what is still held."""

        async def look() -> list[str]:
            ledger = self.gateway.pipeline.ledger
            unwritten = list(ledger.unwritten.values())
            wrong = self.gateway.registry.store.read(
                lambda c: [*audit(c), *audit_book(c, ledger.book.accounts, unwritten)]
            )
            held = [f"{key} holds {one.reserved}" for key, one in ledger.book.accounts.items() if one.reserved]
            return [*map(str, wrong), *held]

        return asyncio.run_coroutine_threadsafe(look(), self.gateway.loop).result(20)


def texts_in(raw: str) -> dict[str, str]:
    """Every string of an answer by its place; those at the same place of several events joined, as clients do."""
    events = [line.removeprefix("data: ") for line in raw.splitlines() if line.startswith("data: {")] or [raw]
    texts: dict[str, str] = {}

    def walk(value: Any, place: str) -> None:
        if isinstance(value, dict):
            for name, each in value.items():
                texts["names"] = texts.get("names", "") + f"\n{name}"
                walk(each, f"{place}.{name}")
        elif isinstance(value, list):
            for each in value:
                walk(each, place)
        elif isinstance(value, str):
            texts[place] = texts.get(place, "") + value

    for event in events:
        try:
            walk(json.loads(event), "")
        except ValueError:
            texts["raw"] = texts.get("raw", "") + event
    return texts


@contextmanager
def running_servers(sayings: Mapping[str, Saying]) -> Iterator[Servers]:
    """Every provider; models called `says:NAME` say these."""
    SAYINGS.update(sayings)
    with (
        openai.running_openai() as one,
        anthropic.running_anthropic() as two,
        bedrock.running_bedrock() as three,
        vertex.running_vertex() as four,
    ):
        one.more = {"reasoning_content": {}}
        yield Servers(one, two, three, four)


@contextmanager
def rig(
    kind: str, servers: Servers, sayings: Mapping[str, Saying], home: Path, routes: tuple[RouteSettings, ...] = ()
) -> Iterator[Rig]:
    """A gateway with that kind of guard, before all of them: model `PROVIDER-NAME` says a saying."""
    account = home / "account.json"
    account.write_text(json.dumps(servers.vertex.account()))
    environment = ENVIRONMENT | {"GOOGLE_APPLICATION_CREDENTIALS": str(account)}
    far = [
        ModelSettings(name=f"{row}-{name}", engine=row.partition(":")[0], model=f"says:{name}", **more)
        for row, more in providers(servers).items()
        for name in sayings
    ]
    far += [
        ModelSettings(name=f"{row}-embedder", engine=row, model="text-embedding-3-small", embeds=True, **more)
        for row, more in providers(servers).items()
        if row in {"openai", "vertex"}
    ]
    whole = {**providers(servers)["openai"], "stream": False}
    far.append(ModelSettings(name="openai-whole", engine="openai", model="says:text", **whole))
    local = {f"local-{name}": ScriptedEngine(deltas=spoken(one), fates=ALL_KEPT) for name, one in sayings.items()}
    local |= {
        "local-embedder": ScriptedEngine(embeds=True),
        "local-rerank": ScriptedEngine(labels=("relevant",)),
        "local-classify": ScriptedEngine(labels=("good", "bad")),
        "local-reads": ScriptedEngine(),
        "local-shadow": ScriptedEngine(),
        "local-slow": ScriptedEngine(held=True, held_at=0),
        "local-broken": ScriptedEngine(fail_after=0),
    }
    near = [ModelSettings(name=name, checkpoint=name) for name in local]
    names = [one.name for one in (*far, *near)]
    with ExitStack() as stack:
        before = dict(os.environ)
        stack.callback(lambda: (os.environ.clear(), os.environ.update(before)))
        os.environ.update(environment)
        engines: dict[str, Engine] = {one.name: build_engine(one, Path("/nonexistent"), environment) for one in far}
        settings = Settings(
            home=Path("/nonexistent"),
            models=(*far, *near),
            guards=guards_of(kind),
            routes=routes,
            limits=LimitSettings(batch_lines=16),
            prices=tuple(costing(name, 2, 5) for name in names),
            drain_seconds=5,
        )
        log = Log()
        logger = logging.getLogger()
        logger.addHandler(log)
        level = logging.getLogger("interlace").level
        logging.getLogger("interlace").setLevel(logging.INFO)
        stack.callback(lambda: (logger.removeHandler(log), logging.getLogger("interlace").setLevel(level)))
        with running_gateway(settings, {**engines, **local}) as gateway:
            made = Rig(kind, gateway, servers, local, log)
            yield made
            for client in made.clients.values():
                client.close()
            for engine in local.values():
                gateway.call(engine.release.set)
            for far_one in engines.values():
                asyncio.run_coroutine_threadsafe(far_one.close(), gateway.loop).result(10)
