"""Mixed traffic for a long time while processes are killed at random: what `make soak` runs, and what it finds.

Every caller keeps what it saw. At the end the books must say the same: each answer that somebody has whole is there
once, with the tokens that its caller was told, and nothing is there that nobody asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import psutil

from tests.support.billing import ANSWER_NANOS, PROMPT_NANOS, Asked, Books, priced, usd
from tests.support.installation import Installation
from tests.support.provider import Provider
from tests.support.served import CHAT, EMBEDDINGS, PATIENCE_SECONDS
from tests.support.tenants import Tenant

CALLERS = 24
BATCH_LINES = 20
SCRIPTS = {"quick": "instant:8", "steady": "slow:12", "long": "slow:60", "broken": "status:500", "cutting": "cut"}
ROUTES = [
    {"name": "patient", "models": [{"model": "broken"}], "fallbacks": [{"model": "quick"}]},
    {"name": "spread", "models": [{"model": "steady"}, {"model": "quick"}], "fallbacks": [{"model": "steady"}]},
]
PRICES = [*(priced(name, prompt=0) for name in (*SCRIPTS, "talker")), priced("meaning", completion=0)]
ALLOWANCES = (400, 1500, 6000, None)  # tokens that a tenant's budget lies above what it has spent; None: no budget
ENOUGH = 100_000  # more at the end, for batches that are not over
KILLS = {"worker": 5, "coordinator": 2, "host": 2, "supervisor": 1}
PAUSE_SECONDS = (3.0, 9.0)  # from one kill to the next
ENDS = ("whole", "refused", "cut", "left")


def models(provider: Provider) -> list[dict[str, Any]]:
    """Settings of the provider's models."""
    usual = {"engine": "openai", "base_url": provider.url}
    texts = [{"name": name, "model": script, **usual} for name, script in SCRIPTS.items()]
    return [*texts, {"name": "meaning", "model": "instant", "embeds": True, "dimensions": 3, **usual}]


@dataclass
class Call(Asked):
    """One request. `tokens`: what its caller was told it used, of the prompt and of the answer."""

    kind: str = "chat"
    began: float = 0.0
    seconds: float = 0.0
    end: str = "left"
    tokens: tuple[int, int] = (0, 0)

    def keep_little(self) -> None:
        """An hour's answers would fill the memory."""
        self.body, self.answer.events = {}, []


@dataclass(frozen=True)
class Sample:
    """What all processes of one kind had, at one moment (seconds since the begin)."""

    at: float
    memory: dict[str, int]
    descriptors: dict[str, int]


@dataclass
class Soak:
    """A run."""

    there: Installation
    provider: Provider
    books: Books
    payers: list[Tenant]
    client: httpx.AsyncClient
    chance: random.Random
    began: float = field(default_factory=time.monotonic)
    calls: list[Call] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    kills: list[tuple[float, str]] = field(default_factory=list)
    stopping: bool = False

    @property
    def now(self) -> float:
        """Seconds since the begin."""
        return time.monotonic() - self.began

    async def run(self, seconds: float) -> None:
        """Traffic and kills for so long; then nobody asks again, and batches run to their end."""
        work = [self._call_on_and_on() for _ in range(CALLERS)]
        work += [self._leave_batches(), self._kill(), self._sample(), self._raise_budgets()]
        tasks = [asyncio.create_task(each) for each in work]
        await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
        self.stopping = True
        await asyncio.gather(*tasks)
        while not await self._raised(ENOUGH):  # a batch whose tenant can pay nothing more would wait for the next month
            await asyncio.sleep(0.5)

    # --- traffic -------------------------------------------------------------------------------------------------

    async def _call_on_and_on(self) -> None:
        ways = {self._chat: 60, self._embed: 10, self._respond: 12, self._leave: 6}
        while not self.stopping:
            (way,) = self.chance.choices(list(ways), list(ways.values()))
            one = Call({}, self.chance.choice(self.payers))
            one.began = self.now
            self.calls.append(one)
            try:
                await way(one)
            except httpx.TransportError:
                one.end = "cut"
            one.seconds = self.now - one.began
            one.keep_little()
            await asyncio.sleep(0.2 if one.end == "refused" else self.chance.uniform(0, 0.05))

    async def _chat(self, one: Call) -> None:
        model = self.chance.choices(["quick", "steady", "long", "patient", "spread", "cutting", "talker"],
                                    [20, 30, 8, 16, 16, 3, 7])[0]  # fmt: skip
        one.body = {"model": model, "stream": self.chance.random() < 0.5, "max_tokens": self.chance.randint(4, 40)}
        await one.run(self.client)
        one.end = "whole" if one.whole else "refused"
        if one.whole:
            one.tokens = one.usage

    async def _leave(self, one: Call) -> None:
        """A caller that hangs up."""
        one.kind, one.body = "left", {"model": "long", "stream": self.chance.random() < 0.5}
        task = asyncio.create_task(one.run(self.client))
        await asyncio.wait([task], timeout=self.chance.uniform(0, 0.3))
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        if task.cancelled() or not one.whole:
            one.end = "left"
        else:
            one.end, one.tokens = "whole", one.usage

    async def _post(self, one: Call, path: str, body: dict[str, Any]) -> Any:
        assert one.who is not None
        headers = {"x-interlace-tags": one.tag} | one.who.headers
        answer = await self.client.post(path, json=body, headers=headers)
        if not answer.is_success:
            one.end = "refused"
            return None
        text = answer.text
        if answer.headers["content-type"].startswith("text/event-stream"):
            last = json.loads(text.rstrip().rpartition("data: ")[2])
            return last.get("response")
        return json.loads(text)

    async def _embed(self, one: Call) -> None:
        one.kind = "embeddings"
        body = {"model": "meaning", "input": ["one two", "three"] * self.chance.randint(1, 4)}
        if (told := await self._post(one, EMBEDDINGS, body)) is not None:
            one.end, one.tokens = "whole", (told["usage"]["prompt_tokens"], 0)

    async def _respond(self, one: Call) -> None:
        one.kind = "responses"
        body = {"model": "steady", "input": one.tag, "stream": self.chance.random() < 0.5}
        body |= {"store": self.chance.random() < 0.5, "max_output_tokens": 16}
        told = await self._post(one, "/v1/responses", body)
        if told is not None and told["status"] in {"completed", "incomplete"}:
            one.end, one.tokens = "whole", (told["usage"]["input_tokens"], told["usage"]["output_tokens"])
        elif one.end != "refused":
            one.end = "cut"

    async def _leave_batches(self) -> None:
        number = 0
        while not self.stopping:
            who, number = self.chance.choice(self.payers), number + 1
            lines = [{"custom_id": f"l{i}", "method": "POST", "url": CHAT,
                      "body": {"model": "quick", "max_tokens": 8,
                               "messages": [{"role": "user", "content": f"batch-{number}-{i}"}]}}
                     for i in range(BATCH_LINES)]  # fmt: skip
            text = "\n".join(map(json.dumps, lines))
            with contextlib.suppress(httpx.TransportError):
                made = await self.client.post(
                    "/v1/files", files={"file": ("in.jsonl", text)}, data={"purpose": "batch"}, headers=who.headers
                )
                if made.is_success:
                    wanted = {"input_file_id": made.json()["id"], "endpoint": CHAT, "completion_window": "24h"}
                    await self.client.post("/v1/batches", json=wanted, headers=who.headers)
            await asyncio.sleep(self.chance.uniform(1, 4))

    # --- kills, budgets, samples ---------------------------------------------------------------------------------

    async def _kill(self) -> None:
        while not self.stopping:
            await asyncio.sleep(self.chance.uniform(*PAUSE_SECONDS))
            (what,) = self.chance.choices(list(KILLS), list(KILLS.values()))
            there = self.there.served
            victims: list[psutil.Process | None] = {
                "worker": list(there.workers().values()),
                "coordinator": [there.coordinator()],
                "host": list(there.hosts().values()),
                "supervisor": [psutil.Process(there.process.pid)] if there.process.poll() is None else [],
            }[what]
            if self.stopping or not (known := [one for one in victims if one is not None]):
                continue
            with contextlib.suppress(psutil.NoSuchProcess):
                self.chance.choice(known).kill()
                self.kills.append((self.now, what))

    async def _raise_budgets(self) -> None:
        """Whoever runs the server gives a little more again and again, so that all are near their budgets all along."""
        while not self.stopping:
            await self._raised()
            await asyncio.sleep(1)

    async def _raised(self, more: int = 0) -> bool:
        """Set every budget to what is spent and its allowance, and so many tokens more; whether all heard of it."""
        key = (self.there.folder / "home" / "key").read_text().strip()
        heard = True
        for who, allowance in zip(self.payers, ALLOWANCES, strict=True):
            if allowance is not None:
                budget = usd(self.books.spent(who, "org") + (allowance + more) * ANSWER_NANOS)
                path, headers = f"/admin/v1/orgs/{who.organisation.id}", {"authorization": f"Bearer {key}"}
                try:
                    told = await self.client.patch(path, json={"budget_usd": budget}, headers=headers)
                except httpx.TransportError:
                    heard = False
                else:
                    heard = heard and told.is_success
        return heard

    async def _sample(self) -> None:
        while not self.stopping:
            self.samples.append(await asyncio.to_thread(self._look))
            self.provider.seen.clear()
            await asyncio.sleep(1)

    def _look(self) -> Sample:
        memory: Counter[str] = Counter()
        descriptors: Counter[str] = Counter()
        for one in self.there.family():
            with contextlib.suppress(psutil.NoSuchProcess):
                words, kept = " ".join(one.cmdline()), one.memory_info().rss
                roles = {"engines.host": "engine host", "coordinator": "coordinator", "processes worker": "worker"}
                role = next((role for name, role in roles.items() if name in words), "supervisor")
                memory[role] += kept
                descriptors[role] += one.num_fds()
        return Sample(self.now, dict(memory), dict(descriptors))

    # --- the reckoning -------------------------------------------------------------------------------------------

    async def batches_over(self) -> list[dict[str, Any]]:
        """All batches, once they are over."""
        found = []
        for who in self.payers:
            after = ""
            while True:
                path = f"/v1/batches?limit=100{f'&after={after}' if after else ''}"
                page = (await self.client.get(path, headers=who.headers)).json()
                for batch in page["data"]:
                    found.append(await self._over(batch, who))
                if not page["has_more"]:
                    break
                after = page["last_id"]
        return found

    async def _over(self, batch: dict[str, Any], who: Tenant) -> dict[str, Any]:
        deadline = time.monotonic() + 2 * PATIENCE_SECONDS  # it pauses a minute where it was refused time after time
        while batch["status"] not in {"completed", "failed", "cancelled", "expired"}:
            assert time.monotonic() < deadline, batch
            await asyncio.sleep(0.1)
            batch = (await self.client.get(f"/v1/batches/{batch['id']}", headers=who.headers)).json()
        rows = []
        if batch["output_file_id"]:
            text = (await self.client.get(f"/v1/files/{batch['output_file_id']}/content", headers=who.headers)).text
            rows = [json.loads(line) for line in text.splitlines()]
        return {**batch, "rows": rows}


@dataclass(frozen=True)
class Reckoning:
    """What callers saw, and what the books say; amounts in nano-dollars."""

    ends: dict[str, int]
    seen: int
    books: int
    unseen: int  # of answers that were recorded, and whose callers hung up or were cut off
    batches: int
    lines: int
    wrong: list[str]


async def reckon(soak: Soak) -> Reckoning:
    """Compare, call by call."""
    wrong: list[str] = []
    batches = await soak.batches_over()
    found, ids = soak.books.by_tag(), {who.key.id for who in soak.payers}
    theirs = {event["id"]: event for event in soak.books.events() if event["key_id"] in ids}
    seen = unseen = 0
    for one in soak.calls:
        events = [theirs.pop(event["id"]) for event in found.get(one.tag, []) if event["id"] in theirs]
        if len(events) > 1 or (one.end == "whole" and len(events) != 1):
            wrong.append(f"{one.kind} {one.tag}: {one.end}, and {len(events)} events")
        for event in events:
            if one.end != "whole":
                unseen += event["cost_nanos"]
                continue
            prompt, answer = one.tokens
            told = prompt * PROMPT_NANOS if one.kind == "embeddings" else answer * ANSWER_NANOS
            seen += told
            if event["cost_nanos"] != told:
                wrong.append(f"{one.kind} {one.tag}: {told} by what its caller was told, {event['cost_nanos']} billed")
    for batch in batches:
        lines = {event["id"]: theirs.pop(event["id"]) for event in found.get(batch["id"], []) if event["id"] in theirs}
        charged = sum(event["outcome"] == "finished" for event in lines.values())
        if charged != len(batch["rows"]):
            wrong.append(f"{batch['id']}: {len(batch['rows'])} lines answered, {charged} billed")
        for event in lines.values():
            seen += event["cost_nanos"] if event["outcome"] == "finished" else 0
    if theirs:
        wrong.append(f"{len(theirs)} events that nobody asked")
    books = sum(soak.books.spent(who) for who in soak.payers)
    if seen + unseen != books:
        wrong.append(f"callers saw {seen} and missed {unseen}, the books say {books}")
    ends = Counter(one.end for one in soak.calls)
    return Reckoning(dict(ends), seen, books, unseen, len(batches), sum(len(one["rows"]) for one in batches), wrong)


@asynccontextmanager
async def soak_of(
    there: Installation, provider: Provider, books: Books, payers: list[Tenant], seed: int
) -> AsyncGenerator[Soak]:
    """A run that can begin."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(
        base_url=there.url, limits=limits, timeout=PATIENCE_SECONDS, trust_env=False
    ) as client:
        yield Soak(there, provider, books, payers, client, random.Random(seed))
