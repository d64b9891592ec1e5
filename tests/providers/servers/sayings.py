"""What a model called `says:NAME` says, whatever the server: a thought, a text, a refusal, calls, in each API's own
form, and in small pieces where it streams. Tests put their sayings into `SAYINGS`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Call:
    """One call of a function; `arguments` is JSON text."""

    name: str
    arguments: str
    id: str = "call_1"


@dataclass(frozen=True)
class Saying:
    """One answer. `fault`: the request is refused, in those words. `late`: only once the text has been said."""

    text: str = ""
    thought: str = ""
    refusal: str = ""
    calls: tuple[Call, ...] = ()
    fault: str = ""
    late: bool = False

    @property
    def finish(self) -> str:
        """Why it ends, as OpenAI says it."""
        return "tool_calls" if self.calls else "stop"


SAYINGS: dict[str, Saying] = {}


def saying_of(model: str) -> Saying | None:
    """The one that a model's name asks for."""
    head, _, name = model.rpartition("/")[2].partition(":")
    return SAYINGS.get(name) if head == "says" else None


def cut(text: str) -> list[str]:
    """In pieces of five characters: no word of more is ever whole."""
    return [text[at : at + 5] for at in range(0, len(text), 5)]
