"""Teacher signals: bad records and wrong settings are named."""

from pathlib import Path
from typing import Any

import pytest

from flm_jax.tasks.problems import Problem
from flm_jax.tasks.sources import JsonLines, Problems
from flm_jax.tasks.teacher import MultipleChoice, Teacher
from tests.prepared_data import write_jsonl
from tests.tasks.test_teacher import FALSE, choices, sentiment


@pytest.mark.parametrize(
    ("task", "document", "message"),
    [
        (
            sentiment(),
            {"text": "a", "label": "-"},
            r"one of the labels \['positive', 'negative'\].*'label', found '-'",
        ),
        (sentiment(), {"text": "a", "label": ["positive"]}, "one of the labels"),
        (sentiment(), {"text": "a"}, r"field 'label' is missing \(found \['text'\]\)"),
        (sentiment(), {"label": "positive"}, "field 'text' is missing"),
        (sentiment(), {"text": " ", "label": "positive"}, "field 'text' is empty"),
        (
            sentiment(),
            {"text": None, "label": "positive"},
            "text or a number in field 'text', found NoneType",
        ),
        (
            sentiment(statements={0: "{a}.", 1: "{a}!"}),
            {"a": "x", "label": "0"},
            r"labels \[0, 1\].*found '0'",
        ),
        (sentiment(statements={0: "{a}.", 1: "{a}!"}), {"a": "x", "label": True}, "found True"),
        (sentiment(statements={0: "{a}", 1: "{b}"}), {"a": "x", "b": "x", "label": 0}, "true and false: 'x'"),
        (choices(), {"question": "q", "choices": ["a"], "answer": 0}, "a list of at least two choices"),
        (choices(), {"question": "q", "choices": "ab", "answer": 0}, "a list of at least two choices"),
        (
            choices(),
            {"question": "q", "choices": ["a", "b"], "answer": 2},
            r"one of \[0, 1\].*'index'\), found 2",
        ),
        (choices(), {"question": "q", "choices": ["a", "b"], "answer": -1}, "found -1"),
        (choices(), {"question": "q", "choices": ["a", "b"], "answer": "A"}, "found 'A'"),
        (
            choices(),
            {"question": "q", "choices": ["a", "a"], "answer": 0},
            "same statement would be true and false",
        ),
        (choices(), {"question": "q", "choices": ["a", ""], "answer": 0}, "field 'choice' is empty"),
        (choices(answer_is="name"), {"question": "q", "choices": ["a", "b"], "answer": "C"}, "found 'C'"),
        (choices(answer_is="text"), {"question": "q", "choices": ["a", "b"], "answer": "c"}, "found 'c'"),
    ],
)
def test_a_bad_record_is_a_problem(task: Teacher, document: dict[str, Any], message: str) -> None:
    with pytest.raises(Problem, match=message):
        task.examples(document)


def test_problems_have_their_places(tmp_path: Path) -> None:
    path = write_jsonl(
        tmp_path / "x.jsonl", [{"text": "a", "label": "positive"}, {"text": "b", "label": "-"}]
    )
    problems = Problems()
    assert len(list(sentiment(path).read("train", problems))) == 1
    assert problems.places[0].startswith(f"{path}:2: expected one of the labels")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"true_label": ""}, r"two labels that differ.*Classification\.true_label"),
        ({"true_label": FALSE}, "two labels that differ"),
        ({"supervise": "first"}, r"'last' or 'all', found 'first'.*Classification\.supervise"),
        ({"num_false": 0}, r"found 0.*Classification\.num_false"),
        ({"num_false": True}, "found True"),
        ({"statements": {"a": "{text}"}}, r"at least two labels.*Classification\.statements"),
        ({"statements": {"a": "{text}", "b": "bad"}}, "found no field in 'bad'"),
        ({"statements": {"a": "{text}", "b": "{text}"}}, "statements that differ"),
        ({"statements": {"a": "{text}", "b": "{} b"}}, "fields have names"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sentiment(**settings)


def test_wrong_settings_of_choices_are_named() -> None:
    with pytest.raises(ValueError, match=r"\{choice\}.*MultipleChoice\.statement"):
        choices(statement="{question}")
    with pytest.raises(ValueError, match=r"found 'letter'.*MultipleChoice\.answer_is"):
        choices(answer_is="letter")
    with pytest.raises(ValueError, match=r"whole records.*JsonLines\.fields = None"):
        MultipleChoice("choices", JsonLines("x.jsonl"))
