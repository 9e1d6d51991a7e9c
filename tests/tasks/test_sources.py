import gzip
import json
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flm_jax.tasks.sources import JsonLines, PlainText, Problems, Tfds

GOOD = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
BAD = st.sampled_from(
    [
        b"{broken",
        b'{"other": "x"}',
        b'{"text": 7}',
        b'{"text": ""}',
        b'["a list"]',
        b'{"text": "\xff\xfe"}',
        b'{"text": "\\ud800"}',
        b"[" * 100_000,
        b"null",
    ]
)


def _texts(source: JsonLines | PlainText, split: str, problems: Problems) -> list[str]:
    return [document["targets"] for document in source.read(split, problems)]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(lines=st.lists(GOOD | BAD, min_size=1, max_size=40), compressed=st.booleans())
def test_bad_lines_are_counted_with_their_place_and_the_rest_is_unharmed(
    tmp_path: Path, lines: list[str | bytes], compressed: bool
) -> None:
    raw = b"".join(
        (line if isinstance(line, bytes) else json.dumps({"text": line}).encode()) + b"\n" for line in lines
    )
    path = tmp_path / ("x.jsonl.gz" if compressed else "x.jsonl")
    path.write_bytes(gzip.compress(raw) if compressed else raw)
    problems = Problems()
    assert _texts(JsonLines(str(path)), "train", problems) == [x for x in lines if isinstance(x, str)]
    bad = [number for number, line in enumerate(lines, start=1) if isinstance(line, bytes)]
    assert problems.count == len(bad)
    assert [place.split(": ")[0] for place in problems.places] == [f"{path}:{number}" for number in bad[:20]]
    assert problems.report().count("\n") == min(len(bad), 20) + (len(bad) > 20)


def test_reasons_are_given(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"other": "x"}\n{"text": 7}\n{"text": "\xff"}\n\n{"text": "fine"}\n')
    problems = Problems()
    assert _texts(JsonLines(str(path)), "train", problems) == ["fine"]
    assert problems.places == [
        f"{path}:1: field 'text' is missing (found ['other'])",
        f"{path}:2: expected a string in field 'text', found int",
        f"{path}:3: not UTF-8 (byte 10 of the line)",
    ]


def test_a_truncated_gzip_is_read_up_to_its_end(tmp_path: Path) -> None:
    lines = b"".join(json.dumps({"text": f"{n * 7919 % 10007}" * 9}).encode() + b"\n" for n in range(5000))
    path = tmp_path / "x.jsonl.gz"
    path.write_bytes(gzip.compress(lines)[:-2000])
    problems = Problems()
    read = _texts(JsonLines(str(path)), "train", problems)
    assert 100 < len(read) < 5000
    assert problems.count == 1
    assert "the file is damaged" in problems.places[0]


def test_every_nth_document_is_held_out(tmp_path: Path) -> None:
    for name in "ab":
        lines = [json.dumps({"text": f"{name}{number}"}) for number in range(5)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join([*lines, "broken"]))
    source = JsonLines(str(tmp_path / "*.jsonl"), validation_every=3)
    assert list(source.splits) == ["train", "validation"]
    problems = Problems()
    # Of twelve lines the 3rd, 6th (broken), 9th and 12th (broken).
    assert _texts(source, "validation", problems) == ["a2", "b2"]
    assert _texts(source, "train", problems) == ["a0", "a1", "a3", "a4", "b0", "b1", "b3", "b4"]
    assert problems.count == 2  # each bad line once, in the split that it falls into


def test_validation_files_win_over_holding_out(tmp_path: Path) -> None:
    for name in ("train", "held"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"text": name}))
    files = {"train": str(tmp_path / "train.jsonl"), "validation": [str(tmp_path / "held.jsonl")]}
    source = JsonLines(files, validation_every=2)
    assert _texts(source, "train", Problems()) == ["train"]
    assert _texts(source, "validation", Problems()) == ["held"]
    with pytest.raises(ValueError, match="expected one of the splits"):
        _texts(source, "test", Problems())


def test_missing_files_name_the_pattern_and_the_binding(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\*\.jsonl.*JsonLines\.files"):
        JsonLines(str(tmp_path / "none*.jsonl")).fingerprint()
    with pytest.raises(FileNotFoundError, match=r"PlainText\.files"):
        list(PlainText(str(tmp_path / "none.txt")).read("train", Problems()))
    with pytest.raises(ValueError, match=r"split 'train'.*JsonLines\.files"):
        JsonLines({"validation": "x.jsonl"})
    with pytest.raises(ValueError, match=r"JsonLines\.validation_every, found 1"):
        JsonLines("x.jsonl", validation_every=1)


def test_fingerprint_follows_the_files(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": "a"}')
    before = JsonLines(str(path)).fingerprint()
    assert JsonLines(str(path)).fingerprint() == before
    assert JsonLines(str(path), {"targets": "body"}).fingerprint() != before
    path.write_text('{"text": "ab"}')
    assert JsonLines(str(path)).fingerprint() != before


def test_plain_text_by_file_and_by_separator(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("one\n\n二\n\n".encode() + b"\xff\xff\n\nfour\n\n")
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"five"))
    problems = Problems()
    split = PlainText([str(tmp_path / "a.txt"), str(tmp_path / "b.txt.gz")], separator="\n\n")
    assert _texts(split, "train", problems) == ["one", "二", "four", "five"]
    assert problems.places == [f"{tmp_path / 'a.txt'}, document 3: not UTF-8 (byte 0 of the document)"]
    assert _texts(PlainText(str(tmp_path / "b*")), "train", problems) == ["five"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20)
@given(sizes=st.lists(st.integers(1, 400_000), max_size=12))
def test_separators_across_blocks_are_found(tmp_path: Path, sizes: list[int]) -> None:
    documents = [f"{number % 10}" * size for number, size in enumerate(sizes)]
    (tmp_path / "x.txt").write_text("<|end|>".join(documents))
    source = PlainText(str(tmp_path / "x.txt"), separator="<|end|>")
    assert _texts(source, "train", Problems()) == documents


def test_tfds_reads_fields_and_reports_what_is_wrong() -> None:
    tfds = pytest.importorskip("tensorflow_datasets")
    examples = [{"body": b"one"}, {"body": b"\xff"}, {"title": b"x"}, {"body": "二".encode()}]
    with mock.patch.object(tfds, "load") as load, mock.patch.object(tfds, "as_numpy", return_value=examples):
        load.return_value = (None, None)
        problems = Problems()
        source = Tfds("wiki/1.0.0", {"train": "train[:9]"}, {"targets": "body"})
        assert [document["targets"] for document in source.read("train", problems)] == ["one", "二"]
    assert load.call_args.kwargs["split"] == "train[:9]"
    assert problems.count == 2
    assert problems.places[0].startswith("wiki/1.0.0 train[:9], example 1: ")
