"""The embedder on a real checkpoint: equal to the reference, fair, bounded, and clear about bad input."""

import numpy as np
import pytest

from interlace.engines.local import encoder
from interlace.engines.local.encoder import load_encoder
from interlace.engines.types import BATCH_PRIORITY, Embeddings, EmbedRequest, GenerateRequest
from interlace.errors import CheckpointError, ContextLengthExceeded, EngineFailed, InvalidRequest, Overloaded

PHRASES = [
    "A cat sleeps on the warm windowsill.",
    "Der schnelle braune Fuchs springt über den faulen Hund.",
    "L'été, les marchés du village sentent la lavande et le pain.",
    "機械学習は楽しいですが、数学も必要です。",
    "Пусть всегда будет солнце!",
    "من فضلك أعطني كوبا من الماء.",
    "def add(a, b): return a + b  # naïve",
    "🚀🚀 to the moon!!! [MASK] [SEP]",
    "Interest rates rose by 0.25 % in the third quarter of 2023.",
    "x",
]
TEXTS = [" ".join(PHRASES[(i + k) % 10] for k in range(1 + i // 12)) for i in range(60)]


@pytest.fixture(scope="module")
def core(minilm):
    """One compiled embedder; tests leave it idle."""
    return load_encoder(minilm, threads=2, progress=lambda _: None)


@pytest.fixture(scope="module")
def oracle(minilm):
    """A function from texts to vectors: transformers, mean pooling, normalised; texts are cut at 256 tokens."""
    torch = pytest.importorskip("torch")
    from transformers import AutoTokenizer, BertModel

    tokenizer = AutoTokenizer.from_pretrained(minilm)
    model = BertModel.from_pretrained(minilm).eval()

    def embed(texts):
        vectors = []
        for text in texts:
            tokens = tokenizer(text, truncation=True, max_length=256, padding=False, return_tensors="pt")
            with torch.no_grad():
                vector = model(**tokens).last_hidden_state[0].mean(0).numpy().astype(np.float64)
            vectors.append(vector / np.linalg.norm(vector))
        return np.stack(vectors)

    return embed


def run(core):
    """Step until idle; the outcomes by request id, and the ids in order of their end."""
    outcomes = {}
    while core.has_work():
        outcomes |= dict(core.step())
    return outcomes, list(outcomes)


def vectors(outcome):
    """The rows of an answer, [texts, dimensions]."""
    assert isinstance(outcome, Embeddings), outcome
    return np.stack([np.frombuffer(row, "<f4") for row in outcome.rows])


def embed(core, *texts):
    """Embed `texts` as one request."""
    core.add(core.prepare(EmbedRequest("only", texts=texts)))
    return run(core)[0]["only"]


def test_vectors_equal_the_reference(core, oracle):
    """Sixty texts of one to eighty words in eight scripts: cosine above 1 - 1e-6, in order, tokens counted."""
    answer = embed(core, *TEXTS)
    found = vectors(answer)
    assert answer.dimensions == found.shape[1] == 384
    cosines = (found * oracle(TEXTS)).sum(axis=1) / np.linalg.norm(found, axis=1)
    assert cosines.min() > 1 - 1e-6
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    assert answer.prompt_tokens == sum(len(core.prepare(EmbedRequest("n", texts=(t,))).texts[0]) for t in TEXTS)


def test_batched_with_strangers_equals_alone(core):
    """What runs beside a text does not change its vector by more than 1e-5."""
    alone = np.concatenate([vectors(embed(core, text)) for text in TEXTS[::6]])
    for n, text in enumerate(TEXTS):
        core.add(core.prepare(EmbedRequest(str(n), texts=(text,))))
    together, _ = run(core)
    np.testing.assert_allclose(np.concatenate([vectors(together[str(n)]) for n in range(0, 60, 6)]), alone, atol=1e-5)


def test_ids_are_embedded_as_given(core):
    """The ids of a text give its vector; nothing is added or counted beside them."""
    ids = core.prepare(EmbedRequest("a", texts=("hello world",))).texts[0]
    assert (ids[0], ids[-1]) == (101, 102)
    core.add(core.prepare(EmbedRequest("ids", ids=(ids, ids[1:-1]))))
    answer = run(core)[0]["ids"]
    assert answer.prompt_tokens == 2 * len(ids) - 2
    framed, bare = vectors(answer)
    np.testing.assert_allclose(framed, vectors(embed(core, "hello world"))[0], atol=1e-6)
    assert framed @ bare < 0.999


def test_the_sentence_limit_holds_whatever_the_tokenizer_file_says(core):
    """256 tokens pass (tokenizer.json would cut at 128), 257 are refused with both numbers."""
    fits = core.prepare(EmbedRequest("a", texts=("cat " * 254,)))
    assert fits.tokens == 256
    with pytest.raises(ContextLengthExceeded, match=r"256 tokens.*input\[1\] has 257") as caught:
        core.prepare(EmbedRequest("a", texts=("x", "cat " * 255)))
    assert caught.value.param == "input"


def test_with_truncate_a_long_text_is_cut_as_the_reference_cuts_it(minilm, oracle):
    """`truncate` embeds the first 256 tokens, the last of them [SEP], like sentence-transformers."""
    cutting = load_encoder(minilm, threads=2, progress=lambda _: None, truncate=True)
    text = " ".join(PHRASES * 8)
    answer = embed(cutting, text)
    assert answer.prompt_tokens == 256
    assert (vectors(answer) * oracle([text])).sum() > 1 - 1e-6


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (EmbedRequest("a"), "must not be empty"),
        (EmbedRequest("a", texts=("ok", "")), r"input\[1\] is an empty string"),
        (EmbedRequest("a", ids=((101,), ())), r"input\[1\] has no tokens"),
        (EmbedRequest("a", ids=((101, 30522),)), r"input\[0\].*30521"),
        (EmbedRequest("a", ids=((-1,),)), "outside"),
        (EmbedRequest("a", texts=("x",) * 2049), "2049 texts.*2048"),
        (GenerateRequest("a", prompt="hi"), "use /v1/embeddings"),
    ],
)
def test_bad_input_is_refused_by_name(core, request_, words):
    """The caller's mistake gets a 400 that names the field, before anything is queued."""
    with pytest.raises(InvalidRequest, match=words) as caught:
        core.prepare(request_)
    assert caught.value.param == ("model" if isinstance(request_, GenerateRequest) else "input")
    assert not core.has_work()


def test_a_large_request_does_not_starve_a_small_one(core, monkeypatch):
    """A text that comes after a request of 300 is in the very next step; each step keeps to its tokens."""
    monkeypatch.setattr(encoder, "STEP_TOKENS", 200)
    sizes = []
    infer = core._infer
    monkeypatch.setattr(
        core, "_infer", lambda texts, seconds: sizes.append(sum(map(len, texts))) or infer(texts, seconds)
    )
    core.add(core.prepare(EmbedRequest("large", texts=("many words in a text",) * 300)))
    assert core.step() == []
    core.add(core.prepare(EmbedRequest("small", texts=("hello",))))
    assert [name for name, _ in core.step()] == ["small"]
    assert core.health().running == 1
    outcomes, _ = run(core)
    assert len(outcomes["large"].rows) == 300
    assert max(sizes) <= 200
    assert core.health().running == core.health().waiting == 0


def test_a_flood_of_one_organisation_leaves_the_others_their_share(core, monkeypatch):
    """Twenty requests of one beside one of each of two: while all three wait, each gets a third of the tokens, however
    long its texts are; batches come behind, but are not left for ever."""
    monkeypatch.setattr(encoder, "STEP_TOKENS", 60)
    spent = {"flood": 0, "long": 0, "short": 0, "batch": 0}
    tokens = {"flood": ("one two three four",) * 40, "long": ("word " * 20,) * 15, "short": ("hello",) * 100}
    for number in range(20):
        core.add(core.prepare(EmbedRequest(f"flood{number}", texts=tokens["flood"], tenant="flood")))
    for tenant in ("long", "short"):
        core.add(core.prepare(EmbedRequest(tenant, texts=tokens[tenant], tenant=tenant)))
    core.add(core.prepare(EmbedRequest("batch", texts=("b",) * 50, tenant="batch", priority=BATCH_PRIORITY)))
    monkeypatch.setattr(core, "_infer", lambda texts, seconds: np.zeros((len(texts), 1), np.float32))
    pick = core._pick

    def picked():
        picks = pick()
        for one in picks:
            spent[one.job.prepared.request.tenant] += len(one.ids)
        return picks

    monkeypatch.setattr(core, "_pick", picked)
    while {"long", "short"} <= {group[0] for group in core._waiting}:
        core.step()
    alike = [spent[tenant] for tenant in ("flood", "long", "short")]
    assert min(alike) > 200
    assert max(alike) - min(alike) <= 60
    assert 0 < spent["batch"] < min(alike) / 2
    run(core)


def test_a_cancelled_request_is_forgotten_at_once(core, monkeypatch):
    """Cancelled before, between or after its steps, a request leaves nothing behind and others go on."""
    monkeypatch.setattr(encoder, "STEP_TOKENS", 20)
    for name in ("a", "b", "c"):
        core.add(core.prepare(EmbedRequest(name, texts=("some words", "more words", "words") * 4)))
    core.cancel("a")
    core.step()
    core.cancel("b")
    core.cancel("unknown")
    outcomes, _ = run(core)
    core.cancel("c")
    assert list(outcomes) == ["c"]
    assert not core._waiting
    assert core.health().running == core.health().waiting == 0


def test_a_full_queue_sends_requests_away(core, monkeypatch):
    """Past the queue's tokens a request gets a 429 with a time; what was accepted is answered, also a large one."""
    monkeypatch.setattr(encoder, "QUEUE_TOKENS", 50)
    core.add(core.prepare(EmbedRequest("large", texts=("a text of words",) * 20)))
    with pytest.raises(Overloaded) as caught:
        core.add(core.prepare(EmbedRequest("late", texts=("hello",))))
    assert caught.value.retry_after_seconds
    assert list(run(core)[0]) == ["large"]
    assert list(run(core)[0]) == []


def test_a_queue_that_one_organisation_filled_is_open_to_another(core, monkeypatch):
    """Its flood has only itself refused: who has nothing waiting is taken, up to its own part of the queue."""
    monkeypatch.setattr(encoder, "QUEUE_TOKENS", 60)
    core.add(core.prepare(EmbedRequest("flood", texts=("a text of words",) * 20, tenant="flood")))
    with pytest.raises(Overloaded):
        core.add(core.prepare(EmbedRequest("more", texts=("hello",), tenant="flood")))
    core.add(core.prepare(EmbedRequest("other", texts=("hello",) * 5, tenant="other")))
    core.add(core.prepare(EmbedRequest("again", texts=("hello",) * 5, tenant="other")))
    with pytest.raises(Overloaded):
        core.add(core.prepare(EmbedRequest("too much", texts=("hello",), tenant="other")))
    assert set(run(core)[0]) == {"flood", "other", "again"}


def test_a_vector_that_is_not_finite_fails_its_request_alone(core, monkeypatch):
    """NaN out of the encoder is an error for that request, and the neighbour in the batch is answered."""
    infer = core._infer

    def broken(texts, seconds):
        rows = infer(texts, seconds)
        rows[[n for n, ids in enumerate(texts) if len(ids) == 4]] = np.nan
        return rows

    monkeypatch.setattr(core, "_infer", broken)
    core.add(core.prepare(EmbedRequest("bad", texts=("two words", "one"))))
    core.add(core.prepare(EmbedRequest("good", texts=("one",))))
    outcomes, _ = run(core)
    assert isinstance(outcomes["bad"], EngineFailed)
    assert isinstance(outcomes["good"], Embeddings)


def test_capabilities_tell_what_was_loaded(core):
    """An embedding model of 256 tokens and 384 dimensions, that generates nothing."""
    can = core.capabilities()
    assert (can.embed, can.generate, can.context_length, can.dimensions) == (True, False, 256, 384)


def test_a_decoder_is_refused(smollm2_gguf):
    """A checkpoint of another family gets a clear error."""
    with pytest.raises(CheckpointError, match="llama"):
        load_encoder(smollm2_gguf, threads=1, progress=lambda _: None)
