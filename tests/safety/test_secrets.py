"""What counts as a secret, what does not, and that no split of a text changes either. Every key here is made up."""

from __future__ import annotations

import hashlib
import json
import random
import string
import uuid

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from interlace.safety.cards import is_card, luhn
from interlace.safety.redactor import Redactor, Search, masked, whole
from interlace.safety.secrets import Kind

ALL: dict[Kind, str] = {"card": "mask", "api_key": "mask", "private_key": "mask"}
SEARCH = Search(ALL)
CARD, KEY, PRIVATE = "[card number removed]", "[API key removed]", "[private key removed]"


def made_up(count: int, letters: str = string.ascii_letters + string.digits) -> str:
    """Characters as random as those of a key, the same in each run."""
    return "".join(random.Random(count).choices(letters, k=count))


CARDS = {
    "visa": "4111111111111111",
    "visa, spaced": "4111 1111 1111 1111",
    "visa, dashes": "4111-1111-1111-1111",
    "visa, spaces that do not break": "4111\u00a01111\u00a01111\u00a01111",
    "visa, digit by digit": " ".join("4111111111111111"),
    "visa of 13": "4222222222222",
    "visa of 13, spaced": "4222 222 222 222",
    "visa of 19": "4000000000000000006",
    "visa of 19, spaced": "4000 0000 0000 0000 006",
    "mastercard": "5555555555554444",
    "mastercard 2": "2223003122003222",
    "american express": "378282246310005",
    "american express, spaced": "3782 822463 10005",
    "diners": "30569309025904",
    "discover": "6011111111111117",
    "jcb": "3530111333300000",
    "unionpay": "6200000000000005",
    "maestro": "6759649826438453",
}
KEYS = {
    "openai": "sk-" + made_up(20) + "T3BlbkFJ" + made_up(20),
    "openai project": "sk-proj-" + made_up(60) + "_" + made_up(50),
    "openai service": "sk-svcacct-" + made_up(60) + "-" + made_up(50),
    "anthropic": "sk-ant-api03-" + made_up(93) + "AA",
    "openrouter": "sk-or-v1-" + made_up(64, "0123456789abcdef"),
    "deepseek": "sk-" + made_up(32, "0123456789abcdef"),
    "ours": "sk-il-" + made_up(43),
    "aws": "AKIA" + made_up(16, string.ascii_uppercase + "234567"),
    "aws, for a while": "ASIA" + made_up(16, string.ascii_uppercase + "234567"),
    "google": "AIza" + made_up(35),
    "github": "ghp_" + made_up(36),
    "github app": "ghs_" + made_up(36),
    "github oauth": "gho_" + made_up(36),
    "github, fine": "github_pat_" + made_up(22) + "_" + made_up(59),
    "gitlab": "glpat-" + made_up(20),
    "slack": "xoxb-" + made_up(12, string.digits) + "-" + made_up(13, string.digits) + "-" + made_up(24),
    "hugging face": "hf_" + made_up(34, string.ascii_letters),
    "groq": "gsk_" + made_up(52),
    "stripe": "sk_live_" + made_up(24),
    "stripe, restricted": "rk_live_" + made_up(24),
    "token": f"eyJ{made_up(33)}.eyJ{made_up(60)}.{made_up(43)}",
}
BLOCK = f"-----BEGIN RSA PRIVATE KEY-----\n{made_up(64)}\n{made_up(64)}\n-----END RSA PRIVATE KEY-----"
BLOCKS = {
    "rsa": BLOCK,
    "pkcs8": BLOCK.replace("RSA ", ""),
    "encrypted": BLOCK.replace("RSA", "ENCRYPTED"),
    "openssh": BLOCK.replace("RSA", "OPENSSH"),
    "pgp": BLOCK.replace("RSA PRIVATE KEY", "PGP PRIVATE KEY BLOCK"),
}
SECRETS = [
    *((text, CARD) for text in CARDS.values()),
    *((text, KEY) for text in KEYS.values()),
    *((text, PRIVATE) for text in BLOCKS.values()),
]

CLEAN = {
    "a card but for its check digit": "4111111111111112 and 4111 1111 1111 1112",
    "luhn, but nobody's prefix": "order 1234567812345670, 9111111111111111 or 79927398713",
    "a longer run of digits": "41111111111111111111 and 4111 1111 1111 11111",
    "a float": "0.4111111111111111 and 4111111111111111.5 and 3.5555555555554444e3",
    "a letter beside it": "a4111111111111111 4111111111111111b _4111111111111111",
    "phone numbers": "+4915112345674 and +1 (415) 555-2671 and 0049 151 12345674",
    "timestamps": f"{1700000000} {1700000000000} {1700000000000000} {1700000000000000000} 2024-01-02T03:04:05.678901Z",
    "uuids": " ".join(str(uuid.UUID(int=random.Random(i).getrandbits(128), version=4)) for i in range(50)),
    "hashes": " ".join(hashlib.sha1(bytes([i])).hexdigest() for i in range(50)),
    "hashes of 256 bits": " ".join(hashlib.sha256(bytes([i])).hexdigest() for i in range(50)),
    "base64": "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==",
    "a dashed number": "1234-4111-1111-1111-1111",
    "an article number": "4006381333931 4902430735063",
    "numbers in rows": "2 3 5 7 11 13 17 19 23 29 31 37 41 43 47 53 59 61 67 71\n0 1 0 1 1 0 1 0 0 1 1 0 1 0 1 0",
    "words": "task-oriented risk-averse sk-circle-fade-dot-animation-delay desk-123456789012345678901234567890",
    "names": "hf_servingcellpriorityparametersdescription ghp_the_thing xoxo-gossip-girl-forever-and-ever sk-learn",
    "placeholders": f"sk-{'x' * 48} hf_{'x' * 34} AKIA{'X' * 16} sk-proj-your-openai-api-key-goes-here-please-now",
    "too short": "sk-abc123 sk-proj-abc ghp_123 AKIA123 eyJhbGciOiJIUzI1NiJ9 sk-il-test-key",
    "a public key": BLOCK.replace("PRIVATE", "PUBLIC"),
    "a certificate": BLOCK.replace("RSA PRIVATE KEY", "CERTIFICATE"),
    "rules and dashes": "-----\n----------BEGIN\n--- BEGIN PRIVATE KEY ---",
    "json in base64": "eyJhIjogMX0= and eyJhIjogMX0.txt",
}


def streamed(parts: list[str], *, json_text: bool = False, search: Search = SEARCH) -> list[str]:
    """What may be shown after each part and after the end, as a guard that releases whole parts shows it."""
    redactor, waiting, shown, fed = Redactor(search, json=json_text), [], [], 0
    for number, part in enumerate([*parts, ""]):
        redactor.feed(part, final=number == len(parts))
        waiting.append((part, fed))
        fed += len(part)
        out = ""
        while waiting and waiting[0][1] + len(waiting[0][0]) <= redactor.decided:
            out += redactor.render(*waiting.pop(0))[0]
        shown.append(out)
    assert not waiting
    return shown


# --- what is found -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "word"), SECRETS, ids=[*CARDS, *KEYS, *BLOCKS])
def test_secrets_are_found_wherever_they_stand(text: str, word: str) -> None:
    """A format that is missed would go through; what stands around it must stay."""
    for before, after in [("", ""), ("It is ", "."), ('"', '"'), ("key=", "\n"), ("(", ")"), ("\n\n", " and so on")]:
        assert masked(SEARCH, before + text + after) == before + word + after
    assert masked(SEARCH, f"{text} and {text}") == f"{word} and {word}"
    assert json.loads(whole_json({"a": f"first\n{text}\nlast", "b": [text]})) == {
        "a": f"first\n{word}\nlast",
        "b": [word],
    }


def whole_json(value: object, *, ascii_only: bool = False) -> str:
    """The JSON text of a value, masked as JSON."""
    text = json.dumps(value, ensure_ascii=ascii_only)
    return whole(SEARCH, text, json=True).render(text, 0)[0]


@pytest.mark.parametrize("text", CLEAN.values(), ids=list(CLEAN))
def test_what_only_resembles_a_secret_stays(text: str) -> None:
    """A false positive spoils an answer: order numbers, hashes, phone numbers, identifiers are not touched."""
    assert masked(SEARCH, text) == text
    assert "".join(streamed(list(text))) == text


def test_random_numbers_are_rarely_cards() -> None:
    """Luhn, prefix and length together let few random numbers through: less than one in twenty of 16 digits."""
    numbers = random.Random(7)
    text = "\n".join(str(numbers.randrange(10**15, 10**16)) for _ in range(5000))
    assert masked(SEARCH, text).count(CARD) < 250
    floats = " ".join(str(numbers.random()) for _ in range(5000))
    assert masked(SEARCH, floats) == floats


@pytest.mark.parametrize("digits", ["79927398713", "4111111111111111", "0", "18"])
def test_luhn_accepts_its_examples(digits: str) -> None:
    """Known numbers pass, and fail with any single digit changed: that is what the check digit is for."""
    assert luhn(digits)
    for place, digit in enumerate(digits):
        assert not luhn(digits[:place] + str((int(digit) + 1) % 10) + digits[place + 1 :])


def test_a_card_needs_prefix_and_length_too() -> None:
    """Luhn alone is passed by one number in ten."""
    assert is_card("4111111111111111")
    assert not is_card("1234567812345670")  # passes Luhn; no issuer
    assert not is_card("411111111111116")  # passes Luhn; Visa has no cards of 15
    assert luhn("1234567812345670")
    assert luhn("411111111111116")


def test_only_what_is_switched_on_is_looked_for() -> None:
    """`off` is off, kind by kind."""
    card, key = CARDS["visa"], KEYS["github"]
    text = f"{card} {key} {BLOCK}"
    assert (
        masked(Search({"card": "mask", "api_key": "off", "private_key": "off"}), text)
        == f"{CARD} {KEYS['github']} {BLOCK}"
    )
    assert (
        masked(Search({"card": "off", "api_key": "mask", "private_key": "off"}), text)
        == f"{CARDS['visa']} {KEY} {BLOCK}"
    )
    assert masked(Search({"card": "off", "api_key": "off", "private_key": "mask"}), text).endswith(f" {PRIVATE}")


def test_a_private_key_without_end_goes_to_the_end() -> None:
    """A key that was cut off is as bad as a whole one."""
    assert masked(SEARCH, "Here: " + BLOCK.partition("-----END")[0] + "more") == f"Here: {PRIVATE}"


def test_masked_json_stays_json() -> None:
    """A bare number becomes a string; a key without END ends with its string at the latest; escapes are no letters."""
    assert json.loads(whole_json({"card": 4111111111111111, "n": 1})) == {"card": CARD, "n": 1}
    half = BLOCK.partition("-----END")[0] + 'quoted "so"'
    assert json.loads(whole_json({"pem": half, "card": 4111111111111111})) == {"pem": PRIVATE, "card": CARD}
    assert json.loads(whole_json({"a": f"x\u00e9{CARDS['visa']}\t{KEYS['aws']}"}, ascii_only=True)) == {
        "a": f"x\u00e9{CARD}\t{KEY}"
    }


# --- in pieces ---------------------------------------------------------------------------------------------------

PARTS = st.sampled_from(
    [
        *CARDS.values(), *KEYS.values(), *BLOCKS.values(), BLOCK[:40], BLOCK[-40:], "4111", " 1111", "-", " ", ".", "4",
        "12", "sk-", "sk-ant-", "eyJ", ".eyJ", "AKIA", "-----BEGIN ", "PRIVATE KEY-----", "-----END ", "\\n", '"', "\\",
        "{", "a", "\n",
    ]
)  # fmt: skip
TEXTS = st.lists(PARTS | st.text(alphabet='4510 -.aks_\\"\n', max_size=12), max_size=8).map("".join)


@st.composite
def splits(draw: st.DrawFn) -> list[str]:
    """A text with secrets and parts of some, in pieces."""
    text = draw(TEXTS)
    at = sorted(draw(st.lists(st.integers(0, len(text)), max_size=20)))
    return [text[a:b] for a, b in zip([0, *at], [*at, len(text)], strict=True)]


@settings(max_examples=400, deadline=None)
@given(parts=splits(), json_text=st.booleans())
@example(parts=["4000 0000 0000 0000", " 006"], json_text=False)
@example(parts=["sk-ant", "-" + made_up(39), "-.-"], json_text=False)
@example(parts=["-----BEGIN PRIVATE KEY-----\\", '"x', '", "'], json_text=True)
def test_any_split_shows_the_same(parts: list[str], json_text: bool) -> None:
    """What is masked does not depend on chunks, and nothing shown has to be taken back."""
    text = "".join(parts)
    expected = whole(SEARCH, text, json=json_text).render(text, 0)[0]
    assert "".join(streamed(parts, json_text=json_text)) == expected
    assert "".join(streamed(list(text), json_text=json_text)) == expected


@pytest.mark.parametrize(("text", "word"), SECRETS, ids=[*CARDS, *KEYS, *BLOCKS])
def test_nothing_of_a_secret_is_shown_before_it_is_decided(text: str, word: str) -> None:
    """Character by character: what is shown is at no time more than the text before the secret, then its mask."""
    shown = ""
    for piece in streamed([*"Say: ", *text, *"! Bye"]):
        shown += piece
        assert f"Say: {word}! Bye".startswith(shown)
    assert shown == f"Say: {word}! Bye"


@given(st.text(alphabet=string.ascii_lowercase + " ,.!?\n", max_size=200))
def test_plain_words_wait_for_a_few_characters_only(text: str) -> None:
    """Prose is not held: at most the beginning of a prefix, at the edge."""
    redactor = Redactor(SEARCH)
    for letter in text:
        redactor.feed(letter)
        assert redactor.fed - redactor.decided <= len("github_pat_")


def test_numbers_are_released_as_soon_as_they_are_none() -> None:
    """A year, a price, a list: decided by the first character that no card has there."""
    for text, held in [
        ("in 1984", 0), ("in 2024", 0), ("in 34 ", 0), ("4", 1), ("4111 1111", 9), ("4111 11 ", 0), ("4111,", 0),
        ("x4111", 0),
    ]:  # fmt: skip
        redactor = Redactor(SEARCH)
        redactor.feed(text)
        assert redactor.fed - redactor.decided == held, text


@given(
    st.lists(
        st.sampled_from(["4", " ", "-", "sk-", "eyJ", "a" * 90, "A" * 90, "-----BEGIN ", "ABC ", "."]), max_size=30
    )
)
def test_what_is_held_is_bounded(parts: list[str]) -> None:
    """No text, however built, is held for longer than the longest beginning of a secret."""
    redactor = Redactor(SEARCH)
    for part in parts:
        redactor.feed(part)
        assert redactor.fed - redactor.decided <= 300


def test_long_texts_made_to_be_slow_are_not() -> None:
    """A search that is not linear would take hours here, and hold up everybody."""
    for pattern in ["4 ", "4111 ", "4", "sk-", "eyJ", "eyJa", "-----BEGIN ", "-----END A ", "\\n4", "xoxb-1"]:
        masked(SEARCH, pattern * 40_000)
        masked(SEARCH, BLOCK[:40] + pattern * 40_000)
