"""Finds stop strings in text that arrives in pieces, and holds back what may become one."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from interlace.errors import InvalidRequest


class Found(NamedTuple):
    """`shown`: text safe to show; `stop`: the stop string that matched, if any; `rest`: the text after it."""

    shown: str
    stop: str | None
    rest: str


class _Node:
    """A prefix of some stop string; `fallback` is the longest shorter one that ends the same way."""

    __slots__ = ("after", "depth", "fallback", "stop")

    def __init__(self, depth: int) -> None:
        self.after: dict[str, _Node] = {}
        self.depth = depth
        self.fallback: _Node | None = None
        self.stop: str | None = None  # the longest stop string that ends here


class StopFinder:
    """The match that *ends* first wins, and of those that end together the longest: so generation stops at the first
    token that completes any stop, and the result does not depend on how the text was cut.

    An Aho-Corasick automaton: linear in the text, however many stops and however repetitive they are.
    """

    def __init__(self, stops: tuple[str, ...]) -> None:
        if "" in stops:
            raise InvalidRequest("A stop string is empty; leave it out or give it text.", param="stop")
        self._root = _automaton(stops)
        self._node = self._root
        self._held = ""
        self._matched: str | None = None

    def push(self, text: str) -> tuple[str, str | None]:
        """The text now safe to show, and the stop that matched; the stop and all after it are dropped for good."""
        if self._matched is not None:
            return "", self._matched
        shown, self._matched, _ = self.find(text)
        return shown, self._matched

    def find(self, text: str) -> Found:
        """Like `push`, but hands back the text after a match and is then ready to search on."""
        for place, character in enumerate(text):
            self._step(character)
            if self._node.stop is not None:
                stop = self._node.stop
                seen = self._held + text[: place + 1]
                self._node, self._held = self._root, ""
                return Found(seen[: len(seen) - len(stop)], stop, text[place + 1 :])
        seen = self._held + text
        safe = len(seen) - self._node.depth
        self._held = seen[safe:]
        return Found(seen[:safe], None, "")

    def flush(self) -> str:
        """What was held back and became no stop."""
        held, self._held, self._node = self._held, "", self._root
        return held

    def _step(self, character: str) -> None:
        node: _Node | None = self._node
        while node is not None and character not in node.after:
            node = node.fallback
        self._node = self._root if node is None else node.after[character]


def _automaton(stops: tuple[str, ...]) -> _Node:
    root = _Node(0)
    for stop in stops:
        node = root
        for character in stop:
            node = node.after.setdefault(character, _Node(node.depth + 1))
        node.stop = stop
    waiting = deque([root])
    while waiting:  # breadth first: a fallback is always shallower, so already complete
        parent = waiting.popleft()
        for character, node in parent.after.items():
            node.fallback = _fallback(parent, character, root)
            node.stop = node.stop or node.fallback.stop
            waiting.append(node)
    return root


def _fallback(parent: _Node, character: str, root: _Node) -> _Node:
    node = parent.fallback
    while node is not None and character not in node.after:
        node = node.fallback
    return root if node is None else node.after[character]
