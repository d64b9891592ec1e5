"""A gateway whose remote models cost money, tenants with budgets, and its books read row by row: for tests that hurt
the ledger.

The books are read by SQL and added up here, with nothing of the product but the names of its tables; then the product's
own auditor must agree.
"""

from __future__ import annotations

import itertools
import json
import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import httpx
import psycopg
from psycopg.rows import dict_row

from interlace.config import Settings
from interlace.ledger import Registry
from interlace.ledger.audit import audit
from interlace.ledger.database import sqlite_url
from interlace.ledger.store import Store
from tests.support.provider import Provider
from tests.support.served import CHAT, COMPLETIONS, Answer, Served, ask, served
from tests.support.stores import ledger_url, placed
from tests.support.tenants import Tenant, tenant

PROMPT_NANOS, ANSWER_NANOS = 2, 5  # for a token, unless a test says otherwise

Event = dict[str, Any]

_KINDS = ("prompt", "cached", "cache_write", "cache_write_1h", "completion", "reasoning", "embedding")
_PARENTS = {
    "cached": "prompt", "cache_write": "prompt", "cache_write_1h": "cache_write", "reasoning": "completion",
    "embedding": "prompt",
}  # fmt: skip
_CHARGED = {"client_gone", "filtered", "budget_ended", "finished"}
_numbers = itertools.count(1)


# --- the gateway -------------------------------------------------------------------------------------------------


def usd(nanos: int) -> str:
    """Nano-dollars as `interlace.yaml` writes an amount."""
    return f"{nanos // 10**9}.{nanos % 10**9:09}"


def priced(model: str, prompt: int = PROMPT_NANOS, completion: int = ANSWER_NANOS) -> dict[str, Any]:
    """A price in nano-dollars for a token, as in `interlace.yaml`."""
    amounts = {"prompt": usd(prompt * 10**6), "completion": usd(completion * 10**6)}
    return {"model": model, "since": "2020-01-01", "usd_per_million": amounts}


@contextmanager
def billing(
    folder: Path,
    provider: Provider,
    models: Iterable[str] | Mapping[str, str],
    *,
    prices: list[dict[str, Any]] | None = None,
    **settings: Any,
) -> Iterator[Served]:
    """A gateway whose models are the provider's scripts, under their own or other names, with its home in
    `folder/home`."""
    named = models if isinstance(models, Mapping) else {name: name for name in models}
    remote = [
        {"name": name, "engine": "openai", "base_url": provider.url, "model": script} for name, script in named.items()
    ]
    prices = [priced(name) for name in named] if prices is None else prices
    with served(folder, remote, prices=prices, **settings) as there:
        yield there


def tenants(folder: Path, *wanted: dict[str, Any]) -> list[Tenant]:
    """Fresh tenants with these budgets in the ledger of `folder/home`, while no gateway has it open."""
    with closing(Registry.open(placed(Settings(home=folder / "home")), env={})) as registry:
        return [tenant(registry, **each) for each in wanted]


# --- callers -----------------------------------------------------------------------------------------------------


@dataclass
class Asked:
    """One request with a tag of its own, which is also its prompt of one word unless the body has another; `answer`
    fills while it runs."""

    body: dict[str, Any]
    who: Tenant | None = None  # else the server's own key
    tag: str = field(default_factory=lambda: f"r-{next(_numbers):05}")
    answer: Answer = field(default_factory=Answer)

    @property
    def streams(self) -> bool:
        """Whether the answer comes in events."""
        return bool(self.body.get("stream"))

    @property
    def whole(self) -> bool:
        """Whether the last byte of a good answer arrived."""
        return self.answer.status == 200 and (self.answer.done if self.streams else bool(self.answer.events))

    @property
    def refusal(self) -> tuple[int, str]:
        """Its status and, where it ended in an error, the error's code."""
        return self.answer.status, str((self.answer.error or {}).get("code") or "")

    @property
    def id(self) -> str:
        """The id of its usage event."""
        return str(self.answer.events[0]["id"]).partition("-")[2]

    @property
    def usage(self) -> tuple[int, int]:
        """Tokens of prompt and completion, as the caller was told."""
        (usage,) = (event["usage"] for event in self.answer.events if event.get("usage"))
        return usage["prompt_tokens"], usage["completion_tokens"]

    @property
    def words(self) -> int:
        """How many words of the provider's arrived."""
        return len(self.answer.text.split())

    async def run(self, client: httpx.AsyncClient) -> Asked:
        """Send it, and read the answer to its end."""
        headers = {"x-interlace-tags": self.tag} | (self.who.headers if self.who else {})
        body = {"stream_options": {"include_usage": True} if self.streams else None, **self.body}
        if "prompt" not in body:
            body["messages"] = [{"role": "user", "content": self.tag}]
        await ask(client, body, COMPLETIONS if "prompt" in body else CHAT, self.answer, headers)
        return self


# --- the books ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Books:
    """The ledger's database of `folder/home`, looked at from outside; a gateway may be writing it."""

    folder: Path

    def rows(self, query: str, *values: Any) -> list[dict[str, Any]]:
        """The rows of a query, whose parameters are question marks."""
        if url := ledger_url(self.folder / "home"):
            with psycopg.connect(url, row_factory=dict_row) as opened:
                opened.read_only = True
                return opened.execute(query.replace("?", "%s"), values or None).fetchall()
        with closing(sqlite3.connect(self.folder / "home" / "ledger.db", timeout=30)) as connection:
            connection.row_factory = sqlite3.Row
            connection.execute("PRAGMA query_only = ON")
            return [dict(row) for row in connection.execute(query, values)]

    def events(self, who: Tenant | None = None) -> list[Event]:
        """The usage events, of all or of one key, in the order of their start."""
        found = self.rows("SELECT * FROM usage_events ORDER BY started_us, id")
        return [event for event in found if who is None or event["key_id"] == who.key.id]

    def by_tag(self) -> dict[str, list[Event]]:
        """The usage events by their tag."""
        found = defaultdict(list)
        joined = "SELECT * FROM usage_events JOIN event_tags ON event_tags.event_id = usage_events.id"
        for row in self.rows(joined):
            found[row["tag"]].append(row)
        return found

    def of(self, asked: Asked) -> Event:
        """The one usage event of a request."""
        (event,) = self.by_tag()[asked.tag]
        return event

    def spent(self, who: Tenant, of: str = "") -> int:
        """What the balances say that a key has spent, in all months. Its project and organisation must say the same,
        unless one of the three is asked for: they may have other keys."""
        sums = []
        for scope, id in (("key", who.key.id), ("project", who.project.id), ("org", who.organisation.id)):
            if of in {"", scope}:
                query = "SELECT coalesce(sum(spent_nanos), 0) AS n FROM balances WHERE scope = ? AND scope_id = ?"
                sums.append(self.rows(query, scope, id)[0]["n"])
        assert len(set(sums)) == 1, sums
        return int(sums[0])

    def check(self) -> None:
        """Each event costs what its price says, and nothing where its outcome is not charged; the balances are the sums
        of events, as integers, no more and no fewer; no budget is exceeded but by what is flagged."""
        if not (url := ledger_url(self.folder / "home")):
            assert self.rows("PRAGMA integrity_check") == [{"integrity_check": "ok"}]
        prices = {row["id"]: row for row in self.rows("SELECT * FROM prices")}
        sums: dict[tuple[str, str, str], list[int]] = defaultdict(lambda: [0, 0, 0])
        for event in self.events():
            assert event["cost_nanos"] == _cost_of_all(prices, event), event
            for scope in ("org", "project", "key"):
                account = sums[scope, event[f"{scope}_id"], event["day"][:7]]
                for i, amount in enumerate((event["cost_nanos"], 1, event["overrun_nanos"])):
                    account[i] += amount
        rows = self.rows("SELECT * FROM balances")
        balances = {(row["scope"], row["scope_id"], row["month"]): row for row in rows}
        assert {type(row["spent_nanos"]) for row in rows} <= {int}
        told = {key: (row["spent_nanos"], row["requests"]) for key, row in balances.items()}
        assert told == {key: (spent, requests) for key, (spent, requests, _) in sums.items()}
        budgets = self._budgets()
        for (scope, id, month), (spent, _, overrun) in sums.items():
            budget = budgets.get((scope, id))
            assert budget is None or spent - overrun <= budget, f"{scope} {id} spent {spent} of {budget} in {month}"
        with closing(Store(url or sqlite_url(self.folder / "home" / "ledger.db"))) as store:
            assert [str(f) for f in store.read(lambda c: list(audit(c))) if f.severity == "wrong"] == []

    def _budgets(self) -> dict[tuple[str, str], int]:
        found: dict[tuple[str, str], int] = {}
        for scope, table in (("org", "organisations"), ("project", "projects"), ("key", "api_keys")):
            for row in self.rows(f"SELECT id, budget_nanos AS n FROM {table} WHERE budget_nanos IS NOT NULL"):
                found[scope, row["id"]] = row["n"]
        joined = "SELECT api_keys.id, plans.budget_nanos AS n FROM api_keys JOIN plans ON plans.id = plan_id"
        for row in self.rows(joined):
            if row["n"] is not None:
                found["key", row["id"]] = min(row["n"], found.get(("key", row["id"]), row["n"]))
        return found


def _cost_of_all(prices: dict[int, dict[str, Any]], event: Event) -> int:
    """Of one that came by a route: the sum of its attempts, each rounded by itself; those that failed are free, and
    what is reused costs its part."""
    if event["attempts"] is None:
        return _cost(prices[event["price_id"]], event)
    total = 0
    for one in json.loads(event["attempts"]):
        counts = {f"{kind}_tokens": one.get("tokens", {}).get(kind, 0) for kind in _KINDS}
        part = {"percent": one.get("percent", 100)}
        cost = 0 if one["end"] == "failed" else _cost(prices[one["price_id"]], {**event, **counts, **part})
        assert cost == one.get("cost_nanos", 0), one
        total += cost
    return min(total, 10**18)


def _cost(price: dict[str, Any], event: Event) -> int:
    """What the tokens of an event cost, by fractions, rounded up once; a billion dollars at most."""
    if event["outcome"] not in _CHARGED:
        return 0
    tokens = {kind: event[f"{kind}_tokens"] for kind in _KINDS}
    tokens["prompt"] -= tokens["cached"] + tokens["cache_write"]
    tokens["cache_write"] -= tokens["cache_write_1h"]
    tokens["completion"] -= tokens["reasoning"]
    amounts = {kind: price[kind] for kind in _KINDS}
    for kind, parent in _PARENTS.items():
        amounts[kind] = amounts[parent] if amounts[kind] is None else amounts[kind]
    exact = price["request"] + sum(Fraction(tokens[kind] * (amounts[kind] or 0), 10**6) for kind in _KINDS)
    if event["batch"]:
        exact = exact * price["batch_percent"] / 100
    exact = exact * event.get("percent", 100) / 100
    return min(-int(-exact // 1), 10**18)
