"""The nine generated tasks, and sets of their items.

The paper gives names, sizes and scores; the exact prompts are in an appendix that was not available. The formats here
are written anew after what is remembered of them (docs/iq.md says which).
"""

import hashlib
from collections.abc import Container

from flm_jax.evaluation.iq import counting, facts, keys, patterns, replacing
from flm_jax.evaluation.iq.draws import Draws
from flm_jax.evaluation.iq.items import Item, ItemSet
from flm_jax.evaluation.iq.questions import Generated, Question

TASKS = {
    task.name: task
    for task in (
        counting.COUNTING,
        replacing.LOWERCASE,
        replacing.WORD,
        patterns.HEAD_TAIL,
        patterns.FULL_REPEATING,
        patterns.HEAD_SLICING,
        keys.KEYS,
        facts.SINGLE,
        facts.TWO,
    )
}
LANGUAGES = ("en", "zh")
SPLITS = ("train", "test")
_TRIES = 1000  # for a question that is not yet in the set


def generate(
    task: str,
    language: str,
    split: str = "test",
    seed: int = 0,
    num_items: int | None = None,
    shots: int | None = None,
) -> ItemSet:
    """The items of a generated task, the same on any machine; fewer items are the first of more.

    A question belongs to a split by the SHA-256 of its text, so that none is in both, whatever the seeds and the
    numbers of items. The shots of both splits are of the training split, and none is the question itself.

    Args:
        task: One of `TASKS`.
        language: One of `LANGUAGES`.
        split: One of `SPLITS`.
        seed: Of the random choices.
        num_items: The paper's number if None.
        shots: The paper's number if None.

    Raises:
        ValueError: one of these is unknown or out of range, or the task has not so many different questions.
    """
    checked = (("task", task, tuple(TASKS)), ("language", language, LANGUAGES), ("split", split, SPLITS))
    for name, value, known in checked:
        if value not in known:
            raise ValueError(f"expected {name} to be one of {', '.join(known)}; found {value!r}")
    made = TASKS[task]
    num_items = made.num_items if num_items is None else num_items
    shots = made.shots if shots is None else shots
    if num_items < 1:
        raise ValueError(f"expected num_items of at least 1 for the task {task}; found {num_items}")
    if shots < made.min_shots:
        raise ValueError(f"expected shots of at least {made.min_shots} for the task {task}; found {shots}")
    asking, showing = (Draws("iq", task, language, split, seed, use) for use in ("questions", "shots"))
    items: list[Item] = []
    asked: dict[str, Question] = {}
    for _ in range(num_items):
        rule = made.rule(asking) if made.rule else None
        question = _fresh(made, asking, language, rule, split, asked)
        asked[question.text] = question
        shown: dict[str, Question] = {}
        for _ in range(shots):
            shot = _fresh(made, showing, language, rule, "train", {question.text, *shown})
            shown[shot.text] = shot
        items.append(_item(made, language, question, list(shown.values())))
    return ItemSet(
        task, language, made.group, shots, seed, tuple(items), made.stop, _baseline(list(asked.values()))
    )


def split_of(text: str) -> str:
    """The split to which the text of a question belongs."""
    return SPLITS[hashlib.sha256(text.encode()).digest()[0] % 2]


def _fresh(
    made: Generated, draws: Draws, language: str, rule: object, split: str, without: Container[str]
) -> Question:
    for _ in range(_TRIES):
        question = made.question(draws, language, rule)
        if question.text not in without and split_of(question.text) == split:
            return question
    raise ValueError(
        f"the task {made.name} has too few different questions: {_TRIES:,} in a row were none that are new and of the "
        f"split {split}; ask for fewer items or shots"
    )


def _baseline(questions: list[Question]) -> float | None:
    if questions[0].shallow is None:
        return None
    return sum(question.shallow == question.answer for question in questions) / len(questions)


def _item(made: Generated, language: str, question: Question, shots: list[Question]) -> Item:
    above = f"{made.instruction[language]}\n\n" if made.instruction else ""
    shown = [shot.text + shot.answer for shot in shots]
    prompt = above + made.separator.join((*shown, question.text))
    return Item(prompt, question.answer, question.options, question.space)
