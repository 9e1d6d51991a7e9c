import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers

from flm_jax.tasks.vocabulary import Vocabulary, wrap_huggingface
from tests.prepared_data import make_tokenizer, write_texts
from tests.tasks.test_vocabulary import HARD
from tests.tasks.tokenizers.conftest import INDENTS, SPECIAL

LONG = "ka lo mi tan " * 20  # longer than the file's truncation


def test_ids_are_theirs_and_nothing_is_added(
    huggingface: Vocabulary, byte_level: tokenizers.Tokenizer
) -> None:
    plain = tokenizers.Tokenizer.from_str(byte_level.to_str())
    plain.no_truncation()
    plain.no_padding()
    for text in (LONG, "a", "天地\n", "x" + INDENTS[0] + "y"):
        theirs = plain.encode(text, add_special_tokens=False).ids
        assert huggingface.encode(text) == [token + 3 for token in theirs]
    assert huggingface.kind == "huggingface"
    assert huggingface.size == byte_level.get_vocab_size() + 3


def test_special_tokens_in_a_text_are_text(huggingface: Vocabulary, byte_level: tokenizers.Tokenizer) -> None:
    special = [byte_level.token_to_id(token) + 3 for token in SPECIAL]
    assert special == [3, 4]
    assert not set(huggingface.encode("".join(SPECIAL))) & set(special)
    assert huggingface.decode([*special, *huggingface.encode("ka")]) == "ka"
    assert not huggingface.piece_bytes[special].any()


def test_added_tokens_count_with_their_text(
    huggingface: Vocabulary, byte_level: tokenizers.Tokenizer
) -> None:
    for text in INDENTS:
        token = byte_level.token_to_id(text) + 3
        assert huggingface.encode(f"x{text}x")[1] == token
        assert huggingface.pieces[token] == text.encode("utf-8")


def test_spaces_written_as_sentencepiece_writes_them(tmp_path: Path) -> None:
    """As in Gemma's file: a space counts as a space, and only U+2581 itself comes back as one."""
    names = [f"<0x{byte:02X}>" for byte in range(256)] + ["a", "b", "\u2581", "\u2581a"]
    vocab = {name: number for number, name in enumerate(names)}
    spaced = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[("\u2581", "a")], byte_fallback=True))
    spaced.normalizer = normalizers.Replace(" ", "\u2581")
    spaced.save(str(tmp_path / "tokenizer.json"))
    vocabulary = Vocabulary(tmp_path / "tokenizer.json")
    ids = vocabulary.encode(" a b ")
    assert [vocabulary.pieces[token] for token in ids] == [b" a", b" ", b"b", b" "]
    assert vocabulary.decode(ids) == " a b "
    assert vocabulary.decode(vocabulary.encode("a\u2581b")) == "a b"


def test_ids_that_the_library_does_not_give(
    changed_json: Callable[..., Path], byte_level: tokenizers.Tokenizer
) -> None:
    path = changed_json({"added_tokens": _change_added(byte_level, id=410)})
    with pytest.raises(ValueError, match=r"'    ' to have the id 410 of the file, .* gives it 400, because"):
        Vocabulary(path)


def test_byte_fallback(byte_fallback: Vocabulary) -> None:
    ids = byte_fallback.encode("ab é")
    assert [byte_fallback.pieces[token] for token in ids] == [b"ab", b" ", b"\xc3", b"\xa9"]
    assert len(byte_fallback.encode("<0x41>")) == 6


def test_built_as_llama_3_s(changed_json: Callable[..., Path]) -> None:
    """A pattern that cuts, then byte level without its own pattern, and whole words without merges."""
    pattern = (
        r"(?i:'s|'t)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    steps = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    vocabulary = Vocabulary(
        changed_json(
            {
                "normalizer": {"type": "Sequence", "normalizers": []},
                "pre_tokenizer": _component(steps),
                "model.ignore_merges": True,
            }
        )
    )
    for text in [*HARD, "ka  lo\n\n12345 天地 </s>'s"]:
        ids = vocabulary.encode(text)
        assert vocabulary.decode(ids) == text
        assert vocabulary.piece_bytes[ids].sum() == len(text.encode("utf-8"))


def _component(component: Any) -> dict[str, Any]:
    return json.loads(component.__getstate__())


PREFIX = "expected a tokenizer that gives any text back exactly, found .*"
REFUSED = [
    ({"normalizer": _component(normalizers.Lowercase())}, PREFIX + "normalizer Lowercase"),
    ({"normalizer": _component(normalizers.NFC())}, PREFIX + "normalizer NFC"),
    (
        {"normalizer": _component(normalizers.Sequence([normalizers.NFKC(), normalizers.Strip()]))},
        PREFIX + "normalizer NFKC.*normalizer Strip",
    ),
    (
        {
            "normalizer": _component(
                normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
            ),
            "pre_tokenizer": None,
        },
        PREFIX + "the normalizer Prepend, whose '\u2581' in front is not in the text",
    ),
    # Byte level has its own way to write a space.
    ({"normalizer": _component(normalizers.Replace(" ", "\u2581"))}, PREFIX + "the normalizer Replace"),
    ({"pre_tokenizer.add_prefix_space": True}, PREFIX + "add_prefix_space, which adds a space"),
    ({"pre_tokenizer": _component(pre_tokenizers.Whitespace())}, PREFIX + "Whitespace, which drops"),
    ({"pre_tokenizer": _component(pre_tokenizers.Metaspace())}, PREFIX + "Metaspace"),
    (
        {"pre_tokenizer": _component(pre_tokenizers.Split(" ", "removed"))},
        PREFIX + "Split, which drops what it cuts at",
    ),
    ({"pre_tokenizer": None}, PREFIX + "BPE without byte level or byte fallback"),
    ({"pre_tokenizer": None, "model.byte_fallback": True}, "each of the 256 bytes, found 0 in"),
    ({"model.end_of_word_suffix": "</w>"}, PREFIX + "end_of_word_suffix '</w>'"),
    ({"model.dropout": "x"}, "that the library tokenizers .* reads, found another"),
]


@pytest.mark.parametrize(("changes", "expected"), REFUSED)
def test_what_is_not_exact_is_refused(
    changed_json: Callable[..., Path], changes: dict[str, Any], expected: str
) -> None:
    path = changed_json(changes)
    with pytest.raises(ValueError, match=f"(?s){expected}") as raised:
        Vocabulary(path)
    assert str(path) in str(raised.value)


def _change_added(byte_level: tokenizers.Tokenizer, **values: Any) -> list[dict[str, Any]]:
    added = json.loads(byte_level.to_str())["added_tokens"]
    added[2].update(values)
    return added


def test_added_tokens_that_are_not_exact(
    changed_json: Callable[..., Path], byte_level: tokenizers.Tokenizer
) -> None:
    path = changed_json({"added_tokens": _change_added(byte_level, lstrip=True)})
    with pytest.raises(ValueError, match="the added token '    ', which takes the spaces beside it"):
        Vocabulary(path)
    # The library gives "é" the id of the byte 0xE9, which byte-level BPE writes so.
    tokenizer = tokenizers.Tokenizer.from_str(byte_level.to_str())
    tokenizer.add_tokens(["é"])
    tokenizer.save(str(path))
    with pytest.raises(ValueError, match=r"token 'é' to have an id of its own, found that of b'\\xe9' in"):
        Vocabulary(path)


def test_a_word_of_the_model_that_is_called_special(
    changed_json: Callable[..., Path], byte_level: tokenizers.Tokenizer
) -> None:
    added = _change_added(byte_level, content="ka", id=byte_level.token_to_id("ka"), special=True)
    with pytest.raises(ValueError, match="it reads text as a special token"):
        Vocabulary(changed_json({"added_tokens": added}))


def test_a_byte_without_a_token(byte_level: tokenizers.Tokenizer, tmp_path: Path) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())[1:]
    small = tokenizers.Tokenizer(models.BPE(vocab={c: n for n, c in enumerate(alphabet)}, merges=[]))
    small.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    small.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match="each of the 256 bytes, found 255 in"):
        Vocabulary(tmp_path / "tokenizer.json")


def test_bert_is_refused(tmp_path: Path) -> None:
    bert = tokenizers.Tokenizer(models.WordPiece(vocab={"[UNK]": 0, "a": 1, "##b": 2}, unk_token="[UNK]"))
    bert.normalizer = normalizers.BertNormalizer()
    bert.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    bert.save(str(tmp_path / "tokenizer.json"))
    expected = (
        r"BertNormalizer, which changes text; .*BertPreTokenizer.*; the model WordPiece.*tokenizer\.json"
    )
    with pytest.raises(ValueError, match=expected):
        wrap_huggingface(tmp_path, tmp_path / "out.model")
    assert not (tmp_path / "out.model").exists()


def test_dropout_is_off(changed_json: Callable[..., Path], huggingface: Vocabulary) -> None:
    vocabulary = Vocabulary(changed_json({"model.dropout": 0.5}))
    assert all(vocabulary.encode(LONG) == huggingface.encode(LONG) for _ in range(10))


def test_wrapping_copies_the_file(huggingface: Vocabulary, tmp_path: Path) -> None:
    for source in (huggingface.path, huggingface.path.parent):
        wrapped = wrap_huggingface(source, tmp_path / "tokenizer.model")
        assert wrapped.sha256 == huggingface.sha256
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json.*change --huggingface"):
        wrap_huggingface(tmp_path, tmp_path / "other.model")
    other = make_tokenizer(tmp_path / "sp", write_texts(tmp_path / "sp"))
    with pytest.raises(ValueError, match="found one of kind sentencepiece"):
        wrap_huggingface(other.path, tmp_path / "other.model")


def test_without_the_package(huggingface: Vocabulary, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ValueError, match=r"'tokenizers'.*pip install 'flm_jax\[tokenizers\]'"):
        Vocabulary(huggingface.path)
