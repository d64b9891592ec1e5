"""TLS of `interlace serve`, with real certificates, connections and renewals."""

from __future__ import annotations

import asyncio
import dataclasses
import re
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
import trustme
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from interlace.config import TlsSettings, check_config
from interlace.errors import ConfigError
from interlace.gateway.certificates import read_identity, trusting, validity
from tests.support.billing import billing
from tests.support.certificates import Pair, connected, der, pair, shown
from tests.support.provider import Provider, running_provider
from tests.support.served import CHAT, Served, ask, patiently, until
from tests.support.serving import environment

COMMAND = (sys.executable, "-m", "interlace")
FAST, SLOW = "instant:3", "slow:400"
BODY = {"model": FAST, "messages": [{"role": "user", "content": "hello"}]}
NOT_RELOADED = "the certificate was not reloaded"


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    """One for all."""
    with running_provider() as running:
        yield running


@pytest.fixture
def files(tmp_path: Path) -> Pair:
    """The server's certificate and key."""
    return pair(tmp_path / "tls")


@pytest.fixture
def server(tmp_path: Path, provider: Provider, files: Pair) -> Iterator[Served]:
    """A gateway over https."""
    with billing(tmp_path, provider, [FAST, SLOW], command=COMMAND, tls=files.settings, trust=files.trust) as there:
        yield there


def _interlace(folder: Path, *words: str, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *words], env=environment(folder / "home") | env, cwd=folder, capture_output=True, text=True,
        check=False, timeout=60, input=stdin,
    )  # fmt: skip


# --- serving -----------------------------------------------------------------------------------------------------


def test_callers_are_answered_over_tls_only(server: Served, files: Pair) -> None:
    """A caller who trusts the authority is answered; plain HTTP and TLS before 1.2 are not."""
    assert server.url.startswith("https://127.0.0.1:")
    answer = httpx.post(
        server.url + CHAT, json=BODY, headers={"authorization": f"Bearer {server.key}"}, verify=files.trust,
        trust_env=False,
    )  # fmt: skip
    assert answer.status_code == 200, answer.text
    with pytest.raises(httpx.TransportError):
        httpx.get(server.url.replace("https", "http") + "/healthz", trust_env=False)
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        httpx.get(server.url + "/healthz", trust_env=False)
    old = files.trust
    old.set_ciphers("ALL:@SECLEVEL=0")
    old.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    with pytest.deprecated_call():
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises((ssl.SSLError, ConnectionError)):
        shown(server.port, old)
    context = read_identity(_settings(files)).context
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2, "where the system's own OpenSSL allows less"
    with connected(server.port, files.trust) as secure:
        assert secure.version() == "TLSv1.3"


async def test_a_renewed_certificate_is_served_and_open_connections_go_on(server: Served, files: Pair) -> None:
    """Were connections dropped, or the old certificate kept, a renewal would need a restart: a stream under way, its
    connection afterwards, and new connections with and without a server name all show what they should."""
    before = shown(server.port, files.trust)
    async with server.callers() as client:
        streamed = asyncio.create_task(ask(client, {**BODY, "model": SLOW, "stream": True}))
        await until(lambda: server.metric("interlace_requests_running") == 1)
        with connected(server.port, files.trust) as open_before:
            leaf = files.renew()
            await asyncio.to_thread(patiently, lambda: shown(server.port, files.trust) == der(leaf))
            assert shown(server.port, files.trust, None) == der(leaf)
            assert not streamed.done(), "the stream ended too soon to show anything"
            open_before.sendall(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n")
            assert open_before.recv(1000).startswith(b"HTTP/1.1 200")
            assert open_before.getpeercert(binary_form=True) == before
        answer = await streamed
    assert (answer.done, len(answer.text.split())) == (True, 400)
    assert len(server.logged("the certificate was renewed")) <= 1


def test_half_a_renewal_changes_nothing(server: Served, files: Pair) -> None:
    """Between the writing of a key and of its certificate the pair does not fit: the one before stays, the log says
    so once, and the next look finds both."""
    before, leaf = shown(server.port, files.trust), files.issue()
    files.write_key(leaf)
    patiently(lambda: server.logged(NOT_RELOADED))
    assert "is not the key of" in server.logged(NOT_RELOADED)[0]["error"]
    assert shown(server.port, files.trust) == before
    files.write_certificate(leaf)
    patiently(lambda: shown(server.port, files.trust) == der(leaf))
    files.key.unlink()
    patiently(lambda: len(server.logged(NOT_RELOADED)) == 2)
    assert shown(server.port, files.trust) == der(leaf)


def test_sighup_reads_the_certificate_at_once_or_changes_nothing(server: Served, files: Pair) -> None:
    """A reload of the configuration is a reload of the certificate; with one that has expired nothing is changed."""
    expired = files.issue(datetime.now(UTC) - timedelta(hours=1))
    before = shown(server.port, files.trust)
    files.write(expired)
    refused = _interlace(server.folder, "reload", "--config", "interlace.yaml", "--url", server.url)
    assert refused.returncode == 1, "the command trusts the file, which the server does not show"
    server.process.send_signal(signal.SIGHUP)
    patiently(lambda: server.logged("the configuration was not reloaded"))
    assert "expired on" in server.logged("the configuration was not reloaded")[0]["error"]
    assert shown(server.port, files.trust) == before
    leaf = files.renew()
    server.process.send_signal(signal.SIGHUP)
    patiently(lambda: server.logged("the configuration was reloaded"))
    assert shown(server.port, files.trust) == der(leaf)
    until_seconds = server.metric("interlace_certificate_expires_timestamp_seconds")
    assert until_seconds == validity(files.certificate)[1].timestamp()


async def test_a_caller_who_hangs_up_stops_the_work(server: Served, provider: Provider) -> None:
    """Were the end of an encrypted connection not noticed, the provider would be paid for what nobody reads."""
    async with (
        server.callers() as client,
        client.stream("POST", CHAT, json={**BODY, "model": SLOW, "stream": True}) as response,
    ):
        await anext(response.aiter_lines())
    await until(lambda: SLOW in provider.cancelled)
    await until(server.idle)


# --- the command line --------------------------------------------------------------------------------------------


def test_the_command_line_reaches_its_own_server(server: Served, files: Pair) -> None:
    """`chat`, the admin verbs and `models` find https by the configuration, and trust the certificate that it names,
    without any authority being known on the machine."""
    config = yaml.safe_load((server.folder / "interlace.yaml").read_text())
    (server.folder / "interlace.yaml").write_text(yaml.safe_dump({**config, "port": server.port}))
    asked = _interlace(server.folder, "chat", FAST, stdin="hello\n")
    assert (asked.returncode, asked.stdout.strip() != "") == (0, True), asked.stderr
    assert _interlace(server.folder, "orgs", "list").returncode == 0
    assert '"state": "ready"' in _interlace(server.folder, "models", "--json").stdout
    assert _interlace(server.folder, "reload").returncode == 2, "another port needs a restart"


def test_a_server_elsewhere_must_be_known(server: Served, files: Pair, tmp_path: Path) -> None:
    """Without its configuration, a server whose authority is unknown is not trusted, in words; `SSL_CERT_FILE` makes
    it known; another certificate than the configured one is not taken for it."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    words = ("models", "--url", server.url)
    refused = _interlace(elsewhere, *words, INTERLACE_API_KEY=server.key)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "is not trusted here" in refused.stderr
    assert "SSL_CERT_FILE" in refused.stderr
    files.authority.cert_pem.write_to_path(elsewhere / "ca.pem")
    trusted = _interlace(elsewhere, *words, INTERLACE_API_KEY=server.key, SSL_CERT_FILE=str(elsewhere / "ca.pem"))
    assert trusted.returncode == 0, trusted.stderr
    other = pair(elsewhere / "tls")
    (elsewhere / "interlace.yaml").write_text(yaml.safe_dump({"tls": other.settings}))
    taken = _interlace(elsewhere, *words, INTERLACE_API_KEY=server.key)
    assert taken.returncode == 1
    assert "is not trusted here" in taken.stderr


# --- files that cannot be used -----------------------------------------------------------------------------------


def _settings(files: Pair) -> TlsSettings:
    return TlsSettings(files.certificate, files.key)


def _missing(files: Pair) -> None:
    files.key.unlink()


def _no_certificate(files: Pair) -> None:
    files.certificate.write_bytes(files.key.read_bytes())


def _broken(files: Pair) -> None:
    files.certificate.write_text("-----BEGIN CERTIFICATE-----\nMAAA\n-----END CERTIFICATE-----\n")


def _no_key(files: Pair) -> None:
    files.key.write_text("nothing\n")


def _of_another(files: Pair) -> None:
    files.write_key(files.issue())


def _expired(files: Pair) -> None:
    files.renew(datetime.now(UTC) - timedelta(minutes=5))


def _locked(files: Pair) -> None:
    key = serialization.load_pem_private_key(files.key.read_bytes(), None)
    locked = serialization.BestAvailableEncryption(b"secret")
    form = serialization.PrivateFormat.PKCS8
    files.key.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, locked))


BAD = {
    _missing: "tls.key: .*server.key cannot be read: No such file",
    _no_certificate: "tls.certificate: .* holds no certificate",
    _broken: "tls.certificate: .* cannot be read",
    _no_key: "tls.key: .* cannot be used",
    _of_another: "tls.key: .* is not the key of",
    _expired: "tls.certificate: .* expired on .* Renew it",
    _locked: "tls.key: .* needs a passphrase",
}


@pytest.mark.parametrize("spoil", BAD, ids=lambda spoil: spoil.__name__.strip("_"))
def test_bad_files_are_told_before_anything_starts(spoil, files: Pair, tmp_path: Path) -> None:
    """`serve` and `config check` say which of the two files is wrong, and how; nothing asks for a passphrase."""
    read_identity(_settings(files))
    spoil(files)
    with pytest.raises(ConfigError, match=BAD[spoil]):
        read_identity(_settings(files))
    (tmp_path / "interlace.yaml").write_text("tls:\n  certificate: tls/server.pem\n  key: tls/server.key\n")
    served, checked = _interlace(tmp_path, "serve"), _interlace(tmp_path, "config", "check")
    assert (served.returncode, checked.returncode) == (2, 1)
    assert "Traceback" not in served.stderr
    assert re.match(r"interlace.yaml:[23]: tls\.(certificate|key): ", checked.stdout)
    assert ("tls.key" in served.stderr) == ("tls.key:" in BAD[spoil])


@pytest.mark.parametrize("given", ["certificate", "key"])
def test_half_a_pair_is_told_with_its_line(given: str, tmp_path: Path) -> None:
    """A certificate without a key would else be plain HTTP, unnoticed."""
    (tmp_path / "interlace.yaml").write_text(f"port: 8443\ntls:\n  {given}: file.pem\n")
    (problem,) = check_config(tmp_path / "interlace.yaml", {})
    assert (problem.line, problem.where) == (3, f"tls.{given}")


def test_validity_is_what_the_certificate_says(files: Pair) -> None:
    """The dates are read by a few lines of ours: another reader must find the same, before and after 2050 too."""
    for year in (2049, 2050, 2199):
        files.renew(datetime(year, 7, 1, 12, 30, 15, tzinfo=UTC))
        theirs = x509.load_pem_x509_certificate(files.certificate.read_bytes())
        assert validity(files.certificate) == (theirs.not_valid_before_utc, theirs.not_valid_after_utc)


def test_a_certificate_of_tomorrow_is_not_served(files: Pair) -> None:
    """A machine whose clock is behind would be refused by every caller: better said here."""
    yesterday = validity(files.certificate)[0] - timedelta(days=1)
    with pytest.raises(ConfigError, match=r"valid from .* on only.*clock"):
        read_identity(_settings(files), yesterday)


def test_trust_in_a_file_is_trust_in_that_certificate_alone(tmp_path: Path, files: Pair) -> None:
    """Another certificate of the same authority, or the authority in the file's chain, is not the server."""
    authority = trustme.CA().create_child_ca()
    chained = dataclasses.replace(files, authority=authority)
    mine = chained.renew()
    trust = trusting(files.certificate)
    assert _handshake(mine, trust)
    assert not _handshake(authority.issue_cert("localhost"), trust)


def _handshake(leaf: trustme.LeafCert, trust: ssl.SSLContext) -> bool:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    leaf.configure_cert(context)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = trust.wrap_bio(to_client, to_server, server_hostname="localhost")
    server = context.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(4):
        for side in (client, server):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLCertVerificationError:
                return False
    return True


def test_the_service_manager_hears_of_the_start_and_the_end(tmp_path: Path, provider: Provider) -> None:
    """systemd would think the service ready before it listens, or never, and take a slow drain for a hang."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(60)
        told = ("env", f"NOTIFY_SOCKET={tmp_path / 'notify'}", *COMMAND)
        with billing(tmp_path, provider, [FAST], command=told, ready=False) as there:
            assert manager.recv(100) == b"READY=1"
            assert there.get("/healthz").status_code == 200
            there.process.terminate()
            assert manager.recv(100) == b"STOPPING=1"
            assert there.process.wait(60) == 0
