"""A served classifier as an input guard: it reads every text of a request, and refuses what it has been told to.

A text longer than the classifier reads is judged in parts that overlap, cut at white space near the middle until each
fits. Where it cannot judge (it is not loaded, it fails, it knows no such label), nobody's request passes.
"""

from __future__ import annotations

import asyncio
import re
import struct
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count

import msgspec

from interlace.config import ClassifierSettings
from interlace.engines.types import Embeddings, EmbedRequest, Engine
from interlace.errors import ContextLengthExceeded, EngineUnavailable, GuardUnavailable, Overloaded

PARTS_MAX = 2048  # of one request: as many as one request to an encoder may have
TOKENS_MAX = 1 << 17  # in them, an eighth of an encoder's queue. Beyond, it is refused, since nobody has read it all
SECONDS_MAX = 30.0  # for one request, waiting included
_CHARACTERS_A_TOKEN = 8  # few texts are so long in fewer tokens: longer ones are cut before they are counted
_LAP_CHARACTERS = 256  # that two neighbours have in common, at most: a few dozen words
_WAIT_SECONDS = 2.0
_RUN = re.compile(r"\S{90}(?=\S)")  # WordPiece takes a run of over 100 characters for one unknown word

_serial = count()


class Unjudged(ValueError):
    """Why a classifier cannot judge, in words for the log."""


class TooMuch(ValueError):
    """The input is more than is judged, in words for the caller."""


@dataclass(frozen=True, slots=True)
class Judge:
    """One classifier and what it refuses."""

    settings: ClassifierSettings
    engine: Engine

    async def refuses(self, texts: Iterable[str], tenant: str = "", priority: int = 0) -> bool:
        """Whether any text has a label that is refused. Raises `GuardUnavailable` while the classifier is not there or
        does not answer in time, `TooMuch`, and anything else where it cannot judge."""
        ask = EmbedRequest("", purpose="score", tenant=tenant, priority=priority)
        try:
            async with asyncio.timeout(SECONDS_MAX):
                labels = self.engine.capabilities().labels
                places = self._places(labels)
                parts = await self._parts(texts, ask)
                if not parts:
                    return False
                scored = await self.engine.embed(self._asking(ask, parts))
        except (EngineUnavailable, Overloaded, TimeoutError) as error:
            raise GuardUnavailable(
                "The content guard of this server is not ready, so nothing passes. Try again soon.",
                retry_after_seconds=getattr(error, "retry_after_seconds", None) or _WAIT_SECONDS,
            ) from error
        rows = _rows(scored, len(parts), len(labels))
        return any(row[place] >= self.settings.above for row in rows for place in places)

    def _places(self, labels: Sequence[str]) -> list[int]:
        for label in self.settings.refuse:
            if label not in labels:
                raise Unjudged(f"{self.settings.model} has no label {label!r}; it has {', '.join(labels) or 'none'}")
        return [labels.index(label) for label in self.settings.refuse]

    async def _parts(self, texts: Iterable[str], ask: EmbedRequest) -> list[str]:
        """All of the texts, in parts that the classifier can read."""
        whole = dict.fromkeys(text for text in texts if text.strip())
        if len(whole) > PARTS_MAX:
            raise TooMuch(
                f"The input has {len(whole)} texts; the content guard of this server reads at most {PARTS_MAX}. Send "
                "fewer."
            )
        most = _CHARACTERS_A_TOKEN * self.engine.capabilities().context_length
        left = [*reversed(whole)]
        parts: list[str] = []
        tokens = 0
        while left:
            text = left.pop()
            if not text.strip():
                continue
            part = "" if len(text) > most else _legible(text)  # of no more at a time, for everybody waits meanwhile
            counted = await self._counted(part, ask) if part else None
            if counted is None:
                left += reversed(_halves(text))
                continue
            parts.append(part)
            tokens += counted
            if tokens > TOKENS_MAX or len(parts) > PARTS_MAX:
                raise TooMuch(
                    f"The input is too long for the content guard of this server, which reads at most {TOKENS_MAX} "
                    f"tokens in {PARTS_MAX} parts. Send less."
                )
        return parts

    async def _counted(self, text: str, ask: EmbedRequest) -> int | None:
        """Its tokens; None where it is longer than the classifier reads."""
        try:
            return await self.engine.count(self._asking(ask, [text]))
        except ContextLengthExceeded:
            return None

    def _asking(self, ask: EmbedRequest, texts: Sequence[str]) -> EmbedRequest:
        name = f"guard-{self.settings.model}-{next(_serial)}"
        return msgspec.structs.replace(ask, id=name, texts=tuple(texts))


def judges_of(settings: Iterable[ClassifierSettings], engines: Mapping[str, Engine]) -> tuple[Judge, ...]:
    """The judges that the settings name; the reader of the configuration has seen that each is a served model."""
    return tuple(Judge(one, engines[one.model]) for one in settings)


def _legible(text: str) -> str:
    """The text as a classifier knows its letters: mathematical ones and the like as plain ones, no run too long. Runs
    are cut first: to normalise one takes time by the square of the marks in it."""
    return _RUN.sub(r"\g<0> ", unicodedata.normalize("NFKC", _RUN.sub(r"\g<0> ", text)))


def _halves(text: str) -> tuple[str, str]:
    """Two parts of the text, cut at white space where there is any near the middle. What stands across the cut is whole
    in the second, which begins some words before it; each is at most four fifths of the text."""
    if len(text) < 2:
        raise Unjudged("the classifier cannot read a single character")
    lap = min(_LAP_CHARACTERS // 2, len(text) // 12)
    middle = len(text) // 2
    cut = text.rfind(" ", middle - middle // 4, middle) + 1 or middle
    begin = text.rfind(" ", cut - 2 * lap, cut - lap) + 1 or cut - lap
    return text[:cut], text[begin:]


def _rows(scored: Embeddings, number: int, width: int) -> list[tuple[float, ...]]:
    rows = [struct.unpack(f"<{width}f", row) for row in scored.rows]
    if len(rows) != number:
        raise Unjudged(f"{len(rows)} scores came for {number} parts")
    if not all(0 <= score <= 1 for row in rows for score in row):
        raise Unjudged("a score is none from 0 to 1")
    return rows
