"""The cost table of a run that was trained: the sums of its ledger, priced."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from flm_jax import cli
from flm_jax.budget import measured
from flm_jax.budget.formula import flops_per_token
from flm_jax.budget.rates import Rates
from flm_jax.training.ledger import ACTIVITIES, LEDGER_FILE, Entry, Ledger
from tests.models import small_config
from tests.test_cli import failure
from tests.training.conftest import prepared_dir as prepared_dir
from tests.training.test_growth import LARGE, MEDIUM, SMALL, growing

SHAPES = (small_config(), small_config(num_layers=3))
HOUR = dict.fromkeys(ACTIVITIES, 0.0) | {"training": 2700.0, "compiling": 900.0}


def entry(stage: int, first: int, last: int, **changes: Any) -> Entry:
    """An hour of eight devices."""
    tokens = 100 * (last - first)
    made = Entry(
        stage, SHAPES[stage - 1].num_params, first, last, tokens, tokens, 6 * tokens, 8 * tokens, HOUR, 8,
        "NVIDIA H100 80GB HBM3", 8e3, 700.0,
    )  # fmt: skip
    return dataclasses.replace(made, **changes)


# Steps 5 to 10 were taken twice, once by a process that was killed.
LEDGER = Ledger((entry(1, 0, 5), entry(1, 5, 10), entry(1, 5, 12), entry(2, 12, 20)))


def test_kept_tokens_and_everything_that_was_spent(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / LEDGER_FILE).write_text(LEDGER.to_text())
    out = tmp_path / "out.json"
    flags = [f"--run={tmp_path}", "--price=2", "--pue=1.5", "--grid=0.5", f"--json={out}"]
    assert cli.main(["budget", "ledger", *flags, "--law=besiroglu2024"]) == 0
    printed, numbers = capsys.readouterr().out, json.loads(out.read_text())
    first, everything, scratch = numbers["stages"][0], numbers["total"], numbers["from_scratch"]
    assert (first["tokens"], everything["tokens"]) == (1200, 2000)
    assert (first["model_flops"], first["hardware_flops"]) == (6 * 1700, 8 * 1700)
    assert (first["device_hours"], everything["device_hours"]) == (24, 32)
    assert everything["seconds"] == 4 * 3600 and everything["possible_flops"] == 4 * 3600 * 8e3
    assert everything["dollars"] == 64 and everything["kwh"] == pytest.approx(32 * 0.7)
    assert everything["tco2e"] == pytest.approx(32 * 0.7 / 1000 * 1.5 * 0.5)
    # All 2,000 tokens at the last stage's 800 an hour.
    assert (scratch["tokens"], scratch["seconds"]) == (2000, pytest.approx(2.5 * 3600))
    assert (scratch["model_flops"], scratch["dollars"]) == (pytest.approx(12_000), pytest.approx(40))
    assert numbers["saved"]["seconds"] == pytest.approx(1 - 4 / 2.5)
    assert first["formula_flops"] is None and "formula_flops" not in numbers["saved"]
    assert "no formula of stage 1, 2" in printed and "predicted loss" in printed
    assert numbers["machine"]["devices"] == [{"kind": "NVIDIA H100 80GB HBM3", "num_devices": 8}]


def test_the_formula_where_shapes_are_known() -> None:
    shapes = {config.num_params: config for config in SHAPES}
    found = measured.of_ledger(LEDGER, Rates(watts=100.0), 96, shapes, 64)
    each = [flops_per_token(c.num_layers, c.d_model, c.vocab_size, 64, 96) for c in SHAPES]
    assert found.rows[0].formula_flops == pytest.approx(1700 * each[0])
    assert found.total.formula_flops == pytest.approx(1700 * each[0] + 800 * each[1])
    assert found.from_scratch.formula_flops == pytest.approx(2000 * each[1])
    assert found.total.dollars is None and found.total.kwh == pytest.approx(3.2)
    assert not any("no formula" in line for line in found.assumptions)


def test_what_the_ledger_does_not_know() -> None:
    ledger = Ledger((entry(1, 3, 5), entry(2, 5, 9, hardware_flops=None, watts=None, device_kind="cpu")))
    found = measured.of_ledger(ledger, Rates(), 72, {}, 64)
    assert found.total.hardware_flops is None and found.total.kwh is None and found.total.tco2e is None
    text = "\n".join(found.assumptions)
    assert "does not cover steps 0 to 3" in text and "no data sheet gives the power of cpu" in text
    with pytest.raises(ValueError, match="expected steps of stage 2"):
        measured.of_ledger(Ledger((entry(1, 0, 5), entry(2, 5, 5))), Rates(), 72, {}, 64)


@pytest.mark.parametrize(
    "flag",
    [
        "--mfu=0.4",
        "--hardware=a800",
        "--num_devices=8",
        "--gin_file=a.gin",
        "--gin.TRAIN_STEPS=5",
        "--length=64",
    ],
)
def test_nothing_else_describes_a_run_that_was_measured(
    capsys: pytest.CaptureFixture, tmp_path: Path, flag: str
) -> None:
    found = failure(capsys, "budget", "ledger", f"--run={tmp_path}", flag)
    assert f"leave out {flag.split('=')[0]}" in found


def test_no_ledger_there(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    assert "ledger.json, found none" in failure(capsys, "budget", "ledger", f"--run={tmp_path}")


@pytest.mark.usefixtures("quick_compilation")
def test_a_run_that_grew(prepared_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Shapes of earlier stages come from the growths that its checkpoint records."""
    growing(tmp_path, prepared_dir).run()
    assert cli.main(["budget", "ledger", f"--run={tmp_path}", f"--json={tmp_path / 'out.json'}"]) == 0
    numbers = json.loads((tmp_path / "out.json").read_text())
    for stage, config in zip(numbers["stages"], (SMALL, MEDIUM, LARGE), strict=True):
        each = flops_per_token(config.num_layers, config.d_model, config.vocab_size, 64)
        assert stage["params"] == config.num_params
        assert stage["formula_flops"] == pytest.approx(stage["tokens"] * each)
    assert "no formula" not in capsys.readouterr().out
