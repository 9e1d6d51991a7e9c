"""The report's figures against numbers counted by hand."""

import json
import math
from pathlib import Path

import pytest

from flm_jax.tasks.sampling import Sample
from flm_jax.tasks.tokenizer_report import MEASURED_BYTES, measure, of_files, of_training, write_json
from flm_jax.tasks.tokenizers.tiktoken_ranks import dump
from flm_jax.tasks.vocabulary import Vocabulary
from tests.prepared_data import write_jsonl

# Ids 0-255 are the bytes. Then, by hand: two Latin, two Han, one other (digits), one Latin and Han, half a character
# with a space before it, an accented letter.
MERGED = ["ab", "abc", "天", "地", "12", "ab天", " \u5929".encode()[:2], "é"]
PARTS = {"天": "天".encode()[:2], "地": "地".encode()[:2]}


@pytest.fixture
def tiny(tmp_path: Path) -> Vocabulary:
    ranks = {bytes([byte]): byte for byte in range(256)}
    for text in MERGED:
        token = text if isinstance(text, bytes) else text.encode("utf-8")
        if text in PARTS:  # bytes are merged two at a time
            ranks[PARTS[text]] = len(ranks)
        ranks[token] = len(ranks)
    path = tmp_path / "tiny.model"
    path.write_bytes(dump("tiny", r"[a-z]+|[^a-z]", ranks))
    return Vocabulary(path)


def test_figures_counted_by_hand(tiny: Vocabulary) -> None:
    # abc|␣|ab|␣|a: 5 tokens of 8 bytes, 3 words; é is one character of two bytes and one token.
    # 天|地|天|␣|山: 山 has no token and is 3 bytes; 13 bytes, 5 characters, 4 of them not white space.
    report = measure(tiny, {"en": ["abc ab ", "a"], "fr": ["é é"], "zh": ["天地天 ", "山"]})
    en, fr, zh = report.languages
    assert (en.bytes, en.characters, en.tokens, en.byte_tokens, en.unit, en.units) == (8, 8, 5, 0, "word", 3)
    assert (en.bytes_per_token, en.fertility, en.byte_share) == (8 / 5, 5 / 3, 0)
    assert (fr.bytes, fr.characters, fr.tokens, fr.unit, fr.units) == (5, 3, 3, "word", 2)
    assert (fr.bytes_per_token, fr.characters_per_token) == (5 / 3, 1)
    assert (zh.bytes, zh.characters, zh.tokens, zh.byte_tokens) == (13, 5, 7, 3)
    assert (zh.unit, zh.units, zh.fertility, zh.byte_share) == ("character", 4, 7 / 4, 3 / 7)
    assert report.bytes_per_token == (8 + 5 + 13) / (5 + 3 + 7)
    assert report.label_tokens == {"😈": 4, "😡": 4}


def test_pieces_by_script(tiny: Vocabulary) -> None:
    scripts = measure(tiny, {}).scripts
    counts = {name: round(share * tiny.size) for name, share in scripts.items()}
    assert sum(scripts.values()) == pytest.approx(1)
    # Single bytes: 52 letters, 76 other ASCII, 128 that are no characters. Merged: ab, abc and é; 天 and 地; 12 and
    # ab天; half of 天 (with a space, and alone) and half of 地. Pad, eos and unk.
    assert tiny.size == 256 + 10 + 3
    assert counts == {
        "Latin": 52 + 3,
        "Han": 2,
        "other": 128 - 52 + 2,
        "byte": 128 + 3,
        "control": 3,
    }


def test_byte_pieces_of_sentencepiece_are_bytes(vocabulary: Vocabulary) -> None:
    report = measure(vocabulary, {"x": ["Ж"]})
    assert report.scripts["byte"] * vocabulary.size == pytest.approx(256)
    assert report.scripts["control"] * vocabulary.size == pytest.approx(3)
    assert report.label_tokens == {"😈": 1, "😡": 1}
    assert report.languages[0].byte_share == 1


@pytest.mark.parametrize(
    ("text", "unit"),
    [
        ("ひらがな カタカナ", "character"),
        ("天地ab", "word"),
        ("天地人ab", "character"),
        ("1 2 3", "word"),
        ("Жё", "word"),
    ],
)
def test_the_unit_is_the_text_s(tiny: Vocabulary, text: str, unit: str) -> None:
    assert measure(tiny, {"x": [text]}).languages[0].unit == unit


def test_held_out_text_is_measured_where_there_is_some(tiny: Vocabulary) -> None:
    long = ["a" * 1000] * (MEASURED_BYTES // 1000 + 5)
    report = of_training(
        tiny, {"en": Sample(["abc"], ["ab ab"]), "zh": Sample(["天地"], []), "x": Sample(long, [])}
    )
    assert [(found.text, found.bytes) for found in report.languages] == [
        ("held-out", 5),
        ("sample", 6),
        ("sample", MEASURED_BYTES),
    ]


def test_no_text_is_an_error(tiny: Vocabulary) -> None:
    with pytest.raises(ValueError, match="expected text of the language 'en', found none: change --input"):
        measure(tiny, {"en": [""]})


def test_tokenizers_are_compared_on_the_same_text(
    tiny: Vocabulary, vocabulary: Vocabulary, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_jsonl(tmp_path / "en.jsonl", [{"text": "abc ab"}, {"body": "x"}])
    reports = of_files([tiny, vocabulary], [file])
    assert f"{file}:2: field 'text' is missing" in capsys.readouterr().err
    assert [report.languages[0].bytes for report in reports] == [6, 6]
    assert "en        input       0.00         2.00" in reports[0].table()
    write_json(reports, tmp_path / "out" / "report.json")
    first, second = json.loads((tmp_path / "out" / "report.json").read_text("utf-8"))["tokenizers"]
    assert (first["kind"], second["kind"]) == ("tiktoken", "sentencepiece")
    assert first["languages"][0] | {"fertility": 1.5, "bytes_per_token": 2.0} == first["languages"][0]


def test_languages_stand_in_the_order_of_the_inputs(tiny: Vocabulary, tmp_path: Path) -> None:
    (tmp_path / "small.txt").write_text("a")
    (tmp_path / "large.txt").write_text("a" * 100)
    (report,) = of_files([tiny], [tmp_path / "large.txt", tmp_path / "small.txt"])
    assert [found.language for found in report.languages] == ["large", "small"]


def test_white_space_alone_has_no_fertility(tiny: Vocabulary) -> None:
    report = measure(tiny, {"x": ["  "]})
    assert math.isinf(report.languages[0].fertility)
    assert report.values()["languages"][0]["fertility"] is None
