"""The Redis or Valkey server that machines count in: there, quick, able, and not forgetful."""

from __future__ import annotations

import ipaddress
import statistics
import time
from collections.abc import Iterator
from typing import Any

from interlace.errors import ConfigError
from interlace.gateway.doctor.findings import Case, Finding, fail, ok, warn
from interlace.redis_link import address_of

LOOKS = 5
REACH_SECONDS = 3.0
_APART_SECONDS = 2.0  # by how much its clock may differ: then the minutes that it counts are the same
_OLDEST = 6


def redis(case: Case) -> Iterator[Finding]:
    """The server of `redis.url`."""
    if not case.settings.redis.url:
        yield ok("none: each machine counts limits for itself")
        return
    try:
        address = address_of(case.settings.redis.url, case.env)
    except ConfigError as error:
        problem, _, mend = error.message.removesuffix(".").partition(". ")
        yield fail(problem, mend)
        return
    if not address:
        yield fail(f"the variable {case.settings.redis.url[2:-1]} is not set", "Set it where `interlace serve` starts")
        return
    from redis import Redis, RedisError

    client = Redis.from_url(
        address, protocol=2, socket_timeout=REACH_SECONDS, socket_connect_timeout=REACH_SECONDS, decode_responses=True
    )
    try:
        with client:
            yield from _looked(case, client)
    except RedisError as error:
        mend = "Start it, and look at address, user and password; until then each machine counts a part of every limit"
        yield fail(f"it does not answer: {str(error).removesuffix('.')}", mend)


def _looked(case: Case, client: Any) -> Iterator[Finding]:
    took = []
    for _ in range(LOOKS):
        began = time.monotonic()
        client.ping()
        took.append(time.monotonic() - began)
    about = client.info()
    theirs = int(client.eval("return tonumber(redis.call('TIME')[1])", 0))
    name = "Valkey" if "valkey_version" in about else "Redis"
    version = str(about[f"{name.lower()}_version"])
    found = [*_able(about, version), *_quick(case, statistics.median(took)), *_keeps(about)]
    if abs(theirs - time.time()) > _APART_SECONDS:
        mend = "Let a time service keep both clocks; limits go by the server's, which must not jump"
        found.append(warn(f"its clock is {theirs - time.time():+.0f} s from this machine's", mend))
    host = str(client.connection_pool.connection_kwargs.get("host", ""))
    if "ssl" not in type(client.connection_pool.make_connection()).__name__.lower() and _is_far(host):
        found.append(warn(f"{host} is asked in plain text", "Use rediss:// in its address, or a network of its own"))
    yield from found
    if not found:
        yield ok(f"{name} {version}, answers in {statistics.median(took) * 1000:.1f} ms")


def _able(about: dict[str, Any], version: str) -> Iterator[Finding]:
    if int(version.partition(".")[0]) < _OLDEST:
        yield fail(f"version {version} is too old", f"Install Redis {_OLDEST} or newer, or Valkey")
    if about.get("cluster_enabled"):
        yield fail("it is part of a cluster, which cannot do what limits need", "Name a server that is in none")
    if about.get("role") != "master":
        yield fail("it is a replica, which takes no writes", "Name the primary in redis.url's variable")


def _quick(case: Case, seconds: float) -> Iterator[Finding]:
    most = case.settings.redis.timeout_seconds
    if seconds > most / 4:
        what = f"it takes {seconds * 1000:.0f} ms to answer, and requests wait {most * 1000:.0f} ms at most"
        yield warn(what, "Bring it nearer, or raise redis.timeout_seconds")


def _keeps(about: dict[str, Any]) -> Iterator[Finding]:
    policy = about.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        what = f"when its memory is full it forgets what it likes (maxmemory-policy {policy}): limits, too"
        yield warn(what, "Set maxmemory-policy to noeviction, and let nothing else fill that server")


def _is_far(host: str) -> bool:
    try:
        return not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host not in {"", "localhost"}
