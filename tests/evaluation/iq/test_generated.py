"""The generated sets: the same everywhere, splits apart, well-posed, fast."""

import dataclasses
import hashlib
import itertools
import json
import re
import time
from pathlib import Path

import pytest

from flm_jax.evaluation import iq
from flm_jax.evaluation.iq import paper, words
from flm_jax.evaluation.iq.generated import LANGUAGES, SPLITS, TASKS, split_of
from flm_jax.evaluation.iq.questions import Question, form

EACH = list(itertools.product(TASKS, LANGUAGES))
each = pytest.mark.parametrize(("task", "language"), EACH, ids=[f"{task}-{lang}" for task, lang in EACH])


QUESTION = Question("Count:", " 1", (" 1", " 2"), form(" 1"))


def digest(items: iq.ItemSet) -> str:
    rows = [item.to_json() for item in items.items]
    return hashlib.sha256(json.dumps(rows, ensure_ascii=True).encode()).hexdigest()[:12]


def last_question(prompt: str, task: str) -> str:
    """What is asked, without instruction and shots."""
    if task == "multiple_key_retrieval":
        return prompt
    if TASKS[task].separator == "\n":
        lines = 1 if task == "counting" else 2
        return "\n".join(prompt.split("\n")[-lines:])
    return prompt.split("\n\n")[-1]


def test_the_bytes_are_these_on_every_machine() -> None:
    """Whoever changes them changes what scores mean: say so in docs/iq.md and set new digests."""
    found = {f"{task} {language}": digest(iq.generate(task, language)) for task, language in EACH}
    assert found == DIGESTS


@each
def test_sizes_are_the_papers_and_fewer_items_are_the_first(task: str, language: str) -> None:
    items = iq.generate(task, language)
    assert (len(items.items), items.shots, items.group) == (
        TASKS[task].num_items,
        TASKS[task].shots,
        TASKS[task].group,
    )
    assert task in paper.TASKS and items.group in paper.GROUPS
    assert iq.generate(task, language, num_items=7).items == items.items[:7]
    assert iq.generate(task, language, seed=1).items != items.items
    assert len({item.prompt for item in items.items}) == len(items.items)


@each
def test_options_have_one_right_answer_of_one_form(task: str, language: str) -> None:
    places = set()
    for item in iq.generate(task, language).items:
        assert len(set(item.options)) == len(item.options) >= 2
        places.add(item.options.index(item.answer))
        assert item.answer.startswith(" ") is (language == "en")
        assert not item.prompt.endswith((" ", "\n"))
        if task not in ("counting", "single_fact", "two_facts", "replace_lowercase"):
            assert len({len(option) for option in item.options}) == 1
    assert len(places) >= 4  # the right one stands anywhere


@each
def test_no_question_of_the_test_split_occurs_in_training(task: str, language: str) -> None:
    test = {last_question(item.prompt, task) for item in iq.generate(task, language).items}
    assert {split_of(question) for question in test} == {"test"}
    for seed in (0, 1):
        training = [item.prompt for item in iq.generate(task, language, "train", seed, 200).items]
        assert {split_of(last_question(prompt, task)) for prompt in training} == {"train"}
        together = "\n".join(training)  # shots included
        assert not any(question in together for question in test)


@each
@pytest.mark.parametrize("split", SPLITS)
def test_the_oracle_solves_every_item(task: str, language: str, split: str) -> None:
    items = iq.generate(task, language, split, seed=7)
    result = iq.measure(iq.Oracle(), items)
    assert result.exact.correct == result.choice.correct == result.exact.total == len(items.items)
    assert result.oracle == 1


@each
def test_other_numbers_of_shots(task: str, language: str) -> None:
    fewest = TASKS[task].min_shots
    for shots in (fewest, 7):
        items = iq.generate(task, language, num_items=20, shots=shots)
        assert items.shots == shots
        assert iq.measure(iq.Oracle(), items).oracle == 1
    with pytest.raises(ValueError, match=f"expected shots of at least {fewest} for the task {task}"):
        iq.generate(task, language, shots=fewest - 1)


def test_a_task_without_enough_questions_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    few = dataclasses.replace(TASKS["counting"], question=lambda draws, language, rule: QUESTION)
    monkeypatch.setitem(TASKS, "counting", few)
    with pytest.raises(ValueError, match="the task counting has too few different questions"):
        iq.generate("counting", "en", split_of(QUESTION.text), num_items=2)


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_place_named_last_is_no_guess(language: str) -> None:
    """A baseline stands beside the scores where a rule that follows nobody beats chance."""
    place = re.compile(rf"the (\w+)\.|({'|'.join(words.PLACES['zh'])})。")
    for task in ("single_fact", "two_facts"):
        items = iq.generate(task, language)
        hits = 0
        for item in items.items:
            named = ["".join(found) for found in place.findall(last_question(item.prompt, task))]
            last = [each for each in named if each in words.PLACES[language]][-1]
            hits += last == item.answer.strip()
        assert items.baseline == hits / 300 > items.choice_chance
    assert iq.generate("counting", language).baseline is None


def test_the_suite_is_made_in_less_than_a_second_a_set() -> None:
    started = time.process_time()
    sets = iq.suite()
    assert len(sets) == 18
    assert time.process_time() - started < 18  # 1 s is what was measured for all of them


def test_what_is_unknown_is_named() -> None:
    with pytest.raises(ValueError, match=r"expected task to be one of counting, .*; found 'sorting'"):
        iq.generate("sorting", "en")
    with pytest.raises(ValueError, match="expected language to be one of en, zh; found 'fr'"):
        iq.generate("counting", "fr")
    with pytest.raises(ValueError, match="expected split to be one of train, test; found 'dev'"):
        iq.generate("counting", "en", "dev")
    with pytest.raises(ValueError, match="expected num_items of at least 1"):
        iq.generate("counting", "en", num_items=0)


def test_written_files(tmp_path: Path) -> None:
    items = iq.generate("two_facts", "zh", "train", num_items=3)
    iq.write_items(items, tmp_path / "items.jsonl")
    iq.write_instructions(items, tmp_path / "instructions.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "items.jsonl").read_text("utf-8").splitlines()]
    pairs = [json.loads(line) for line in (tmp_path / "instructions.jsonl").read_text("utf-8").splitlines()]
    for item, row, pair in zip(items.items, rows, pairs, strict=True):
        assert row == {"task": "two_facts", "language": "zh", **item.to_json()}
        assert pair == {"inputs": item.prompt, "targets": item.answer}


def test_a_training_split_is_instruction_data(tmp_path: Path) -> None:
    """Its loss is on the answer, behind the very text that the suite asks with."""
    from flm_jax.tasks import dialogues, formats, sources

    items = iq.generate("head_slicing", "en", "train", num_items=5)
    path = tmp_path / "train.jsonl"
    iq.write_instructions(items, path)
    source = sources.JsonLines(str(path), fields=None)
    task = dialogues.Dialogues("iq", source, formats.flan, prompt="{user}")
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    for item, row in zip(items.items, rows, strict=True):
        ((turn,),) = task.examples(row)
        assert (turn.inputs, turn.targets, turn.ends) == (item.prompt, item.answer, True)


DIGESTS = {
    "counting en": "31b49a19cc7f",
    "counting zh": "088735077324",
    "replace_lowercase en": "5821e4818312",
    "replace_lowercase zh": "a781b80dde9f",
    "replace_word en": "552bf1f20522",
    "replace_word zh": "cfac81d4769b",
    "head_tail en": "8065169f095e",
    "head_tail zh": "21bd4b9c1f8e",
    "full_repeating en": "cdce6bf482b5",
    "full_repeating zh": "48e2d656c94b",
    "head_slicing en": "29db34afdf76",
    "head_slicing zh": "9281da4c3ec5",
    "multiple_key_retrieval en": "309c8554b5da",
    "multiple_key_retrieval zh": "cd63a6cf46a8",
    "single_fact en": "3f2fef1e250d",
    "single_fact zh": "49a5c48843f8",
    "two_facts en": "74435bb7c3a3",
    "two_facts zh": "7a94748e836b",
}
