"""The guards of one gateway, made once from settings: input is checked here, output by the guard it opens.

Default deny: a guard that cannot decide (it raises, it runs out of time) refuses.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import regex

from interlace.config import GuardSettings, SecretSettings
from interlace.engines.types import Delta, Engine, OutputRule
from interlace.errors import ContentFiltered, GuardFailed, GuardUnavailable, InterlaceError
from interlace.safety.effort import harmless_length
from interlace.safety.judging import Judge, TooMuch, judges_of
from interlace.safety.output import OutputGuard
from interlace.safety.redactor import Action, Search, masked
from interlace.safety.secret_input import Cleaner, Work, size_of
from interlace.safety.secret_output import SecretGuard
from interlace.safety.secrets import Kind

_log = logging.getLogger(__name__)

INPUT_SECONDS = 2.0  # for one pattern and one text of a request
_INLINE_CHARACTERS = 20_000  # longer inputs are searched on a thread, without the GIL

_REFUSED = "The request was refused by the content guard of this server. Change the input and try again."

Seen = Callable[[str, Kind, Action], None]
"""Told of each secret that is masked or refused: "input" or "output", its kind, and what became of it."""


def _unseen(direction: str, kind: Kind, action: Action) -> None:
    """Where nobody counts."""


@dataclass(frozen=True, slots=True)
class Guards:
    """Maximum size, denied patterns for input and output alike, and what becomes of secrets in each."""

    max_input_characters: int
    patterns: tuple[regex.Pattern[str], ...] = ()
    window_characters: int = 1024
    secrets_input: Search | None = None
    secrets_output: Search | None = None
    seen: Seen = _unseen
    judges: tuple[Judge, ...] = ()

    @classmethod
    def from_settings(
        cls, settings: GuardSettings, seen: Seen = _unseen, engines: Mapping[str, Engine] | None = None
    ) -> Guards:
        """Compile the patterns; the reader of the configuration has checked them. `engines` are the served models, for
        the classifiers among them."""
        patterns = tuple(regex.compile(text) for text in settings.deny)
        return cls(
            settings.max_input_characters,
            patterns,
            settings.window_characters,
            _search(settings.secrets_input),
            _search(settings.secrets_output),
            seen,
            judges_of(settings.classifiers, engines or {}),
        )

    @property
    def reads_text(self) -> bool:
        """Whether there is anything that needs to see text: then input that comes as token ids must be decoded."""
        return bool(self.patterns or self.judges) or self.secrets_input is not None

    async def check_input(self, texts: Iterable[str], inner: Iterable[str] = (), *, param: str) -> None:
        """Raise `ContentFiltered` unless every guard passes every text; `param` names the field they came from.
        `inner` are the same texts as they are read once more, so they do not count as longer input. Secrets are not
        looked for here, and classifiers not asked: see `clean`, `judge` and `check_decoded`."""
        reason: str | None
        try:
            texts = [text for text in texts if text]  # no pattern matches the empty text
            size = sum(map(len, texts))
            texts += inner if self.patterns and size <= self.max_input_characters else ()
            if size > self.max_input_characters:
                reason = f"The input has {size} characters; at most {self.max_input_characters} are allowed."
            elif size > _INLINE_CHARACTERS and self.patterns:
                reason = await asyncio.to_thread(self._denied, texts, release_gil=True)
            else:
                reason = self._denied(texts)
        except Exception as error:  # whatever goes wrong in a guard, the answer is no
            raise _undecided(error, param) from error
        if reason:
            raise ContentFiltered(reason, param=param)

    async def judge(
        self, texts: Iterable[str], inner: Iterable[str] = (), *, param: str, tenant: str = "", priority: int = 0
    ) -> None:
        """Raise `ContentFiltered` unless every classifier lets every text pass, `inner` ones too, `GuardUnavailable`
        where one cannot judge now, and `GuardFailed` where one cannot judge this: that is no fault of the caller's.
        They wait in its queue as `tenant`'s, by `priority`."""
        read = [*texts, *inner] if self.judges else []
        try:
            refused = [judge.settings.model for judge in self.judges if await judge.refuses(read, tenant, priority)]
        except GuardUnavailable:
            raise
        except TooMuch as error:
            raise ContentFiltered(str(error), param=param) from error
        except Exception as error:
            _log.error("a classifier that guards the input failed, so the request does not pass", exc_info=error)
            raise GuardFailed(
                "The content guard of this server failed under this request, so it does not pass. Try again."
            ) from error
        if refused:
            raise ContentFiltered(_REFUSED, param=param)

    @property
    def masks(self) -> bool:
        """Whether `clean` has anything to look for."""
        return self.secrets_input is not None

    def may_hold_secrets(self, texts: Iterable[str]) -> bool:
        """A glance: whether `clean` may find anything in requests that consist of these texts."""
        return self.secrets_input is not None and self.secrets_input.may_find("\n".join(texts))

    async def clean(self, works: Sequence[Work], *, param: str) -> tuple[Work, ...]:
        """The requests with their secrets masked, each the very same where nothing was. Raises `ContentFiltered` for
        a secret that is to be refused, or that stands where it cannot be masked."""
        if self.secrets_input is None:
            return tuple(works)
        cleaner = Cleaner(self.secrets_input, partial(self.seen, "input"), param)
        try:
            if sum(map(size_of, works)) > _INLINE_CHARACTERS:
                return await asyncio.to_thread(lambda: tuple(map(cleaner.clean, works)))
            return tuple(map(cleaner.clean, works))
        except ContentFiltered:
            raise
        except Exception as error:
            raise _undecided(error, param) from error

    async def check_decoded(self, text: str, *, param: str, tenant: str = "", priority: int = 0) -> None:
        """As `check_input` and `judge`, for a prompt that came as token ids: a secret in it cannot be masked any more,
        so it is refused."""
        await self.check_input([text], param=param)
        await self.judge([text], param=param, tenant=tenant, priority=priority)
        if self.secrets_input is None:
            return
        try:
            Cleaner(self.secrets_input, partial(self.seen, "input"), param).check(text, "a prompt of token ids")
        except ContentFiltered:
            raise
        except Exception as error:
            raise _undecided(error, param) from error

    def open_output(
        self, rule: OutputRule | None = None, *, before: str = ""
    ) -> OutputGuard | SecretGuard | Chain | None:
        """A guard for one request's output, whose text follows `rule` and goes on where `before` ends, which is not
        shown again; None when there is nothing to look for, and so nothing needs to be held back. Secrets are looked
        for in the output alone: those of the input are masked there, or are no concern."""
        json = rule is not None and rule.kind in ("json_object", "json_schema")
        patterns = None
        if self.patterns:
            patterns = OutputGuard(self.patterns, self.window_characters, json=json, before=before)
        if self.secrets_output is None:
            return patterns
        secrets = SecretGuard(self.secrets_output, partial(self.seen, "output"), json=json)
        return secrets if patterns is None else Chain(patterns, secrets)

    def told(self, error: InterlaceError) -> InterlaceError:
        """The error as a caller may read it: the very same, or one of its kind without its words where they hold what
        is forbidden, as those of a provider may that quotes what it was sent or what its model said."""
        words = " ".join(filter(None, (error.message, error.param, error.code)))
        try:
            if self._denied([words]) is None and self.redacted([words]) == [words]:
                return error
        except Exception:  # noqa: BLE001 - default deny: a guard that cannot decide refuses
            _log.exception("an error could not be checked, so its words are not told")
        silent = type(error)(
            "The server behind this model refused or failed this request, in words that the content guard of this "
            "server keeps back.",
            param=None,
            retry_after_seconds=error.retry_after_seconds,
        )
        silent.upstream = error.upstream
        return silent

    def loggable(self, text: str) -> str:
        """What a caller wrote where the access log shows it, such as the name of a model that is not there."""
        try:
            return self.redacted([text])[0] if self._denied([text]) is None else "[denied]"
        except Exception:  # noqa: BLE001 - default deny
            return "[unchecked]"

    def redacted(self, texts: Iterable[str]) -> list[str]:
        """The texts as they may be logged: without secrets of any kind that is not `off` on both sides."""
        kinds = {kind for search in (self.secrets_input, self.secrets_output) if search for kind in search.actions}
        if not kinds:
            return list(texts)
        search = Search(dict.fromkeys(kinds, "mask"))
        return [masked(search, text) for text in texts]

    def _denied(self, texts: list[str], *, release_gil: bool = False) -> str | None:
        for pattern in self.patterns:
            harmless = harmless_length(pattern.pattern)
            for text in texts:
                limit = None if len(text) <= harmless else INPUT_SECONDS
                if pattern.search(text, timeout=limit, concurrent=release_gil):
                    return _REFUSED
        return None


@dataclass(frozen=True, slots=True)
class Chain:
    """Denied patterns first, as the engine wrote the text; then secrets in what is left."""

    patterns: OutputGuard
    secrets: SecretGuard

    def feed(self, delta: Delta) -> list[Delta]:
        """The deltas that may be shown now."""
        return [shown for passed in self.patterns.feed(delta) for shown in self.secrets.feed(passed)]


def _search(settings: SecretSettings) -> Search | None:
    search = Search({"card": settings.card, "api_key": settings.api_key, "private_key": settings.private_key})
    return search if search.actions else None


def _undecided(error: Exception, param: str) -> ContentFiltered:
    _log.error("an input guard failed, so the request is refused", exc_info=error)
    return ContentFiltered("The input could not be checked, so it was refused.", param=param)
