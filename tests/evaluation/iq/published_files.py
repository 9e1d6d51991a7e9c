"""Small files in the published formats of SuperGLUE and CLUE, with texts of our own."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def _boolq(number: int) -> Row:
    return {
        "question": f"does the mill number {number} still turn",
        "passage": f"Mill -- There are many mills; number {number} is one of them.",
        "idx": number,
        "label": number % 3 > 0,
    }


def _wic(number: int) -> Row:
    row = {
        "word": "bank",
        "sentence1": f"The bank {number} is steep.",
        "sentence2": f"Bank {number} is closed.",
    }
    place = {"start1": 4, "start2": 0, "end1": 8, "end2": 4, "version": 1.1}
    return {**row, "idx": number, "label": number % 2 == 0, **place}


def _rte(number: int) -> Row:
    label = ("entailment", "not_entailment")[number % 2]
    return {
        "premise": f"Boat {number} sank.",
        "hypothesis": f"Boat {number} floats.",
        "label": label,
        "idx": number,
    }


def _wsc(number: int) -> Row:
    target = {"span2_index": 4, "span1_index": 0, "span1_text": f"Mark{number}", "span2_text": "He"}
    return {
        "text": f"Mark{number} met Paul. He smiled.",
        "target": target,
        "idx": number,
        "label": number % 2 == 0,
    }


def _afqmc(number: int) -> Row:
    return {
        "sentence1": f"第{number}号怎么还款",
        "sentence2": f"如何归还第{number}号",
        "label": str(number % 4 // 3),
    }


def _csl(number: int) -> Row:
    return {
        "id": number,
        "abst": f"本文研究第{number}号问题。",
        "keyword": ["桥梁", f"问题{number}"],
        "label": str(number % 2),
    }


def _ocnli(number: int) -> Row:
    labels = ("entailment", "neutral", "contradiction", "-")
    votes = {f"label{vote}": labels[number % 4] for vote in range(5)}
    texts = {"level": "easy", "sentence1": f"甲有{number}本书", "sentence2": f"甲没有{number}本书"}
    return {
        **texts,
        "label": labels[number % 4],
        **votes,
        "genre": "lit",
        "prem_id": f"lit_{number}",
        "id": number,
    }


def _cluewsc(number: int) -> Row:
    target = {"span2_index": 6, "span1_index": 0, "span1_text": f"小{number}", "span2_text": "他"}
    return {
        "target": target,
        "idx": number,
        "label": ("true", "false")[number % 2],
        "text": f"小{number}来了，他笑了。",
    }


# Task, folder, file to evaluate, training file, a row of each number.
SETS: list[tuple[str, str, str, str | None, Callable[[int], Row]]] = [
    ("boolq", "BoolQ", "val.jsonl", "train.jsonl", _boolq),
    ("wic", "WiC", "val.jsonl.gz", "train.jsonl.gz", _wic),
    ("rte", "RTE", "val.jsonl", "train.jsonl", _rte),
    ("wsc", "WSC", "val.jsonl", None, _wsc),
    ("afqmc", "afqmc_public", "dev.json", None, _afqmc),
    ("csl", "csl", "dev.json.gz", "train.json.gz", _csl),
    ("ocnli", "ocnli", "dev.json", "train.50k.json", _ocnli),
    ("cluewsc2020", "CLUEWSC2020", "dev.json", "train.json", _cluewsc),
]


def write(path: Path, rows: list[Row]) -> Path:
    """One JSON object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def write_all(data_dir: Path) -> Path:
    """40 rows to evaluate and 40 to show, of each set."""
    for _, folder, evaluation, train, row in SETS:
        write(data_dir / folder / evaluation, [row(number) for number in range(40)])
        if train:
            write(data_dir / folder / train, [row(number) for number in range(1000, 1040)])
    return data_dir
