"""Whole runs in this process: resuming, skipping, refusing."""

import dataclasses
import json
import os
import shutil
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flm_jax import LanguageModel
from flm_jax.model import TokenSums
from flm_jax.optimizer import adamw
from flm_jax.partitioning import MeshShape
from flm_jax.training import run as run_module
from flm_jax.training.checkpoints import Checkpoints, load_params
from flm_jax.training.metadata import CheckpointMismatchError, Metadata, changed_lines
from flm_jax.training.run_log import read_metrics
from flm_jax.training.state import abstract_state
from flm_jax.training.step import skipping_non_finite
from flm_jax.training.trainer import Outcome, TrainingAbortedError
from tests.training import runs

pytestmark = pytest.mark.usefixtures("quick_compilation")

wider = dataclasses.replace(runs.CONFIG, d_model=40)
few_rows = dataclasses.replace(runs.CONFIG, vocab_size=300)


class Poisoned(LanguageModel):
    """Its loss is not a number on the batches of some steps, known by their first sequence."""

    def __init__(self, poison: np.ndarray) -> None:
        super().__init__(runs.CONFIG)
        self.poison = poison  # [bad batches, length] targets

    def token_sums(self, *arguments: Any) -> TokenSums:
        sums, batch = super().token_sums(*arguments), arguments[1]
        bad = jnp.any(jnp.all(batch["decoder_target_tokens"][:, None] == self.poison, axis=-1))
        return sums._replace(total=sums.total * jnp.where(bad, jnp.nan, 1.0))


def first_rows(prepared_dir: Path, steps: list[int]) -> np.ndarray:
    from flm_jax.tasks.reader import Reader

    reader = Reader(prepared_dir, runs.MIXTURE, {"targets": 64}, seed=0)
    return np.stack([reader.batch(step * 8, 8)["decoder_target_tokens"][0] for step in steps])


def test_stopped_and_continued_equals_uninterrupted(tmp_path: Path, prepared_dir: Path) -> None:
    assert runs.trainer(tmp_path / "whole", prepared_dir).run() is Outcome.FINISHED
    assert runs.trainer(tmp_path / "parts", prepared_dir, train_steps=7).run() is Outcome.FINISHED
    assert runs.trainer(tmp_path / "parts", prepared_dir).run() is Outcome.FINISHED
    runs.assert_bitwise_equal(runs.stored(tmp_path / "whole", 12), runs.stored(tmp_path / "parts", 12))
    steps = [record["step"] for record in read_metrics(tmp_path / "parts")]
    assert steps == list(range(1, 13))


def test_sigterm_before_the_first_step(
    tmp_path: Path, prepared_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the step compiles; also an evaluation that is under way is given up."""
    compile_step = run_module.Run._compile

    def interrupted(self: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return compile_step(self)

    with monkeypatch.context() as patch:
        patch.setattr(run_module.Run, "_compile", interrupted)
        assert runs.trainer(tmp_path, prepared_dir, eval_period=6).run() is Outcome.STOPPED
    assert load_params(tmp_path)[2] == 0 and not read_metrics(tmp_path)
    assert runs.trainer(tmp_path, prepared_dir, eval_period=6).run() is Outcome.FINISHED
    runs.trainer(tmp_path / "whole", prepared_dir).run()
    runs.assert_bitwise_equal(runs.stored(tmp_path, 12), runs.stored(tmp_path / "whole", 12))
    assert [record["step"] for record in read_metrics(tmp_path) if "eval/en/loss" in record] == [0, 6, 12]


def test_a_finished_run_has_nothing_to_do(tmp_path: Path, prepared_dir: Path, capsys: Any) -> None:
    runs.trainer(tmp_path, prepared_dir, train_steps=3).run()
    before = runs.stored(tmp_path, 3)
    assert runs.trainer(tmp_path, prepared_dir, train_steps=3).run() is Outcome.FINISHED
    runs.assert_bitwise_equal(before, runs.stored(tmp_path, 3))
    assert (
        "nothing to train: the checkpoint is at step 3, the last stage ends at 3 (TRAIN_STEPS"
        in capsys.readouterr().out
    )
    assert runs.trainer(tmp_path, prepared_dir, train_steps=2).run() is Outcome.FINISHED
    printed = capsys.readouterr().out
    assert (
        "the checkpoint is at step 3, the last stage ends at 2 (TRAIN_STEPS" in printed
        and "compiled" not in printed
    )


def test_changed_bindings_are_told_without_gins_rulers() -> None:
    before = "# Parameters for A:\n# ====\nA.b = 1\nA.c = 2\n"
    assert changed_lines(before, "# Parameters:\n# =====\nA.b = 1\nA.c = 3\n") == [
        "- A.c = 2",
        "+ A.c = 3",
    ]


def test_seed_changes_the_run(tmp_path: Path, prepared_dir: Path) -> None:
    losses = []
    for seed in (0, 0, 1):
        directory = tmp_path / f"{seed}-{len(losses)}"
        runs.trainer(directory, prepared_dir, train_steps=3, seed=seed).run()
        losses.append([record["train/loss"] for record in read_metrics(directory)])
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]


def test_microbatches_and_meshes_give_the_same_run(tmp_path: Path, prepared_dir: Path) -> None:
    changes = {
        "plain": {},
        "parts": {"num_microbatches": 2, "mesh": MeshShape(4, 1, 2)},
        "fsdp": {"mesh": MeshShape(2, 4, 1)},
    }
    losses = {}
    for name, change in changes.items():
        runs.trainer(tmp_path / name, prepared_dir, train_steps=5, **change).run()
        losses[name] = [record["train/loss"] for record in read_metrics(tmp_path / name)]
    np.testing.assert_allclose(losses["plain"], losses["parts"], rtol=1e-5)
    np.testing.assert_allclose(losses["plain"], losses["fsdp"], rtol=1e-5)


def test_a_checkpoint_restores_onto_another_mesh(tmp_path: Path, prepared_dir: Path) -> None:
    one = runs.trainer(tmp_path, prepared_dir, train_steps=4, mesh=MeshShape(2, 2, 2))
    one.run()
    before = runs.stored(tmp_path, 4)
    mesh = MeshShape(4, 1, 2).build()
    like = abstract_state(runs.CONFIG, skipping_non_finite(adamw(runs.CONFIG, lambda count: 3e-3)), mesh)
    checkpoints = Checkpoints(tmp_path)
    restored = checkpoints.restore(4, like, checkpoints.metadata(4))
    checkpoints.close()
    jax.tree.map(
        lambda leaf, plan: leaf.sharding.is_equivalent_to(plan.sharding, leaf.ndim) or pytest.fail(),
        restored,
        like,
    )
    kernel = restored.params["layers"]["mlp"]["wi_kernel"]
    assert kernel.addressable_shards[0].data.shape == (2, 24, 20)
    assert np.asarray(kernel).tobytes() == before["['target']['layers']['mlp']['wi_kernel']"].tobytes()


def test_a_bad_batch_is_skipped_and_counted(tmp_path: Path, prepared_dir: Path, capsys: Any) -> None:
    model = Poisoned(first_rows(prepared_dir, [2, 3, 6]))
    runs.trainer(
        tmp_path, prepared_dir, model=model, train_steps=8, checkpoint_period=1, checkpoints_to_keep=9
    ).run()
    skipped = {record["step"]: record["train/skipped"] for record in read_metrics(tmp_path)}
    assert skipped == {1: 0, 2: 0, 3: 1, 4: 2, 5: 2, 6: 2, 7: 3, 8: 3}
    before, after, later = (runs.stored(tmp_path, step) for step in (2, 4, 5))
    changed = Counter(before[name].tobytes() != after[name].tobytes() for name in before if "target" in name)
    assert changed == {False: len([name for name in before if "target" in name])}
    assert any(after[name].tobytes() != later[name].tobytes() for name in after if "target" in name)
    assert "step 4: gradient not finite, step skipped (2 in a row, 2 in all)" in capsys.readouterr().out


def test_too_many_bad_steps_in_a_row_abort(tmp_path: Path, prepared_dir: Path) -> None:
    model = Poisoned(first_rows(prepared_dir, [1, 4, 5, 6]))
    run = runs.trainer(tmp_path, prepared_dir, model=model, checkpoint_period=1, max_skipped_in_a_row=3)
    with pytest.raises(
        TrainingAbortedError, match=r"at step 7 .* not finite 3 times in a row .*max_skipped_in_a_row"
    ):
        run.run()
    # The count in a row is in the state: killed and started again, the run gives up at the same step.
    with pytest.raises(TrainingAbortedError, match="at step 7"):
        run.run()


def test_evaluation_is_per_task_and_exact(tmp_path: Path, prepared_dir: Path) -> None:
    runs.trainer(tmp_path, prepared_dir, train_steps=4, eval_period=2).run()
    records = [record for record in read_metrics(tmp_path) if "eval/zh/loss" in record]
    assert [record["step"] for record in records] == [0, 2, 4]
    from flm_jax.tasks.reader import PreparedTask, evaluation_batches

    metadata, params, step = load_params(tmp_path)
    assert step == 4
    model, nll, weight, num_bytes = LanguageModel(metadata.config), 0.0, 0.0, 0
    task = PreparedTask(prepared_dir / "zh")
    for batch in evaluation_batches(task, "validation", 8):
        sums = model.token_sums(params, batch)
        nll, weight = nll + float(sums.nll), weight + float(sums.weight)
        for row, weights in zip(batch["decoder_target_tokens"], batch["decoder_loss_weights"], strict=True):
            num_bytes += len(task.vocabulary.decode(row[weights > 0]).encode())
    assert records[-1]["eval/zh/loss"] == pytest.approx(nll / weight, rel=1e-5)
    assert records[-1]["eval/zh/bits_per_byte"] == pytest.approx(nll / np.log(2) / num_bytes, rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config": wider}, r"d_model \(expected 40 from gin ModelConfig.d_model, found 24\)"),
        ({"seed": 1}, r"seed \(expected 1 from RANDOM_SEED, found 0\)"),
    ],
)  # fmt: skip
def test_a_checkpoint_of_another_run_is_refused(
    tmp_path: Path, prepared_dir: Path, changes: dict, message: str
) -> None:
    runs.trainer(tmp_path, prepared_dir, train_steps=1).run()
    with pytest.raises(CheckpointMismatchError, match=message):
        runs.trainer(tmp_path, prepared_dir, **changes).run()
    assert list(runs.stored(tmp_path, 1))  # nothing was lost


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 12, "mesh": MeshShape(8, 1, 1)}, r"BATCH_SIZE must be a multiple of .* = 8 x 1 x 1; found 12"),
        ({"task_feature_lengths": {"targets": 128}}, r"128 tokens, more than ModelConfig.max_length = 64"),
        ({"task_feature_lengths": {"targets": 32}}, r"expected sequences of 32 tokens, found 64.*TASK_FEATURE_LENGTHS"),
        ({"train_steps": 0}, "Stage.steps of stage 1 must be a whole number of at least 1, found 0"),
        ({"config": few_rows}, "vocab_size = 300 has no rows for all 512 pieces"),
        ({"mixture": {"en": 1.0, "fr": 1.0}}, "'fr'.*MIXTURE_OR_TASK_NAME"),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit(tmp_path: Path, prepared_dir: Path, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        runs.trainer(tmp_path, prepared_dir, **changes).run()


def test_other_data_is_refused(tmp_path: Path, prepared_dir: Path) -> None:
    """The same mixture by name, but one task's files are others, or the tokenizer is."""
    runs.trainer(tmp_path / "run", prepared_dir, train_steps=1).run()
    other = tmp_path / "other"
    shutil.copytree(prepared_dir, other)
    manifest = json.loads((other / "zh" / "manifest.json").read_text())
    manifest["splits"]["train"]["files"][0]["sha256"] = "0" * 64
    (other / "zh" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(
        CheckpointMismatchError, match=r"tasks of the prepared data \(expected .* from PREPARED_DIR"
    ):
        runs.trainer(tmp_path / "run", other).run()


def test_without_held_out_text_the_run_says_so(tmp_path: Path, prepared_dir: Path, capsys: Any) -> None:
    other = tmp_path / "other"
    shutil.copytree(prepared_dir / "en", other / "en")
    manifest = json.loads((other / "en" / "manifest.json").read_text())
    del manifest["splits"]["validation"]
    (other / "en" / "manifest.json").write_text(json.dumps(manifest))
    runs.trainer(tmp_path / "run", other, mixture="en", eval_period=1, train_steps=1).run()
    assert "not evaluated, for want of a validation split: en" in capsys.readouterr().out


def test_missing_data(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"found none in .*PREPARED_DIR.*flm data prepare"):
        runs.trainer(tmp_path / "run", tmp_path / "nothing").run()


def test_half_written_checkpoints_are_not_read(tmp_path: Path, prepared_dir: Path) -> None:
    runs.trainer(tmp_path, prepared_dir, train_steps=5).run()
    # What a killed process leaves: Orbax writes under another name.
    (tmp_path / "checkpoint_8.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
    assert load_params(tmp_path)[2] == 5
    assert runs.trainer(tmp_path, prepared_dir, train_steps=10).run() is Outcome.FINISHED
    assert load_params(tmp_path)[2] == 10


def test_half_copied_checkpoints_are_refused(tmp_path: Path, prepared_dir: Path) -> None:
    runs.trainer(tmp_path, prepared_dir, train_steps=5).run()
    (tmp_path / "checkpoint_9" / "state").mkdir(parents=True)
    with pytest.raises(
        CheckpointMismatchError, match="checkpoint_9 to hold state and metadata, found no metadata"
    ):
        runs.trainer(tmp_path, prepared_dir).run()


def test_layout_is_t5xs_with_metadata_beside(tmp_path: Path, prepared_dir: Path) -> None:
    runs.trainer(tmp_path, prepared_dir, train_steps=1).run()
    names = runs.stored(tmp_path, 1)
    assert {name.split("]")[0] + "]" for name in names} == {"['target']", "['state']"}
    assert int(names["['state']['step']"]) == 1
    assert any(
        name.startswith("['state']['param_states']") and name.endswith("['mu']['final_norm']['scale']")
        for name in names
    )
    metadata = Metadata(
        runs.CONFIG,
        seed=0,
        batch_size=8,
        mixture={"en": 1.0},
        data={"length": 64},
        growth_record=({"step": 3},),
    )
    assert Metadata.from_json(metadata.to_json()) == metadata


def test_nothing_to_load(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="found no directory"):
        load_params(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="checkpoint_<step>, found none"):
        load_params(tmp_path)


def test_traces_once(tmp_path: Path, prepared_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    traced = []
    original = LanguageModel.token_sums
    monkeypatch.setattr(
        LanguageModel, "token_sums", lambda *arguments: (traced.append(1), original(*arguments))[1]
    )
    runs.trainer(tmp_path, prepared_dir, train_steps=6).run()
    assert len(traced) == 1
    assert jax.process_count() == 1
