"""`flm scaling fit`, from a CSV to the table, the JSON and the figure."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flm_jax import cli
from flm_jax.scaling import bands
from flm_jax.scaling.laws import LossLaw
from tests.scaling.published import CSV, LOSSES, MILLIONS

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def points(tmp_path: Path) -> Path:
    path = tmp_path / "points.csv"
    path.write_text(CSV, encoding="utf-8")
    return path


def fitted(capsys: Any, tmp_path: Path, *arguments: str) -> tuple[dict[str, Any], str]:
    """The JSON and the table."""
    assert cli.main(["scaling", "fit", *arguments, f"--json={tmp_path / 'new' / 'out.json'}"]) == 0
    return json.loads((tmp_path / "new" / "out.json").read_text("utf-8")), capsys.readouterr().out


def test_published_points(capsys: Any, tmp_path: Path, points: Path) -> None:
    figure = tmp_path / "figures" / "fit.png"
    found, table = fitted(capsys, tmp_path, str(points), "--fit_first=7", f"--figure={figure}")
    for name, expected in (("a", 2.469), ("b", -0.423), ("c", 2.923)):
        assert found[name] == pytest.approx(expected, abs=1e-3)
        low, high = found["confidence_intervals"][name]
        assert low < found[name] < high
    rows = found["predictions"]
    assert [row["params_millions"] for row in rows] == list(MILLIONS)
    assert [row["loss"] for row in rows] == list(LOSSES)
    assert [row["fitted"] for row in rows] == [True] * 7 + [False] * 3
    assert [row["width"] for row in rows[-3:]] == ["1024", "2048", "3072"]
    for row in rows:
        assert row["error"] == pytest.approx(row["predicted"] - row["loss"])
        assert row["low"] < row["predicted"] < row["high"]
    assert max(abs(row["error"]) for row in rows[7:]) == found["held_out_max_error"] < 0.01
    assert rows[-1]["times_largest_fitted"] == pytest.approx(1446.72 / 154.21)
    assert found["used"] == {"csv": str(points), "fit_first": 7}
    assert "L(C) = 2.469 C^-0.4231 + 2.923" in table and "up to 9.4 times the largest fitted size" in table
    assert figure.read_bytes().startswith(PNG)


def test_file_as_flag_and_all_rows_fitted(capsys: Any, tmp_path: Path, points: Path) -> None:
    flag, table = fitted(capsys, tmp_path, f"--csv={points}")
    positional, _ = fitted(capsys, tmp_path, str(points))
    assert flag == positional
    assert flag["num_fitted"] == 10 and flag["held_out_max_error"] is None
    assert "held out" not in table


def test_models_that_nobody_trained(capsys: Any, tmp_path: Path, points: Path) -> None:
    without, _ = fitted(capsys, tmp_path, str(points), "--fit_first=7")
    found, table = fitted(capsys, tmp_path, str(points), "--fit_first=7", "--predict=5000")
    assert found["predictions"][:-1] == without["predictions"]
    row = found["predictions"][-1]
    assert row["loss"] is None and row["error"] is None and row["fitted"] is False
    assert row["predicted"] == pytest.approx(found["a"] * 5000 ** found["b"] + found["c"])
    assert "to train" in table and found["num_held_out"] == 3


def test_tokens_make_it_a_law_of_both(capsys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(bands.RESAMPLES, LossLaw, 20)
    law, random = LossLaw(1.69, 406.4, 0.34, 410.7, 0.28), np.random.default_rng(0)
    models = [(n, d) for n in (50, 100, 200, 400) for d in (500, 2000, 5000, 20000)] + [(3000, 60000)]
    lines = ["tokens_millions, loss ,params_millions,note"]
    for n, d in models:
        loss = law.loss(n * 1e6, d * 1e6) * (1 + 0.001 * random.standard_normal())
        lines.append(f"{d},{loss:.4f},{n},a remark")
    path, figure = tmp_path / "both.csv", tmp_path / "both.png"
    path.write_text("\ufeff" + "\r\n".join(lines), encoding="utf-8")  # as spreadsheets write it
    found, table = fitted(
        capsys, tmp_path, str(path), "--fit_first=16", "--predict=7000,140000", f"--figure={figure}"
    )
    assert {"E", "A", "alpha", "B", "beta"} <= set(found) and "a" not in found
    assert found["alpha"] == pytest.approx(0.34, abs=0.05)
    held_out, wanted = found["predictions"][-2:]
    assert held_out["tokens_millions"] == 60000 and abs(held_out["error"]) < 0.05
    expected = LossLaw(*(found[name] for name in ("E", "A", "alpha", "B", "beta"))).loss(7e9, 1.4e11)
    assert wanted["predicted"] == pytest.approx(expected)
    assert "L(N, D) = " in table and "tokens (M)" in table
    assert figure.read_bytes().startswith(PNG)


def failure(capsys: Any, *arguments: str) -> str:
    assert cli.main(["scaling", "fit", *arguments]) == cli.EXIT_USAGE
    printed = capsys.readouterr().err.strip().splitlines()
    assert len(printed) == 1, printed
    assert printed[0].startswith("flm scaling fit: error: ")
    return printed[0]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            "",
            "expected the columns params_millions, loss and, for L(N, D), tokens_millions; found an empty file",
        ),
        ("params,loss\n1,2\n", "expected the columns params_millions, loss"),
        ("params_millions;loss\n1;2\n", "found params_millions;loss"),
        ("params_millions,loss\n1,4\n\n2,low\n", "row 4: expected a positive number as loss, found 'low'"),
        ("params_millions,loss\n1,4\n2\n", "row 3: expected a positive number as loss, found ''"),
        ("params_millions,loss\n-1,4\n", "row 2: expected a positive number as params_millions, found '-1'"),
        ("params_millions,loss\n1,nan\n", "row 2: expected a positive number as loss, found 'nan'"),
        ("params_millions,loss,tokens_millions\n1,4,0\n", "as tokens_millions, found '0'"),
        ("params_millions,loss\n", "at least 4 sizes to fit a, b and c to, found 0"),
        ("params_millions,loss\n1,3\n2,3.1\n4,3.2\n8,3.3\n", "no power law to be seen"),
    ],
)
def test_wrong_files(capsys: Any, tmp_path: Path, content: str, expected: str) -> None:
    path = tmp_path / "points.csv"
    path.write_text(content, encoding="utf-8")
    assert expected in failure(capsys, str(path))


def test_wrong_flags(capsys: Any, tmp_path: Path, points: Path) -> None:
    assert "--fit_first of at most the CSV's 10 rows, found 11" in failure(
        capsys, str(points), "--fit_first=11"
    )
    assert "found 3: add rows, or raise --fit_first" in failure(capsys, str(points), "--fit_first=3")
    assert "expected --predict=MILLIONS, by the CSV's columns; found 1,2" in failure(
        capsys, str(points), "--predict=1,2"
    )
    assert "nowhere.csv" in failure(capsys, str(tmp_path / "nowhere.csv"))
    binary = tmp_path / "sheet.xlsx"
    binary.write_bytes(b"PK\x03\x04\xff\xfe")
    assert "expected a CSV file in UTF-8" in failure(capsys, str(binary))
    for arguments, expected in (
        ([], "one of the arguments CSV --csv is required"),
        ([str(points), f"--csv={points}"], "not allowed with"),
        ([str(points), "--fit_first=0"], "expected at least 1"),
        ([str(points), "--predict=big"], "expected positive MILLIONS or MILLIONS,TOKENS_MILLIONS, found big"),
    ):
        with pytest.raises(SystemExit) as stopped:
            cli.main(["scaling", "fit", *arguments])
        assert stopped.value.code == 2 and expected in capsys.readouterr().err


def test_help_shows_how_the_file_is_given(capsys: Any) -> None:
    with pytest.raises(SystemExit):
        cli.main(["scaling", "fit", "--help"])
    printed = capsys.readouterr().out
    assert (
        "flm scaling fit CSV [--fit_first=N] [--json FILE] [--figure PNG]" in printed and "--csv" in printed
    )


def test_the_page_shows_what_is_printed(capsys: Any, points: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "scaling.md").read_text("utf-8")
    assert cli.main(["scaling", "fit", str(points), "--fit_first=7", "--predict=5000"]) == 0
    assert f"```csv\n{CSV}```" in page
    assert f"```text\n{capsys.readouterr().out}```" in page
