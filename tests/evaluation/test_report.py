"""Checkpoints side by side: every number where it belongs, in the table, in Markdown, in JSON and drawn."""

import dataclasses
import json
from pathlib import Path

from matplotlib import image

from flm_jax.evaluation.measured import BENCHMARKS, HELD_OUT, IQ, Measured
from flm_jax.evaluation.report import Evaluated, Report
from flm_jax.evaluation.spent import Spent


def exact(value: float, task: str = "counting_en") -> Measured:
    low, high = value - 0.05, value + 0.05
    return Measured(IQ, task, "exact", value, low, high, 148, True, {"oracle": 1.0, "chance": 1e-9})


def choice(value: float, task: str = "counting_en") -> Measured:
    return Measured(IQ, task, "choice", value, value - 0.1, value + 0.1, 148, True, {"chance": 0.25})


def checkpoint(model_dir: str, step: int, loss: float, *measures: Measured, flops: float = 4e12) -> Evaluated:
    text = Measured(HELD_OUT, "en", "loss", loss, count=8094)
    bits = Measured(HELD_OUT, "en", "bits_per_byte", loss / 2, count=8094)
    cost = Spent(tokens=512_000, model_flops=flops, hardware_flops=int(1.1 * flops), device_hours=None)
    return Evaluated(model_dir, step, 1_445_376, cost, (text, bits, *measures))


REPORT = Report(
    (
        checkpoint("runs/grown", 250, 5.25, exact(0.2), choice(0.3)),
        checkpoint("runs/grown", 400, 4.75, exact(0.5), choice(0.6), flops=8e12),
        dataclasses.replace(checkpoint("runs/scratch", 300, 4.9), notes=("12 questions were cut",)),
    ),
    published={"GPT-3": {"iq/counting_en/exact": 0.8243}, "GLM-130B": {"iq/counting_en/exact": 0.6081}},
    caveats=("the prompts are not published",),
)


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_column_for_each_checkpoint() -> None:
    lines = REPORT.table().splitlines()
    assert lines[0].split() == ["grown@250", "grown@400", "scratch@300"]
    flops = next(line for line in lines if line.startswith("model FLOPs"))
    assert flops.split()[2:] == ["4e+12", "8e+12", "4e+12"]
    assert next(line for line in lines if line.startswith("device-hours")).split()[1:] == ["-", "-", "-"]
    loss = next(line for line in lines if line.split()[:2] == ["en", "loss"])
    assert loss.split() == ["en", "loss", "8,094", "5.2500", "4.7500", "4.9000"]
    assert lines[-1] == "scratch@300: 12 questions were cut"
    assert "- the prompts are not published" in lines  # beside what is printed too


def test_beside_chance_and_what_was_published() -> None:
    lines = REPORT.markdown().splitlines()
    head = next(line for line in lines if "GPT-3" in line)
    assert cells(head) == ["task", "measure", "n", *REPORT.labels, "oracle", "chance", "GPT-3", "GLM-130B"]
    row = next(line for line in lines if line.startswith("| counting_en | exact"))
    assert cells(row)[2:] == [
        "148",
        "20.0% (15-25)",
        "50.0% (45-55)",
        "-",
        "100.0%",
        "1e-07%",
        "82.4%",
        "60.8%",
    ]
    row = next(line for line in lines if line.startswith("| counting_en | choice"))
    assert cells(row)[-4:] == ["-", "25.0%", "-", "-"]
    assert "- the prompts are not published" in lines and "- scratch@300: 12 questions were cut" in lines


def test_one_checkpoint_has_a_row_for_each_task() -> None:
    lines = Report(REPORT.checkpoints[:1], REPORT.published).table().splitlines()
    assert lines[0] == "runs/grown/checkpoint_250: 1,445,376 parameters"
    assert lines[1].split() == ["task", "n", "loss", "bits_per_byte"]
    assert lines[2].split() == ["en", "8,094", "5.2500", "2.6250"]
    assert lines[4].split() == [
        "task",
        "n",
        "exact",
        "chance",
        "choice",
        "chance",
        "oracle",
        "GPT-3",
        "GLM-130B",
    ]
    assert lines[5].split()[2:] == [
        "20.0%",
        "(15-25)",
        "1e-07%",
        "30.0%",
        "(20-40)",
        "25.0%",
        "100.0%",
        "82.4%",
        "60.8%",
    ]


def test_how_it_was_asked_stands_beside_it() -> None:
    acc = Measured(BENCHMARKS, "arc_easy", "acc", 0.3, count=20, share=True, setting="2-shot, version 1.0")
    asked, plain = checkpoint("r", 1, 5.0, acc), checkpoint("r", 2, 5.0, acc)
    for report in (Report((asked,)), Report((asked, plain))):
        assert "arc_easy  2-shot, version 1.0  " in report.table() and "setting" in report.table()
    assert "setting" not in REPORT.table()


def test_runs_of_one_name_are_told_apart() -> None:
    twins = Report((checkpoint("a/run", 1, 5.0), checkpoint("b/run", 1, 5.0), checkpoint("b/run", 2, 5.0)))
    assert twins.labels == ["a/run@1", "b/run@1", "b/run@2"]


def test_files(tmp_path: Path) -> None:
    paths = REPORT.write(tmp_path / "out")
    assert [path.name for path in paths] == ["report.json", "report.md", "report.png"]
    values = json.loads(paths[0].read_text())
    assert [each["label"] for each in values["checkpoints"]] == REPORT.labels
    assert values["checkpoints"][0]["tasks"] == {"en": {"tokens": 8094, "loss": 5.25, "bits_per_byte": 2.625}}
    assert Measured(**values["checkpoints"][1]["measures"][2]) == exact(0.5)
    assert values["published"]["GPT-3"] == {"iq/counting_en/exact": 0.8243}
    assert "![figure](report.png)" in paths[1].read_text()
    pixels = image.imread(paths[2])[..., :3]
    assert len({tuple(pixel) for row in pixels[::4, ::4] for pixel in row.tolist()}) > 20  # curves and bars


def test_a_figure_of_whatever_there_is(tmp_path: Path) -> None:
    """Benchmarks alone, FLOPs unknown, tasks that not all have, intervals that are not known."""
    unknown = Spent(None, None, None, None)
    acc = Measured(BENCHMARKS, "mmlu", "acc", 0.3, count=20, share=True)
    some = [
        dataclasses.replace(checkpoint("r", 1, 5.0), spent=unknown),
        Evaluated("r", 2, 10, unknown, (acc,)),
    ]
    assert all(path.stat().st_size for path in Report(tuple(some)).write(tmp_path))
