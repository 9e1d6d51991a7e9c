"""Small sums in English and Chinese, and questions about them: data to try a set-up with, made in seconds.

Every sum of two numbers below 20 once, each as a sentence in both languages and as a question:

    "three plus four is seven."    "三加四等于七。"    "What is 3 plus 4?" -> "seven"

The functions that gin names make what is missing and return a path; for runs of one process.
"""

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

from flm_jax.tasks.corpora import Task
from flm_jax.tasks.prepare import prepare
from flm_jax.tasks.prepared import prepared_tasks
from flm_jax.tasks.vocabulary import Vocabulary, train_tokenizer_from_files

VOCAB_SIZE = 512
_BELOW = 20
_ONES = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
]  # fmt: skip
_TENS = ["", "", "twenty", "thirty"]
_DIGITS = "零一二三四五六七八九"


def english(number: int) -> str:
    """A number below 40: 32 is "thirty-two"."""
    if number < 20:
        return _ONES[number]
    return _TENS[number // 10] + (f"-{_ONES[number % 10]}" if number % 10 else "")


def chinese(number: int) -> str:
    """A number below 40: 32 is "三十二"."""
    tens, ones = divmod(number, 10)
    if not tens:
        return _DIGITS[ones]
    return ("" if tens == 1 else _DIGITS[tens]) + "十" + (_DIGITS[ones] if ones else "")


def text(directory: str, name: str) -> str:
    """The file of `name` (`en`, `zh` or `instruct`) as JSON lines, in `directory/tiny_data`."""
    path = _folder(directory) / f"{name}.jsonl"
    if not path.exists():
        records = _records()[name]
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(
            "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), "utf-8"
        )
        partial.replace(path)
    return str(path)


def tokenizer(directory: str) -> str:
    """A tokenizer of 512 pieces, trained on both languages."""
    path = _folder(directory) / "tokenizer.model"
    if not path.exists():
        train_tokenizer_from_files([text(directory, "en"), text(directory, "zh")], path, VOCAB_SIZE)
    return str(path)


def prepared(
    directory: str,
    tasks: Sequence[Task],
    vocabulary: Vocabulary,
    task_feature_lengths: int | Mapping[str, int],
) -> str:
    """The folder of the prepared tasks, as `PREPARED_DIR`. Importing TensorFlow, where they are not there yet."""
    out = _folder(directory) / "prepared"
    if set(prepared_tasks(out)) != {task.name for task in tasks}:
        prepare(tasks, vocabulary, task_feature_lengths, out)
    return str(out)


def _folder(directory: str) -> Path:
    return Path(directory).expanduser() / "tiny_data"


def _records() -> dict[str, list[dict[str, str]]]:
    pairs = [(a, b) for a in range(_BELOW) for b in range(_BELOW)]
    random.Random(0).shuffle(pairs)
    return {
        "en": [{"text": f"{english(a)} plus {english(b)} is {english(a + b)}."} for a, b in pairs],
        "zh": [{"text": f"{chinese(a)}加{chinese(b)}等于{chinese(a + b)}。"} for a, b in pairs],
        "instruct": [{"inputs": f"What is {a} plus {b}?", "targets": english(a + b)} for a, b in pairs],
    }
