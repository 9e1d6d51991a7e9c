"""What the generated tasks have in common: a question, its answer and options, and the form of an answer."""

import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from flm_jax.evaluation.iq import words
from flm_jax.evaluation.iq.draws import Draws
from flm_jax.evaluation.iq.items import Space

NUM_OPTIONS = 4
# Stands between a question and its answer.
GAP = {"en": " ", "zh": ""}


@dataclass(frozen=True)
class Question:
    """An item without its shots.

    Attributes:
        text: The same of a shot and of what is asked; ends where the answer begins.
        answer: With its leading space, if any, like each of the options.
        options: Different, the right one among them, in random order.
        space: Of the answers that a guesser draws from.
        shallow: What a rule that follows nothing would say, where one does better than guessing.
    """

    text: str
    answer: str
    options: tuple[str, ...]
    space: Space
    shallow: str | None = None


@dataclass(frozen=True)
class Generated:
    """A task whose items are generated.

    Attributes:
        name: e.g. `counting`.
        group: Of tasks that the paper averages.
        num_items: The paper's.
        shots: The paper's.
        question: Makes one in a language, from the item's rule.
        rule: What an item's shots and its question share; None where they share nothing.
        min_shots: Without which there is no one answer.
        instruction: In each language, once above the shots.
        separator: Between shots.
        stop: Strings that end an answer.
    """

    name: str
    group: str
    num_items: int
    shots: int
    question: Callable[[Draws, str, Any], Question]
    rule: Callable[[Draws], Any] | None = None
    min_shots: int = 0
    instruction: dict[str, str] | None = None
    separator: str = "\n\n"
    stop: tuple[str, ...] = ("\n",)


def form(text: str) -> Space:
    """Of the answers with letters, digits and ideographs at the same places as `text`, in the same case."""
    kinds = (string.ascii_lowercase, string.ascii_uppercase, string.digits, words.IDEOGRAPHS)
    return Space(tuple(next((kind for kind in kinds if letter in kind), letter) for letter in text))


def options(draws: Draws, right: str, others: Sequence[str], another: Callable[[], str]) -> tuple[str, ...]:
    """The right answer and the first of the others that differ, in random order.

    The options of a question differ at one place of the answer, and in the same way: had each of the wrong ones a fault
    of its own, the right one would lie in their middle, and a model that knows nothing would find its likelihood to be
    the highest once in eight times instead of four.

    Args:
        draws: For the order.
        right: The answer.
        others: Preferred.
        another: Draws one more where these are too few.
    """
    found = dict.fromkeys((right, *others))
    while len(found) < NUM_OPTIONS:
        found[another()] = None
    return tuple(draws.shuffled(list(found)[:NUM_OPTIONS]))
