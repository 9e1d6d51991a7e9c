import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flm_jax.tasks.duplicates import Exact, Near

ROOT = Path(__file__).parents[2]
Words = list[str]


def english(draw: random.Random, size: int) -> Words:
    return [f"w{draw.randrange(5000)}" for _ in range(size)]


def chinese(draw: random.Random, size: int) -> Words:
    return [chr(0x4E00 + draw.randrange(3000)) for _ in range(size)]


LANGUAGES = pytest.mark.parametrize(
    ("make", "space"), [(english, " "), (chinese, "")], ids=["english", "chinese"]
)


def changed(words: Words, share: float, make, draw: random.Random) -> Words:
    return [word if draw.random() >= share else make(draw, 1)[0] for word in words]


def jaccard(a: Words, b: Words, n: int = 5) -> float:
    sets = [{tuple(words[i : i + n]) for i in range(len(words) - n + 1)} for words in (a, b)]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


@given(st.lists(st.text(max_size=3), max_size=30))
def test_exact_duplicates_are_found_iff_the_text_is_equal(texts: list[str]) -> None:
    step, index = Exact(), Exact().index()
    for place, text in enumerate(texts):
        first = texts.index(text)
        assert index.first(step.signature(text), place) == (None if first == place else first)


@given(st.lists(st.sampled_from(["", "!", "?", "a", "A.", "a b", "中", "中文", "b a"]), max_size=20))
def test_short_texts_are_near_duplicates_iff_their_units_are_the_same(texts: list[str]) -> None:
    step, index = Near(), Near().index()
    folded = [text if text in ("", "!", "?") else text.lower().strip(".") for text in texts]
    for place, text in enumerate(folded):
        first = folded.index(text)
        assert index.first(step.signature(texts[place]), place) == (None if first == place else first)


@LANGUAGES
def test_near_duplicates_are_found_and_only_they(make, space: str) -> None:
    """Of 400 units, each replaced with the given probability; the true similarity decides what is asked for."""
    draw, step = random.Random(0), Near()
    for share, low, high in [(0.0, 1.0, 1.0), (0.002, 0.97, 1.0), (0.1, 0.0, 0.0), (0.5, 0.0, 0.0)]:
        index, found = step.index(), 0
        for pair in range(100):
            words = make(draw, 400)
            other = changed(words, share, make, draw)
            assert index.first(step.signature(space.join(words)), 2 * pair) is None
            first = index.first(step.signature(space.join(other)), 2 * pair + 1)
            assert first in (None, 2 * pair)  # never another document
            found += first is not None
        assert low <= found / 100 <= high, (share, found)


@LANGUAGES
def test_the_estimate_is_near_the_true_similarity(make, space: str) -> None:
    draw, step = random.Random(1), Near(num_permutations=256)
    errors = []
    for share in np.linspace(0, 0.2, 80):
        words = make(draw, 300)
        other = changed(words, float(share), make, draw)
        estimate = np.mean(step.signature(space.join(words)) == step.signature(space.join(other)))
        errors.append(estimate - jaccard(words, other))
    # The standard error of 256 permutations is at most 0.5 / 16 = 0.031.
    assert np.abs(errors).max() < 5 * 0.031
    assert abs(np.mean(errors)) < 0.02


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.9])
def test_the_threshold_is_respected(threshold: float) -> None:
    draw, step = random.Random(2), Near(threshold)
    found = []
    for share in np.linspace(0, 0.15, 60):
        words = english(draw, 400)
        first, second = (
            step.signature(" ".join(text)) for text in (words, changed(words, float(share), english, draw))
        )
        index = step.index()
        index.first(first, 0)
        estimate = np.mean(first == second)
        hit = index.first(second, 1) is not None
        assert not hit or estimate >= threshold
        found.append((estimate, hit))
    clear = [hit for estimate, hit in found if estimate >= threshold + 0.08]
    assert clear and np.mean(clear) > 0.9


def test_copies_lead_to_the_first_that_stayed() -> None:
    draw, step = random.Random(3), Near()
    index = step.index()
    words = english(draw, 300)
    signature = step.signature(" ".join(words))
    assert index.first(step.signature("something else, of no more than eight words"), 3) is None
    assert index.first(signature, 7) is None
    assert index.first(step.signature(" ".join(words).upper() + "!"), 9) == 7
    assert index.first(signature, 12) == 7


def test_a_long_text_has_the_signature_of_its_set() -> None:
    """A text that is repeated has the same runs, but for those over the joint."""
    words = english(random.Random(4), 6000)
    step = Near()
    once, twice = (step.signature(" ".join(words * times)) for times in (1, 2))
    assert once.shape == (128,) and once.dtype == np.uint32
    assert np.mean(once == twice) > 0.95


def test_signatures_are_those_of_another_process() -> None:
    texts = ["", "a short text", "第一次见到他是在一个雨天的下午。", " ".join(english(random.Random(5), 500))]
    code = (
        "import json, sys\n"
        "from flm_jax.tasks.duplicates import Exact, Near\n"
        "texts = json.loads(sys.stdin.read())\n"
        "print(json.dumps([[Exact().signature(t).hex(), Near().signature(t).tolist()] for t in texts]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(texts),
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "77"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    here = [[Exact().signature(text).hex(), Near().signature(text).tolist()] for text in texts]
    assert json.loads(done.stdout) == here


def test_a_signature_stays_what_it_was() -> None:
    """The same on every machine and in every version: a change here makes prepared data incomparable."""
    assert Exact().signature("flm").hex() == "4034209be7b7772e50c51f0877a43668"
    near = Near(num_permutations=16).signature("One, two, three. 中文")
    assert near.tolist()[:4] == [
        1530110891,
        4112970098,
        4070640233,
        533659347,
    ]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"threshold": 0}, "found 0: .*`Near.threshold`"),
        ({"threshold": 1.0}, "found 1.0: .*`Near.threshold`, or take `Exact`"),
        ({"num_permutations": 8}, "found 8: .*`Near.num_permutations`"),
        ({"ngram": 0}, "found 0: .*`Near.ngram`"),
    ],
)
def test_bad_settings_are_named(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Near(**settings)


@pytest.mark.parametrize("threshold", [0.01, 0.95])
@pytest.mark.parametrize("num_permutations", [16, 256])
def test_every_setting_that_is_allowed_makes_an_index(threshold: float, num_permutations: int) -> None:
    step = Near(threshold, num_permutations)
    index = step.index()
    signature = step.signature("a b c d e f g")
    assert index.first(signature, 0) is None
    assert index.first(signature, 1) == 0
