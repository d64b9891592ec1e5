"""The guards of one gateway, made once from settings: input is checked here, output by the `OutputGuard` it opens.

Default deny: a guard that cannot decide (it raises, it runs out of time) refuses.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import dataclass

import regex

from interlace.config import GuardSettings
from interlace.errors import ContentFiltered
from interlace.safety.output import OutputGuard

_log = logging.getLogger(__name__)

INPUT_SECONDS = 2.0  # for one pattern and one text of a request
_INLINE_CHARACTERS = 20_000  # longer inputs are searched on a thread, without the GIL


@dataclass(frozen=True, slots=True)
class Guards:
    """Maximum size and denied patterns, for input and output alike."""

    max_input_characters: int
    patterns: tuple[regex.Pattern[str], ...] = ()
    window_characters: int = 1024

    @classmethod
    def from_settings(cls, settings: GuardSettings) -> Guards:
        """Compile the patterns; the reader of the configuration has checked them."""
        patterns = tuple(regex.compile(text) for text in settings.deny)
        return cls(settings.max_input_characters, patterns, settings.window_characters)

    @property
    def reads_text(self) -> bool:
        """Whether there is anything that needs to see text: then input that comes as token ids must be decoded."""
        return bool(self.patterns)

    async def check_input(self, texts: Iterable[str], *, param: str) -> None:
        """Raise `ContentFiltered` unless every guard passes every text; `param` names the field they came from."""
        texts = list(texts)
        size = sum(map(len, texts))
        reason: str | None
        try:
            if size > self.max_input_characters:
                reason = f"The input has {size} characters; at most {self.max_input_characters} are allowed."
            elif size > _INLINE_CHARACTERS and self.patterns:
                reason = await asyncio.to_thread(self._denied, texts, release_gil=True)
            else:
                reason = self._denied(texts)
        except Exception as error:  # whatever goes wrong in a guard, the answer is no
            _log.exception("an input guard failed, so the request is refused")
            raise ContentFiltered("The input could not be checked, so it was refused.", param=param) from error
        if reason:
            raise ContentFiltered(reason, param=param)

    def open_output(self) -> OutputGuard | None:
        """A guard for one request's output; None when no pattern is set, and nothing needs to be held back."""
        return OutputGuard(self.patterns, self.window_characters) if self.patterns else None

    def _denied(self, texts: list[str], *, release_gil: bool = False) -> str | None:
        for pattern in self.patterns:
            for text in texts:
                if pattern.search(text, timeout=INPUT_SECONDS, concurrent=release_gil):
                    return (
                        "The request was refused by the content guard of this server. Change the input and try again."
                    )
        return None
