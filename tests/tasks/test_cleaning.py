import json
import pickle
import sys
import unicodedata
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import gin
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flm_jax import gin_setup
from flm_jax.tasks.cleaning import FORMS, Language, Length, Normalize, excerpt
from flm_jax.tasks.decontamination import Decontamination
from flm_jax.tasks.duplicates import Exact, Near

ENGLISH = (
    "The river runs through the old town, and people walk along it in the evening when the air is cool. "
)
CHINESE = "河水穿过古老的城市，傍晚天气凉爽的时候，人们沿着河边散步，孩子们在桥下玩耍。"
FRENCH = "La rivière traverse la vieille ville, et les gens se promènent le soir le long de ses quais. "


@given(st.text(), st.sampled_from(FORMS))
def test_normalising_twice_is_normalising_once(text: str, form: str) -> None:
    once = Normalize(form).text(text)
    assert Normalize(form).text(once) == once
    assert unicodedata.is_normalized(form, once)  # type: ignore[arg-type]


def test_forms() -> None:
    assert Normalize().text("e\u0301 Ａ²") == "\u00e9 Ａ²"
    assert Normalize("NFKC").text("e\u0301 Ａ²") == "\u00e9 A2"
    assert Normalize("NFD").text("\u00e9") == "e\u0301"
    assert Normalize("NFKD").text("\u00e9²") == "e\u03012"


@given(st.text(max_size=12), st.integers(0, 8), st.none() | st.integers(0, 8))
def test_length_keeps_what_lies_between_the_bounds(text: str, low: int, more: int | None) -> None:
    high = None if more is None else low + more
    kept = low <= len(text) and (high is None or len(text) <= high)
    assert (Length(low, high).refusal(text) is None) == kept


def test_the_reason_says_the_length_and_the_bound() -> None:
    assert Length(min_characters=200).refusal("short") == "5 characters, fewer than 200"
    assert Length(max_characters=1000).refusal("x" * 1001) == "1,001 characters, more than 1,000"


@pytest.mark.parametrize(
    ("text", "languages", "kept"),
    [
        (ENGLISH, ["en"], True),
        (CHINESE, ["zh"], True),
        (FRENCH, ["en", "zh"], False),
        (FRENCH, "fr", True),
        (CHINESE, ["en"], False),
        (ENGLISH * 3 + CHINESE * 3, ["en", "zh"], True),
        ("12345 67890", ["en", "zh"], False),
    ],
)
def test_language(text: str, languages: Any, kept: bool) -> None:
    reason = Language(languages).refusal(text)
    assert (reason is None) == kept, reason


def test_the_languages_share_their_probability_and_the_reason_names_the_likeliest() -> None:
    reason = Language(["en", "zh"]).refusal(FRENCH)
    assert reason is not None
    assert reason.startswith("en, zh have probability 0.0")
    assert reason.endswith("likeliest is fr")
    assert Language(["en"], min_probability=0).refusal(FRENCH) is None


def test_a_long_text_is_judged_by_its_beginning_middle_and_end() -> None:
    assert excerpt("x" * 3000) == "x" * 3000
    assert excerpt("a" * 1000 + "." * 5000 + "b" * 1000 + "." * 5000 + "c" * 1000) == "\n".join(
        letter * 1000 for letter in "abc"
    )
    mostly_french = FRENCH * 12 + "中" * 9 + FRENCH * 900
    assert Language(["fr"]).refusal(mostly_french) is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Normalize("NFX"), "expected one of NFC, NFKC, NFD, NFKD, found 'NFX'.*`Normalize.form`"),
        (lambda: Length(-1), "Length.min_characters"),
        (lambda: Length(10, 9), "found 10 and 9.*Length.max_characters"),
        (lambda: Language([]), "set the gin binding `Language.languages`"),
        (lambda: Language(["en"], 1.5), r"\[0, 1\], found 1.5.*Language.min_probability"),
        (lambda: Language(["english"]).refusal("x"), "found english.*`Language.languages`"),
        (lambda: Language(["english"]).fingerprint(), "found english.*`Language.languages`"),
    ],
)
def test_bad_settings_are_named(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("step", "call", "library"),
    [
        (Language(["en"]), lambda step: step.fingerprint(), "py3langid"),
        (Near(num_permutations=17), lambda step: step.signature("x"), "datasketch"),
        (Near(), lambda step: step.index(), "datasketch"),
    ],
)
def test_a_missing_library_is_named(
    monkeypatch: pytest.MonkeyPatch, step: Any, call: Any, library: str
) -> None:
    monkeypatch.setitem(sys.modules, library, None)  # importing it fails
    with pytest.raises(ModuleNotFoundError, match=rf"{library}.*pip install 'flm_jax\[clean\]'"):
        call(step)


STEPS: list[Any] = [
    Normalize(),
    Normalize("NFKC"),
    Length(),
    Length(5),
    Length(0, 5),
    Language(["en"]),
    Language(["en", "zh"]),
    Language(["en"], 0.6),
    Exact(),
    Near(),
    Near(0.7),
    Near(ngram=7),
    Near(num_permutations=64),
]


def test_fingerprints_are_json_and_tell_settings_apart() -> None:
    texts = [json.dumps(step.fingerprint(), sort_keys=True) for step in STEPS]
    assert len(set(texts)) == len(STEPS)
    for step, text in zip(STEPS, texts, strict=True):
        assert json.loads(text) == step.fingerprint()
        assert pickle.loads(pickle.dumps(step)) == step
        assert json.dumps(pickle.loads(pickle.dumps(step)).fingerprint(), sort_keys=True) == text


def test_every_kind_is_of_its_own() -> None:
    kinds = [step.kind for step in (Normalize, Length, Language, Exact, Near, Decontamination)]
    assert len(set(kinds)) == len(kinds)


GIN = """
from __gin__ import dynamic_registration
from flm_jax.tasks import cleaning
from flm_jax.tasks import duplicates
from flm_jax.tasks import decontamination
from tests.tasks import test_cleaning

cleaning.Length.min_characters = 4
cleaning.Language.languages = ["en", "zh"]
duplicates.Near.threshold = 0.7
decontamination.Decontamination.files = ["eval/*.jsonl"]
test_cleaning.collected.steps = [
    @cleaning.Normalize(), @cleaning.Length(), @cleaning.Language(), @duplicates.Exact(), @duplicates.Near(),
    @decontamination.Decontamination(),
]
"""


def collected(steps: list[Any]) -> list[Any]:
    return steps


def _described(steps: list[Any]) -> list[str]:
    return [repr(step) for step in steps]


def test_what_gin_makes_goes_to_a_spawned_process(tmp_path: Path) -> None:
    file = tmp_path / "steps.gin"
    file.write_text(GIN)
    try:
        gin_setup.parse([str(file)], [])
        steps = gin.get_configurable(collected)()
    finally:
        gin.clear_config()
    assert steps == [
        Normalize(),
        Length(4),
        Language(["en", "zh"]),
        Exact(),
        Near(0.7),
        Decontamination("eval/*.jsonl"),
    ]
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        assert pool.submit(_described, steps).result() == _described(steps)
