"""How often a contestant writes the token that float32 transformers writes after the same text."""

from __future__ import annotations

from pathlib import Path

from benchmarks.worker import ROOT, Worker

PROMPT_TOKENS = 40
AT_ONCE = 8  # tokens that are written before they are compared


class Agreement:
    """`count` texts of the project's own documentation, each continued greedily by `tokens` tokens of the reference,
    after each of which a contestant is asked for the next one (teacher forcing)."""

    def __init__(self, checkpoint: Path, count: int, tokens: int) -> None:
        self._prompts = _prompts(checkpoint, count)
        self._tokens = tokens
        self._continued: list[list[int]] = []

    @property
    def known(self) -> bool:
        """Whether the reference has written."""
        return bool(self._continued)

    def learn(self, reference: Worker) -> None:
        """Have the reference write. Raises `ContestantFailed`."""
        answer = reference.ask({"prompts": self._prompts, "new_tokens": self._tokens, "tokens": True})
        self._continued = answer["tokens"]

    def percent(self, contestant: Worker) -> float:
        """Of 100 tokens, how many are the reference's. Raises `ContestantFailed`.

        A contestant writes on by itself while its tokens are the reference's. After one that is not it is given the
        reference's, so each place is asked once, as if every token were given; texts at the same place run together.
        """
        places = [0] * len(self._prompts)
        differing = 0
        while (place := min(places)) < self._tokens:
            texts = [text for text, reached in enumerate(places) if reached == place]
            count = min(AT_ONCE, self._tokens - place)
            contexts = [[*self._prompts[text], *self._continued[text][:place]] for text in texts]
            answer = contestant.ask({"prompts": contexts, "new_tokens": count, "tokens": True})
            for text, told in zip(texts, answer["tokens"], strict=True):
                right = self._continued[text][place : place + count]
                same = next((at for at, pair in enumerate(zip(told, right, strict=True)) if pair[0] != pair[1]), count)
                differing += same < count
                places[text] = place + min(same + 1, count)
        return 100 * (1 - differing / (len(places) * self._tokens))


def _prompts(checkpoint: Path, count: int) -> list[list[int]]:
    """The first tokens of paragraphs that are long enough."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    found: list[list[int]] = []
    for page in [
        page for folder in ("explanation", "how-to") for page in sorted((ROOT / "docs" / folder).rglob("*.md"))
    ]:
        for paragraph in page.read_text(encoding="utf-8").split("\n\n"):
            ids = tokenizer.encode(paragraph, add_special_tokens=False).ids
            if paragraph[:1].isalpha() and len(ids) >= PROMPT_TOKENS:
                found.append(ids[:PROMPT_TOKENS])
                break
    if len(found) < count:
        raise ValueError(f"the documentation has {len(found)} paragraphs that are long enough, {count} are needed")
    return found[:count]
