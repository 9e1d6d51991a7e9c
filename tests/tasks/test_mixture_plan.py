"""Which sequence stands where: the closed form beside a slow simulation, windows, caps, changes."""

import itertools
import time
from collections import Counter
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flm_jax.tasks.history import History
from flm_jax.tasks.interleave import Interleave
from flm_jax.tasks.mixture import Alternating, Mixture, linear
from flm_jax.tasks.mixture_plan import MixturePlan, TaskCounts

LENGTH = 10
COUNTS = {
    "a": TaskCounts(13, 130),
    "b": TaskCounts(40, 200),
    "c": TaskCounts(7, 69),
    "d": TaskCounts(100, 901),
}
_shares = st.dictionaries(st.sampled_from("abcd"), st.integers(1, 9), min_size=1, max_size=4)


@st.composite
def mixtures(draw: Any) -> Any:
    """Any form."""

    def constant() -> Any:
        if draw(st.booleans()):
            return draw(_shares)
        groups = {"x": {"a": draw(st.integers(1, 5)), "b": 2}, "y": {"c": 1}, "z": {"d": 1}}
        number = draw(st.integers(2, 3))
        steps = draw(st.lists(st.integers(1, 3), min_size=number, max_size=number))
        return Alternating(dict(itertools.islice(groups.items(), number)), steps)

    starts = draw(st.lists(st.integers(1, 900), max_size=2, unique=True))
    return {start: constant() for start in [0, *starts]}


_caps = st.one_of(
    st.none(), st.sampled_from([0.3, 1, 2.5]), st.dictionaries(st.sampled_from("abcd"), st.sampled_from([0.5, 3]))
)  # fmt: skip


@st.composite
def histories(draw: Any) -> History:
    history = History.begin(draw(mixtures()), draw(st.integers(1, 6)), draw(_caps))
    step = 0
    for _ in range(draw(st.integers(0, 3))):
        step += draw(st.integers(1, 12))
        mixture = draw(st.one_of(st.just(history.segments[-1].mixture), mixtures()))
        history = history.changed(step, draw(st.integers(1, 6)), mixture, draw(_caps))
    return history


def plan_of(history: History) -> MixturePlan | None:
    tasks = {name: COUNTS[name] for name in history.tasks}
    known = {task for segment in history.segments for task, _ in segment.max_epochs} - {""}
    if known - set(tasks):
        with pytest.raises(ValueError, match=r"epochs of \[.*Trainer\.max_epochs"):
            MixturePlan(history, tasks, LENGTH)
        return None
    return MixturePlan(history, tasks, LENGTH)


@settings(max_examples=150, deadline=None)
@given(history=histories())
def test_each_task_is_read_in_its_order_to_its_cap_and_no_further(history: History) -> None:
    plan = plan_of(history)
    if plan is None:
        return
    read = dict.fromkeys(plan.tasks, 0)
    for step in range(60):
        segment = history.at(step)
        for row in range(segment.batch_size):
            sequence = history.sequences(step) + row
            assert plan.positions(sequence) == read
            if sequence == plan.end:
                with pytest.raises(IndexError, match=r"Trainer\.max_epochs"):
                    plan.locate(sequence)
                return
            task, position = plan.locate(sequence)
            assert position == read[task]  # none left out, none twice
            caps = dict(segment.max_epochs)
            cap = caps.get(task, caps.get(""))
            assert cap is None or position < cap * COUNTS[task].sequences
            assert task in _asked(history, step, sequence)
            read[task] += 1


def _in_force(mixture: Mixture, sequence: int) -> Any:
    """Steps and shares of each group, so many sequences behind the beginning of the mixture's clock."""
    groups = next(found for tokens, found in reversed(mixture.changes) if tokens <= sequence * LENGTH)
    return [
        (
            group.steps,
            {task: Fraction(share, sum(dict(group.shares).values())) for task, share in group.shares},
        )
        for group in groups
    ]


def _asked(history: History, step: int, sequence: int) -> set[str]:
    """The tasks of the mixture that holds, by going through the steps."""
    mixture, origin = history.at(0).mixture, 0
    for later in range(1, step + 1):
        before, mixture, now = mixture, history.at(later).mixture, history.sequences(later)
        read = range(now - origin)
        if before is not mixture and [_in_force(before, n) for n in read] != [
            _in_force(mixture, n) for n in read
        ]:
            origin = now
    found: set[str] = set()
    for tokens, groups in mixture.changes:
        begins = origin + -(-tokens // LENGTH)
        if mixture.alternates:  # where a batch begins
            begins = next(n for n in map(history.sequences, itertools.count()) if n >= begins)
        if begins <= sequence:
            found = {task for group in groups for task, _ in group.shares}
    return found


@settings(max_examples=60, deadline=None)
@given(shares=_shares, first=st.integers(0, 10**12), begins=st.integers(0, 10**13))
def test_shares_are_exact_in_any_window(shares: dict[str, int], first: int, begins: int) -> None:
    history = History.begin({0: "a", begins + 1: shares}, 4)
    plan = MixturePlan(history, {name: COUNTS[name] for name in history.tasks}, LENGTH)
    start, window = -(-(begins + 1) // LENGTH) + first, 400
    found = Counter(plan.locate(start + offset)[0] for offset in range(window))
    rates = {name: share * COUNTS[name].sequences / COUNTS[name].tokens for name, share in shares.items()}
    for name, rate in rates.items():
        assert abs(found[name] - window * rate / sum(rates.values())) <= len(shares) + 0.01
    assert sum(plan.shares(start).values()) == pytest.approx(1)


@given(rates=st.lists(st.integers(1, 1000), min_size=1, max_size=6), index=st.integers(0, 3000))
def test_interleaved_counts_are_those_of_going_through(rates: list[int], index: int) -> None:
    interleave = Interleave(rates)
    counts = Counter(interleave[place][0] for place in range(index))
    assert interleave.counts(index) == [counts[task] for task in range(len(rates))]


def test_turns_are_whole_batches() -> None:
    turns = Alternating({"language": {"a": 1, "b": 1}, "teacher": "d"}, (3, 1))
    history = History.begin(turns, 8).changed(6, 4, turns)  # in the second round's third step
    plan = MixturePlan(history, {name: COUNTS[name] for name in "abd"}, LENGTH)
    for step in range(40):
        first = history.sequences(step)
        tasks = {plan.locate(first + row)[0] for row in range(history.at(step).batch_size)}
        assert tasks == ({"d"} if step % 4 == 3 else {"a", "b"})


def test_a_batch_size_does_not_touch_the_stream_of_a_plain_mixture() -> None:
    tasks = {name: COUNTS[name] for name in "ab"}
    plain = MixturePlan(History.begin({"a": 1, "b": 2}, 1), tasks, LENGTH)
    other = MixturePlan(History.begin({"a": 1, "b": 2}, 8).changed(3, 5, {"a": 1, "b": 2}), tasks, LENGTH)
    assert [plain.locate(n) for n in range(200)] == [other.locate(n) for n in range(200)]


def test_a_schedule_is_the_change_in_mid_run() -> None:
    one, other = {"a": 1, "b": 2}, {"b": 1, "d": 3}
    tasks = {name: COUNTS[name] for name in "abd"}
    scheduled = MixturePlan(History.begin({0: one, 40 * LENGTH: other}, 8), tasks, LENGTH)
    changed = MixturePlan(History.begin(one, 8).changed(5, 8, other), tasks, LENGTH)
    assert [scheduled.locate(n) for n in range(300)] == [changed.locate(n) for n in range(300)]


@pytest.mark.parametrize("same", [{0: "a", 20 * LENGTH: "b"}, {0: {"a": 3}, 20 * LENGTH: {"b": 0.3}}])
def test_a_schedule_is_continued_in_mid_run(same: Any) -> None:
    """What was read agrees, so its clock goes on: the run is the one that had the whole schedule from the beginning."""
    tasks = {name: COUNTS[name] for name in "abd"}
    whole = {**same, 50 * LENGTH: {"d": 1, "b": 2}}
    for step in (2, 3, 5, 6):  # before, at and behind the first change
        history = History.begin({0: "a", 20 * LENGTH: "b"}, 8).changed(step, 4, whole)
        assert history.clock_starts(LENGTH) == [history.segments[0]] * 2
        continued = MixturePlan(history, tasks, LENGTH)
        scheduled = MixturePlan(History.begin(whole, 8), tasks, LENGTH)
        assert [continued.locate(n) for n in range(300)] == [scheduled.locate(n) for n in range(300)]
    # What was read does not agree: the clock starts at 0.
    history = History.begin("a", 8).changed(3, 8, whole)
    assert history.clock_starts(LENGTH) == list(history.segments)
    assert MixturePlan(history, tasks, LENGTH).positions(24 + 20) == {"a": 44, "b": 0, "d": 0}


def test_rescaled_shares_are_the_same_mixture() -> None:
    """Turns go on where they stood, and nothing has changed."""
    one = Alternating({"x": {"a": 0.2, "b": 0.1}, "y": "d"}, (3, 1))
    other = Alternating({"x": {"a": 4, "b": 2}, "y": {"d": 7}}, (3, 1))
    history = History.begin(one, 8)
    assert history.changed(6, 8, other) == history
    tasks = {name: COUNTS[name] for name in "abd"}
    plan, same = (MixturePlan(history.changed(6, 4, mixture), tasks, LENGTH) for mixture in (other, one))
    assert [plan.locate(n) for n in range(300)] == [same.locate(n) for n in range(300)]
    assert Mixture.of({"a": 2, "b": 1}) != Mixture.of({"a": 1, "b": 2})


def test_a_cap_gives_its_share_to_the_others() -> None:
    tasks = {name: COUNTS[name] for name in "abd"}
    history = History.begin({"a": 2, "b": 1, "d": 1}, 1, {"a": 2, "b": 0.29})
    plan = MixturePlan(history, tasks, LENGTH)
    assert [(reached.task, reached.epochs) for reached in plan.reached] == [("b", 0.29), ("a", 2)]
    (b, a), end = (reached.sequence for reached in plan.reached), 5000
    assert plan.positions(b)["b"] == plan.positions(end)["b"] == 11  # floor(0.29 * 40)
    assert plan.positions(a)["a"] == plan.positions(end)["a"] == 26
    assert plan.epochs(end)["a"] == 2 and plan.end is None
    assert plan.tokens(end)["a"] == 260
    # All of them: the stream ends.
    ended = MixturePlan(History.begin({"a": 2, "b": 1, "d": 1}, 1, 2), tasks, LENGTH)
    assert ended.end == 2 * sum(count.sequences for count in tasks.values())
    assert ended.positions(ended.end) == {name: 2 * count.sequences for name, count in tasks.items()}


def test_a_cap_that_is_raised_is_reached_again() -> None:
    tasks = {name: COUNTS[name] for name in "ab"}
    history = History.begin({"a": 1, "b": 1}, 1, {"a": 1}).changed(100, 1, {"a": 1, "b": 1}, {"a": 2})
    plan = MixturePlan(history, tasks, LENGTH)
    assert [(reached.task, reached.epochs) for reached in plan.reached] == [("a", 1), ("a", 2)]
    assert plan.positions(plan.reached[1].sequence)["a"] == 26
    # One that goes on as it was is reached once.
    history = History.begin({"a": 1, "b": 1}, 1, {"a": 1}).changed(100, 2, {"a": 1, "b": 1}, {"a": 1})
    assert len(MixturePlan(history, tasks, LENGTH).reached) == 1


@pytest.mark.parametrize("caps", [{"c": 0.1}, 0.1])
def test_a_cap_below_a_sequence_is_refused(caps: Any) -> None:
    tasks = {name: COUNTS[name] for name in "cd"}
    with pytest.raises(
        ValueError, match=r"epochs of c that make a sequence.*of its 7, found 0\.1.*Trainer\.max_epochs"
    ):
        MixturePlan(History.begin({"c": 1, "d": 1}, 1, caps), tasks, LENGTH)
    MixturePlan(History.begin("d", 1, 0.1), tasks, LENGTH)  # where it is not read it has no part


def test_a_group_that_is_exhausted_leaves_its_turns_to_the_others() -> None:
    turns = Alternating({"language": "d", "teacher": "c"}, (1, 1))
    plan = MixturePlan(History.begin(turns, 4, {"c": 2}), {name: COUNTS[name] for name in "cd"}, LENGTH)
    (reached,) = plan.reached
    assert reached.sequence == 4 + 4 + 4 + 4 + 4 + 4 + 4 + 2  # 14 sequences of c, 16 of d
    # The batch in which it ends is filled up by the others.
    assert [plan.locate(n)[0] for n in range(28, 32)] == ["c", "c", "d", "d"]
    assert {plan.locate(n)[0] for n in range(reached.sequence, 500)} == {"d"}


def test_look_ups_take_no_longer_late_in_a_run() -> None:
    tasks = {name: TaskCounts(10**8, 10**11) for name in "abcd"}
    history = History.begin(linear("a", {"a": 1, "b": 2, "c": 3, "d": 4}, 10**13, pieces=100), 64, 900)
    plan = MixturePlan(history, tasks, 2048)
    assert len(plan.reached) == 0 or plan.reached[0].sequence > 10**9
    started = time.perf_counter()
    for offset in range(200):
        plan.locate(64 * 10**9 + offset)
    assert time.perf_counter() - started < 0.5
