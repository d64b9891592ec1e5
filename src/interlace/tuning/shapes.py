"""A row of any format to an example, or to problems that say which field is wrong and what it should be."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from interlace.tuning.columns import ROLES
from interlace.tuning.examples import Example, Message, Role, Task
from interlace.tuning.layouts import LABEL_NAMES, PAIRS, ROLE_WORDS, TEXT_NAMES, bare
from interlace.tuning.lines import Say

_ABOUT = ("id", "source")  # of a row, for people: where it came from
_CHAT_HELP = 'Give "messages", or "prompt" and "completion"'


def example_of(number: int, row: Mapping[str, Any], task: Task, say: Say) -> Example | None:
    """The example in a row, or None and at least one problem, as an error. What a row has beside its example is left
    out, and told as a warning, but for `id` and `source`, which are notes for people."""
    wrong = _Wrong(say)
    say_here = partial(wrong, number)
    if task == "classify":
        found = _classified(number, row, say_here)
    elif "messages" in row:
        found = _conversation(number, row, say_here)
    else:
        found = _pair(number, row, say_here)
    return None if wrong.said else found


class _Wrong:
    """Passes problems on, and remembers whether one was an error."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self.said = False

    def __call__(self, number: int, field: str, problem: str, mend: str, severity: str = "error") -> None:
        self.said |= severity == "error"
        self._say(number, field, problem, mend, severity=severity)


# --- chat --------------------------------------------------------------------------------------------------------


def _conversation(number: int, row: Mapping[str, Any], say: Say) -> Example | None:
    turns = row["messages"]
    if isinstance(turns, str):
        say("messages", "a list is needed, not a string", "Write the list itself, not JSON in quotes")
        return None
    if not isinstance(turns, list):
        say("messages", f"a list is needed, not {_kind(turns)}", 'Write [{"role": "user", "content": "..."}, ...]')
        return None
    if not turns:
        say("messages", "the list is empty", "Give at least a user's turn and an assistant's")
        return None
    messages = [_message(turn, f"messages[{index}]", say) for index, turn in enumerate(turns)]
    whole = tuple(message for message in messages if message is not None)
    if len(whole) < len(messages):
        return None
    _order(whole, say)
    _left_out(row, ("messages",), say)
    return Example(number, whole)


def _message(turn: Any, where: str, say: Say) -> Message | None:
    if not isinstance(turn, dict):
        say(where, f"an object is needed, not {_kind(turn)}", 'Write {"role": "user", "content": "..."}')
        return None
    if "from" in turn and "value" in turn:
        mend = 'Rename "from" to "role" (human: user, gpt: assistant) and "value" to "content"'
        say(where, "this is the ShareGPT format", mend)
        return None
    role = _role(turn, where, say)
    if "tool_calls" in turn:
        say(f"{where}.tool_calls", "calls of tools cannot be trained on", "Leave out conversations with tools")
        return None
    content = _text(turn, "content", where, say)
    if role is None or content is None:
        return None
    for key in sorted(turn.keys() - {"role", "content"}):
        say(f"{where}.{_short(key)}", "this field is not trained on", "Leave it out", severity="warning")
    return Message(role, content)


def _role(turn: Mapping[str, Any], where: str, say: Say) -> Role | None:
    role = turn.get("role")
    if role in ROLES:
        return role  # type: ignore[no-any-return]
    field = f"{where}.role"
    if "role" not in turn:
        say(field, "the role is missing", 'Add "role": "user" or "assistant" (or "system", in the first turn)')
    elif not isinstance(role, str):
        say(field, f"a string is needed, not {_kind(role)}", 'Write "user", "assistant" or "system"')
    elif role in ("tool", "function"):
        say(field, "turns of tools cannot be trained on", "Leave out conversations with tools")
    else:
        word = bare(role)
        meant = word if word in ROLES else ROLE_WORDS.get(word)
        mend = f'Write "{meant}"' if meant else 'Roles are "system", "user" and "assistant"'
        say(field, f"unknown role {_quoted(role)}", mend)
    return None


def _order(messages: tuple[Message, ...], say: Say) -> None:
    """The first thing wrong with who speaks when."""
    roles = [message.role for message in messages]
    if "assistant" not in roles:
        say("messages", "there is no assistant's turn, so nothing to learn", "Add the answer, or remove the line")
        return
    if "system" in roles[1:]:
        where = f"messages[{roles.index('system', 1)}].role"
        say(where, "a system's turn stands after the first", "Move it to the front; there is one at most")
        return
    spoken = roles[roles[0] == "system" :]
    offset = len(roles) - len(spoken)
    if spoken[0] == "assistant":
        swapped = (
            all(role == ("assistant", "user")[index % 2] for index, role in enumerate(spoken)) and len(spoken) % 2 == 0
        )
        mend = "The roles look swapped: exchange user and assistant" if swapped else "Begin with a user's turn"
        say(f"messages[{offset}].role", "the assistant speaks first", mend)
        return
    for index in range(1, len(spoken)):
        if spoken[index] == spoken[index - 1]:
            mend = "Join the two turns into one, or remove one"
            say(f"messages[{offset + index}].role", f"the {spoken[index]} speaks twice in a row", mend)
            return
    if spoken[-1] == "user":
        say("messages", "the last turn is the user's", "End with the assistant's answer, or remove that turn")


# --- prompt and completion ----------------------------------------------------------------------------------------


def _pair(number: int, row: Mapping[str, Any], say: Say) -> Example | None:
    if "prompt" not in row or "completion" not in row:
        _missing_pair(row, say)
        return None
    texts = [_text(row, key, "", say) for key in ("prompt", "completion")]
    system = _text(row, "system", "", say) if row.get("system") not in (None, "") else ""
    _left_out(row, ("system", "prompt", "completion"), say)
    if texts[0] is None or texts[1] is None or system is None:
        return None
    before = (Message("system", system),) if system else ()
    return Example(number, (*before, Message("user", texts[0]), Message("assistant", texts[1])))


def _missing_pair(row: Mapping[str, Any], say: Say) -> None:
    names = {bare(str(key)): str(key) for key in row}
    if "conversations" in names:
        mend = (
            'Rename "conversations" to "messages", "from" to "role" (human: user, gpt: assistant), "value" to "content"'
        )
        say(_short(names["conversations"]), "this is the ShareGPT format", mend)
        return
    for meant in ("messages", "prompt", "completion"):
        if names.get(meant, meant) != meant:
            say(_short(names[meant]), f"the name differs from {meant!r} by case or spaces", f'Rename it to "{meant}"')
            return
    for asked, answered in PAIRS:
        if asked in names and answered in names:
            mend = f'Rename {names[asked]!r} to "prompt" and {names[answered]!r} to "completion"'
            say("prompt", "the field is missing", mend)
            return
    if "text" in names and "label" in names:
        say("messages", "these are labelled texts, not conversations", "Train them with --task classify")
        return
    for there, lacking in (("prompt", "completion"), ("completion", "prompt")):
        if there in names:
            say(lacking, "the field is missing", f'Add "{lacking}", a string')
            return
    found = f"found {', '.join(_quoted(name) for name in list(names.values())[:5])}" if names else "the row is empty"
    say("messages", f"the field is missing ({found})", _CHAT_HELP)


# --- classification -----------------------------------------------------------------------------------------------


def _classified(number: int, row: Mapping[str, Any], say: Say) -> Example | None:
    names = {bare(str(key)): str(key) for key in row}
    for wanted, others in (("text", TEXT_NAMES), ("label", LABEL_NAMES)):
        if wanted in row:
            continue
        near = names.get(wanted) or next((names[other] for other in others if other in names), None)
        mend = f'Rename {_quoted(near)} to "{wanted}"' if near else f'Add "{wanted}", a string'
        say(wanted, "the field is missing", mend)
    if "text" not in row or "label" not in row:
        return None
    if "text_pair" in row:
        mend = 'Write both into "text", as they will be asked'
        say("text_pair", "a classifier is asked one text at a time", mend)
        return None
    text, label = _text(row, "text", "", say), row["label"]
    if isinstance(label, int) and not isinstance(label, bool):
        label = str(label)
    _left_out(row, ("text", "label"), say)
    if not isinstance(label, str):
        say("label", f"a string is needed, not {_kind(label)}", 'Write the name of the class, as "label": "spam"')
        return None
    if not label.strip():
        say("label", "the label is empty", "Name the class, or remove the line")
        return None
    return None if text is None else Example(number, (Message("user", text),), label)


# --- values -------------------------------------------------------------------------------------------------------


def _text(row: Mapping[str, Any], key: str, where: str, say: Say) -> str | None:
    """A field that must be a text that says something."""
    field, value = f"{where}.{key}" if where else key, row.get(key)
    if key not in row:
        say(field, "the field is missing", f'Add "{key}", a string')
    elif isinstance(value, list):
        say(field, "a string is needed, not a list of parts", "Write the text itself; pictures cannot be trained on")
    elif not isinstance(value, str):
        say(field, f"a string is needed, not {_kind(value)}", "Write the text in quotes, or remove the line")
    elif not value.strip():
        say(field, "the text is empty", "Write it, or remove the line")
    elif _halved(value):
        say(field, "the text has half of a surrogate pair", "Write the whole character, in UTF-8")
    elif "\x00" in value:
        say(field, "the text has a NUL character", "Remove it: the text was probably read from a binary file")
    else:
        return value
    return None


def _halved(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _left_out(row: Mapping[str, Any], used: tuple[str, ...], say: Say) -> None:
    for key in row:
        if key not in used and key not in _ABOUT:
            say(_short(str(key)), "this field is not trained on", "Leave it out", severity="warning")


def _kind(value: Any) -> str:
    kinds = {type(None): "null", bool: "true or false", int: "a number", float: "a number", str: "a string"}
    return kinds.get(type(value), "a list" if isinstance(value, list) else "an object")


def _short(text: str) -> str:
    return repr(text[:40])[1:-1]


def _quoted(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:40] + "…")
