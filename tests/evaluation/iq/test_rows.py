"""Files that are wrong are named, with the line and what was expected."""

import gzip
import json
from pathlib import Path

import pytest

from flm_jax.evaluation.iq import published
from flm_jax.evaluation.iq.rows import find, read

GOOD = b'{"sentence1": "a", "sentence2": "b", "label": "0"}\n'
LABELS = ("0", "1")


def check(path: Path, content: bytes, message: str) -> None:
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read(path, "label", LABELS)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"sentence1": "a", "sente', r"expected a JSON object, found b.*dev\.json:2"),
        (b"\n", r"expected a JSON object, found b.*dev\.json:2"),
        (b"[1]\n", r"expected a JSON object, found list: .*dev\.json:2"),
        (b'{"sentence1": "\xff"}\n', r"expected a JSON object, .*dev\.json:2"),
        (
            b'{"sentence1": "a"}\n',
            r"expected a label, 0 or 1: field 'label' is missing .* is this a test file",
        ),
        (b'{"label": "2"}\n', r"expected 'label' to be one of 0, 1; found '2': .*dev\.json:2"),
        (b'{"label": null}\n', r"expected 'label' to be one of 0, 1; found None: .*dev\.json:2"),
    ],
)
def test_a_wrong_line(line: bytes, message: str, tmp_path: Path) -> None:
    check(tmp_path / "dev.json", GOOD + line, message)


def test_an_empty_file_and_one_without_a_labelled_row(tmp_path: Path) -> None:
    check(tmp_path / "dev.json", b"", "expected one JSON object a line, found none")
    path = tmp_path / "ocnli.json"
    path.write_text('{"label": "-"}\n')
    with pytest.raises(ValueError, match="found no labelled"):
        read(path, "label", LABELS, skip=("-",))


def test_a_file_that_breaks_off(tmp_path: Path) -> None:
    rows = [json.dumps({"sentence1": f"{number * 7919 % 1000}", "label": "0"}) for number in range(5000)]
    packed = gzip.compress("\n".join(rows).encode())
    path = tmp_path / "dev.json.gz"
    check(
        path,
        packed[: len(packed) // 2],
        r"expected a whole file, found one that breaks off behind line \d{2,}",
    )
    check(path, b"no gzip", "expected a whole file, found one that breaks off behind line 0")
    path.write_bytes(packed)
    assert len(read(path, "label", LABELS)) == 5000


def test_labels_are_the_same_in_every_spelling(tmp_path: Path) -> None:
    path = tmp_path / "val.jsonl"
    path.write_text('{"label": true}\n{"label": "true"}\n{"label": false}\n')
    assert [row.label for row in read(path, "label", ("false", "true"))] == ["true", "true", "false"]
    path.write_text('{"label": 1}\n{"label": "0"}\n')
    assert [row.label for row in read(path, "label", LABELS)] == ["1", "0"]
    assert [row.place for row in read(path, "label", LABELS)] == [f"{path}:1", f"{path}:2"]


def test_a_field_that_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "dev.json"
    path.write_bytes(GOOD * 3 + b'{"sentence1": "a", "label": "1"}\n')
    with pytest.raises(
        ValueError, match=r"expected the fields of .*field 'sentence2' is missing .*dev\.json:4"
    ):
        published.SETS["afqmc"].items(path)


def test_files_are_found_by_their_stems(tmp_path: Path) -> None:
    assert find(tmp_path, ("val", "dev")) is None
    (tmp_path / "dev.json.gz").touch()
    (tmp_path / "dev.txt").touch()
    assert find(tmp_path, ("val", "dev")) == tmp_path / "dev.json.gz"
    (tmp_path / "val.jsonl").touch()
    assert find(tmp_path, ("val", "dev")) == tmp_path / "val.jsonl"
