"""The world outside: the certificate that is shown, the providers that are asked, and the server that runs."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import ssl
import stat
from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime
from urllib.parse import urlsplit

from interlace import __version__
from interlace.config import Settings
from interlace.errors import ConfigError
from interlace.gateway.certificates import read_identity
from interlace.gateway.chat import ChatError, NoServer, Server
from interlace.gateway.commands import key_faults
from interlace.gateway.doctor.findings import Case, Finding, fail, ok, warn
from interlace.gateway.tls import SOON

REACH_SECONDS = 5.0


def certificate(case: Case) -> Iterator[Finding]:
    """The files of `tls`, as `serve` reads them."""
    settings = case.settings
    if settings.tls.certificate is None:
        if _open_to_others(settings) and not settings.proxy.trusted:
            mend = "Set tls.certificate and tls.key, or let a reverse proxy do it and name it in proxy.trusted"
            yield warn(f"none, and {settings.host} is reached from other machines in plain text", mend)
        else:
            yield ok("none: plain HTTP")
        return
    try:
        until = read_identity(settings.tls).until
    except ConfigError as error:
        problem, _, mend = error.message.removesuffix(".").partition(". ")
        yield fail(problem, mend or "Renew both files; a running server takes them up by itself")
        return
    key = settings.tls.key
    assert key is not None
    if key.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO) & ~stat.S_IRGRP:
        yield warn(f"the key {key} is open to other users", f"chmod o= {key}")
    left = until - datetime.now(UTC)
    if left < SOON:
        yield warn(
            f"expires in {left.days} days, on {until:%Y-%m-%d}", "Renew it: a running server takes it up by itself"
        )
    else:
        yield ok(f"{settings.tls.certificate}, until {until:%Y-%m-%d}")


def providers(case: Case) -> Iterator[Finding]:
    """Keys and packages are there, and something listens; with `paid`, they answer."""
    remote = [model for model in case.settings.models if not model.runs_here]
    if not remote:
        yield ok("none is configured")
        return
    faults = list(key_faults(case.settings, case.env))
    for where, problem, mend in faults:
        yield fail(f"{where}: {problem}", mend)
    from interlace.engines import usual_of

    asked: defaultdict[str, list[str]] = defaultdict(list)
    for model in remote:
        try:
            asked[_place(usual_of(model, case.env).base_url)].append(model.name)
        except ConfigError:
            continue  # told above, with its key
    places = [place for place in asked if place]
    for place, why in zip(places, asyncio.run(_reach_all(places)), strict=True):
        names = ", ".join(asked[place])
        if why:
            yield fail(
                f"{place} ({names}): {why}",
                "Look at base_url, at name service and firewall, at the provider's own page",
            )
        else:
            yield ok(f"{place} ({names}) is reached{'' if faults else ', keys are set'}")
    if case.paid and not faults:
        for model in remote:
            yield from _paid(model.name, case)


def server(case: Case) -> Iterator[Finding]:
    """Whether one runs, all models are loaded, and it is of this version."""
    client = Server.reached_as(case.url, case.key, case.settings, case.env)
    try:
        ready, hello = (client.send("GET", path, None, None, seconds=REACH_SECONDS) for path in ("/readyz", "/"))
        said, version = ready.json(), hello.json()["interlace"]
    except NoServer:
        mend = "interlace serve, or systemctl start interlace; journalctl -u interlace says why it ended"
        yield (fail if case.running else warn)(f"none answers at {case.url}", mend)
        return
    except ChatError as error:
        yield fail(error.message.removesuffix("."), "Look what listens there, and at its log")
        return
    except (ValueError, KeyError, TypeError):
        yield fail(f"what answers at {case.url} is no Interlace", "Choose another port, or stop what has it")
        return
    finally:
        client.close()
    if version != __version__:
        yield warn(
            f"it is {version}, and this is {__version__}", "Restart it after an upgrade: systemctl restart interlace"
        )
    missing = {name: one for name, one in said.get("models", {}).items() if one["state"] != "ready"}
    for name, one in missing.items():
        loads = one["state"] in ("loading", "starting")
        what = f"{name} is {one['state']}{': ' if one['detail'] else ''}{one['detail']}"
        mend = "Wait; interlace models shows how far it is" if loads else "Look into its log, then restart or reload it"
        yield (warn if loads and not case.running else fail)(what, mend)
    if said.get("status") == "draining":
        yield warn("it is draining", "Wait for its end, or for what is to start after it")
    elif not missing:
        yield ok(f"{case.url} is ready with {len(said['models'])} models, version {version}")


def _open_to_others(settings: Settings) -> bool:
    try:
        return not ipaddress.ip_address(settings.host).is_loopback
    except ValueError:
        return settings.host != "localhost"


def _place(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}" if parts.hostname else ""


async def _reach_all(places: list[str]) -> list[str]:
    return await asyncio.gather(*map(_reach, places))


async def _reach(place: str) -> str:
    """Why nothing can be sent there; empty where a connection, encrypted if it has to be, was made and closed."""
    parts = urlsplit(place)
    secure = ssl.create_default_context() if parts.scheme == "https" else None
    try:
        async with asyncio.timeout(REACH_SECONDS):
            _, writer = await asyncio.open_connection(parts.hostname, parts.port or (443 if secure else 80), ssl=secure)
    except TimeoutError:
        return f"no connection within {REACH_SECONDS:g} s"
    except ssl.SSLCertVerificationError as error:
        return f"its certificate is not trusted: {error.verify_message}"
    except OSError as error:
        return os.strerror(error.errno) if error.errno else str(error)
    writer.transport.abort()
    return ""


def _paid(name: str, case: Case) -> Iterator[Finding]:
    from interlace.gateway.provider_commands import findings_of

    model = next(model for model in case.settings.models if model.name == name)
    found = findings_of(model, case.settings, case.env)
    failed = [one for one in found if one.status == "fails"]
    if failed:
        what = f"{name}: {', '.join(one.name for one in failed)} fails: {failed[0].detail}"
        yield fail(what, f"interlace providers check {name}, which shows each question")
    else:
        worked = sum(one.status == "works" for one in found)
        yield ok(f"{name} answers: {worked} of {len(found)} questions as they should be")
