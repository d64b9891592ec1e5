"""How often a contestant writes the token that float32 transformers writes after the same text."""

from __future__ import annotations

from pathlib import Path

from benchmarks.worker import ROOT, Worker

PROMPT_TOKENS = 40


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
        """Of 100 tokens, how many are the reference's. Raises `ContestantFailed`."""
        same = asked = 0
        for at in range(self._tokens):
            contexts = [[*p, *c[:at]] for p, c in zip(self._prompts, self._continued, strict=True)]
            answer = contestant.ask({"prompts": contexts, "new_tokens": 1, "tokens": True})
            same += sum(told == [c[at]] for told, c in zip(answer["tokens"], self._continued, strict=True))
            asked += len(contexts)
        return 100 * same / asked


def _prompts(checkpoint: Path, count: int) -> list[list[int]]:
    """The first tokens of paragraphs that are long enough."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    found: list[list[int]] = []
    for page in sorted((ROOT / "docs" / "explanation").rglob("*.md")):
        for paragraph in page.read_text(encoding="utf-8").split("\n\n"):
            ids = tokenizer.encode(paragraph, add_special_tokens=False).ids
            if paragraph[:1].isalpha() and len(ids) >= PROMPT_TOKENS:
                found.append(ids[:PROMPT_TOKENS])
                break
    if len(found) < count:
        raise ValueError(f"docs/explanation has {len(found)} paragraphs that are long enough, {count} are needed")
    return found[:count]
