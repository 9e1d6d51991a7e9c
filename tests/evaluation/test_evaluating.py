"""`flm eval` on several checkpoints: which they are, what they cost, what was found, and where that is written."""

import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import jax
import pytest

from flm_jax import LanguageModel, cli, optimizer
from flm_jax.evaluation.evaluating import Request, evaluate
from flm_jax.evaluation.measured import IQ, Measured
from flm_jax.evaluation.opened import open_checkpoint, stage_ends
from flm_jax.evaluation.text_model import TextModel
from flm_jax.grow.schedule import Stage
from flm_jax.partitioning import MeshShape
from flm_jax.training.checkpoint_growth import CheckpointGrowth, Settings
from flm_jax.training.ledger import LEDGER_FILE
from flm_jax.training.run_log import read_metrics
from tests.models import small_config
from tests.training import runs

pytestmark = pytest.mark.usefixtures("quick_compilation")

SMALL = small_config(vocab_size=512)
LARGE = dataclasses.replace(SMALL, d_model=32, d_ff=64, num_layers=3)


@pytest.fixture(scope="module")
def grown(prepared_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four steps small and three large, under a mask for the first two of them."""
    model_dir = tmp_path_factory.mktemp("runs") / "grown"
    stages = [
        Stage(LanguageModel(config), steps=steps, batch_size=8, learning_rate=3e-3, warmup_steps=1, ramp_steps=2,
              mesh=runs.FirstDevices())
        for config, steps in ((SMALL, 4), (LARGE, 3))
    ]  # fmt: skip
    trainer = runs.trainer(model_dir, prepared_dir)
    dataclasses.replace(trainer, stages=stages, schedule=optimizer.warmup_cosine, eval_period=4).run()
    return model_dir


class Asks:
    """A suite: what the model thinks of a sentence, and what it writes behind it."""

    published: ClassVar = {"GPT-3": {"iq/sentence/exact": 0.8}}
    caveats = ("there is nothing to compare",)

    def check(self) -> None:
        pass

    def __call__(self, model: TextModel) -> Iterator[Measured]:
        (score,) = model.log_likelihoods([("ka lo", " mi")])
        yield Measured(IQ, "sentence", "exact", math.exp(score.log_likelihood), count=1, share=True)
        (text,) = model.complete(["ka lo"], 4, ["\n"])
        yield Measured(IQ, "written", "bytes", float(len(text.encode())), count=1)


def test_stages_side_by_side(
    grown: Path, prepared_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    flags = [f"--json={tmp_path / 'found.json'}", f"--report={tmp_path / 'report'}"]
    command = ["eval", f"--model_dir={grown}", "--stages", f"--prepared_dir={prepared_dir}", *flags]
    assert cli.main(command) == 0
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "found.json").read_text())
    assert found == json.loads((tmp_path / "report/report.json").read_text())
    assert [(each["label"], each["step"], each["num_params"]) for each in found["checkpoints"]] == [
        ("grown@4", 4, SMALL.num_params),
        ("grown@7", 7, LARGE.num_params),
    ]
    for each in found["checkpoints"]:
        logged = {k: v for r in read_metrics(grown) if r["step"] == each["step"] for k, v in r.items()}
        for task in runs.MIXTURE:
            assert each["tasks"][task]["loss"] == pytest.approx(logged[f"eval/{task}/loss"], rel=1e-5)
            assert each["tasks"][task]["perplexity"] == pytest.approx(
                math.exp(logged[f"eval/{task}/loss"]), rel=1e-4
            )
        assert each["spent"]["tokens"] == logged["train/tokens"]
        assert each["spent"]["model_flops"] == pytest.approx(logged["train/flops"])
        assert each["spent"]["hardware_flops"] > each["spent"]["model_flops"]
        assert f"{each['tasks']['en']['loss']:,.4f}" in printed
    hours = [each["spent"]["device_hours"] for each in found["checkpoints"]]
    assert 0 < hours[0] < hours[1]
    assert "| parameters | " in (tmp_path / "report/report.md").read_text()


def test_suites_are_asked_of_each(grown: Path, prepared_dir: Path) -> None:
    said: list[str] = []
    tokenizer = str(prepared_dir / "en/tokenizer.model")
    request = Request([(str(grown), step) for step in (4, 7)], suites=[Asks()], tokenizer=tokenizer)
    report = evaluate(request, said.append)
    chances = [each.measures[0].value for each in report.checkpoints]
    assert 0 < chances[0] < 1 and 0 < chances[1] < 1 and chances[0] != chances[1]
    assert report.published == {"GPT-3": {"iq/sentence/exact": 0.8}} and report.caveats == Asks.caveats
    assert (
        said[0].endswith(f"checkpoint_4: {SMALL.num_params:,} parameters") and "iq/sentence/exact" in said[1]
    )
    # The same of the tokenizer that lies beside prepared data.
    held_out = Request([(str(grown), 7)], prepared_dir=str(prepared_dir), suites=[Asks()], num_sequences=2)
    (one,) = evaluate(held_out, said.append).checkpoints
    assert [m for m in one.measures if m.suite == IQ] == list(report.checkpoints[1].measures)


def test_split_over_devices_it_is_the_same(grown: Path, prepared_dir: Path) -> None:
    if jax.device_count() < 4:
        pytest.skip("needs four devices, of XLA_FLAGS=--xla_force_host_platform_device_count")

    def found(mesh: MeshShape) -> list[float]:
        request = Request(
            [(str(grown), 7)], str(prepared_dir), [Asks()], mesh=mesh, batch_size=4, num_sequences=6
        )
        (one,) = evaluate(request, lambda line: None).checkpoints
        return [measure.value for measure in one.measures]

    assert found(MeshShape(data=1, fsdp=2, tensor=2)) == pytest.approx(found(MeshShape(data=1)), rel=1e-5)
    kernel = open_checkpoint(str(grown), 7, MeshShape(data=1, fsdp=2, tensor=2)).params["layers"]["mlp"][
        "wi_kernel"
    ]
    assert len({shard.device for shard in kernel.addressable_shards}) == 4
    assert kernel.addressable_shards[0].data.size == kernel.size // 4


def test_a_run_without_a_ledger(grown: Path, prepared_dir: Path, tmp_path: Path) -> None:
    """Grown from checkpoint to checkpoint: what the first run cost is in its growth record."""
    target = dataclasses.replace(LARGE, num_layers=4)
    CheckpointGrowth(grown, target, Settings(method="lemon")).write(tmp_path / "again")
    assert stage_ends(str(grown)) == [4, 7] and stage_ends(str(tmp_path / "again")) == [7]
    request = Request(
        [(str(grown), None), (str(tmp_path / "again"), None)], str(prepared_dir), num_sequences=2
    )
    before, after = evaluate(request, lambda line: None).checkpoints
    assert (after.spent.tokens, after.spent.model_flops) == (before.spent.tokens, before.spent.model_flops)
    assert not (tmp_path / "again" / LEDGER_FILE).exists() and after.spent.device_hours is None
    assert after.num_params > before.num_params
    assert after.measures[0].value == pytest.approx(before.measures[0].value, rel=1e-5)


def test_mistakes(grown: Path, prepared_dir: Path, capsys: pytest.CaptureFixture) -> None:
    def failure(*flags: Any) -> str:
        assert cli.main(["eval", f"--model_dir={grown}", *flags]) == cli.EXIT_USAGE
        return capsys.readouterr().err

    held_out = f"--prepared_dir={prepared_dir}"
    assert "nothing says what to evaluate" in failure()
    assert "give the model's --tokenizer" in failure("--suite=iq")
    assert "--stages and --step both say" in failure("--stages", "--step=4", held_out)
    assert "found 2 of --model_dir" in failure(f"--model_dir={grown}", "--step=4", held_out)
    assert "expected --mesh=AXIS=DEVICES" in failure("--mesh=width=2", held_out)
    assert "multiple of 3 devices, found 32" in failure("--mesh=data=3", held_out)
    assert "expected at least the 64 devices that --mesh asks for" in failure("--mesh=data=64", held_out)
    idle = failure(held_out, "--iq_tasks=counting", "--seed=0")
    assert "--iq_tasks, --seed would change nothing without --suite" in idle
    assert "--limit would change nothing without --tasks" in failure(held_out, "--limit=2")
    assert "--num_sequences would change nothing without --prepared_dir" in failure("--num_sequences=2")


def test_mistakes_are_found_before_the_first_checkpoint_is_read(
    grown: Path, prepared_dir: Path, capsys: pytest.CaptureFixture
) -> None:
    command = ["eval", f"--model_dir={grown}", "--step=4", f"--prepared_dir={prepared_dir}"]
    for flags, expected in (
        (["--step=6"], "checkpoint_6, found none"),
        (["--suite=iq", "--iq_tasks=countin"], "expected tasks among counting"),
        (["--suite=iq", "--iq_tasks=boolq", "--symbolic_dir=nowhere"], "nowhere"),
    ):
        assert cli.main([*command, *flags]) == cli.EXIT_USAGE
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("flm eval: error: ") and expected in line
