"""Plans: the paper's budget, the answer "do not grow here", alternatives, and the gin file that trains."""

import dataclasses
import itertools
import json
import re
import time
from pathlib import Path
from typing import Any

import gin
import numpy as np
import pytest

from flm_jax import cli, grow
from flm_jax.budget import emit, ladder, plan_report, planner
from flm_jax.budget.machine import Machine
from flm_jax.budget.planner import Wish, plan
from flm_jax.budget.rates import Rates
from flm_jax.config import ModelConfig
from flm_jax.presets import flm_51b, flm_101b, flm_tiny, llama_tiny
from flm_jax.scaling.published_laws import LAWS
from flm_jax.training import described_run
from flm_jax.training.checkpoints import load_params
from tests.test_cli import failure
from tests.training import runs
from tests.training.conftest import prepared_dir as prepared_dir

LAW = LAWS["besiroglu2024"]
PAPER = [
    "--budget=100000", "--hardware=a800", "--num_devices=192", "--price=1", "--mfu=0.43", "--law=besiroglu2024",
]  # fmt: skip


def wish(**changes: Any) -> Wish:
    """The paper's budget on its machine."""
    machine = Machine.of("a800", 192, Rates(price=1.0))
    settings: dict[str, Any] = {
        "shape": flm_101b(),
        "machine": machine,
        "mfu": 0.43,
        "seconds": machine.seconds(100_000, "dollars"),
        "law": LAW,
        "length": 2048,
        "batch_size": 2304,
    }
    return Wish(**settings | changes)


@pytest.mark.parametrize("shape", [flm_101b(), flm_tiny(), llama_tiny()], ids=["flm", "tiny", "llama"])
def test_families_grow_into_what_follows(shape: ModelConfig) -> None:
    shapes = list(itertools.islice(ladder.family(shape), 8))
    assert all(small.num_params < large.num_params for small, large in itertools.pairwise(shapes))
    for small, large in itertools.pairwise(shapes):
        assert grow.plan(small, large).target.num_params == large.num_params
    assert shape in itertools.islice(ladder.family(shape), shape.num_heads)


def test_the_published_shape_and_ours_are_in_the_family() -> None:
    shapes = list(itertools.islice(ladder.family(flm_101b(), multiple=8), 10))
    assert shapes[-1] == flm_101b() and shapes[-3] == flm_51b()
    assert {shape.num_heads % 8 for shape in shapes} == {0}


@pytest.mark.parametrize("multiple", [1, 8, 16])
def test_the_best_size_lies_within_the_ladder(multiple: int) -> None:
    """Also where the next shape is five times as large as the smallest."""
    asked = wish(heads_multiple=multiple)
    found = ladder.ladder(asked.shape, LAW, asked.problem.flops, 2048, float("inf"), multiple)
    losses = [LAW.loss(each.num_params, asked.problem.flops / each.flops_per_token(2048)) for each in found]
    assert 1e10 < found[losses.index(min(losses))].num_params < 4e10
    assert losses[0] > min(losses) < losses[-1]
    assert plan(asked).grows


def test_a_shape_without_a_family() -> None:
    with pytest.raises(ValueError, match=r"as much of ModelConfig\.d_ff for each head"):
        next(ladder.family(dataclasses.replace(flm_tiny(), d_ff=1023)))


def test_the_papers_budget(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """A schedule with its ledger, well within the half minute that it may take."""
    out = tmp_path / "plan.json"
    start = time.monotonic()
    assert cli.main(["budget", "plan", *PAPER, f"--json={out}"]) == 0
    assert time.monotonic() - start < 30
    printed, numbers = capsys.readouterr().out, json.loads(out.read_text())
    assert printed.startswith("grow: ") and "assumed:" in printed
    stages, total = numbers["plan"], numbers["ledger"]["total"]
    assert len(stages["params"]) == 3 and stages["params"] == sorted(stages["params"])
    assert 99_900 < total["dollars"] <= 100_000 and total["device_hours"] == pytest.approx(total["dollars"])
    assert stages["tokens"] == [steps * 2304 * 2048 for steps in stages["steps"]]
    others = [each["loss"] for each in numbers["alternatives"] if each["loss"] is not None]
    assert len(numbers["alternatives"]) == 7 and min(others) > stages["loss"] - 1e-6
    assert numbers["from_scratch"]["loss"] > numbers["grown"]["loss"]
    assert 0.01 < numbers["gain"] < 0.2 and 0.3 < numbers["break_even_carryover"] < 1


def test_do_not_grow_here() -> None:
    """Below the break-even carryover the answer is one stage; above it, growth."""
    edge = plan(wish(max_stages=2)).break_even
    assert edge is not None
    below, above = (
        plan(wish(max_stages=2, carryover=value, min_gain=0.01)) for value in (edge - 0.02, edge + 0.02)
    )
    assert not below.grows and below.gain < 0.01 and above.grows and above.gain >= 0.01
    assert "do not grow here" in plan_report.verdict(below)
    assert below.best.shapes == below.from_scratch.shapes and len(below.steps) == 1
    assert any(option.name == "grown, best of 2 stages" for option in below.alternatives)
    never = plan(wish(max_stages=1))
    assert not never.grows and never.break_even is None and never.grown is None
    assert "one stage was asked for" in plan_report.verdict(never)


@pytest.mark.parametrize("carryover", [1.0, 0.8])
def test_sizes_and_switch_are_those_of_brute_force(carryover: float) -> None:
    """Every pair of the ladder's shapes with every split of the tokens in steps of a thousandth, by the law alone."""
    asked = wish(max_stages=2, heads_multiple=8, carryover=carryover)
    shapes = ladder.ladder(asked.shape, LAW, asked.problem.flops, 2048, float("inf"), 8)
    share, best = np.linspace(0.05, 0.95, 901), (np.inf, 0.0, 0.0, ())
    for small, large in itertools.combinations(shapes, 2):
        cost = share * small.flops_per_token(2048) + (1 - share) * large.flops_per_token(2048)
        tokens = asked.problem.flops / cost
        switch = LAW.E + LAW.A / small.num_params**LAW.alpha + LAW.B / (share * tokens) ** LAW.beta
        above = switch - LAW.E - LAW.A / large.num_params**LAW.alpha
        data = carryover * (LAW.B / above) ** (1 / LAW.beta) + (1 - share) * tokens
        losses = LAW.E + LAW.A / large.num_params**LAW.alpha + LAW.B / data**LAW.beta
        at = int(np.argmin(losses))
        found = (float(losses[at]), float(switch[at]), float(share[at]), (small, large))
        best = min(best, found, key=lambda each: each[0])
    planned = plan(asked).grown
    assert planned is not None and planned.shapes == best[3]
    assert planned.loss == pytest.approx(best[0], abs=1e-5)
    assert LAW.loss(planned.shapes[0].num_params, planned.tokens[0]) == pytest.approx(best[1], rel=1e-3)
    assert planned.tokens[0] / sum(planned.tokens) == pytest.approx(best[2], abs=0.01)


def test_alternatives_cost_the_same() -> None:
    found = plan(wish())
    budget = found.wish.problem.flops
    for option in found.alternatives:
        spent = sum(
            tokens * shape.flops_per_token(2048)
            for tokens, shape in zip(option.tokens, option.shapes, strict=True)
        )
        assert spent == pytest.approx(budget, rel=1e-9)


def test_a_limit_on_tokens_is_kept() -> None:
    found = plan(wish(max_tokens=2e11))
    assert found.grows and sum(found.best.tokens) <= 2e11
    assert all(sum(option.tokens) <= 2e11 * (1 + 1e-9) for option in found.alternatives)
    small = next(option for option in found.alternatives if option.name.startswith("its first size"))
    assert small.spent == pytest.approx(
        2e11 * small.shapes[0].flops_per_token(2048) / found.wish.problem.flops
    )
    assert small.spent < 0.9 and all(0 < (option.spent or 0) <= 1 + 1e-9 for option in found.alternatives)
    assert f"{small.spent:.1%}" in plan_report.table(found)


def test_so_few_tokens_that_nothing_binds_the_size_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"--tokens=1e\+09 is so few beside the budget .* lower --budget, or raise"
    ):
        planner.plan(wish(max_tokens=1e9))


@pytest.mark.parametrize("multiple", [1, 8])
@pytest.mark.parametrize("carryover", [1.0, 0.7])
def test_nats_and_budget_share_have_one_sign(multiple: int, carryover: float) -> None:
    """Also where a limit on tokens leaves the size no choice and shapes lie far apart."""
    found = plan(wish(max_tokens=1e11, carryover=carryover, heads_multiple=multiple, max_stages=2))
    assert found.grown is not None and found.grown.loss is not None and found.from_scratch.loss is not None
    assert (found.gain > 0) == (found.grown.loss < found.from_scratch.loss)


def test_growing_too_late_for_the_budget() -> None:
    """Twice the first stage may be more than there is."""
    late = planner._other_time(wish().problem, *_two(1e9, 1e10, first=0.6), times=2.0)
    assert late is None


def _two(small: float, large: float, first: float) -> tuple[Any, Any]:
    flops, budget = np.array([6 * small, 6 * large]), wish().problem.flops
    return flops, np.array([first, 1 - first]) * budget / flops


def test_units_of_a_budget() -> None:
    machine = Machine.of("a800", 192, Rates(price=2.0))
    assert machine.seconds(2 * 192, "dollars") == machine.seconds(192, "device_hours") == 3600
    assert machine.seconds(1, "days") == 86_400


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--budget=0"], "--budget must be positive"),
        (["--budget=0.001"], "steps of --batch_size=2304 sequences of 2048 tokens"),
        (["--mfu=43"], "--mfu must be a share of the peak"),
        (["--max_stages=3", "--min_share=0.5"], "more than all tokens"),
        (["--max_stages=6"], "--max_stages=6 is more than are searched: expected at most 5"),
        (["--min_gain=1"], "--min_gain is a share"),
        (["--law=none.json"], "--law must be one of"),
        (["--learning_rate=0"], "--learning_rate must be positive"),
    ],
)
def test_mistakes(capsys: pytest.CaptureFixture, flags: list[str], expected: str) -> None:
    line = failure(capsys, "budget", "plan", *PAPER, *flags)
    assert line.startswith("flm budget plan: error: ") and expected in line


def test_money_needs_a_price(capsys: pytest.CaptureFixture) -> None:
    flags = [flag for flag in PAPER if not flag.startswith("--price")]
    assert "needs --price" in failure(capsys, "budget", "plan", *flags)


def test_the_gin_file_says_what_was_planned(tmp_path: Path) -> None:
    """Read back as `flm train` reads it: the same sizes and steps, and growth that can be planned."""
    found = plan(wish())
    file = tmp_path / "plan.gin"
    file.write_text(emit.gin(found, "flm budget plan", "--gin_file=m.gin", 4e-4))
    files = ["gin_configs/models/flm_101b.gin", "gin_configs/runs/pretrain.gin", str(file)]
    try:
        run = described_run.trainer_of(files, [])
        route = run.check()
    finally:
        gin.clear_config()
    assert [stage.num_steps(2048) for stage in route.stages] == list(found.steps)
    assert [route.config(index).num_params for index in range(3)] == [
        shape.num_params for shape in found.best.shapes
    ]
    assert [stage.learning_rate for stage in route.stages] == [4e-4, 3.4e-4, 2e-4]
    assert all(stage.policy == "rewarmup" and stage.batch_size == 2304 for stage in route.stages)
    assert "flm compile --gin_file=m.gin \\\n" in file.read_text()
    assert all(line.startswith("#") for line in file.read_text().split("from __gin__")[0].splitlines())
    assert max(map(len, file.read_text().splitlines()[6:])) <= 120


TINY = """
from __gin__ import dynamic_registration
from flm_jax import config
include 'gin_configs/models/flm_tiny.gin'
config.ModelConfig.vocab_size = 512
config.ModelConfig.d_model = 32
config.ModelConfig.num_layers = 2
config.ModelConfig.num_heads = 2
config.ModelConfig.head_dim = 16
config.ModelConfig.d_ff = 64
"""
# On so little text a size is soon as good as it gets: growth pays.
LEARNT = {"E": 1.0, "A": 4e4, "alpha": 1.0, "B": 2e3, "beta": 0.8}


@pytest.mark.slow
@pytest.mark.parametrize("stages", [1, 2])
def test_the_gin_file_trains(stages: int, tmp_path: Path, prepared_dir: Path) -> None:
    """A budget of a fraction of a second, planned and spent by the command in the file's own header."""
    model, law, out = (tmp_path / name for name in ("model.gin", "law.json", "plan.gin"))
    model.write_text(TINY)
    law.write_text(json.dumps(LEARNT))
    flags = ["--budget=5e-8", "--unit=device_hours", "--hardware=a800", "--num_devices=1", "--mfu=0.4"]
    flags += [f"--law={law}", f"--gin_file={model}", "--length=64", "--batch_size=8", "--min_share=0.3"]
    flags += [
        f"--max_stages={stages}",
        f"--out={out}",
        f"--json={tmp_path / 'plan.json'}",
        "--learning_rate=1e-3",
    ]
    try:
        assert cli.main(["budget", "plan", *flags]) == 0
    finally:
        gin.clear_config()
    planned = json.loads((tmp_path / "plan.json").read_text())["plan"]
    assert len(planned["steps"]) == stages and 20 < sum(planned["steps"]) < 400
    command = re.search(r"flm train (.*)\\\n#\s+(.*) --gin.MODEL_DIR", out.read_text())
    assert command
    named = re.findall(r"--gin_file=(\S+)", " ".join(command.groups()))
    assert named == [str(model), "YOUR_DATA.gin", "gin_configs/runs/pretrain.gin", "THIS.gin"]
    more = ["--gin_file=gin_configs/runs/pretrain.gin", f"--gin_file={out}", "--gin.EVAL_PERIOD=0"]
    more += ["--gin.MIXTURE_OR_TASK_NAME={'en': 1.0, 'zh': 1.0}"]
    printed, _ = runs.finish(runs.start(model, tmp_path / "run", prepared_dir, *more))
    end = sum(planned["steps"])
    assert f"{end}/{end}" in printed and (tmp_path / "run" / f"checkpoint_{end}").is_dir()
    metadata, _, step = load_params(tmp_path / "run", None)
    assert step == end and metadata.config.num_params == planned["params"][-1]
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["train/loss"] for line in lines if "train/loss" in line]
    assert losses[-1] < losses[0] - 1
