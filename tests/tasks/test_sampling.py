from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flm_jax.tasks.sampling import PIECE_CHARACTERS, cut, sample_files, sample_texts


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\u2581\u2585"), max_size=50))
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


def test_files_get_equal_shares_and_small_ones_leave_theirs(tmp_path: Path) -> None:
    for name, size in (("a", 50_000), ("b", 3_000), ("c", 90_000)):
        (tmp_path / f"{name}.txt").write_text(name * size)
    files = [tmp_path / f"{name}.txt" for name in "abc"]
    texts, problems = sample_files(files, "text", 23_000, seed=0)
    shares = Counter("".join(texts))
    assert shares["b"] == 3_000
    assert shares["a"] == shares["c"] == 10_000
    assert problems.count == 0
    with pytest.raises(FileNotFoundError, match=r"gone\.txt.*--input"):
        sample_files([tmp_path / "gone.txt"], "text", 100, seed=0)
