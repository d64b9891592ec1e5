"""A loopback HTTP server of files in memory: ranges, a stall on demand, a Hub's API and a package index on top."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import threading
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import quote


class FileServer(ThreadingHTTPServer):
    """Serves `files` (path → bytes). `requests` records (path, Range header) of every GET.

    With `stall_after` set, a file's body stops after that many bytes until `go` is set; `stalled` says it did.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.gates: dict[str, bool] = {}  # repositories whose files are for those who accepted their terms
        self.requests: list[tuple[str, str | None]] = []
        self.stall_after: int | None = None
        self.stalled, self.go = threading.Event(), threading.Event()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed on purpose is no news."""


class _Handler(BaseHTTPRequestHandler):
    server: FileServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path, wanted = self.path.partition("?")[0], self.headers.get("Range")
        self.server.requests.append((path, wanted))
        body = self.server.files.get(path)
        if body is None or self.server.gates.get(path.split("/resolve/")[0].removeprefix("/datasets/")):
            self._refuse(path, 404 if body is None else 403)
            return
        start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted else 0  # type: ignore[index]
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.send_header("Content-Length", str(len(body) - start))
        self.send_header("Content-Type", "text/html" if path.endswith("/") else "application/octet-stream")
        self.end_headers()
        self._send(body[start:])

    def _refuse(self, path: str, status: int) -> None:
        """As the Hub does, whose client reads the reason in a header."""
        self.send_response(status)
        reason = "RevisionNotFound" if "/revision/" in path else "RepoNotFound"
        self.send_header("X-Error-Code", "GatedRepo" if status == 403 else reason)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send(self, body: bytes) -> None:
        stall = self.server.stall_after
        if stall is None or len(body) <= stall:
            self.wfile.write(body)
            return
        self.wfile.write(body[:stall])
        self.wfile.flush()
        self.server.stalled.set()
        self.server.go.wait(60)
        self.wfile.write(body[stall:])

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@contextmanager
def file_server() -> Iterator[FileServer]:
    """A running server; stopped, with nothing left waiting, at the end."""
    server = FileServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server
    finally:
        server.go.set()
        server.shutdown()
        thread.join()
        server.server_close()


def put_hub_repo(server: FileServer, repo: str, files: Mapping[str, bytes], commit: str = "c" * 40) -> None:
    """Let `server` answer as a Hub that has one repository; weights are stored as large files."""
    info = {"id": repo, "sha": commit, "siblings": _siblings(files), "tags": ["license:mit"], "private": False,
            "downloads": 0}  # fmt: skip
    for name, body in files.items():
        server.files[f"/{repo}/resolve/{commit}/{name}"] = body
    server.files[f"/api/models/{repo}"] = json.dumps(info).encode()
    server.files[f"/api/models/{repo}/revision/{commit}"] = json.dumps(info).encode()


def put_hub_data_set(
    server: FileServer, repo: str, files: Mapping[str, bytes], card: Mapping[str, Any] | None = None, *,
    commit: str = "d" * 40, revision: str = "main",
) -> None:  # fmt: skip
    """Let `server` answer as a Hub that has one data set; Parquet is stored as large files, and `card` is what the YAML
    of its README says."""
    tags = [f"license:{card['license']}"] if card and "license" in card else []
    info = {"id": repo, "sha": commit, "siblings": _siblings(files), "tags": tags, "cardData": card, "private": False,
            "gated": "auto" if repo in server.gates else False}  # fmt: skip
    for name, body in files.items():
        server.files[f"/datasets/{repo}/resolve/{commit}/{name}"] = body
    for where in ("", f"/revision/{commit}", f"/revision/{quote(revision, safe='')}"):
        if where or revision == "main":
            server.files[f"/api/datasets/{repo}{where}"] = json.dumps(info).encode()


def _siblings(files: Mapping[str, bytes]) -> list[dict[str, Any]]:
    siblings = []
    for name, body in files.items():
        entry: dict[str, Any] = {"rfilename": name, "size": len(body), "blobId": _git_sha1(body)}
        if name.endswith((".safetensors", ".gguf", ".bin", ".parquet")):
            entry["lfs"] = {"sha256": hashlib.sha256(body).hexdigest(), "size": len(body), "pointerSize": 130}
        siblings.append(entry)
    return siblings


def _git_sha1(body: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()


def wheel_bytes(package: str, members: Mapping[str, bytes], *, record: Mapping[str, str] | None = None) -> bytes:
    """A wheel of `package` 1.0 with those members and a RECORD; `record` overrides digests in it."""
    info = f"{package.replace('-', '_')}-1.0.dist-info"
    metadata = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\nLicense: MIT\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    lines = [f"{name},sha256={(record or {}).get(name) or _record_digest(body)},{len(body)}"
             for name, body in (members | metadata).items()]  # fmt: skip
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, body in (members | metadata).items():
            archive.writestr(name, body)
        archive.writestr(f"{info}/RECORD", "\n".join([*lines, f"{info}/RECORD,,"]))
    return out.getvalue()


def _record_digest(body: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(body).digest()).rstrip(b"=").decode()


def put_wheel(server: FileServer, package: str, wheel: bytes, *, stated: str | None = None) -> str:
    """Let `server` answer as a package index that has one wheel; returns the wheel's path."""
    name = f"{package.replace('-', '_')}-1.0-py3-none-any.whl"
    path = f"/packages/{name}"
    server.files[path] = wheel
    digest = stated or hashlib.sha256(wheel).hexdigest()
    page = f'<!DOCTYPE html><html><body><a href="{server.url}{path}#sha256={digest}">{name}</a></body></html>'
    server.files[f"/simple/{package}/"] = page.encode()
    return path
