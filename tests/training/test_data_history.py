"""Changes of mixture and batch size in mid-run: allowed, recorded, and the same bits however the run was cut."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from flm_jax import LanguageModel, optimizer
from flm_jax.grow.lineage import Lineage
from flm_jax.grow.schedule import Route, Stage
from flm_jax.tasks.history import History
from flm_jax.tasks.mixture import Alternating
from flm_jax.tasks.mixture_plan import MixturePlan, TaskCounts
from flm_jax.tasks.reader import Reader
from flm_jax.training import data_history
from flm_jax.training.checkpoints import Checkpoints, load_params
from flm_jax.training.leg import Leg
from flm_jax.training.metadata import CheckpointMismatchError, Metadata, mismatches
from flm_jax.training.run import Run
from flm_jax.training.run_log import read_metrics
from tests.training import runs
from tests.training.runs import MIXTURE, trainer

pytestmark = pytest.mark.usefixtures("quick_compilation")

TOKENS = 8 * 64  # of a step
OTHER = {"en": 1, "zh": 3}
LARGE = dataclasses.replace(runs.CONFIG, num_layers=3)


def figures(model_dir: Path) -> list[dict[str, float]]:
    return [
        {name: value for name, value in record.items() if not name.startswith("speed/")}
        for record in read_metrics(model_dir)
    ]


def changed(model_dir: Path, prepared_dir: Path, **more: Any) -> None:
    """Five steps of one mixture and batch size, and on to step 12 with others."""
    trainer(model_dir, prepared_dir, train_steps=5).run()
    trainer(model_dir, prepared_dir, mixture=OTHER, batch_size=4, **more).run()


def test_a_changed_run_that_is_killed_equals_one_that_is_not(
    tmp_path: Path, prepared_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    changed(tmp_path / "whole", prepared_dir)
    assert (
        "from step 5 on: batch size 8 -> 4, mixture {'en': 53.5, 'instruct': 5.0, 'zh': 46.5} -> {'en': 1, "
        in (capsys.readouterr().out)
    )
    step = Run._one_step

    def dies_at_eight(self: Run, batch: Any) -> None:
        if self.last_step == 8:
            raise KeyboardInterrupt
        step(self, batch)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Run, "_one_step", dies_at_eight)
        changed(tmp_path / "killed", prepared_dir)
    assert load_params(tmp_path / "killed")[2] == 5
    trainer(tmp_path / "killed", prepared_dir, mixture=OTHER, batch_size=4).run()
    runs.assert_bitwise_equal(runs.stored(tmp_path / "killed", 12), runs.stored(tmp_path / "whole", 12))
    assert figures(tmp_path / "killed") == figures(tmp_path / "whole")
    # Stopped behind the change, and asked for what holds already: no other change is found.
    capsys.readouterr()
    trainer(tmp_path / "killed", prepared_dir, mixture=OTHER, batch_size=4, train_steps=13).run()
    assert "from step" not in capsys.readouterr().out

    metadata = load_params(tmp_path / "whole")[0]
    history = History.begin(MIXTURE, 8).changed(5, 4, OTHER)
    assert metadata.data_history == history and metadata.batch_size == 4
    last = figures(tmp_path / "whole")[-1]
    assert last["train/tokens"] == 64 * (5 * 8 + 7 * 4)
    assert last["train/flops"] == pytest.approx(last["train/tokens"] * runs.CONFIG.flops_per_token(64))
    positions = Reader(prepared_dir, history, 64, 0).plan.epochs(68)
    assert {name: last[f"data/{name}/epochs"] for name in positions} == pytest.approx(positions)


def test_a_schedule_in_gin_is_a_change_in_mid_run(tmp_path: Path, prepared_dir: Path) -> None:
    trainer(tmp_path / "changed", prepared_dir, train_steps=5).run()
    trainer(tmp_path / "changed", prepared_dir, mixture=OTHER, train_steps=8).run()
    scheduled = {0: MIXTURE, 5 * TOKENS: OTHER}
    trainer(tmp_path / "scheduled", prepared_dir, mixture=scheduled, train_steps=8).run()
    runs.assert_bitwise_equal(runs.stored(tmp_path / "changed", 8), runs.stored(tmp_path / "scheduled", 8))


def test_a_clock_that_starts_anew_is_told() -> None:
    schedule = {0: "en", 10 * TOKENS: "zh"}
    before = History.begin(schedule, 8)

    def line(mixture: Any) -> str:
        found = data_history.changes(before.at(5), before.changed(5, 8, mixture), 5, 64)
        assert found is not None
        return found

    assert line({0: "en", 20 * TOKENS: "zh"}).endswith("[10240, {'zh': 1.0}]]")
    assert line({0: "zh", 20 * TOKENS: "en"}).endswith("[10240, {'en': 1.0}]] (its clock starts at 0 here)")
    assert line("zh").endswith("-> {'zh': 1.0}")  # which has none


def test_each_tasks_figures(tmp_path: Path, prepared_dir: Path) -> None:
    """They make up the run's, turn by turn; a run of one task has no double ones."""
    turns = Alternating({"language": {"en": 1, "zh": 1}, "teacher": "instruct"}, (2, 1))
    trainer(tmp_path / "turns", prepared_dir, mixture=turns, train_steps=4).run()
    first, _, third, fourth = figures(tmp_path / "turns")
    assert third["train/instruct/loss"] == pytest.approx(third["train/loss"], rel=1e-5)
    assert third["train/instruct/accuracy"] == pytest.approx(third["train/accuracy"], abs=1e-6)
    assert "train/en/loss" not in third and "train/instruct/loss" not in first
    low, high = sorted(first[f"train/{task}/loss"] for task in ("en", "zh"))
    assert low <= first["train/loss"] <= high
    assert sum(fourth[f"data/{task}/share"] for task in ("en", "zh", "instruct")) == pytest.approx(1)
    trainer(tmp_path / "one", prepared_dir, mixture="en", train_steps=1).run()
    (record,) = figures(tmp_path / "one")
    assert [name for name in record if "en" in name.split("/")] == ["data/en/epochs"]


def test_epochs_are_capped_and_told(
    tmp_path: Path, prepared_dir: Path, capsys: pytest.CaptureFixture
) -> None:
    reader = Reader(prepared_dir, MIXTURE, 64, 0, max_epochs={"instruct": 0.05})
    (reached,) = reader.plan.reached
    step = -(-reached.sequence // 8)
    trainer(tmp_path / "run", prepared_dir, max_epochs={"instruct": 0.05}, train_steps=step + 2).run()
    line = f"instruct reaches its 0.05 epochs at step {step}; from there on its share goes to the others"
    assert line in capsys.readouterr().out
    last = figures(tmp_path / "run")[-1]
    size = reader.tasks["instruct"].num_sequences("train")
    assert last["data/instruct/epochs"] == int(0.05 * size) / size
    with pytest.raises(
        ValueError, match=r"needs 6,144 tokens.*after [\d,]+, at step \d+ of 12.*Trainer\.max_epochs"
    ):
        trainer(tmp_path / "short", prepared_dir, max_epochs=0.01).run()
    assert not (tmp_path / "short").exists()
    # Of a run that goes on as well, which stays as it was.
    with pytest.raises(ValueError, match=r"Trainer\.max_epochs higher"):
        trainer(tmp_path / "run", prepared_dir, max_epochs=0.01, train_steps=100).run()
    assert load_params(tmp_path / "run")[2] == step + 2


def test_a_cap_that_holds_at_once_is_told() -> None:
    """One that is lowered below what was read, and one that is reached where the run goes on; each once."""
    tasks = {"en": TaskCounts(100, 6400), "zh": TaskCounts(20, 1280)}
    mixture = {"en": 1, "zh": 1}

    def lines(cap: float, step: int) -> list[str]:
        history = History.begin(mixture, 8).changed(5, 8, mixture, {"zh": cap})
        return data_history.caps_ahead(MixturePlan(history, tasks, 64), history, step, 20)

    assert lines(1, 5) == ["zh reaches its 1 epochs at step 5; from there on its share goes to the others"]
    assert lines(0.5, 5) == [
        "zh is read no more from step 5 on, by then for 1 epochs, beyond its 0.5; from there on its share goes "
        "to the others"
    ]
    assert lines(2, 5) == ["zh reaches its 2 epochs at step 10; from there on its share goes to the others"]
    assert lines(0.5, 6) == []


def test_tasks_that_some_batches_lack_are_told() -> None:
    """By the mixture of `gin_configs/data/teacher.gin`, with sequences of equally many tokens."""
    shares = {"en": 50, "zh": 43, "sentiment_en": 2, "sentiment_zh": 2, "nli": 2, "choices": 1}
    counts = {task: TaskCounts(1000, 64_000) for task in shares}

    def lines(history: History, step: int = 0) -> list[str]:
        plan = MixturePlan(history, {task: counts[task] for task in history.tasks}, 64)
        return data_history.not_in_every_batch(plan, history, step, 50)

    (line,) = lines(History.begin(shares, 8))
    plan = MixturePlan(History.begin(shares, 8), counts, 64)
    batches = [{plan.locate(8 * step + row)[0] for row in range(8)} for step in range(1000)]
    for task in shares:
        number = sum(task in batch for batch in batches)
        assert (f"{task} ({number})" in line) == (number < 1000)
    assert (
        line.startswith("these tasks are not in every batch of 8 sequences as of step 0") and "en (1" in line
    )
    assert line.endswith("all would be in batches of about 100")
    assert lines(History.begin(shares, 128)) == []
    # Of what is still to come, part by part.
    changed = History.begin(shares, 8).changed(10, 128, shares).changed(30, 4, {"en": 9, "zh": 1})
    assert [int(re.findall(r"as of step (\d+)", line)[0]) for line in lines(changed)] == [0, 30]
    assert [int(re.findall(r"as of step (\d+)", line)[0]) for line in lines(changed, 12)] == [30]
    turns = Alternating({"language": {"en": 9, "zh": 1}, "teacher": "nli"}, (3, 1))
    (line,) = lines(History.begin(turns, 5))
    assert "of 1,000 of their group's turn: zh (500);" in line


def stage(config: Any, **changes: Any) -> Stage:
    settings = {"model": LanguageModel(config), "batch_size": 8, "learning_rate": 3e-3, "steps": 4, "warmup_steps": 1,
                "ramp_steps": 2, "mesh": runs.FirstDevices()}  # fmt: skip
    return Stage(**{**settings, **changes})


def test_a_stage_has_its_own_mixture(tmp_path: Path, prepared_dir: Path) -> None:
    """From its first sequence on; all stages' tasks are evaluated."""
    stages = [stage(runs.CONFIG), stage(LARGE, mixture="instruct", batch_size=4)]
    trainer(tmp_path, prepared_dir, stages=stages, mixture={"en": 1, "zh": 1}, eval_period=4).run()
    metadata = load_params(tmp_path)[0]
    assert metadata.data_history == History.begin({"en": 1, "zh": 1}, 8).changed(4, 4, "instruct")
    records = figures(tmp_path)
    train = {record["step"]: record for record in records if "train/loss" in record}
    assert "train/instruct/loss" not in train[4] and "train/en/loss" not in train[5]
    assert train[5]["train/instruct/loss"] == pytest.approx(train[5]["train/loss"], rel=1e-5)
    evaluated = {name for record in records for name in record if name.startswith("eval/")}
    assert {name.split("/")[1] for name in evaluated} == {"en", "zh", "instruct"}
    with pytest.raises(ValueError, match=r"Stage\.mixture of stage 2: expected positive shares"):
        trainer(tmp_path, prepared_dir, stages=[stage(runs.CONFIG), stage(LARGE, mixture={"en": 0})]).run()


def leg(steps: int | None, tokens: int | None, history: History) -> Leg:
    route = Route.of([stage(runs.CONFIG, steps=steps, tokens=tokens, batch_size=4)], 64)
    return Leg(route, Lineage(), optimizer.adamw, optimizer.warmup_cosine, history)


def test_a_stage_of_tokens_ends_with_its_tokens_and_one_of_steps_with_its_steps() -> None:
    history = History.begin("en", 8).changed(5, 4, "en")
    assert leg(20, None, history).end == 20
    for tokens, end in ((40 * 64, 5), (40 * 64 + 1, 6), (48 * 64, 7), (30 * 64, 4)):
        found = leg(None, tokens, history)
        assert found.end == found.end_of_run == end
        assert float(found.learning_rate(end)) == pytest.approx(0, abs=1e-9)


def test_a_checkpoint_without_a_history_is_read(tmp_path: Path, prepared_dir: Path) -> None:
    """Its position follows from the growth record and the present batch size."""
    stages = [stage(runs.CONFIG), stage(LARGE, batch_size=4)]
    trainer(tmp_path, prepared_dir, stages=stages).run()
    metadata = load_params(tmp_path)[0]
    old = {name: value for name, value in metadata.to_json().items() if name != "history"} | {"format": 2}
    found = Metadata.from_json(old)
    assert found.data_history == metadata.data_history
    assert found.data_history.sequences(8) == 4 * 8 + 4 * 4
    plain = Metadata.from_json({**old, "growth_record": [], "mixture": "en"})
    assert plain.data_history == History.begin("en", 4)


def test_what_was_read_must_stay_and_what_was_not_may_change() -> None:
    def metadata(mixture: Any, tasks: dict[str, str], **more: Any) -> Metadata:
        data = {"length": 64, "tokenizer": "t", "tasks": tasks}
        return Metadata(runs.CONFIG, 0, 8, mixture, data, **more)

    found = metadata("en", {"en": "1", "later": "2"})
    assert not mismatches(found, metadata("zh", {"en": "1", "zh": "3", "later": "4"}), "other")
    for tasks in ({"en": "2"}, {"zh": "1"}):
        (line,) = mismatches(found, metadata("en", tasks), "other")
        assert line.startswith("tasks of the prepared data (expected")
    assert mismatches(found, metadata("zh", {"en": "1", "later": "2"}), "same")[0].startswith(
        "mixture (expected"
    )
    again = metadata({"en": 2.0}, {"en": "1"}, history=History.begin("en", 4).changed(2, 8, "en").to_json())
    assert not mismatches(metadata({"en": 1}, {"en": "1"}), again, "same")


def test_a_task_that_was_read_may_not_be_missing(tmp_path: Path, prepared_dir: Path) -> None:
    trainer(tmp_path / "run", prepared_dir, mixture="en", train_steps=1).run()
    other = tmp_path / "other"
    other.mkdir()
    (other / "zh").symlink_to(prepared_dir / "zh")
    with pytest.raises(ValueError, match=r"found \['en'\].*what a run has read must stay"):
        trainer(tmp_path / "run", other, mixture="zh").run()
    with pytest.raises(CheckpointMismatchError, match="seed"):
        trainer(tmp_path / "run", prepared_dir, mixture="zh", seed=1).run()
    checkpoints = Checkpoints(tmp_path / "run", clean_up=False)
    assert checkpoints.metadata(1).data_history == History.begin("en", 8)
    checkpoints.close()
