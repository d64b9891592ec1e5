"""What one start of a ledger leaves to the next, what two at once may not do, and keys that end while they wait."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest
from sqlalchemy import select

from interlace.config import LedgerSettings
from interlace.errors import ConfigError, InsufficientQuota, Unauthenticated
from interlace.ledger import Bound, Hold, Ledger, LedgerBusy, Outcome, Tokens, Used
from interlace.ledger.registry import alter
from interlace.ledger.schema import api_keys, balances
from tests.support.ledgers import open_ledger
from tests.support.prices import costing
from tests.support.stores import only_sqlite
from tests.support.tenants import tenant

pytestmark = pytest.mark.usefixtures("store")


@only_sqlite
def test_two_homes_cannot_have_one_sqlite_file(tmp_path: Path) -> None:
    """Each would keep its own reservations of the same budgets, and together they would overspend them."""
    named = LedgerSettings(url=f"sqlite:///{tmp_path}/first/ledger.db")
    with open_ledger(tmp_path / "first"):
        with pytest.raises(LedgerBusy, match="first"), open_ledger(tmp_path / "second", ledger=named):
            pass
        with open_ledger(tmp_path / "second"):
            pass  # what it had locked when it was refused is free again
    with open_ledger(tmp_path / "second", ledger=named):
        pass


@only_sqlite
@pytest.mark.parametrize(
    "url", ["nonsense", "mysql://u:s3cret@h/d", "postgresql+nothing://u:s3cret@h/d", "sqlite:////no/x.db"]
)
def test_a_url_that_cannot_be_opened_is_told_of(tmp_path: Path, url: str) -> None:
    """A start would end in a traceback, perhaps with the database's password in it."""
    with (
        pytest.raises(ConfigError, match=r"ledger\.url") as told,
        open_ledger(tmp_path, ledger=LedgerSettings(url=url)),
    ):
        pass
    assert "s3cret" not in told.value.message


def test_a_revoked_key_of_the_environment_is_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Who goes back to an earlier INTERLACE_API_KEY would be locked out without a word."""
    earlier, later = "sk-earlier-aaaaaaaaaaaaaaaa", "sk-later-bbbbbbbbbbbbbbbbbb"
    with open_ledger(tmp_path) as registry:
        registry.admit_first_key(earlier, from_environment=True)
        registry.admit_first_key(later, from_environment=True)
        assert caplog.records == []
        registry.admit_first_key(earlier, from_environment=True)
    (told,) = caplog.records
    assert told.levelno == logging.WARNING
    assert "INTERLACE_API_KEY holds a key that was revoked" in told.getMessage()
    assert earlier not in told.getMessage()


async def test_claims_without_end_do_not_overflow_the_sums(tmp_path: Path) -> None:
    """Ten claims at the largest charge are more than 64 bits: SQLite would go on in floating point."""
    with open_ledger(tmp_path, prices=(costing("m", 10**9, 10**9),)) as registry:
        key = "sk-il-any-aaaaaaaaaaaaaaaa"
        registry.admit_first_key(key, from_environment=False)
        ledger = Ledger(registry)
        caller, price = ledger.authenticate(f"Bearer {key}"), ledger.price("m", embedding=False)
        mad = Used(Outcome.FINISHED, Tokens(completion=2**53 - 1), latency_us=1)
        for number in range(12):
            reserving = ledger.reserve(
                f"{number:024x}", caller, price, Bound(1, 1), model="m", engine="e", endpoint="c"
            )
            if number == 0:
                assert await ledger.settle(await reserving, mad) == 10**18
            else:
                with pytest.raises(InsufficientQuota, match="billion"):
                    await reserving
        (spent,) = {row[0] for row in registry.store.read(lambda c: c.execute(select(balances.c.spent_nanos)).all())}
        assert spent == 10**18
        assert isinstance(spent, int)


@pytest.mark.parametrize("values", [{"revoked_at": 1}, {"digest": b"another text"}])
async def test_a_key_that_ends_while_its_request_waits_gets_no_turn(tmp_path: Path, values: dict[str, object]) -> None:
    """A queue may be long: a stolen key would work, and cost, for as long after it was revoked or rotated."""
    with open_ledger(tmp_path) as registry:
        ledger, who = Ledger(registry), tenant(registry, key_budget=7)
        caller, price = ledger.authenticate(f"Bearer {who.text}"), ledger.price("m", embedding=False)

        async def reserve(id: str) -> Hold:
            return await ledger.reserve(id * 24, caller, price, Bound(1, 1), model="m", engine="e", endpoint="c")

        first = await reserve("1")
        waiting = asyncio.create_task(reserve("2"))
        while not ledger.book.waiting:
            await asyncio.sleep(0)
        registry.change(lambda connection: [alter(connection, api_keys, who.key.id, **values)])
        assert await ledger.settle(first, Used(Outcome.FINISHED, Tokens(), latency_us=1)) == 0
        with pytest.raises(Unauthenticated, match="while its request waited"):
            await waiting
        with pytest.raises(Unauthenticated):
            await reserve("3")
        assert {account.reserved for account in ledger.book.accounts.values()} == {0}
        assert ledger.limits.use(who.key.id).tokens.total == 0


@only_sqlite
def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    """To try again soon would be the wrong advice for a file that was overwritten."""
    (tmp_path / "ledger.db").write_bytes(b"no database at all " * 100)
    with pytest.raises(ConfigError, match=r"ledger\.db"), open_ledger(tmp_path):
        pass
