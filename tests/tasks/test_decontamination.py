import gzip
import itertools
import json
import pickle
import re
import unicodedata
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flm_jax.tasks import ngrams
from flm_jax.tasks.decontamination import Decontamination
from flm_jax.tasks.ngrams import units

NUMBERS = itertools.count()  # of files: what a process has read of one, it keeps
# A few words and characters, so that n-grams do recur; punctuation and spaces between them are drawn as well.
ALPHABET = ["a", "B", "ab", "don't", "x1", "é", "中", "文", "の", "Ａ", "ス"]
TEXTS = st.lists(
    st.tuples(st.sampled_from(ALPHABET), st.sampled_from([" ", ", ", "\n", " - ", "。"])), max_size=14
).map(lambda pairs: "".join(word + gap for word, gap in pairs))


def slow_units(text: str) -> list[str]:
    """The units by Python's own means: a regular expression over the folded text."""
    text = unicodedata.normalize("NFKC", text.replace("'", "")).lower()
    return re.findall(r"[\u3041-\u30ff\u4e00-\u9fff]|[^\W_\u3041-\u30ff\u4e00-\u9fff]+", text)


def slow_overlap(document: str, evaluation: list[str], n: int, min_n: int) -> bool:
    """Whether any n-gram of the evaluation texts, or a whole one of at least `min_n`, is in the document."""
    words = slow_units(document)
    for text in map(slow_units, evaluation):
        length = min(n, len(text))
        if length < min_n:
            continue
        wanted = {tuple(text[i : i + length]) for i in range(len(text) - length + 1)}
        if any(tuple(words[i : i + length]) in wanted for i in range(len(words) - length + 1)):
            return True
    return False


Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(*records: Any, name: str = "eval.jsonl") -> Path:
        raw = "".join(json.dumps(record) + "\n" for record in records).encode()
        (tmp_path / name).write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
        return tmp_path / name

    return write


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300, deadline=None)
@given(
    evaluation=st.lists(TEXTS, min_size=1, max_size=4), document=TEXTS, n=st.integers(1, 5), data=st.data()
)
def test_a_document_is_refused_iff_it_has_an_ngram_of_the_evaluation_data(
    write: Write, evaluation: list[str], document: str, n: int, data: st.DataObject
) -> None:
    min_n = data.draw(st.integers(1, n))
    file = write(*({"text": text} for text in evaluation), name=f"{next(NUMBERS)}.jsonl")
    step = Decontamination(str(file), n=n, min_n=min_n)
    if all(len(slow_units(text)) < min_n for text in evaluation):
        with pytest.raises(ValueError, match="all shorter"):
            step.refusal(document)
        return
    reason = step.refusal(document)
    assert (reason is not None) == slow_overlap(document, evaluation, n, min_n)
    counts = step.summary()["files"][str(file)]
    lengths = [len(slow_units(text)) for text in evaluation]
    assert counts["texts"] == len(evaluation)
    assert counts["too_short"] == sum(length < min_n for length in lengths)
    assert counts["whole"] == sum(min_n <= length < n for length in lengths)
    if reason is not None:  # what is quoted is in the document, and is such an n-gram
        quoted = reason.removeprefix("shares ").rpartition(" with ")[0].strip("'\"")
        assert min_n <= len(slow_units(quoted)) <= n
        assert slow_overlap(quoted, evaluation, n, min_n)
        assert slow_overlap(document, [quoted], n, min_n)


@given(TEXTS)
def test_units_are_cut_as_a_regular_expression_cuts_them(text: str) -> None:
    found = units(text)
    quoted = [found.quote(place, 1) for place in range(len(found))]
    assert [unicodedata.normalize("NFKC", word).lower() for word in quoted] == slow_units(text)
    same = {word: found.hashes[place] for place, word in enumerate(slow_units(text))}
    assert [same[word] for word in slow_units(text)] == found.hashes.tolist()
    assert len(set(same.values())) == len(same)


@pytest.mark.parametrize("size", [ngrams._BLOCK - 1, ngrams._BLOCK, ngrams._BLOCK + 1, 3 * ngrams._BLOCK])
def test_a_units_hash_does_not_depend_on_where_it_stands(size: int) -> None:
    found = units("longer, 中 " * size)
    assert len(found) == 2 * size
    assert set(found.hashes[::2].tolist()) == set(units("longer").hashes.tolist())
    assert set(found.hashes[1::2].tolist()) == set(units("中").hashes.tolist())
    pairs = found.ngrams(2)
    assert len(set(pairs.tolist())) == 2
    assert set(pairs[::2].tolist()) == set(units("longer 中").ngrams(2).tolist())


def test_one_word_of_a_million_letters() -> None:
    found = units("x" * 1_000_000)
    assert len(found) == 1
    assert found.hashes[0] != units("x" * 999_999).hashes[0]


@pytest.mark.parametrize("text", ["", "?!", "   ", "\n"])
def test_nothing_has_no_units(text: str) -> None:
    assert len(units(text)) == 0
    assert units(text).ngrams(3).tolist() == []


QUESTION = (
    "An astronomer observes that a planet rotates faster after a meteorite impact, which is the likely effect"
)
CHINESE = "不过在面子上毛豆还下不来一半是因为他确实很生气"


def test_what_is_removed_and_why(write: Write) -> None:
    english = write({"question": QUESTION, "choices": {"text": ["planetary days become shorter"]}})
    chinese = write({"text": CHINESE}, name="zh.jsonl.gz")
    step = Decontamination([str(english), str(chinese)])
    copied = "He said: " + QUESTION.upper().replace(" ", " -- ") + "!"
    assert step.refusal(copied) == (
        "shares 'AN -- ASTRONOMER -- OBSERVES -- THAT -- A -- PLANET -- ROTATES -- FASTER -- AFTER -- A -- METEORITE "
        f"-- IMPACT, -- WHICH' with {english}"
    )
    assert step.refusal(f"他说：“{CHINESE[:13]}”。") == f"shares {CHINESE[:13]!r} with {chinese}"
    assert step.refusal(f"他说：“{CHINESE[:12]}”。") is None
    assert step.refusal(" ".join(QUESTION.split()[:12])) is None
    assert step.refusal("planetary days become shorter") is None
    assert step.summary() == {
        "ngrams": len(QUESTION.split()) - 12 + len(CHINESE) - 12,
        "files": {
            str(english): {"texts": 2, "whole": 0, "too_short": 1},
            str(chinese): {"texts": 1, "whole": 0, "too_short": 0},
        },
    }


def test_a_short_text_counts_whole(write: Write) -> None:
    step = Decontamination(str(write({"text": "one two three four five six seven eight"})))
    assert step.refusal("zero one, two, three, four, five, six, seven, eight nine") is not None
    assert step.refusal("one two three four five six seven nine eight") is None
    nothing_short = Decontamination(step.files, min_n=13)
    with pytest.raises(ValueError, match="found 1 texts, all shorter"):
        nothing_short.refusal("x")


def test_fields_choose_the_texts(write: Write) -> None:
    file = str(write({"question": [{"deep": QUESTION}], "text": CHINESE, "number": 3, "none": None}))
    assert Decontamination(file).refusal(QUESTION) and Decontamination(file).refusal(CHINESE)
    step = Decontamination(file, fields=["question"])
    assert step.refusal(QUESTION)
    assert step.refusal(CHINESE) is None
    with pytest.raises(ValueError, match=r"\['query'\].*`Decontamination.fields`"):
        Decontamination(file, fields=["question", "query"]).refusal("x")
    with pytest.raises(ValueError, match=r"expected the fields \['query'\].*`Decontamination.fields`"):
        Decontamination(file, fields=["query"]).refusal("x")


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"{broken", "Expecting"), (b'"text"', "found str"), (b'{"text": "\xff"}', "utf-8")],
)
def test_bad_evaluation_data_is_an_error_with_its_place(tmp_path: Path, content: bytes, reason: str) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_bytes(json.dumps({"text": QUESTION}).encode() + b"\n\n" + content + b"\n")
    with pytest.raises(ValueError, match=rf"bad\.jsonl:3: .*{reason}"):
        Decontamination(str(file)).refusal("x")


def test_a_damaged_gzip_file_is_an_error(write: Write) -> None:
    file = write({"text": QUESTION}, name="x.jsonl.gz")
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"x\.jsonl\.gz:1: the evaluation data cannot be read"):
        Decontamination(str(file)).refusal("x")


@pytest.mark.parametrize("files", ["nowhere/*.jsonl", []])
def test_no_file_is_an_error(files: Any) -> None:
    with pytest.raises(FileNotFoundError, match=r"Decontamination\.files"):
        Decontamination(files).refusal("x")


@pytest.mark.parametrize(("n", "min_n"), [(13, 0), (7, 8), (0, 0)])
def test_bad_lengths_are_named(n: int, min_n: int) -> None:
    with pytest.raises(ValueError, match=rf"found min_n {min_n} and n {n}.*Decontamination.min_n"):
        Decontamination("x", n=n, min_n=min_n)


def test_the_fingerprint_follows_the_content(write: Write) -> None:
    file = str(write({"text": QUESTION}))
    step = Decontamination([file], fields=["text"])
    before = step.fingerprint()
    assert json.loads(json.dumps(before)) == before
    assert before == Decontamination(file, fields=["text"]).fingerprint()
    assert before != Decontamination(file, fields=["text"], n=12).fingerprint()
    assert before != Decontamination(file).fingerprint()
    write({"text": QUESTION.replace("An", "No")})  # of the same size
    assert step.fingerprint() != before


def _refusal(step: Decontamination, text: str) -> str | None:
    return step.refusal(text)


def test_a_spawned_process_refuses_the_same(write: Write) -> None:
    step = Decontamination(str(write({"text": QUESTION})))
    here = step.refusal(QUESTION)
    assert here and len(pickle.dumps(step)) < 1000  # the n-grams do not travel with the settings
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        assert pool.submit(_refusal, step, QUESTION).result() == here


def test_many_ngrams_are_found_and_others_are_not(write: Write) -> None:
    draw = np.random.default_rng(0)
    words = [[f"w{number}" for number in draw.integers(0, 5000, 40)] for _ in range(600)]
    step = Decontamination(str(write(*({"text": " ".join(text)} for text in words[:300]))))
    assert all(step.refusal("x " + " ".join(text[20:34]) + " y") for text in words[:300])
    assert not any(step.refusal(" ".join(text)) for text in words[300:])
