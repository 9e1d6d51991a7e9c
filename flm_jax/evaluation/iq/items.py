"""What a task of the IQ suite is made of: items with a prompt, an answer and options, and their chance levels."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flm_jax.evaluation.iq.draws import Draws
from flm_jax.json_file import write_text


@dataclass(frozen=True)
class Space:
    """The answers among which one guesses who knows an answer's form and nothing else: a choice at each place.

    `Space(("ab", "01"))` has the 4 answers a0, a1, b0, b1; `Space(((" hall", " shed"),))` has 2.
    """

    slots: tuple[Sequence[str], ...]

    @property
    def size(self) -> int:
        """How many answers there are."""
        return math.prod(len(slot) for slot in self.slots)

    def draw(self, draws: Draws) -> str:
        """One of them, all equally likely."""
        return "".join(draws.pick(slot) for slot in self.slots)


@dataclass(frozen=True)
class Item:
    """One question.

    Attributes:
        prompt: Shots included; ends where the answer begins, without a space.
        answer: As it stands behind the prompt, with its leading space where the language writes one.
        options: Different answers of the same form, the right one among them, in random order.
        space: Of the answers that a guesser draws from.
    """

    prompt: str
    answer: str
    options: tuple[str, ...]
    space: Space

    def to_json(self) -> dict[str, Any]:
        """Without the space."""
        return {"prompt": self.prompt, "answer": self.answer, "options": list(self.options)}


@dataclass(frozen=True)
class ItemSet:
    """The items of one task in one language.

    Attributes:
        task: e.g. `counting`.
        language: `en`, `zh`, or that of a custom set.
        group: Of tasks that are averaged, e.g. `Rule`.
        shots: Solved examples in each prompt.
        seed: Of the random choices.
        items: At least one.
        stop: Strings that end an answer.
        baseline: What a rule that understands nothing scores, where it does better than guessing: the share of the
            commonest label, or of answers that are the place named last.
    """

    task: str
    language: str
    group: str
    shots: int
    seed: int
    items: tuple[Item, ...]
    stop: tuple[str, ...] = ("\n",)
    baseline: float | None = None

    @property
    def exact_chance(self) -> float:
        """The share of exact matches that guessing among each item's answer space is expected to have."""
        return sum(1 / item.space.size for item in self.items) / len(self.items)

    @property
    def choice_chance(self) -> float:
        """The share of right choices that guessing among each item's options is expected to have."""
        return sum(1 / len(item.options) for item in self.items) / len(self.items)


def write_items(items: ItemSet, path: str | Path) -> None:
    """A line `{"task", "language", "prompt", "answer", "options"}` for each item."""
    names = {"task": items.task, "language": items.language}
    _write(path, ({**names, **item.to_json()} for item in items.items))


def write_instructions(items: ItemSet, path: str | Path) -> None:
    """A line `{"inputs", "targets"}` for each item: instruction data to train on (`formats.flan`)."""
    _write(path, ({"inputs": item.prompt, "targets": item.answer} for item in items.items))


def _write(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
