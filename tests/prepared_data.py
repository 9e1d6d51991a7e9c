"""A small bilingual prepared folder, the same on every machine, for tests that need data to train on."""

import json
import random
from pathlib import Path

from flm_jax.tasks.corpora import Corpus, Instructions
from flm_jax.tasks.prepare import prepare
from flm_jax.tasks.sources import JsonLines
from flm_jax.tasks.vocabulary import Vocabulary, train_tokenizer

VOCAB_SIZE = 512
_SYLLABLES = ["ka", "lo", "mi", "tan", "re", "su", "vor", "ne", "pil", "da"]
_CHARACTERS = "天地人山水火木金土日月星风云雨雪花鸟鱼虫"


def english(draw: random.Random, words: int) -> str:
    """A sentence of made-up words."""
    made = ["".join(draw.choices(_SYLLABLES, k=draw.randint(1, 3))) for _ in range(words)]
    return " ".join(made).capitalize() + "."


def chinese(draw: random.Random, characters: int) -> str:
    """Characters with a full stop."""
    return "".join(draw.choices(_CHARACTERS, k=characters)) + "。"


def write_jsonl(path: Path, records: list[dict[str, str]]) -> Path:
    """Writes one JSON object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    path.write_text("".join(lines), encoding="utf-8")
    return path


def write_texts(directory: Path, documents: int = 300) -> dict[str, Path]:
    """Writes `en.jsonl`, `zh.jsonl` and `instruct.jsonl`; returns their paths by task name."""
    draw = random.Random(0)
    en = [{"text": english(draw, draw.randint(3, 150))} for _ in range(documents)]
    zh = [{"text": chinese(draw, draw.randint(5, 300))} for _ in range(documents)]
    instruct = [
        {"inputs": english(draw, draw.randint(2, 12)), "targets": chinese(draw, draw.randint(2, 20))}
        for _ in range(documents)
    ]
    records = {"en": en, "zh": zh, "instruct": instruct}
    return {name: write_jsonl(directory / f"{name}.jsonl", found) for name, found in records.items()}


def make_tokenizer(directory: Path, files: dict[str, Path]) -> Vocabulary:
    """A tokenizer of `VOCAB_SIZE` pieces trained on the two corpora."""
    lines = [
        json.loads(line) for name in ("en", "zh") for line in files[name].read_text("utf-8").splitlines()
    ]
    return train_tokenizer((line["text"] for line in lines), directory / "tokenizer.model", VOCAB_SIZE)


def tasks(files: dict[str, Path]) -> list[Corpus | Instructions]:
    """The tasks `en`, `zh` and `instruct`; every 10th document is held out."""
    fields = {"inputs": "inputs", "targets": "targets"}
    return [
        Corpus("en", JsonLines(str(files["en"]), validation_every=10)),
        Corpus("zh", JsonLines(str(files["zh"]), validation_every=10)),
        Instructions("instruct", JsonLines(str(files["instruct"]), fields, validation_every=10)),
    ]


def make_prepared(directory: Path, length: int = 64) -> Path:
    """Prepares the tasks `en`, `zh` and `instruct` with `train` and `validation`; returns the folder.

    A few hundred sequences of `length` tokens. Imports TensorFlow: call it once per session.
    """
    files = write_texts(directory / "texts")
    prepared = directory / "prepared"
    prepare(tasks(files), make_tokenizer(directory, files), length, prepared)
    return prepared
