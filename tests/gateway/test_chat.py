"""`interlace chat` against a small real server on loopback: piped as scripts use it, and in a pseudo-terminal."""

import json
import os
import pty
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from interlace.config import Settings
from interlace.gateway.chat import Timing, _events, _on_this_machine, _printable
from tests.support.gateway_thread import running_gateway
from tests.support.prices import costing
from tests.support.scripted_engine import ScriptedEngine
from tests.support.serving import free_port

KEY = "a-key-for-tests"


class Parrot:
    """An ASGI app that speaks OpenAI's stream: repeats the question, or misbehaves as the question says."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.left = threading.Event()  # a client went away in the middle of an endless answer
        self.loading = 0  # how many more times the model is shown as loading

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        if dict(scope["headers"]).get(b"authorization") != f"Bearer {KEY}".encode():
            await _json(send, 401, {"error": {"message": "Incorrect API key provided."}})
        elif scope["path"] == "/v1/models":
            state = "loading" if self.loading > 0 else "ready"
            self.loading -= 1
            kind = "chat" if state == "ready" else None  # as the real server says it
            rows = [{"id": "embedder", "kind": "embeddings"}, {"id": "parrot", "kind": kind, "state": state}]
            last = {"id": "other", "kind": "completions", "state": "ready"}
            await _json(send, 200, {"object": "list", "data": [*rows, last]})
        else:
            body = b""
            while (message := await receive())["type"] == "http.request":
                body += message["body"]
                if not message.get("more_body"):
                    break
            self.requests.append(json.loads(body))
            await self._answer(self.requests[-1]["messages"][-1]["content"], receive, send)

    async def _answer(self, question: str, receive: Any, send: Any) -> None:
        if question == "refuse":
            await _json(send, 400, {"error": {"message": "That is refused.", "code": "content_filter"}})
            return
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await _event(send, {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
        if question == "endless":
            await _event(send, {"choices": [{"index": 0, "delta": {"content": "and on"}}]})
            while (await receive())["type"] != "http.disconnect":
                pass
            self.left.set()
            return
        words = ["You", " said: ", question] if question != "nothing" else []
        for word in words:
            await _event(send, {"choices": [{"index": 0, "delta": {"content": word}}]})
        if question == "break":
            await _event(send, {"error": {"message": "The engine died."}})
        else:
            await _event(send, {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
            await _event(send, {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 3}})
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})


async def _json(send: Any, status: int, value: Any) -> None:
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(value).encode()})


async def _event(send: Any, value: Any) -> None:
    await send({"type": "http.response.body", "body": f"data: {json.dumps(value)}\n\n".encode(), "more_body": True})


@pytest.fixture
def parrot() -> Iterator[tuple[Parrot, str]]:
    """The app, and the URL where it really listens."""
    app = Parrot()
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical", lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield app, f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


def _environment(home: Path, key: str | None = KEY) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("INTERLACE_")}
    return {**clean, "INTERLACE_HOME": str(home)} | ({"INTERLACE_API_KEY": key} if key else {})


def _chat(url: str, home: Path, text: str, *arguments: str, key: str | None = KEY) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "interlace", "chat", "--url", url, *arguments]
    environment = _environment(home, key)
    return subprocess.run(command, input=text, capture_output=True, text=True, env=environment, check=False, timeout=60)


def test_piped_questions_are_one_conversation(parrot: tuple[Parrot, str], tmp_path: Path) -> None:
    """Answers, one a line, on standard output; timings on standard error; each question carries the turns before."""
    app, url = parrot
    done = _chat(url, tmp_path, "one\n\ntwo\n", "--system", "Be brief.", "--temperature", "0", "--max-tokens", "9")
    assert (done.returncode, done.stdout) == (0, "You said: one\nYou said: two\n")
    assert done.stderr.count("s to first token") == 2
    assert "3 tokens]" in done.stderr
    first, second = app.requests
    assert first["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "one"}]
    assert second["messages"][2:] == [
        {"role": "assistant", "content": "You said: one"},
        {"role": "user", "content": "two"},
    ]
    assert (first["model"], first["stream"], first["temperature"], first["max_tokens"]) == ("parrot", True, 0.0, 9)


def test_a_failed_question_is_forgotten_and_told_by_the_exit_code(parrot: tuple[Parrot, str], tmp_path: Path) -> None:
    """A refused question leaves the conversation as it was; the next goes on; the exit code says that one failed."""
    app, url = parrot
    done = _chat(url, tmp_path, "refuse\nafter\n")
    assert (done.returncode, done.stdout) == (1, "You said: after\n")
    assert "That is refused." in done.stderr
    assert app.requests[-1]["messages"] == [{"role": "user", "content": "after"}]


def test_an_answer_that_breaks_off_is_said_to(parrot: tuple[Parrot, str], tmp_path: Path) -> None:
    """An error event in the middle of a stream is shown, after the text that came."""
    done = _chat(parrot[1], tmp_path, "break\n")
    assert (done.returncode, done.stdout) == (1, "You said: break\n")
    assert "The engine died." in done.stderr


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_question_in_any_bytes_is_asked(parrot: tuple[Parrot, str], tmp_path: Path, encoding: str) -> None:
    """Bytes that are no UTF-8 are asked as U+FFFD, and a plain terminal's UTF-8 is understood: no stack trace."""
    app, url = parrot
    done = subprocess.run(
        [sys.executable, "-m", "interlace", "chat", "--url", url], input=b"caf\xc3\xa9 \xff\n",
        env=_environment(tmp_path) | {"PYTHONIOENCODING": f"{encoding}:surrogateescape"}, capture_output=True,
        check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert app.requests[-1]["messages"] == [{"role": "user", "content": "caf\u00e9 \ufffd"}]
    assert done.stdout == "You said: caf\u00e9 \ufffd\n".encode(encoding, "replace")


def test_an_empty_answer_is_no_turn(parrot: tuple[Parrot, str], tmp_path: Path) -> None:
    """A model that says nothing is not quoted with an empty turn."""
    app, url = parrot
    done = _chat(url, tmp_path, "nothing\nnext\n")
    assert "no text came" in done.stderr
    assert len(app.requests[-1]["messages"]) == 1


def test_commands(parrot: tuple[Parrot, str], tmp_path: Path) -> None:
    """/system, /model, /clear and /save do what /help says; an unknown one is told; /quit ends at once."""
    app, url = parrot
    saved = tmp_path / "talk.json"
    lines = ["/help", "/model", "one", "/clear", "/system Shout.", "/model other", "two", f"/save {saved}"]
    lines += [f"/save {saved}", "/sing", "/quit", "three"]
    done = _chat(url, tmp_path, "\n".join(lines))
    assert done.stdout == "You said: one\nYou said: two\n"
    assert "/clear" in done.stderr
    assert "embedder\nparrot\nother" in done.stderr
    assert "exists already" in done.stderr
    assert "There is no /sing" in done.stderr
    expected = [{"role": "system", "content": "Shout."}, {"role": "user", "content": "two"}]
    assert (app.requests[-1]["model"], app.requests[-1]["messages"]) == ("other", expected)
    assert json.loads(saved.read_text())["messages"][-1] == {"role": "assistant", "content": "You said: two"}


def test_a_model_that_is_not_served_is_told_with_those_that_are(parrot: tuple[Parrot, str], tmp_path: Path) -> None:
    """A mistyped model costs one line, not a stack trace."""
    done = _chat(parrot[1], tmp_path, "hello\n", "parot")
    assert done.returncode == 1
    assert done.stderr == "Error: No model 'parot' is served; there is: embedder, parrot, other.\n"


def test_no_server(tmp_path: Path) -> None:
    """Without a server the message says how to start one."""
    done = _chat(f"http://127.0.0.1:{free_port()}", tmp_path, "hello\n")
    assert done.returncode == 1
    assert done.stderr.endswith("Start one with: interlace serve\n")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("url", ["nonsense", "http://[", "ftp://127.0.0.1", "http://127.0.0.1:port", "http://"])
def test_an_address_that_is_none_is_told(tmp_path: Path, url: str) -> None:
    """A mistyped URL costs one line, not a stack trace."""
    done = _chat(url, tmp_path, "hello\n")
    assert done.returncode == 1
    assert "no server's address" in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_server_of_the_configuration_is_found(parrot: tuple[Parrot, str], tmp_path: Path) -> None:
    """Where `serve` listens by ./interlace.yaml, `chat` and `models` ask, without being told again."""
    port = parrot[1].rpartition(":")[2]
    (tmp_path / "interlace.yaml").write_text(f"port: {port}\n")
    for words, shown in (("chat", "You said: hello\n"), ("models", "parrot")):
        done = subprocess.run(
            [sys.executable, "-m", "interlace", words],
            input="hello\n", capture_output=True, text=True, env=_environment(tmp_path), cwd=tmp_path, check=False,
            timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert shown in done.stdout


def test_blanks_around_a_key_are_no_part_of_it(parrot: tuple[Parrot, str], tmp_path: Path) -> None:
    """A key pasted with its line end, or exported with a blank, is the key."""
    done = _chat(parrot[1], tmp_path, "hello\n", key=f"{KEY} \n")
    assert (done.returncode, done.stdout) == (0, "You said: hello\n"), done.stderr


def test_a_wrong_key_names_the_mend(parrot: tuple[Parrot, str], tmp_path: Path) -> None:
    """A refused key says where one can be given."""
    done = _chat(parrot[1], tmp_path, "hello\n", "--key", "wrong")
    assert done.returncode == 1
    assert "--key" in done.stderr


@pytest.mark.parametrize("key", ["cl\u00e9", "two\nlines"])
def test_a_key_that_no_header_can_carry_is_told(parrot: tuple[Parrot, str], tmp_path: Path, key: str) -> None:
    """The key is named as what is wrong, not the address or the connection, and it is not shown."""
    done = _chat(parrot[1], tmp_path, "hello\n", "--key", key)
    assert done.returncode == 1
    assert done.stderr.startswith("Error: The key holds a character")
    assert key not in done.stderr


@pytest.mark.parametrize(
    ("url", "here"),
    [
        ("http://127.0.0.1:8080", True),
        ("http://localhost", True),
        ("http://[::1]:8080/v1", True),
        ("http://127.0.0.1.example.org", False),
        ("http://127.0.0.1@example.org", False),
        ("https://example.org:8080", False),
        ("nonsense", False),
    ],
)
def test_which_servers_get_the_key_kept_at_home(url: str, here: bool) -> None:
    """Another machine never gets the key of this one, however its address is dressed up."""
    assert _on_this_machine(url) is here


def test_the_key_kept_at_home_opens_the_server_here(parrot: tuple[Parrot, str], tmp_path: Path) -> None:
    """`interlace serve` and `interlace chat` share the first key through the home folder."""
    (tmp_path / "key").write_text(KEY + "\n")
    (tmp_path / "key").chmod(0o600)
    done = _chat(parrot[1], tmp_path, "hello\n", key=None)
    assert (done.returncode, done.stdout) == (0, "You said: hello\n"), done.stderr


def test_chat_waits_while_the_model_loads(parrot: tuple[Parrot, str], tmp_path: Path) -> None:
    """Right after `interlace serve` the weights are still loading: chat says so and waits."""
    app, url = parrot
    app.loading = 3
    done = _chat(url, tmp_path, "hello\n")
    assert (done.returncode, done.stdout) == (0, "You said: hello\n")
    assert "still loading" in done.stderr


class Terminal:
    """A process in a pseudo-terminal of its own, as its controlling one, so that ctrl-C becomes a signal."""

    def __init__(self, url: str, home: Path) -> None:
        code = "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); from interlace.cli import main; main()"
        self.master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, "chat", "--url", url],
            stdin=slave, stdout=slave, stderr=slave, start_new_session=True, env=_environment(home),
        )  # fmt: skip
        os.close(slave)
        self.seen = ""

    def expect(self, text: str) -> None:
        """Read until `text` was shown since the last call; fails after 30 s of silence."""
        while text not in self.seen:
            ready, _, _ = select.select([self.master], [], [], 30)
            assert ready, f"waited for {text!r}, saw {self.seen!r}"
            self.seen += os.read(self.master, 4096).decode()
        self.seen = self.seen.partition(text)[2]

    def type(self, text: str) -> None:
        """Press keys."""
        os.write(self.master, text.encode())

    def interrupt(self, until: str) -> None:
        """Press ctrl-C until `until` shows. Once is enough but for a signal that lands just before a blocking read:
        Python notices that one with the next, as a person at the keyboard would."""
        for _ in range(10):
            self.type("\x03")
            while until not in self.seen and select.select([self.master], [], [], 3)[0]:
                self.seen += os.read(self.master, 4096).decode()
            if until in self.seen:
                break
        self.expect(until)

    def close(self) -> int:
        """Wait for the end; its exit code."""
        try:
            return self.process.wait(30)
        finally:
            self.process.kill()
            os.close(self.master)


def test_a_conversation_in_a_terminal(parrot: tuple[Parrot, str], tmp_path: Path) -> None:
    """A prompt, an answer, its timing, the prompt again; ctrl-D leaves."""
    terminal = Terminal(parrot[1], tmp_path)
    terminal.expect("Chatting with parrot")
    terminal.expect("> ")
    terminal.type("hello\n")
    terminal.expect("You said: hello")
    terminal.expect("s to first token")
    terminal.expect("> ")
    terminal.type("\x04")
    assert terminal.close() == 0


def test_ctrl_c_stops_the_answer_and_the_work(parrot: tuple[Parrot, str], tmp_path: Path) -> None:
    """ctrl-C closes the connection, keeps what was said, and the chat goes on; at the prompt it does not leave."""
    app, url = parrot
    terminal = Terminal(url, tmp_path)
    terminal.expect("> ")
    terminal.type("endless\n")
    terminal.expect("and on")
    terminal.interrupt("[stopped; ")
    assert app.left.wait(30)
    terminal.expect("> ")
    terminal.interrupt("/quit leaves")
    terminal.type("more\n")
    terminal.expect("You said: more")
    assert app.requests[-1]["messages"][1] == {"role": "assistant", "content": "and on"}
    terminal.type("/quit\n")
    assert terminal.close() == 0


def test_a_killed_terminal_leaves_nothing(parrot: tuple[Parrot, str], tmp_path: Path) -> None:
    """Closing the window in the middle of an answer ends the work on the server too."""
    app, url = parrot
    terminal = Terminal(url, tmp_path)
    terminal.expect("> ")
    terminal.type("endless\n")
    terminal.expect("and on")
    terminal.process.send_signal(signal.SIGHUP)
    assert terminal.close() != 0
    assert app.left.wait(30)


def test_a_model_cannot_steer_the_terminal() -> None:
    """Escape sequences from a model (clear screen, set title, C1 introducers) lose their control characters."""
    assert _printable("a\x1b[2Jb\x9b1mc\r\x07\td\n é") == "a[2Jb1mc\td\n é"


def test_events_end_at_done_and_skip_comments() -> None:
    """Keep-alive comments and other fields of an event stream are no data."""
    lines = [": ping", "event: message", 'data: {"a": 1}', "", 'data:{"a": 2}', "data: [DONE]", 'data: {"a": 3}']
    assert list(_events(lines)) == [{"a": 1}, {"a": 2}]


def test_a_timing_leaves_out_what_is_unknown() -> None:
    """One token has no rate, and a server without usage has no count."""
    assert Timing(1.0).line() == "no text came"
    assert Timing(1.0, 1.5, 1.5, 1).line() == "0.50 s to first token, 1 token"
    assert Timing(1.0, 1.5, 2.5).line() == "0.50 s to first token"
    assert Timing(1.0, 1.5, 1.52, 21).line() == "0.50 s to first token, 21 tokens"  # all at once, from a route or cache
    assert Timing(1.0, 1.5, 2.5, 21).line() == "0.50 s to first token, 20.0 tokens/s, 21 tokens"


def test_each_answer_says_what_it_cost(tmp_path: Path) -> None:
    """Beside a server that keeps books: the exact charge of each answer, and of the conversation so far."""
    with running_gateway(Settings(prices=(costing("m", 2, 5),)), {"m": ScriptedEngine()}) as gateway:
        done = _chat(gateway.url, tmp_path, "one two\nthree\n", key=gateway.key)
        first, second = (event.cost_nanos for event in gateway.events)
    assert (first, second) == (2 * 2 + 5 * 7, 2 * (2 + 6 + 1) + 5 * 7)
    said = [line for line in done.stderr.splitlines() if "first token" in line]
    assert "$0.000000039 ($0.000000039 so far)" in said[0]
    assert "$0.000000053 ($0.000000092 so far)" in said[1]
