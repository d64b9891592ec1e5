"""A PostgreSQL ledger that is archived while a gateway writes, and brought back to a point in time."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import httpx

from tests.support.billing import ANSWER_NANOS, Asked, Books, billing, priced, tenants
from tests.support.provider import running_provider
from tests.support.serving import environment
from tests.support.stores import on_postgresql, postgresql_server
from tests.support.tenants import Tenant

COST, ENOUGH = 20 * ANSWER_NANOS, 300
BODY = {"model": "m", "max_tokens": 20}


def _checked(home: Path) -> int:
    """How many events the ledger has, which must be right."""
    command = [sys.executable, "-m", "interlace", "ledger", "check", "--json"]
    done = subprocess.run(
        [*command, "--config", str(home.parent / "interlace.yaml")],
        env=environment(home), cwd=home, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return int(json.loads(done.stdout)["events"])


async def _keep_asking(client: httpx.AsyncClient, who: Tenant, asked: list[Asked]) -> None:
    while True:
        one = Asked(BODY, who)
        asked.append(one)
        await one.run(client)
        await asyncio.sleep(0.2)  # the budget must outlast the copy


async def test_a_postgresql_ledger_comes_back_to_a_point_in_time(tmp_path: Path) -> None:
    """What callers had been told by then would be lost, half an event would be there, or what workers held would stay
    held for good."""
    with postgresql_server(archive_mode="on", archive_command="cp %p ../archive/%f", archive_timeout="0") as server:
        archive, copy = server.folder / "archive", server.folder / "copy"
        archive.mkdir()
        archive.chmod(0o777)
        server.folder.chmod(0o777)
        with running_provider() as provider, on_postgresql(server):
            (who,) = tenants(tmp_path, {"org_budget": ENOUGH * COST})
            model = {"m": "instant:40"}
            asked: list[Asked] = []
            with billing(tmp_path, provider, model, prices=[priced("m", prompt=0)], workers=2) as there:
                async with there.callers() as client:
                    callers = [asyncio.create_task(_keep_asking(client, who, asked)) for _ in range(4)]
                    await _until_whole(asked, 8)
                    await asyncio.to_thread(server.back_up, copy)
                    await _until_whole(asked, 16)
                    told = sum(one.whole for one in asked)
                    await asyncio.to_thread(server.sql, "SELECT pg_create_restore_point('here')")
                    begun = len(asked)
                    await _until_whole(asked, begun + 8)
                    for caller in callers:
                        caller.cancel()
                    await asyncio.gather(*callers, return_exceptions=True)
                server.sql("SELECT pg_switch_wal()")
                for process in (there.process, there.coordinator(), *there.workers().values()):
                    assert process is not None
                    process.kill()
            later = len(Books(tmp_path).events())
            server.stop(signal.SIGINT)

            (server.folder / "data").rename(server.folder / "lost")
            copy.rename(server.folder / "data")
            (server.folder / "data" / "recovery.signal").touch()
            server.options = {
                "restore_command": "cp ../archive/%f %p",
                "recovery_target_name": "here",
                "recovery_target_action": "promote",
            }
            server.start()

            events = _checked(tmp_path / "home")
            assert told <= events <= begun < later
            assert Books(tmp_path).spent(who) == events * COST
            with billing(tmp_path, provider, model, prices=[priced("m", prompt=0)], workers=2) as there:
                async with there.callers() as client:
                    every = await asyncio.gather(*(Asked(BODY, who).run(client) for _ in range(ENOUGH - events + 3)))
            refused = (429, "insufficient_quota")
            assert Counter(one.refusal for one in every) == {(200, ""): ENOUGH - events, refused: 3}
            assert _checked(tmp_path / "home") == ENOUGH
            Books(tmp_path).check()


async def _until_whole(asked: list[Asked], number: int) -> None:
    while sum(one.whole for one in asked) < number:
        await asyncio.sleep(0.01)
