from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flm_jax.tasks.sampling import (
    PIECE_CHARACTERS,
    cut,
    draw_sample,
    language_files,
    sample_languages,
    sample_texts,
)


@given(st.text(max_size=50))
def test_cutting_loses_nothing(text: str) -> None:
    long = text * 100
    pieces = list(cut(long))
    assert "".join(pieces) == long
    assert all(len(piece) <= PIECE_CHARACTERS for piece in pieces)


def test_sample_is_fair_bounded_and_in_order() -> None:
    texts = [f"{number:03d}" for number in range(100)]
    counts: Counter[str] = Counter()
    for seed in range(400):
        chosen = sample_texts(iter(texts), 100, seed)
        assert chosen == sorted(chosen)
        assert len(chosen) == 33
        counts.update(chosen)
    # 132 expected of each, standard deviation 9.4
    assert min(counts.values()) > 132 - 45
    assert max(counts.values()) < 132 + 45
    assert sample_texts(texts, 10**6, 0) == texts


def test_what_is_held_out_was_not_drawn() -> None:
    texts = [f"{number:03d}" for number in range(100)]
    counts: Counter[str] = Counter()
    for seed in range(400):
        sample = draw_sample(iter(texts), 100, seed, held_out_bytes=50)
        assert sample.texts == sample_texts(texts, 100, seed)
        assert sample.held_out == sorted(sample.held_out)
        assert len(sample.held_out) == 16
        assert not set(sample.texts) & set(sample.held_out)
        counts.update(sample.held_out)
    # 64 expected of each, standard deviation 7.3
    assert min(counts.values()) > 64 - 36
    assert max(counts.values()) < 64 + 36
    assert draw_sample(texts, 10**6, 0, held_out_bytes=50).held_out == []


def test_languages_get_equal_shares_and_small_ones_leave_theirs(tmp_path: Path) -> None:
    for name, size in (("a", 50_000), ("b", 3_000), ("c", 90_000)):
        (tmp_path / f"{name}.txt").write_text(name * size)
    files = [tmp_path / f"{name}.txt" for name in "abc"]
    samples, problems = sample_languages(language_files(files), "text", 23_000, seed=0, held_out_bytes=2_000)
    assert {name: Counter("".join(sample.texts)) for name, sample in samples.items()} == {
        "a": {"a": 10_000},
        "b": {"b": 3_000},
        "c": {"c": 10_000},
    }
    assert {name: len("".join(sample.held_out)) for name, sample in samples.items()} == {
        "a": 2_000,
        "b": 0,
        "c": 2_000,
    }
    assert problems.count == 0
    with pytest.raises(FileNotFoundError, match=r"gone\.txt.*--input"):
        sample_languages({"x": [tmp_path / "gone.txt"]}, "text", 100, seed=0)


def test_the_files_of_a_language_share_its_part(tmp_path: Path) -> None:
    for name, size in (("en", 80_000), ("zh1", 20_000), ("zh2", 60_000)):
        (tmp_path / f"{name}.txt").write_text(name[-1] * size)
    languages = language_files([tmp_path / "en.txt", f"zh={tmp_path}/zh*.txt"])
    samples, _ = sample_languages(languages, "text", 40_000, seed=0)
    assert sum(map(len, samples["en"].texts)) == 20_000
    shares = Counter("".join(samples["zh"].texts))
    assert shares.total() == 20_000
    # A quarter of the 80 pieces there are; 20 are drawn, 5 expected, standard deviation 1.7
    assert 0 < shares["1"] <= 12_000


def test_the_labels_of_inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("en.jsonl.gz", "zh/a.txt", "zh/b.txt", "other/en.jsonl", "lang=de/x.txt", "[1].txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    assert language_files(["en.jsonl.gz", "zh/*.txt"]) == {
        "en": ["en.jsonl.gz"],
        "a": ["zh/a.txt"],
        "b": ["zh/b.txt"],
    }
    assert language_files(["zh=zh/a.txt", "zh=zh/*.txt", "en=other/*"]) == {
        "zh": ["zh/a.txt", "zh/b.txt"],
        "en": ["other/en.jsonl"],
    }
    assert language_files(["en.jsonl.gz", "other/en.jsonl"]) == {
        "en.jsonl.gz": ["en.jsonl.gz"],
        "other/en.jsonl": ["other/en.jsonl"],
    }
    assert language_files(["lang=de/x.txt", "[1].txt"]) == {"x": ["lang=de/x.txt"], "[1]": ["[1].txt"]}
    for gone in ("zh=zh/*.jsonl", "gone*.txt"):
        with pytest.raises(FileNotFoundError, match=r"expected a file of text.*change --input"):
            language_files([gone])
