"""Rows of classification sets, read from JSON-lines files as they are published, compressed or not."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flm_jax.tasks.problems import Problem
from flm_jax.tasks.sources import files
from flm_jax.tasks.templates import look_up

# Behind a file's stem, in the order in which they are looked for.
_SUFFIXES = tuple(f".{kind}{packed}" for kind in ("jsonl", "json") for packed in ("", ".gz", ".zst"))


class Row(NamedTuple):
    """A line of a file."""

    fields: dict[str, Any]
    label: str  # one of the set's labels
    place: str  # e.g. "RTE/val.jsonl:7"


def find(folder: Path, stems: Sequence[str]) -> Path | None:
    """The file of a folder with the first of these names, whatever its suffix; None where there is none."""
    paths = (folder / (stem + suffix) for stem in stems for suffix in _SUFFIXES)
    return next((path for path in paths if path.is_file()), None)


def read(path: Path, label_field: str, labels: Sequence[str], skip: Sequence[str] = ()) -> list[Row]:
    """The labelled rows of a file.

    Args:
        path: One JSON object a line, decompressed by its suffix.
        label_field: Of the label; `true`, `"true"` and 1, `"1"` are the same.
        labels: The labels that there are.
        skip: Labels whose rows are left out, such as OCNLI's `-` where the annotators did not agree.

    Raises:
        ValueError: the file is damaged or has no rows, or a line is no JSON object or has no label, or one that is
            unknown; with the file, the line and what was expected.
    """
    rows = []
    number = 0
    try:
        with files.open_file(str(path)) as file:
            for number, line in enumerate(file, 1):
                place = f"{path}:{number}"
                fields = _parsed(line, place)
                if (label := _label(fields, label_field, (*labels, *skip), place)) not in skip:
                    rows.append(Row(fields, label, place))
    except files.DamagedError as error:
        raise ValueError(
            f"expected a whole file, found one that breaks off behind line {number} ({error}): {path}"
        ) from error
    if not rows:
        raise ValueError(
            f"expected one JSON object a line, found {'none' if not number else 'no labelled'}: {path}"
        )
    return rows


def _parsed(line: bytes, place: str) -> dict[str, Any]:
    try:
        fields = json.loads(line)
    except ValueError as error:  # UnicodeDecodeError too
        raise ValueError(f"expected a JSON object, found {line[:60]!r} ({error}): {place}") from error
    if not isinstance(fields, dict):
        raise ValueError(f"expected a JSON object, found {type(fields).__name__}: {place}")
    return fields


def _label(fields: dict[str, Any], label_field: str, labels: Sequence[str], place: str) -> str:
    try:
        value = look_up(fields, label_field)
    except Problem as error:
        raise ValueError(
            f"expected a label, {' or '.join(labels)}: {error}; is this a test file, published without labels? {place}"
        ) from error
    label = str(value).lower() if isinstance(value, bool) else str(value)
    if label not in labels:
        raise ValueError(
            f"expected {label_field!r} to be one of {', '.join(labels)}; found {value!r}: {place}"
        )
    return label
