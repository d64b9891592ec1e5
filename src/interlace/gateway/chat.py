"""`interlace chat`: a conversation in the terminal with a running server, over its public endpoint only.

Answers go to standard output, everything else (prompts, timings, errors) to standard error, so that a script can pipe
questions in, one a line, and read answers out.
"""

from __future__ import annotations

import ipaddress
import json
import re
import ssl
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from interlace.config import Settings
from interlace.errors import InterlaceError
from interlace.gateway.certificates import trusting
from interlace.gateway.keys import read_key
from interlace.money import show_usd

HELP = """\
/help          this list
/clear         forget the conversation (the system text stays)
/system TEXT   set the system text; without TEXT, remove it
/model NAME    go on with another model; without NAME, list them
/save FILE     write the conversation as JSON
/quit          leave (so does ctrl-D); ctrl-C stops an answer
"""
_TIMEOUT = httpx.Timeout(10.0, read=600.0)  # a full queue may hold the first token back for minutes
_LOADING_SECONDS = 300.0
_SHORTEST_TIMED_SECONDS = 0.1  # what comes within it came at once
_REQUEST = re.compile(r"[A-Za-z0-9_-]{1,128}")


class ChatError(InterlaceError):
    """The server refused, failed or is not there; the message is meant for the person at the terminal."""


class NoServer(ChatError):
    """Nothing listens at the address."""


class LeaveChat(Exception):
    """The person said /quit."""


@dataclass
class Timing:
    """When things happened in one answer, by a monotonic clock, and how many tokens the server counted."""

    asked: float
    first: float | None = None
    last: float | None = None
    tokens: int | None = None
    id: Any = None  # what the server calls the answer

    def line(self) -> str:
        """For example `0.21 s to first token, 38.5 tokens/s, 63 tokens`; what is unknown is left out. So is the rate of
        an answer that came at once: it would say how fast that was sent, not how fast it was made."""
        if self.first is None or self.last is None:
            return "no text came"
        parts = [f"{self.first - self.asked:.2f} s to first token"]
        if self.tokens is not None:
            if self.tokens > 1 and self.last - self.first >= _SHORTEST_TIMED_SECONDS:
                parts.append(f"{(self.tokens - 1) / (self.last - self.first):.1f} tokens/s")
            parts.append(f"{self.tokens} token{'' if self.tokens == 1 else 's'}")
        return ", ".join(parts)


@dataclass
class Conversation:
    """What was said so far and how to go on. `options` are further fields of each request."""

    model: str
    system: str | None = None
    turns: list[dict[str, str]] = field(default_factory=list)
    options: Mapping[str, Any] = field(default_factory=dict)
    spent_nanos: int = 0

    def messages(self) -> list[dict[str, str]]:
        """All turns, the system text first."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return system + self.turns


# --- the wire ---------------------------------------------------------------------------------------------------


class Server:
    """A running Interlace (or any server that speaks OpenAI's API) at `url`."""

    def __init__(self, url: str, key: str | None, trust: ssl.SSLContext | None = None) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        key = (key or "").strip()
        if not (key.isascii() and key.isprintable()):
            raise ChatError("The key holds a character that no key has. (Name a key with --key or INTERLACE_API_KEY.)")
        self.key = key or None
        self.trust: ssl.SSLContext | None = None  # None: without TLS
        headers = {"authorization": f"Bearer {key}"} if key else {}
        try:
            parts = urlsplit(self.url)
            if parts.scheme == "https":
                self.trust = trust or httpx.create_ssl_context()
            sound = parts.scheme in ("http", "https") and bool(parts.hostname)
            self._http = httpx.Client(
                base_url=self.url,
                headers=headers,
                timeout=_TIMEOUT,
                trust_env=False,  # no proxy between us and it
                verify=self.trust or False,
            )
        except (ValueError, httpx.InvalidURL):
            sound = False
        if not sound:
            raise ChatError(f"{url!r} is no server's address. Write one like http://127.0.0.1:8080")

    @classmethod
    def reached_as(cls, url: str, key: str | None, settings: Settings, env: Mapping[str, str]) -> Server:
        """The server at `url`. The key defaults to `INTERLACE_API_KEY`, then, for a server on this machine only, to
        the one kept at home.

        With https, the server that `settings` describe must show the certificate that they name, whatever name it is
        for; every other one, a certificate of an authority that is known here (`SSL_CERT_FILE` names others).
        """
        here = _on_this_machine(url)
        own = settings.tls.certificate if here or url == server_url(settings) else None
        key = key or env.get("INTERLACE_API_KEY") or (read_key(settings.home, env) if here else None)
        return cls(url, key, None if own is None or not url.startswith("https://") else trusting(own))

    def close(self) -> None:
        """Close every connection."""
        self._http.close()

    def models(self) -> list[dict[str, Any]]:
        """The served models, as `/v1/models` lists them."""
        try:
            response = self._http.get("/v1/models", timeout=10.0)
        except httpx.TransportError as error:
            raise self._unreachable(error) from error
        _raise_for_error(response)
        try:
            rows = response.json()["data"]
        except (ValueError, KeyError, TypeError):
            raise ChatError(f"{self.url} is not an OpenAI-compatible server: /v1/models is not a list.") from None
        return [row for row in rows if isinstance(row, dict) and isinstance(row.get("id"), str)]

    def spent(self, id: str | None, *, patience_seconds: float = 0.0) -> int | None:
        """What a request cost, in nano-dollars; None where the server does not say, or not within the patience (an
        answer that was stopped is settled a moment later)."""
        deadline = time.monotonic() + patience_seconds
        while isinstance(id, str) and _REQUEST.fullmatch(id):
            response = self.send("GET", f"/v1/usage/{id}", None, None)
            if response.status_code == httpx.codes.OK:
                try:
                    return int(response.json()["cost_nanos"])
                except (ValueError, KeyError, TypeError):
                    return None
            if response.status_code != httpx.codes.NOT_FOUND or time.monotonic() > deadline:
                return None
            time.sleep(0.1)
        return None

    def send(
        self, method: str, path: str, query: Mapping[str, Any] | None, body: Any, *, seconds: float | None = 60.0
    ) -> httpx.Response:
        """One request and its answer, whatever the answer says; `body` None: none."""
        try:
            return self._http.request(method, path, params=query, json=body, timeout=seconds)
        except httpx.TransportError as error:
            raise self._unreachable(error) from error

    def answer(self, conversation: Conversation, timing: Timing) -> Generator[str, None, None]:
        """The pieces of one answer; closing the generator closes the connection, which stops the work."""
        body = {
            "model": conversation.model,
            "messages": conversation.messages(),
            "stream": True,
            "stream_options": {"include_usage": True},
            **conversation.options,
        }
        try:
            with self._http.stream("POST", "/v1/chat/completions", json=body) as response:
                if response.is_error:
                    response.read()
                _raise_for_error(response)
                for event in _events(response.iter_lines()):
                    yield from _texts(event, timing)
        except httpx.TransportError as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: httpx.TransportError) -> ChatError:
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            reason = str(error).partition("failed: ")[2].partition(" (_ssl")[0] or str(error)
            return ChatError(
                f"The certificate of {self.url} is not trusted here: {reason}. Name the file of its authority in "
                "SSL_CERT_FILE, or the host as the certificate does."
            )
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            return NoServer(f"No server answers at {self.url} (--url names another). Start one with: interlace serve")
        return ChatError(f"The connection to {self.url} broke: {str(error) or type(error).__name__}")


def _raise_for_error(response: httpx.Response) -> None:
    if not response.is_error:
        return
    try:
        message = str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = f"The server answered {response.status_code} {response.reason_phrase}."
    if response.status_code == httpx.codes.UNAUTHORIZED:
        message += " (Name a key with --key or INTERLACE_API_KEY.)"
    raise ChatError(message)


def _events(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """The JSON values of a server-sent event stream, up to `[DONE]`. The API sends one `data:` line an event."""
    for line in lines:
        name, _, value = line.partition(":")
        if name != "data":
            continue
        value = value.removeprefix(" ")
        if value == "[DONE]":
            return
        try:
            event = json.loads(value)
        except ValueError:
            raise ChatError(f"The server sent a broken event: {value[:80]!r}") from None
        if not isinstance(event, dict):
            raise ChatError(f"The server sent an event that is no object: {value[:80]!r}")
        yield event


def _texts(event: Mapping[str, Any], timing: Timing) -> Iterator[str]:
    """The text of one event, noting times and usage; an error event raises."""
    if error := event.get("error"):
        raise ChatError(str(error.get("message") or error) if isinstance(error, dict) else str(error))
    timing.id = timing.id or event.get("id")
    if usage := event.get("usage"):
        timing.tokens = usage.get("completion_tokens")
    for choice in event.get("choices") or ():
        if text := (choice.get("delta") or {}).get("content"):
            timing.last = time.perf_counter()
            timing.first = timing.first or timing.last
            yield text


# --- the terminal -----------------------------------------------------------------------------------------------


def chat_command(
    model: str | None,
    *,
    url: str,
    key: str | None,
    settings: Settings,
    system: str | None,
    options: Mapping[str, Any],
    env: Mapping[str, str],
) -> int:
    """Chat until the input ends; the exit code is 1 when a piped question failed.

    Raises `ChatError` when there is no server or no such model.
    """
    server = Server.reached_as(url, key, settings, env)
    try:
        conversation = Conversation(_choose(server, model), _readable(system) if system else None, options=options)
        _wait_until_loaded(server, conversation.model)
        if sys.stdin.isatty():
            return _interactive(server, conversation)
        return _piped(server, conversation)
    finally:
        server.close()


def server_url(settings: Settings) -> str:
    """Where a server with these settings is asked from this machine."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)  # noqa: S104 (asked, not bound)
    scheme = "http" if settings.tls.certificate is None else "https"
    return f"{scheme}://[{host}]:{settings.port}" if ":" in host else f"{scheme}://{host}:{settings.port}"


def _on_this_machine(url: str) -> bool:
    try:
        host = urlsplit(url).hostname or ""
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # another name, or no URL at all
        return False


def _choose(server: Server, wanted: str | None) -> str:
    """`wanted` if it is served, an adapter by its own name alone where one model has one of it; without `wanted`, the
    first model that can chat, once it is known which can."""
    names = [str(row["id"]) for row in server.models()]
    if wanted is not None:
        adapters = [name for name in names if name.endswith(f":{wanted}")]
        if wanted not in names and len(adapters) == 1:
            return adapters[0]
        if wanted not in names:
            raise ChatError(f"No model {wanted!r} is served; there is: {', '.join(names) or 'none'}.")
        return wanted
    rows = _when(server, lambda rows: any(map(_chats, rows)) or not any(map(_loads, rows)))
    for row in rows:
        if _chats(row):
            return str(row["id"])
    raise ChatError(f"No chat model is served; there is: {', '.join(names) or 'none'}.")


def _chats(row: Mapping[str, Any]) -> bool:
    """Whether a row of `/v1/models` is a chat model. Servers that do not say so are believed; a model of ours says
    `null` until it has loaded."""
    return bool(row.get("kind", "chat") == "chat")


def _loads(row: Mapping[str, Any]) -> bool:
    return bool(row.get("state") == "loading")


def _wait_until_loaded(server: Server, model: str) -> None:
    """Return when `model` is not (any longer) loading; servers that do not say are taken as ready."""
    _when(server, lambda rows: not any(row["id"] == model and _loads(row) for row in rows))


def _when(server: Server, done: Callable[[list[dict[str, Any]]], bool]) -> list[dict[str, Any]]:
    """The served models once `done` says so of them, asking four times a second."""
    deadline = time.monotonic() + _LOADING_SECONDS
    told = False
    while not done(rows := server.models()):
        if time.monotonic() > deadline:
            raise ChatError(f"Still loading after {_LOADING_SECONDS:.0f} seconds; see the server's log.")
        if not told:
            _say("The model is still loading ...")
            told = True
        time.sleep(0.25)
    return rows


def _interactive(server: Server, conversation: Conversation) -> int:
    try:
        import readline  # noqa: F401 - importing it gives input() a history and editing
    except ImportError:
        pass  # not on Windows; input() works without
    _say(f"Chatting with {conversation.model} at {server.url}. /help lists commands.")
    while True:
        try:
            line = input("> ")
        except EOFError:
            _say("")
            return 0
        except KeyboardInterrupt:
            _say("\n(ctrl-D or /quit leaves)")
            continue
        try:
            _take(server, conversation, line)
        except LeaveChat:
            return 0
        except ChatError as error:
            _say(error.message)


def _piped(server: Server, conversation: Conversation) -> int:
    code = 0
    for line in sys.stdin:
        try:
            _take(server, conversation, line)
        except LeaveChat:
            break
        except ChatError as error:
            _say(error.message)
            code = 1
    return code


def _take(server: Server, conversation: Conversation, line: str) -> None:
    """Do what one line of input says: a command, a question, or nothing."""
    line = _readable(line).strip()
    if line.startswith("/"):
        _obey(server, conversation, line)
    elif line:
        _ask(server, conversation, line)


def _ask(server: Server, conversation: Conversation, question: str) -> None:
    """Show the answer as it comes. A question that got no text at all leaves the conversation as it was."""
    conversation.turns.append({"role": "user", "content": question})
    timing = Timing(time.perf_counter())
    answer = ""
    pieces = server.answer(conversation, timing)
    interrupted = False
    try:
        for text in pieces:
            answer += text
            sys.stdout.write(_printable(text))
            sys.stdout.flush()
    except KeyboardInterrupt:
        interrupted = True
    finally:
        pieces.close()  # closes the connection now, not when the generator is collected
        if answer:
            conversation.turns.append({"role": "assistant", "content": answer})
            print(flush=True)
        else:
            conversation.turns.pop()
    _say(f"[{'stopped; ' if interrupted else ''}{timing.line()}{_cost(server, conversation, timing, interrupted)}]")


def _cost(server: Server, conversation: Conversation, timing: Timing, interrupted: bool) -> str:
    """What the answer cost, and the conversation so far; nothing where the server keeps no books."""
    nanos = server.spent(timing.id, patience_seconds=2.0 if interrupted else 0.0)
    if nanos is None:
        return ""
    conversation.spent_nanos += nanos
    return f", ${show_usd(nanos)} (${show_usd(conversation.spent_nanos)} so far)"


def _obey(server: Server, conversation: Conversation, line: str) -> None:
    """Carry out one /command; raises `LeaveChat` for /quit and `ChatError` for what cannot be done."""
    command, _, rest = line.partition(" ")
    rest = rest.strip()
    match command:
        case "/help":
            _say(HELP.rstrip())
        case "/clear":
            conversation.turns.clear()
            _say("(forgotten)")
        case "/system":
            conversation.system = rest or None
            _say("(system text set)" if rest else "(system text removed)")
        case "/model" if rest:
            conversation.model = _choose(server, rest)
            _say(f"(now {conversation.model})")
        case "/model":
            _say("\n".join(str(row["id"]) for row in server.models()))
        case "/save":
            _save(conversation, rest)
        case "/quit" | "/exit" | "/bye":
            raise LeaveChat
        case _:
            raise ChatError(f"There is no {command}; /help lists what there is.")


def _save(conversation: Conversation, name: str) -> None:
    """Write the conversation to a new file; one that exists is left alone."""
    if not name:
        raise ChatError("Name a file: /save FILE")
    value = {"model": conversation.model, "messages": conversation.messages()}
    try:
        with Path(name).expanduser().open("x", encoding="utf-8") as file:
            json.dump(value, file, ensure_ascii=False, indent=2)
            file.write("\n")
    except FileExistsError:
        raise ChatError(f"{name} exists already; name another file.") from None
    except OSError as error:
        raise ChatError(f"{name} cannot be written: {error.strerror}") from error
    _say(f"(saved to {name})")


def _readable(text: str) -> str:
    """`text` with bytes that the terminal's encoding could not read taken as UTF-8, and as U+FFFD where they are not:
    Python keeps them as lone surrogates, which no request can carry."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _printable(text: str) -> str:
    """`text` without control characters but newline and tab: a model must not steer the terminal."""
    return "".join(c for c in text if c in "\n\t" or not (c < " " or "\x7f" <= c <= "\x9f"))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
