"""The cost table of a plan: days, money and energy from one count of FLOPs, and the run of the paper."""

import json
from pathlib import Path
from typing import Any

import pytest

from flm_jax import cli
from flm_jax.budget.costs import CostTable, PlannedStage, Speed
from flm_jax.budget.machine import Machine
from flm_jax.budget.rates import Rates
from flm_jax.presets import flm_16b, flm_51b, flm_101b
from tests.test_cli import failure

PAPER = [
    "--gin_file=gin_configs/models/flm_101b.gin",
    "--gin_file=gin_configs/runs/pretrain.gin",
    "--gin_file=gin_configs/growth/flm_101b.gin",
]
A800 = ["--hardware=a800", "--num_devices=192"]
STEPS = ((52_000, 2304), (8_400, 2304), (6_000, 2160))


def machine(**changes: Any) -> Machine:
    hardware = changes.pop("hardware", "a800")
    return Machine.of(hardware, 192, Rates(**{"price": 1.0, **changes}))


def works() -> list[PlannedStage]:
    return [
        PlannedStage(str(index), config, steps, batch, 2048)
        for index, (config, (steps, batch)) in enumerate(
            zip((flm_16b(), flm_51b(), flm_101b()), STEPS, strict=True)
        )
    ]


def test_the_papers_run(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Its tokens a day give its days, its price its money, all tokens at the last speed 76.77 days."""
    days = (9.63, 5.37, 6.54)
    speeds = [work.tokens / 86_400 / each for work, each in zip(works(), days, strict=True)]
    out = tmp_path / "ledger.json"
    flags = [
        f"--tokens_per_second={','.join(map(str, speeds))}",
        "--price=1",
        "--grid=0.585",
        f"--json={out}",
    ]
    assert cli.main(["budget", "ledger", *PAPER, *A800, *flags, "--law=besiroglu2024"]) == 0
    printed, numbers = capsys.readouterr().out, json.loads(out.read_text())
    everything, scratch = numbers["total"], numbers["from_scratch"]
    assert everything["seconds"] / 86_400 == pytest.approx(21.54)
    assert everything["device_hours"] == pytest.approx(99_256, abs=1)
    assert everything["dollars"] == pytest.approx(99_256, abs=1)
    assert everything["kwh"] == pytest.approx(99_256 * 0.4, abs=1)
    assert everything["tco2e"] == pytest.approx(39.70 * 1.1 * 0.585, abs=0.01)
    assert f"{scratch['seconds'] / 86_400:.2f}" == "76.77"
    assert scratch["tokens"] == everything["tokens"] == pytest.approx(311.55e9, rel=1e-4)
    assert numbers["saved"]["seconds"] == pytest.approx(1 - 21.54 / 76.77, abs=1e-4)
    assert numbers["stages"][2]["formula_flops"] == pytest.approx(16.69e21, rel=1e-3)
    predicted = numbers["prediction"]
    assert predicted["same_tokens"] < predicted["grown"] < predicted["same_flops"]
    assert "assumed:" in printed and "predicted loss" in printed


def test_speeds_agree_with_each_other() -> None:
    """MFU, HFU and tokens a second are three ways to say the same."""
    first = CostTable.of(works(), machine(), Speed("mfu", (0.4, 0.45, 0.5)))
    hfu = tuple(each.hardware_flops / each.seconds / machine().peak for each in first.rows)
    rates = tuple(each.tokens / each.seconds for each in first.rows)
    for speed in (Speed("hfu", hfu), Speed("tokens_per_second", rates)):
        again = CostTable.of(works(), machine(), speed)
        assert [each.seconds for each in again.rows] == pytest.approx([each.seconds for each in first.rows])
        assert again.from_scratch.seconds == pytest.approx(first.from_scratch.seconds)
    assert first.rows[0].seconds == pytest.approx(
        works()[0].tokens * flm_16b().flops_per_token(2048) / (192 * 312e12 * 0.4)
    )


def test_the_factor_scales_the_formula_alone() -> None:
    one, other = (CostTable.of(works(), machine(), Speed("mfu", (0.4,)), factor) for factor in (72, 96))
    assert other.total.formula_flops == pytest.approx(one.total.formula_flops * 96 / 72)
    assert other.total.model_flops == one.total.model_flops
    assert other.saved() == pytest.approx(one.saved())


def test_what_is_not_known_is_not_counted() -> None:
    found = CostTable.of(works(), machine(hardware="v5p", price=None), Speed("mfu", (0.4,)))
    assert found.total.dollars is None and found.total.kwh is None and found.total.tco2e is None
    assert any("give --watts" in line for line in found.assumptions)
    found = CostTable.of(
        works(), machine(hardware="v5p", watts=300.0, pue=1.0, grid=1.0), Speed("mfu", (0.4,))
    )
    assert found.total.tco2e == pytest.approx(found.total.device_hours * 300 / 1e6)


def test_steps_are_never_assumed(capsys: pytest.CaptureFixture) -> None:
    """`flm compile` takes some; a price depends on them."""
    flags = ["budget", "ledger", "--gin_file=gin_configs/models/flm_16b.gin", "--mfu=0.4", *A800]
    assert "give --gin.TRAIN_STEPS=value" in failure(capsys, *flags)
    assert cli.main([*flags, "--gin.TRAIN_STEPS=1000"]) == 0
    assert "stage 1: 1,000 steps of 128 sequences of 2,048 tokens" in capsys.readouterr().out


def test_a_models_file_alone_is_one_stage(capsys: pytest.CaptureFixture) -> None:
    """And then growing saves nothing."""
    flags = ["--gin_file=gin_configs/models/flm_16b.gin", "--gin.TRAIN_STEPS=1000", "--mfu=0.4", *A800]
    assert cli.main(["budget", "ledger", *flags, "--global_batch=100", "--length=1024"]) == 0
    printed = capsys.readouterr().out
    assert "1.024e+08" in printed and "0.0% of model FLOPs" in printed


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--mfu=1.2"], "--mfu must be a share of the peak between 0 and 1"),
        (["--mfu=.4,.4"], "--mfu takes one number, or 3, one for each stage; found 2"),
        (["--tokens_per_second=1e9"], "of the peak of 192 a800"),
        (["--mfu=.4", "--hardware=abacus"], "--hardware must be one of a100, a800"),
        (["--mfu=.4", "--price=-1"], "--price must be positive"),
        (["--mfu=.4", "--pue=0.9"], "--pue must be at least 1"),
        (["--mfu=.4", "--factor=0"], "--factor must be positive"),
        (["--mfu=.4", "--law=kaplan"], "--law must be one of hoffmann2022, besiroglu2024 or a JSON file"),
        (["--mfu=.4", "--law=hoffmann2022", "--carryover=2"], "--carryover is the share"),
    ],
)
def test_mistakes(capsys: pytest.CaptureFixture, flags: list[str], expected: str) -> None:
    line = failure(capsys, "budget", "ledger", *PAPER, *A800, *flags)
    assert line.startswith("flm budget ledger: error: ") and expected in line


def test_no_files(capsys: pytest.CaptureFixture) -> None:
    assert "nothing says what to count" in failure(capsys, "budget", "ledger", *A800, "--mfu=.4")
