"""Which files a pattern means, how they begin, and where they are cut."""

import io
import json
import os
from pathlib import Path
from unittest import mock

import fsspec
import pytest
from backports import zstd
from hypothesis import given
from hypothesis import strategies as st

from flm_jax.tasks import templates
from flm_jax.tasks.decontamination import Decontamination
from flm_jax.tasks.problems import Problem, Problems
from flm_jax.tasks.sampling import language_files, sample_languages
from flm_jax.tasks.sources import JsonLines, PlainText, files


def _texts(source: JsonLines | PlainText) -> list[str]:
    problems = Problems()
    texts = [document["targets"] for document in source.read("train", problems)]
    assert not problems.count, problems.places
    return texts


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text(json.dumps({"text": text}) + "\n")
    return path


def test_directories_are_left_out(tmp_path: Path) -> None:
    _write(tmp_path / "a.jsonl", "one")
    (tmp_path / "b.jsonl").mkdir()
    assert _texts(JsonLines(str(tmp_path / "*.jsonl"))) == ["one"]
    with pytest.raises(FileNotFoundError, match=r"found a directory at '.*b\.jsonl'.*`JsonLines\.files`"):
        JsonLines(str(tmp_path / "b.jsonl")).paths("train")
    with pytest.raises(
        FileNotFoundError, match=r"found a directory at '.*b\.jsonl'.*`Decontamination\.files`"
    ):
        Decontamination(str(tmp_path / "b.jsonl")).paths()
    memory = fsspec.filesystem("memory")
    memory.pipe("/finding/a.jsonl", b"{}")
    memory.mkdir("/finding/b.jsonl")
    assert JsonLines("memory://finding/*.jsonl").paths("train") == ["memory:///finding/a.jsonl"]


def test_brackets_in_a_name(tmp_path: Path) -> None:
    path = str(_write(tmp_path / "x[1].jsonl", "one two three four five six seven eight"))
    assert len(_texts(JsonLines(path))) == 1
    assert Decontamination(path).paths() == [path]
    languages = language_files([path])
    samples, problems = sample_languages(languages, "text", 1000, 0)
    assert samples["x[1]"].texts and not problems.count


def test_a_file_of_two_spellings_is_read_once(tmp_path: Path) -> None:
    first = _write(tmp_path / "a" / "x.jsonl", "one")
    (tmp_path / "link.jsonl").symlink_to(first)
    spellings = [
        str(first),
        f"{tmp_path}/a/./x.jsonl",
        f"{tmp_path}/a/../a/*.jsonl",
        str(tmp_path / "link.jsonl"),
    ]
    source = JsonLines(spellings)
    assert source.paths("train") == [str(first)] and _texts(source) == ["one"]
    assert Decontamination(spellings).paths() == [str(first)]


def test_a_name_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    with open(os.fsencode(str(tmp_path)) + b"/\xff.jsonl", "wb") as file:
        file.write(b'{"text": "one"}\n')
    with pytest.raises(ValueError, match=r"names in UTF-8 .*\\udcff\.jsonl'.*`JsonLines\.files`"):
        JsonLines(str(tmp_path / "*")).fingerprint()


def test_evaluation_data_and_samples_as_sources_read_them(tmp_path: Path) -> None:
    text = "one two three four five six seven eight nine ten eleven twelve thirteen"
    line = json.dumps({"text": text}).encode() + b"\n"
    (tmp_path / "x.jsonl.zst").write_bytes(zstd.compress(b"\xef\xbb\xbf" + line))
    fsspec.filesystem("memory").pipe("/finding_too/y.jsonl", line)
    for pattern in (str(tmp_path / "x.jsonl.zst"), "memory://finding_too/*.jsonl"):
        step = Decontamination(pattern)
        assert step.refusal(text) and step.fingerprint()["files"]
        samples, problems = sample_languages(language_files([f"en={pattern}"]), "text", 1000, 0)
        assert samples["en"].texts == [text] and not problems.count


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    bom = b"\xef\xbb\xbf"
    (tmp_path / "a.jsonl").write_bytes(bom + b'{"text": "one"}\n{"text": "\xef\xbb\xbftwo"}\n')
    assert _texts(JsonLines(str(tmp_path / "a.jsonl"))) == [
        "one",
        "\ufefftwo",
    ]  # within a file it is a character
    (tmp_path / "b.txt").write_bytes(bom + b"one\n\ntwo")
    assert _texts(PlainText(str(tmp_path / "b.txt"), separator="\n\n")) == ["one", "two"]
    assert _texts(PlainText(str(tmp_path / "b.txt"))) == ["one\n\ntwo"]


def test_windows_line_ends_need_their_separator(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes(b"one\r\n\r\ntwo")
    assert _texts(PlainText(str(tmp_path / "x.txt"), separator="\r\n\r\n")) == ["one", "two"]
    assert _texts(PlainText(str(tmp_path / "x.txt"), separator="\n\n")) == ["one\r\n\r\ntwo"]


@given(
    parts=st.lists(st.text("ab|", max_size=12), max_size=8),
    separator=st.sampled_from(["", "|", "||", "|a|", "abab", "|||||"]),
    max_bytes=st.integers(1, 14),
    block=st.integers(1, 7),
)
def test_pieces_are_those_of_split(parts: list[str], separator: str, max_bytes: int, block: int) -> None:
    raw = separator.join(parts).encode()
    expected = raw.split(separator.encode()) if separator else [raw]
    with mock.patch.object(files, "_BLOCK", block):
        found = list(files.pieces(io.BytesIO(raw), separator.encode(), max_bytes))
    assert len(found) == len(expected)
    for piece, whole in zip(found, expected, strict=True):
        if len(whole) <= max_bytes:
            assert piece == whole
        else:
            assert isinstance(piece, Problem) and f"a document of {len(whole):,} bytes" in str(piece)


def test_a_value_that_does_not_fit_its_format_is_a_problem() -> None:
    template = "{{{name}}}: {score:.1f} of {out[of]!r:>4}"
    assert templates.fill(template, {"name": "x", "score": 1, "out": {"of": 5}}) == "{x}: 1.0 of    5"
    with pytest.raises(Problem, match=r"field 'score' does not fit '\{score:\.1f\}', found 'n/a'"):
        templates.fill(template, {"name": "x", "score": "n/a", "out": {"of": 5}})
