"""What looks like `vllm serve` from outside: its health, its models, its adapters, its chat. `--fails=...` says how it
fails, `--record=FILE` where it notes how it was started and what it was asked.

Only the standard library, so that it is there at once.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

WORDS = ("one", " two", " three")


class Served(ThreadingHTTPServer):
    """The server, and what it knows."""

    daemon_threads = True

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__((options.host, options.port), Handler)
        self.options = options
        self.adapters: dict[str, str] = {}
        self.asked: list[dict[str, Any]] = []
        self.well = options.fails != "never"
        self.noting = threading.Lock()  # each request has a thread of its own, and all write one file

    def note(self) -> None:
        """Write down how it was started and what it was asked."""
        if self.options.record:
            with self.noting:
                told = {"argv": sys.argv, "env": dict(os.environ), "adapters": self.adapters, "asked": self.asked}
                partial = Path(f"{self.options.record}.partial")
                partial.write_text(json.dumps(told | {"pid": os.getpid()}))
                partial.rename(self.options.record)


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server: Served

    def do_GET(self) -> None:
        """Health and models."""
        if self.path == "/health":
            self._json({}, 200 if self.server.well else 503)
        elif self._allowed():
            self._json({"data": [{"id": self.server.options.served_model_name, "max_model_len": 512}]})

    def do_POST(self) -> None:
        """Chat and adapters."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self._allowed():
            return
        self.server.asked.append({"path": self.path, **body})
        if self.path == "/v1/load_lora_adapter":
            self.server.adapters[body["lora_name"]] = body["lora_path"]
        elif self.path == "/v1/unload_lora_adapter":
            self.server.adapters.pop(body["lora_name"])
        self.server.note()  # whoever has the answer finds it noted
        if self.path == "/v1/load_lora_adapter":
            broken = "broken" in body["lora_path"]
            self._json({"error": {"message": "no such rank"}} if broken else {}, 400 if broken else 200)
        elif self.path == "/v1/unload_lora_adapter":
            self._json({})
        elif body["model"] in {self.server.options.served_model_name, *self.server.adapters}:
            self._chat(body)
        else:
            self._json({"error": {"message": f"The model {body['model']} does not exist."}}, 404)

    def _chat(self, body: dict[str, Any]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        text = json.dumps(body)
        for word in WORDS:
            self._event({"choices": [{"index": 0, "delta": {"content": word}}]})
            if "endless" in text:
                time.sleep(30)
            if "die" in text:
                time.sleep(0.2)  # what was said is on its way
                os._exit(9)
            if "sicken" in text:
                self.server.well = False
        self._event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        self._event({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}})
        self.wfile.write(b"data: [DONE]\n\n")

    def _event(self, value: dict[str, Any]) -> None:
        self.wfile.write(b"data: " + json.dumps(value).encode() + b"\n\n")
        self.wfile.flush()

    def _allowed(self) -> bool:
        if self.headers.get("Authorization") == f"Bearer {os.environ['VLLM_API_KEY']}":
            return True
        self._json({"error": {"message": "Unauthorized"}}, 401)
        return False

    def _json(self, value: dict[str, Any], status: int = 200) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


def main() -> None:
    """`vllm serve CHECKPOINT --host ... --port ...`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("verb", choices=["serve"])
    parser.add_argument("checkpoint")
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--served-model-name", required=True)
    parser.add_argument("--fails", default="")
    parser.add_argument("--record", default="")
    options, _ = parser.parse_known_args()
    if options.fails == "dies":
        sys.exit("there is no GPU here")
    served = Served(options)
    served.note()
    served.serve_forever()


if __name__ == "__main__":
    main()
