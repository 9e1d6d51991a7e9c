"""Foreign ids in our order: the same tokens for every text, each with its own row."""

import json
import random
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from tokenizers import models, normalizers, pre_tokenizers, trainers

from flm_jax.tasks.tokenizers.export import to_tokenizer_json
from flm_jax.tasks.tokenizers.reordering import Reordered, reorder
from flm_jax.tasks.tokenizers.reserved import RESERVED_NAMES
from flm_jax.tasks.vocabulary import Vocabulary
from tests.prepared_data import chinese, english
from tests.tasks.tokenizers.test_round_trip import TEXT

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def _texts() -> list[str]:
    draw = random.Random(3)
    return [make(draw, 40) for _ in range(100) for make in (english, chinese)]


def _byte_level(special: list[str], behind: list[str]) -> tokenizers.Tokenizer:
    """BPE as GPT-2's; `special` stand in the model from 0 on, `behind` are special and behind it."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(_texts(), trainer)
    tokenizer.add_special_tokens(behind)
    tokenizer.add_tokens([tokenizers.AddedToken("    ", normalized=False)])
    return tokenizer


def _with_fallback() -> tokenizers.Tokenizer:
    """BPE as Gemma's: spaces written as U+2581, bytes for what is unknown, pad before eos, bos and unk."""
    trained = tokenizers.Tokenizer(models.BPE())
    trained.normalizer = normalizers.Replace(" ", "\u2581")
    special = ["<pad>", "<eos>", "<bos>", "<unk>", *BYTES]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=special, show_progress=False)
    trained.train_from_iterator(_texts(), trainer)
    model = json.loads(trained.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    tokenizer = tokenizers.Tokenizer(
        models.BPE(model["vocab"], merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    )
    tokenizer.normalizer = trained.normalizer
    tokenizer.add_special_tokens(special[:4])
    return tokenizer


def _unigram() -> tokenizers.Tokenizer:
    """Unigram with byte level; special tokens behind the model, so that it cannot read them in a text."""
    tokenizer = tokenizers.Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.UnigramTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(_texts(), trainer)
    record = json.loads(tokenizer.to_str())
    record["model"]["unk_id"] = 5
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(record))
    tokenizer.add_special_tokens(["<s>", "</s>"])
    return tokenizer


FOREIGN: dict[str, tuple[tokenizers.Tokenizer, tuple[str, str, str | None]]] = {
    "as GPT-2": (_byte_level([], ["<|endoftext|>"]), ("<|endoftext|>", "<|endoftext|>", None)),
    "as Llama 3": (_byte_level([], ["<|begin|>", "<|end|>", "<|free|>"]), ("<|begin|>", "<|end|>", None)),
    "as RoBERTa": (_byte_level(["<s>", "<pad>", "</s>", "<unk>"], []), ("<s>", "</s>", "<unk>")),
    "as Gemma": (_with_fallback(), ("<bos>", "<eos>", "<unk>")),
    "Unigram": (_unigram(), ("<s>", "</s>", None)),
}


@pytest.fixture(scope="module", params=FOREIGN)
def case(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, tokenizers.Tokenizer, Reordered, Vocabulary]:
    theirs, (bos, eos, unk) = FOREIGN[request.param]
    unknown = None if unk is None else theirs.token_to_id(unk)
    made = reorder(theirs.to_str().encode(), theirs.token_to_id(bos), theirs.token_to_id(eos), unknown)
    path = tmp_path_factory.mktemp("ours") / "tokenizer.json"
    path.write_bytes(made.content)
    # The library does not encode the text of special tokens, as `Vocabulary` does not.
    plain = tokenizers.Tokenizer.from_str(theirs.to_str())
    plain.encode_special_tokens = True
    return request.param, plain, made, Vocabulary(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(text=TEXT)
def test_every_text_is_the_same_tokens(
    case: tuple[str, tokenizers.Tokenizer, Reordered, Vocabulary], text: str
) -> None:
    _, theirs, made, vocabulary = case
    found = made.source_ids[vocabulary.encode(text)].tolist()
    assert found == theirs.encode(text, add_special_tokens=False).ids


def test_learnt_words_and_names(case: tuple[str, tokenizers.Tokenizer, Reordered, Vocabulary]) -> None:
    _, theirs, made, vocabulary = case
    for text in [*_texts(), *RESERVED_NAMES, "<s></s><unk>", "<|endoftext|>", "a    b"]:
        found = made.source_ids[vocabulary.encode(text)].tolist()
        assert found == theirs.encode(text, add_special_tokens=False).ids


def test_whose_row_each_id_takes(case: tuple[str, tokenizers.Tokenizer, Reordered, Vocabulary]) -> None:
    name, theirs, made, vocabulary = case
    bos, eos, unk = FOREIGN[name][1]
    size = theirs.get_vocab_size()
    assert made.source_ids.dtype == np.int32
    assert made.source_ids[:2].tolist() == [theirs.token_to_id(bos), theirs.token_to_id(eos)]
    if unk is not None:
        assert made.source_ids[2] == theirs.token_to_id(unk)
    copies = {"as GPT-2": 2, "Unigram": 1}.get(name, 0)
    assert len(made.source_ids) == vocabulary.size == size + copies
    assert set(made.source_ids.tolist()) == set(range(size))
    assert (np.diff(made.source_ids[3:]) > 0).all()


def test_it_leaves_as_it_is(case: tuple[str, tokenizers.Tokenizer, Reordered, Vocabulary]) -> None:
    _, _, made, vocabulary = case
    assert to_tokenizer_json(vocabulary) == made.content


def test_our_own_file_stays_in_order(
    case: tuple[str, tokenizers.Tokenizer, Reordered, Vocabulary],
) -> None:
    _, _, made, vocabulary = case
    again = reorder(made.content, 0, 1, 2)
    assert again.source_ids.tolist() == list(range(vocabulary.size))
    assert json.loads(again.content) == json.loads(made.content)


def test_the_last_bits_of_a_softmax(case: tuple[str, tokenizers.Tokenizer, Reordered, Vocabulary]) -> None:
    """As the page says: the same log-probabilities, or lower by log(1 + p) for each copy of the end."""
    name, theirs, made, vocabulary = case
    logits = np.random.default_rng(0).normal(size=theirs.get_vocab_size())
    ours = logits[made.source_ids]
    ids = vocabulary.encode("Kalo mi tan 天地")
    probability = np.exp(logits) / np.exp(logits).sum()
    copies = {"as GPT-2": 2, "Unigram": 1}.get(name, 0)
    shift = np.log1p(copies * probability[made.source_ids[1]])
    found = ours[ids] - np.log(np.exp(ours).sum())
    np.testing.assert_allclose(found, np.log(probability[made.source_ids[ids]]) - shift, rtol=1e-12)


def test_ids_without_a_token_come_last() -> None:
    vocab = {name: token + 2 for token, name in enumerate([*BYTES, "a", "b"])} | {"<s>": 0, "ab": 262}
    theirs = tokenizers.Tokenizer(models.BPE(vocab, [("a", "b")], byte_fallback=True))
    theirs.add_special_tokens(["<s>"])
    made = reorder(theirs.to_str().encode(), 0, 0)
    assert made.source_ids[:4].tolist() == [0, 0, 1, 2]
    assert made.source_ids[-3:].tolist() == [262, 260, 261]


def _bytes_of(name: str, **changes: Any) -> bytes:
    return json.dumps({**json.loads(FOREIGN[name][0].to_str()), **changes}).encode()


@pytest.mark.parametrize(
    ("content", "ids", "expected"),
    [
        (_bytes_of("as Gemma"), (9999, 1, 3), r"expected bos to be an id from 0 to \d+ .*, found 9999"),
        (_bytes_of("as Gemma"), (2, -1, 3), r"expected eos to be an id .*, found -1"),
        (_bytes_of("as Gemma"), (None, 1, 3), "expected bos to be an id .*, found None"),
        (_bytes_of("as Gemma"), (2, None, 3), "expected eos to be an id .*, found None"),
        (
            _bytes_of("as Gemma"),
            (2, 1, 300),
            "expected unk to be a special token .*, found 300, which is one of text",
        ),
        (b"{", (0, 1, 2), "damaged JSON"),
        (b"[]", (0, 1, 2), "found other JSON"),
        (
            _bytes_of("as Gemma", normalizer={"type": "NFC"}),
            (2, 1, 3),
            "the normalizer NFC, which changes text",
        ),
    ],
)
def test_mistakes(content: bytes, ids: tuple[Any, Any, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        reorder(content, *ids)


def test_names_of_ours_at_other_ids() -> None:
    theirs = _byte_level([], ["<s>", "</s>", RESERVED_NAMES[1]])
    with pytest.raises(ValueError, match=r"without tokens of our names, found <\|flm_eos\|>"):
        reorder(theirs.to_str().encode(), theirs.token_to_id("<s>"), theirs.token_to_id("<s>"), None)
