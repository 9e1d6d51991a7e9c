"""The forms of a mixture: what they mean, their plain JSON, and what is refused."""

import itertools
import json
from pathlib import Path
from typing import Any

import gin
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flm_jax import gin_setup
from flm_jax.tasks.history import History
from flm_jax.tasks.mixture import Alternating, Mixture, linear
from flm_jax.training import trainer

ALTERNATING = Alternating({"language": {"en": 2, "zh": 1}, "teacher": "signals"}, (3, 1))
SCHEDULE = {0: {"en": 2, "zh": 1}, 200: "zh", 1000: ALTERNATING}


@pytest.mark.parametrize(
    ("value", "as_json"),
    [
        ("en", {"en": 1.0}),
        ({"zh": 1, "en": 53.5}, {"en": 53.5, "zh": 1}),
        ({0: "en"}, {"en": 1.0}),
        (ALTERNATING, {"alternating": {"language": [3, {"en": 2, "zh": 1}], "teacher": [1, {"signals": 1.0}]}}),
        (
            {500: "zh", 0: "en"},
            [[0, {"en": 1.0}], [500, {"zh": 1.0}]],
        ),
    ],
)  # fmt: skip
def test_every_form_has_one_plain_json(value: Any, as_json: Any) -> None:
    assert Mixture.of(value).to_json() == as_json
    assert Mixture.of(json.loads(json.dumps(as_json))) == Mixture.of(value)


def test_the_order_of_writing_does_not_matter_but_for_turns() -> None:
    assert Mixture.of({"a": 1, "b": 2}) == Mixture.of({"b": 2.0, "a": 1.0})
    turned = Alternating(dict(reversed(ALTERNATING.groups.items())), (1, 3))
    assert Mixture.of(turned) != Mixture.of(ALTERNATING)
    assert Mixture.of(SCHEDULE).tasks == ["en", "signals", "zh"]


@given(
    tokens=st.integers(1, 10**12),
    begin=st.integers(0, 10**9),
    pieces=st.integers(1, 20),
    shares=st.lists(st.floats(0.01, 100), min_size=3, max_size=3),
)
def test_a_linear_transition_keeps_the_mean(
    tokens: int, begin: int, pieces: int, shares: list[float]
) -> None:
    if pieces > tokens:
        return
    one, other = {"a": shares[0], "b": shares[1]}, {"b": 1.0, "c": shares[2]}
    schedule = linear(one, other, tokens, begin, pieces)
    changes = Mixture.of(schedule).changes
    assert changes[-1][0] == begin + tokens and len(changes) <= pieces + 2
    at = [*schedule, begin + 2 * tokens]
    for task in "abc":
        start = one.get(task, 0) / sum(one.values())
        end = other.get(task, 0) / sum(other.values())
        parts = list(schedule.values())
        assert all(sum(part.values()) == pytest.approx(1) for part in parts)
        weights = [stop - first for first, stop in itertools.pairwise(at)]
        mean = sum(
            part.get(task, 0) * weight for first, part, weight in zip(at, parts, weights, strict=False)
            if begin <= first < begin + tokens
        ) / tokens  # fmt: skip
        assert mean == pytest.approx((start + end) / 2, abs=0.5 / min(tokens, 10**6) * pieces + 1e-9)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({}, r"task's name or task to relative share .* found \{\}.*MIXTURE_OR_TASK_NAME"),
        (None, "found None.*MIXTURE_OR_TASK_NAME"),
        (["en"], r"found \['en'\].*MIXTURE_OR_TASK_NAME"),
        ({"en": 1, "zh": 0}, "positive shares in the mixture, found {'zh': 0}"),
        ({"en": True}, "positive shares in the mixture, found {'en': True}"),
        ({"en": float("nan")}, "positive shares in the mixture, found {'en': nan}"),
        ({5: "en"}, r"the first 0, found \[5\]"),
        ({0: "en", "zh": 1}, r"whole numbers of tokens, the first 0, found \['zh'\]"),
        ({0: "en", 1.5: "zh"}, r"whole numbers of tokens, the first 0, found \[1\.5\]"),
        ({0: "en", 7: {3: "zh"}}, "found {3: 'zh'}"),
        (Alternating({"a": "en"}, (1,)), "two or more groups and a number of steps for each"),
        (Alternating({"a": "en", "b": "zh"}, (1,)), "two or more groups and a number of steps for each"),
        (Alternating({"a": "en", "b": "zh"}, (1, 0)), "two or more groups and a number of steps for each"),
        (Alternating({"a": "en", "b": {"en": 1}}, (1, 1)), r"in one group of Alternating.groups, found \['en'\]"),
    ],
)  # fmt: skip
def test_what_is_no_mixture_is_said(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Mixture.of(value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": 0}, "linear.tokens must be a whole number of at least 1, found 0"),
        ({"pieces": 1.5}, "linear.pieces must be a whole number"),
        ({"begin": -1}, "linear.begin must be a whole number of at least 0"),
        ({"pieces": 101}, "linear.pieces must be at most its tokens, 100, found 101"),
    ],
)
def test_a_transition_that_cannot_be_is_said(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        linear(**{"start": "en", "end": "zh", "tokens": 100, **changes})


GIN = """
from __gin__ import dynamic_registration
from flm_jax.tasks import mixture
from flm_jax.training import trainer
mixture.linear.start = 'en'
mixture.linear.end = 'zh'
mixture.linear.tokens = 1000
mixture.Alternating.groups = {'language': {'en': 2, 'zh': 1}, 'teacher': 'signals'}
mixture.Alternating.steps = (3, 1)
"""


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("{0: {'en': 2, 'zh': 1}, 200_000_000: 'zh'}", {0: {"en": 2, "zh": 1}, 200_000_000: "zh"}),
        ("@mixture.linear()", linear("en", "zh", 1000)),
        ("@mixture.Alternating()", ALTERNATING),
    ],
)
def test_gin_says_every_form(written: str, meant: Any, tmp_path: Path) -> None:
    path = tmp_path / "mixture.gin"
    path.write_text(f"{GIN}trainer.Trainer.mixture = {written}\n")
    gin_setup.parse([str(path)], [])
    made = gin.get_configurable(trainer.Trainer)(
        stages=[], model_dir="", prepared_dir="", task_feature_lengths=8
    )
    assert Mixture.of(made.mixture) == Mixture.of(meant)


@st.composite
def histories(draw: Any) -> History:
    history = History.begin(draw(st.sampled_from(["a", "b"])), draw(st.integers(1, 9)))
    step = 0
    for _ in range(draw(st.integers(0, 5))):
        step += draw(st.integers(0, 7))
        history = history.changed(
            step, draw(st.integers(1, 9)), draw(st.sampled_from(["a", "b"])), draw(st.sampled_from([None, 2]))
        )
    return history


@given(history=histories())
def test_sequences_follow_the_batch_sizes(history: History) -> None:
    read = 0
    for step in range(40):
        assert history.sequences(step) == read
        assert history.steps(read) == step and history.whole_batches(read) == read
        size = history.at(step).batch_size
        assert history.steps(read + 1) == step + 1 == history.steps(read + size)
        read += size
    assert History.from_json(json.loads(json.dumps(history.to_json()))) == history
    firsts = [segment.first for segment in history.segments]
    assert firsts == sorted(set(firsts))


def test_what_did_not_change_is_no_segment() -> None:
    history = History.begin({"a": 1}, 8)
    assert history.changed(5, 8, "a") == history
    later = history.changed(5, 4, "a").changed(9, 4, "b")
    assert [segment.step for segment in later.segments] == [0, 5, 9]
    # From the same step on anew, and from a step before.
    assert later.changed(9, 4, "a") == history.changed(5, 4, "a")
    assert later.changed(3, 8, "a") == history
    assert history.changed(0, 8, "b") == History.begin("b", 8)
    for epochs in (0, -1, "x", {"a": 0}, True):
        with pytest.raises(ValueError, match=r"positive number of epochs.*Trainer\.max_epochs"):
            History.begin("a", 8, epochs)
