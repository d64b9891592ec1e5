"""A gateway behind nginx, really run with the file of `deploy/`; and who is believed to speak for others."""

from __future__ import annotations

import json
import os
import shutil
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from interlace.config import check_config
from tests.support.billing import billing
from tests.support.certificates import Pair, pair
from tests.support.provider import Provider, running_provider
from tests.support.served import CHAT, Served, patiently, until
from tests.support.serving import free_port

COMMAND = (sys.executable, "-m", "interlace")
FAST, HANGS = "instant:3", "hang-mid"
EXAMPLE = Path(__file__).parents[2] / "deploy/nginx.conf"
ANSWERED = "request"


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    """One for all."""
    with running_provider() as running:
        yield running


def _body(model: str, **more: object) -> dict[str, object]:
    return {"model": model, "messages": [{"role": "user", "content": "hello"}], **more}


@contextmanager
def nginx(folder: Path, gateway: Served, files: Pair) -> Iterator[str]:
    """nginx with the example in front of the gateway; ports, files and name are the only things changed."""
    binary = shutil.which("nginx", path=os.environ["PATH"] + ":/usr/sbin")
    if binary is None:
        pytest.skip("nginx is not installed: apt-get install nginx-light (make test does it when root)")
    port = free_port()
    site = EXAMPLE.read_text().replace("127.0.0.1:8080", f"127.0.0.1:{gateway.port}")
    site = site.replace("listen 443", f"listen 127.0.0.1:{port}").replace("llm.example.com", "localhost")
    site = site.replace("/etc/ssl/interlace/server.", f"{files.folder}/server.")
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "\n".join(f"{kind}_temp_path {folder}/{kind};" for kind in kinds)
    user = "user root;" if os.geteuid() == 0 else ""
    (folder / "nginx.conf").write_text(
        f"{user} daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/nginx.log;\n"
        f"events {{}}\nhttp {{ access_log off; {temporary}\n{site} }}\n"
    )
    with (folder / "nginx.err").open("wb") as sink:
        process = subprocess.Popen([binary, "-p", str(folder), "-c", str(folder / "nginx.conf")], stderr=sink)
    url = f"https://127.0.0.1:{port}"
    try:
        patiently(lambda: process.poll() is not None or _answers(url, files.trust))
        assert process.poll() is None, (folder / "nginx.err").read_text()
        yield url
    finally:
        process.terminate()
        process.wait(20)


def _answers(url: str, trust: ssl.SSLContext) -> bool:
    try:
        return httpx.get(url, verify=trust, trust_env=False).status_code == 404
    except httpx.TransportError:
        return False


def _clients(there: Served) -> list[str]:
    return [line["client"] for line in there.logged(ANSWERED)]


async def test_streams_pass_nginx_unbuffered_and_a_caller_who_leaves_is_noticed(
    tmp_path: Path, provider: Provider
) -> None:
    """Through the example, the first words arrive while the provider is silent behind them; who hangs up stops the
    work; the log has the caller's address; and nothing but the API is there for callers."""
    files = pair(tmp_path / "tls")
    with (
        billing(tmp_path, provider, [FAST, HANGS], command=COMMAND, proxy={"trusted": ["127.0.0.1"]}) as there,
        nginx(tmp_path, there, files) as url,
    ):
        headers = {"authorization": f"Bearer {there.key}", "x-forwarded-for": "203.0.113.9"}
        async with httpx.AsyncClient(base_url=url, verify=files.trust, headers=headers, trust_env=False) as client:
            whole = await client.post(CHAT, json=_body(FAST))
            assert whole.status_code == 200, whole.text
            seen: list[str] = []
            async with client.stream("POST", CHAT, json=_body(HANGS, stream=True)) as response:
                async for line in response.aiter_lines():
                    if line.startswith("data: {"):
                        delta = json.loads(line[6:])["choices"][0]["delta"]
                        seen.append(delta.get("content") or "")
                    if "".join(seen) == "one two ":
                        break
            assert "".join(seen) == "one two "
            await until(lambda: HANGS in provider.cancelled)
            for path in ("/admin/v1/orgs", "/metrics", "/readyz", "/"):
                assert (await client.get(path)).status_code == 404
        patiently(lambda: len(_clients(there)) == 2)
        assert _clients(there) == ["127.0.0.1", "127.0.0.1"], "a caller's own X-Forwarded-For went through nginx"


@pytest.mark.parametrize(
    ("trusted", "said", "believed"),
    [
        ([], "203.0.113.9", "127.0.0.1"),
        (["192.0.2.0/24"], "203.0.113.9", "127.0.0.1"),
        (["127.0.0.1"], "203.0.113.9", "203.0.113.9"),
        (["127.0.0.0/8", "10.0.0.0/8"], "203.0.113.9, 10.1.2.3", "203.0.113.9"),
        (["127.0.0.1"], "203.0.113.9, 10.1.2.3", "10.1.2.3"),
    ],
)
def test_only_configured_proxies_are_believed(
    tmp_path: Path, provider: Provider, trusted: list[str], said: str, believed: str
) -> None:
    """Anybody could else write whatever address into the log; and of a chain, only what trusted ones added counts."""
    with billing(tmp_path, provider, [FAST], command=COMMAND, proxy={"trusted": trusted}) as there:
        headers = {"authorization": f"Bearer {there.key}", "x-forwarded-for": said, "x-forwarded-proto": "https"}
        assert httpx.post(there.url + CHAT, json=_body(FAST), headers=headers, trust_env=False).status_code == 200
        patiently(lambda: there.logged(ANSWERED))
        assert _clients(there) == [believed]


@pytest.mark.parametrize("network", ["*", "10.0.0.1/8", "proxy.internal", "300.1.1.1"])
def test_what_is_no_network_is_refused(network: str, tmp_path: Path) -> None:
    """A slip of the pen must not trust everybody, nor nobody."""
    file = tmp_path / "interlace.yaml"
    file.write_text(f"proxy: {{trusted: ['{network}']}}\n")
    (problem,) = check_config(file, {})
    assert problem.where == "proxy.trusted[0]"
    assert "10.0.0.0/8" in problem.mend
