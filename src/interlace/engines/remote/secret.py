"""A provider's key: read from the environment once, never shown."""

from __future__ import annotations

from collections.abc import Mapping

from interlace.errors import ConfigError


class Secret:
    """Text that shows itself to nobody by accident: not in `repr`, not in `str`, not in a format string."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return "Secret(***)"

    def reveal(self) -> str:
        """The text itself, for the one place that sends it."""
        return self._text

    def hidden_in(self, text: str) -> str:
        """`text`, with the secret blotted out wherever it occurs."""
        return text.replace(self._text, "***")


def read_key(reference: str, env: Mapping[str, str]) -> Secret | None:
    """The key that `${NAME}` refers to; None for an empty reference. Raises `ConfigError`, never with the key in it."""
    if not reference:
        return None
    name = reference.removeprefix("${").removesuffix("}")
    text = env.get(name, "").strip()
    if not text:
        raise ConfigError(f"The environment variable {name} is not set. Set it to the provider's key.")
    if not text.isascii() or not text.isprintable() or " " in text:
        raise ConfigError(f"The environment variable {name} holds characters that no key has. Set it to the key alone.")
    return Secret(text)
