"""The drawings of docs/objectives.md are what the tasks make."""

import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from flm_jax.tasks import formats
from flm_jax.tasks.corpora import Corpus, Task
from flm_jax.tasks.dialogues import Dialogues
from flm_jax.tasks.examples import Example, tokenize
from flm_jax.tasks.packing import cut, features, pack
from flm_jax.tasks.sources import JsonLines
from flm_jax.tasks.teacher import Classification

PAGE = Path(__file__).parents[2] / "docs" / "objectives.md"
RECORDS = JsonLines("x.jsonl", fields=None)
CHAT = [
    ("system", "be brief"), ("user", "who ?"), ("assistant", "the cat"), ("user", "why ?"), ("assistant", "it is late")
]  # fmt: skip


class Words:
    """A token for each word, and for each line feed."""

    def __init__(self) -> None:
        self.words = ["0", "eos"]

    def encode(self, text: str) -> list[int]:
        found = re.findall(r"\n|\S+", text)
        self.words += [word for word in dict.fromkeys(found) if word not in self.words]
        return [self.words.index(word) for word in found]


def drawing(examples: Sequence[Example]) -> str:
    """The examples packed into one row."""
    words = Words()
    tokens = [tokenize(example, words) for example in examples]  # type: ignore[arg-type]
    length = sum(len(ids) for ids, _ in tokens)
    (row,) = pack((part for ids, weights in tokens for part in cut(ids, weights, length)), length)
    batch = features(*(getattr(row, name)[None] for name in ("tokens", "segment_ids", "loss_weights")))

    def named(name: str) -> list[str]:
        return [words.words[token].replace("\n", "⏎") for token in batch[name][0]]

    lines = {
        "target": named("decoder_target_tokens"),
        "input": named("decoder_input_tokens"),
        "segment": list(map(str, batch["decoder_segment_ids"][0])),
        "loss": list(map(str, batch["decoder_loss_weights"][0])),
    }
    widths = np.max([[width(word) for word in line] for line in lines.values()], axis=0)
    return "".join(
        f"    {name:9}"
        + " ".join(" " * (wide - width(word)) + word for word, wide in zip(line, widths, strict=True))
        + "\n"
        for name, line in lines.items()
    )


def width(word: str) -> int:
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in word)


@pytest.mark.parametrize(
    ("task", "document"),
    [
        (Corpus("x", JsonLines("x.jsonl")), {"targets": "the cat sleeps"}),
        (
            Dialogues("x", RECORDS, formats.flan, prompt="Q: {user}\nA: "),
            {"inputs": "who sleeps ?", "targets": "the cat"},
        ),
        (
            Dialogues("x", RECORDS, formats.openai_chat),
            {"messages": [{"role": role, "content": text} for role, text in CHAT]},
        ),
        (
            Classification("x", RECORDS, statements={"good": "{text}\ngood ", "bad": "{text}\nbad "}),
            {"text": "I slept !", "label": "good"},
        ),
    ],
    ids=["language", "instruction", "several turns", "teacher"],
)
def test_a_drawing_is_what_the_task_makes(task: Task, document: dict) -> None:
    assert drawing(task.examples(document)) in PAGE.read_text("utf-8")
