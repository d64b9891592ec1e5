"""A served classifier as an input guard: it reads every text of a request, and refuses what it has been told to.

A text longer than the classifier reads is judged in parts, cut at white space near the middle until each fits. Where
it cannot judge (it is not loaded, it fails, it knows no such label), nobody's request passes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count

from interlace.config import ClassifierSettings
from interlace.engines.types import Embeddings, EmbedRequest, Engine
from interlace.errors import ContextLengthExceeded, EngineUnavailable, Overloaded

_PARTS_MAX = 1024  # of one request: beyond, it is refused, since nobody has read it all
_CHARACTERS_A_TOKEN = 8  # no text is so long in fewer tokens: longer ones are cut before they are counted
_WAIT_SECONDS = 2.0

_serial = count()


class Unjudged(ValueError):
    """Why a classifier cannot judge, in words for the log."""


@dataclass(frozen=True, slots=True)
class Judge:
    """One classifier and what it refuses."""

    settings: ClassifierSettings
    engine: Engine

    async def refuses(self, texts: Iterable[str]) -> bool:
        """Whether any text has a label that is refused. Raises `EngineUnavailable` while the classifier is not there,
        and anything else where it cannot judge."""
        try:
            labels = self.engine.capabilities().labels
            places = self._places(labels)
            parts = [part for text in dict.fromkeys(texts) if text.strip() for part in await self._parts(text)]
            if len(parts) > _PARTS_MAX:
                raise Unjudged(f"the input has {len(parts)} parts, over the {_PARTS_MAX} that are judged")
            if not parts:
                return False
            scored = await self.engine.embed(self._request(parts))
        except (EngineUnavailable, Overloaded) as error:
            raise EngineUnavailable(
                "The content guard of this server is not ready, so nothing passes. Try again soon.",
                retry_after_seconds=error.retry_after_seconds or _WAIT_SECONDS,
            ) from error
        return any(row[place] >= self.settings.above for row in _rows(scored, len(labels)) for place in places)

    def _places(self, labels: Sequence[str]) -> list[int]:
        for label in self.settings.refuse:
            if label not in labels:
                raise Unjudged(f"{self.settings.model} has no label {label!r}; it has {', '.join(labels) or 'none'}")
        return [labels.index(label) for label in self.settings.refuse]

    async def _parts(self, text: str) -> list[str]:
        """The text, or parts of it that the classifier can read."""
        most = _CHARACTERS_A_TOKEN * self.engine.capabilities().context_length
        if len(text) <= most:
            try:
                await self.engine.count(self._request([text]))
            except ContextLengthExceeded:
                if len(text) < 2:
                    raise
            else:
                return [text]
        middle = len(text) // 2
        cut = text.rfind(" ", middle // 2, middle) + 1 or middle
        return [part for half in (text[:cut], text[cut:]) if half.strip() for part in await self._parts(half)]

    def _request(self, texts: Sequence[str]) -> EmbedRequest:
        return EmbedRequest(f"guard-{self.settings.model}-{next(_serial)}", texts=tuple(texts), purpose="score")


def judges_of(settings: Iterable[ClassifierSettings], engines: Mapping[str, Engine]) -> tuple[Judge, ...]:
    """The judges that the settings name; the reader of the configuration has seen that each is a served model."""
    return tuple(Judge(one, engines[one.model]) for one in settings)


def _rows(scored: Embeddings, width: int) -> list[tuple[float, ...]]:
    rows = [struct.unpack(f"<{width}f", row) for row in scored.rows]
    if not all(0 <= score <= 1 for row in rows for score in row):
        raise Unjudged("a score is none from 0 to 1")
    return rows
