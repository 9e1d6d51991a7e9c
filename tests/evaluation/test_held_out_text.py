"""`flm eval`: the held-out loss of a checkpoint is what the run printed."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import pytest

from flm_jax import ModelConfig, cli, network
from flm_jax.evaluation.held_out_text import held_out, open_tasks
from flm_jax.evaluation.opened import open_checkpoint
from flm_jax.grow.lineage import Lineage
from flm_jax.layers import attention
from flm_jax.training import continuation
from flm_jax.training.checkpoint_growth import CheckpointGrowth, Settings
from flm_jax.training.held_out import HeldOutLoss
from flm_jax.training.run_log import read_metrics
from tests.prepared_data import make_tokenizer, write_texts
from tests.training import runs

pytestmark = pytest.mark.usefixtures("quick_compilation")


def evaluate(
    model_dir: Path, prepared_dir: Path, step: int | None = None, **settings: int
) -> dict[str, HeldOutLoss]:
    return held_out(open_checkpoint(str(model_dir), step), open_tasks(str(prepared_dir)), **settings)


@pytest.fixture(scope="module")
def model_dir(prepared_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("evaluated")
    runs.trainer(directory, prepared_dir, train_steps=4, eval_period=4).run()
    return directory


def command(model_dir: Path, prepared_dir: Path, *flags: str) -> list[str]:
    return ["eval", f"--model_dir={model_dir}", f"--prepared_dir={prepared_dir}", *flags]


def test_it_is_what_the_run_said(
    model_dir: Path, prepared_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert cli.main(command(model_dir, prepared_dir, f"--json={tmp_path / 'out/found.json'}")) == 0
    found = json.loads((tmp_path / "out/found.json").read_text())
    (logged,) = [
        record for record in read_metrics(model_dir) if record["step"] == 4 and "eval/en/loss" in record
    ]
    assert found["step"] == 4 and found["num_params"] == runs.CONFIG.num_params
    assert set(found["tasks"]) == set(runs.MIXTURE)
    for task, values in found["tasks"].items():
        for measure in ("loss", "bits_per_byte", "accuracy"):
            assert values[measure] == pytest.approx(logged[f"eval/{task}/{measure}"], rel=1e-5)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].endswith(f"checkpoint_4: {runs.CONFIG.num_params:,} parameters")
    assert [line.split()[0] for line in printed[2:]] == sorted(runs.MIXTURE)
    assert f"{found['tasks']['en']['loss']:.4f}" in printed[2]


def test_in_mid_ramp_it_is_under_the_mask(model_dir: Path, prepared_dir: Path, tmp_path: Path) -> None:
    """Just grown, hidden by the mask: the loss of the small model, and another one without the mask."""
    target = dataclasses.replace(runs.CONFIG, d_model=32, d_ff=80)
    CheckpointGrowth(model_dir, target, Settings(method="msg")).write(tmp_path / "grown")
    before, after = (evaluate(path, prepared_dir) for path in (model_dir, tmp_path / "grown"))
    assert [loss.loss for loss in after.values()] == pytest.approx(
        [loss.loss for loss in before.values()], rel=1e-6
    )
    metadata = continuation.find(tmp_path / "grown").metadata
    assert Lineage.from_json(metadata.growth_record).mask_at(4) is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Lineage, "mask_at", lambda self, step: None)
        unmasked = evaluate(tmp_path / "grown", prepared_dir)
    assert unmasked["en"].loss != pytest.approx(before["en"].loss, rel=1e-4)


def test_a_part_of_it(model_dir: Path, prepared_dir: Path) -> None:
    found = evaluate(model_dir, prepared_dir, step=4, batch_size=2, num_sequences=3)
    assert all(0 < loss.tokens <= 3 * 64 for loss in found.values())


def test_mistakes(model_dir: Path, prepared_dir: Path, tmp_path: Path, capsys: Any) -> None:
    def failure(*arguments: Any) -> str:
        assert cli.main(command(*arguments)) == cli.EXIT_USAGE
        return capsys.readouterr().err

    assert "expected prepared tasks, found none" in failure(model_dir, tmp_path)
    assert "checkpoint_3, found none" in failure(model_dir, prepared_dir, "--step=3")
    assert "no directory at" in failure(tmp_path / "none", prepared_dir)
    other = tmp_path / "prepared"
    shutil.copytree(prepared_dir, other)
    tokenizer = make_tokenizer(tmp_path, write_texts(tmp_path / "texts", documents=200))
    manifest = other / "en/manifest.json"
    values = json.loads(manifest.read_text())
    values["vocabulary"]["sha256"] = tokenizer.sha256
    manifest.write_text(json.dumps(values))
    assert "expected the tokenizer with SHA-256" in failure(model_dir, other)
    for task in other.iterdir():
        shutil.rmtree(task) if task.name != "zh" else None
    values = json.loads((other / "zh/manifest.json").read_text())
    del values["splits"]["validation"]
    (other / "zh/manifest.json").write_text(json.dumps(values))
    assert "expected a validation split" in failure(model_dir, other)


def test_attention_knows_that_it_is_on_one_device(
    model_dir: Path, prepared_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a mesh, and with more devices in sight than it uses, it would have to do without a kernel."""
    meshes = []

    def choose(config: ModelConfig, length: int, platform: str) -> str:
        meshes.append(jax.sharding.get_abstract_mesh().shape)
        return attention.choose(config, length, platform)

    monkeypatch.setattr(network, "choose", choose)
    evaluate(model_dir, prepared_dir, num_sequences=8)
    assert meshes and all(mesh and set(mesh.values()) == {1} for mesh in meshes)
