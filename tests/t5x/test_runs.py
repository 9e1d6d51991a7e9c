"""`python -m t5x.train`, `t5x.eval` and `t5x.infer`, unmodified, with our gin files; `flm` before and after them."""

import glob
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from flm_jax import Decoder, cli
from flm_jax.training.checkpoints import load_params
from flm_jax.training.streaming import StoredState

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
TINY = "--gin_file=gin_configs/t5x/tiny_pretrain.gin"
FROM_CHECKPOINT = "--gin_file=gin_configs/t5x/from_checkpoint.gin"
Run = Callable[..., str]

# The run of tiny_pretrain.gin, for our trainer.
FLM_RUN = """
from __gin__ import dynamic_registration
from flm_jax import config
from flm_jax import partitioning
from flm_jax.training import trainer
include 'gin_configs/models/flm_tiny.gin'
include 'gin_configs/data/bilingual.gin'
include 'gin_configs/runs/pretrain.gin'
TASK_FEATURE_LENGTHS = {"targets": 64}
TRAIN_STEPS = 20
BATCH_SIZE = 8
LEARNING_RATE = 3e-3
WARMUP_STEPS = 4
EVAL_PERIOD = 10
CHECKPOINT_PERIOD = 10
trainer.Trainer.log_period = 1
config.ModelConfig.vocab_size = 512
config.ModelConfig.d_model = 64
config.ModelConfig.num_layers = 2
config.ModelConfig.num_heads = 4
config.ModelConfig.head_dim = 16
config.ModelConfig.d_ff = 256
config.ModelConfig.max_length = 128
partitioning.MeshShape.data = 8
"""
LARGER = """
from __gin__ import dynamic_registration
from flm_jax import config
config.ModelConfig.d_model = 96
config.ModelConfig.num_layers = 4
config.ModelConfig.num_heads = 8
config.ModelConfig.d_ff = 512
"""
# The same growth as a stage of our trainer's run.
FLM_STAGES = """
from __gin__ import dynamic_registration
from flm_jax import config
from flm_jax.grow import schedule
from flm_jax.training import trainer
include 'gin_configs/growth/stages.gin'
trainer.Trainer.stages = [@small/schedule.Stage(), @large/schedule.Stage()]
schedule.Stage.method = "lemon"
small/schedule.Stage.steps = 20
large/schedule.Stage.steps = 20
large/config.ModelConfig.d_model = 96
large/config.ModelConfig.num_layers = 4
large/config.ModelConfig.num_heads = 8
large/config.ModelConfig.d_ff = 512
"""


def arrays(checkpoint: Path) -> dict[tuple[str, ...], np.ndarray]:
    state = StoredState(checkpoint / "state")
    return {path: state.read(path) for path in state.arrays}


def assert_bitwise_equal(one: Path, other: Path) -> None:
    expected, found = arrays(one), arrays(other)
    assert set(expected) == set(found)
    for path, array in expected.items():
        assert array.dtype == found[path].dtype, path
        np.testing.assert_array_equal(found[path], array, err_msg="/".join(path))


def losses_of_t5x(model_dir: Path, tag: str = "loss") -> dict[int, float]:
    """Step to training loss, from the event files."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
    from tensorboard.util import tensor_util

    return {
        event.step: float(tensor_util.make_ndarray(value.tensor))
        for file in glob.glob(str(model_dir / "train" / "events*"))
        for event in EventFileLoader(file).Load()
        for value in event.summary.value
        if value.tag == tag
    }


def losses_of_flm(model_dir: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (model_dir / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["train/loss"] for line in lines if "train/loss" in line}


@pytest.fixture(scope="module")
def under_t5x(run_t5x: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MODEL_DIR of 20 steps, not interrupted; given as a path from the working directory."""
    model_dir = tmp_path_factory.mktemp("under_t5x")
    run_t5x("t5x.train", TINY, f'--gin.MODEL_DIR="{os.path.relpath(model_dir, ROOT)}"')
    return model_dir


@pytest.fixture(scope="module")
def under_flm(under_t5x: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MODEL_DIR of 20 steps of `flm train`, from t5x's initial checkpoint and with the same data."""
    directory = tmp_path_factory.mktemp("under_flm")
    model_dir = directory / "run"
    model_dir.mkdir()
    shutil.copytree(under_t5x / "checkpoint_0", model_dir / "checkpoint_0")
    shutil.copy(under_t5x / "flm_metadata.json", model_dir)
    assert flm_train(directory, model_dir, under_t5x, FLM_RUN) == 0
    return model_dir


def flm_train(directory: Path, model_dir: Path, data: Path, *files: str) -> int:
    paths = [directory / f"{number}.gin" for number in range(len(files))]
    for path, text in zip(paths, files, strict=True):
        path.write_text(text)
    return cli.main(
        ["train", *(f"--gin_file={path}" for path in paths), f"--gin.MODEL_DIR={model_dir}",
         f"--gin.PREPARED_DIR={data / 'tiny_data/prepared'}"]
    )  # fmt: skip


def test_it_trains_saves_evaluates_and_infers(under_t5x: Path) -> None:
    steps = sorted(int(path.name.removeprefix("checkpoint_")) for path in under_t5x.glob("checkpoint_*"))
    assert steps == [0, 10, 20]
    losses = losses_of_t5x(under_t5x)
    assert set(losses) == set(range(1, 21)) and losses[20] < losses[1] / 2
    evaluated = {path.name for path in (under_t5x / "training_eval").iterdir()}
    assert {"en_held_out", "zh_held_out", "instruct_held_out"} <= evaluated
    metrics = [
        json.loads(line) for line in (under_t5x / "inference_eval/instruct_questions-metrics.jsonl").open()
    ]
    assert [line["step"] for line in metrics] == [10, 20]
    assert metrics[0]["log_likelihood"] != metrics[1]["log_likelihood"]
    answers = (under_t5x / "inference_eval/instruct_questions-000020.jsonl").read_text().splitlines()
    assert len(answers) == 16 and all("prediction" in json.loads(answer) for answer in answers)


def test_the_logged_learning_rate_is_the_one_that_acts(under_t5x: Path, under_flm: Path) -> None:
    ours = [json.loads(line) for line in (under_flm / "metrics.jsonl").read_text().splitlines()]
    acting = {line["step"]: line["train/learning_rate"] for line in ours if "train/loss" in line}
    assert losses_of_t5x(under_t5x, "learning_rate") == pytest.approx(acting, rel=1e-5)


def test_stopped_and_started_again_it_ends_on_the_same_bits(
    t5x: Any, run_t5x: Run, under_t5x: Path, tmp_path: Path
) -> None:
    """Killed as soon as the checkpoint of step 10 is there."""
    flags = [TINY, f'--gin.MODEL_DIR="{tmp_path}"']
    environment = {
        **os.environ,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "t5x.train", *flags],
        cwd=ROOT,
        env=environment,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 300
    while not (tmp_path / "checkpoint_10").exists() and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "checkpoint_20").exists()
    run_t5x("t5x.train", *flags)
    assert_bitwise_equal(under_t5x / "checkpoint_20", tmp_path / "checkpoint_20")


def test_flm_trains_on_the_same_batches(under_t5x: Path, under_flm: Path) -> None:
    expected = losses_of_t5x(under_t5x)
    assert len(expected) == 20
    assert losses_of_flm(under_flm) == pytest.approx(expected, rel=1e-5)


def test_flm_reads_what_t5x_wrote(under_t5x: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """`flm eval` on its parameters, bit for bit."""
    metadata, params, step = load_params(under_t5x)
    stored = arrays(under_t5x / "checkpoint_20")
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        np.testing.assert_array_equal(leaf, stored["target", *(entry.key for entry in path)])
    assert step == 20 and metadata.config.d_model == 64
    prepared = under_t5x / "tiny_data/prepared"
    flags = [f"--model_dir={under_t5x}", f"--prepared_dir={prepared}", f"--json={tmp_path / 'found.json'}"]
    assert cli.main(["eval", *flags]) == 0
    assert set(json.loads((tmp_path / "found.json").read_text())["tasks"]) == {"en", "zh", "instruct"}
    tokenizer = under_t5x / "tiny_data/tokenizer.model"
    assert cli.main(["generate", flags[0], f"--tokenizer={tokenizer}", "--prompt=one plus"]) == 0
    assert "one plus|" in capsys.readouterr().out


def test_flm_goes_on_with_what_t5x_wrote(under_t5x: Path, under_flm: Path, tmp_path: Path) -> None:
    """From t5x's step 10 to where our own 20 steps end; what t5x saved is kept."""
    model_dir = tmp_path / "run"
    model_dir.mkdir()
    for name in ("checkpoint_0", "checkpoint_10"):
        shutil.copytree(under_t5x / name, model_dir / name)
    shutil.copy(under_t5x / "flm_metadata.json", model_dir)
    assert flm_train(tmp_path, model_dir, under_t5x, FLM_RUN) == 0
    expected = losses_of_flm(under_flm)
    assert losses_of_flm(model_dir) == pytest.approx({s: expected[s] for s in range(11, 21)}, rel=1e-5)
    assert {path.name for path in model_dir.glob("checkpoint_*")} == {
        "checkpoint_0", "checkpoint_10", "checkpoint_20"
    }  # fmt: skip


def test_t5x_goes_on_with_what_flm_wrote(
    run_t5x: Run, under_t5x: Path, under_flm: Path, tmp_path: Path
) -> None:
    """From our step 10, bit for bit, with the batches that come next."""
    checkpoint = tmp_path / "checkpoint_10"
    shutil.copytree(under_flm / "checkpoint_10", checkpoint)
    model_dir = tmp_path / "run"
    run_t5x("t5x.train", TINY, FROM_CHECKPOINT, f'--gin.INITIAL_CHECKPOINT="{checkpoint}"',
            f'--gin.MODEL_DIR="{model_dir}"', f'--gin.DATA_DIR="{under_t5x}"')  # fmt: skip
    assert_bitwise_equal(checkpoint, model_dir / "checkpoint_10")
    expected = losses_of_flm(under_flm)
    assert losses_of_t5x(model_dir) == pytest.approx({s: expected[s] for s in range(11, 21)}, rel=1e-5)


def test_grown_between_two_runs(
    run_t5x: Run, under_t5x: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """The function is kept, moments are carried, and it trains on as our trainer does from the same checkpoint."""
    target = tmp_path / "larger.gin"
    target.write_text(LARGER)
    grown, model_dir, ours = (tmp_path / name for name in ("grown", "larger", "ours"))
    grow = ["grow", f"--checkpoint={under_t5x}", f"--target={target}", f"--out={grown}"]
    assert cli.main(grow) == cli.EXIT_USAGE  # by default masked
    assert "whose loss does not know the step" in capsys.readouterr().err
    assert cli.main([*grow, "--method=lemon"]) == 0
    flags = [f'--gin.INITIAL_CHECKPOINT="{grown}"', f'--gin.MODEL_DIR="{model_dir}"', "--gin.TRAIN_STEPS=40"]
    run_t5x("t5x.train", TINY, FROM_CHECKPOINT, *flags, f'--gin.DATA_DIR="{under_t5x}"')

    assert_bitwise_equal(grown / "checkpoint_20", model_dir / "checkpoint_20")
    tokens = np.random.default_rng(0).integers(0, 512, (4, 64))
    before, after = (
        Decoder(metadata.config).apply({"params": params}, tokens)
        for metadata, params, _ in (load_params(under_t5x, 20), load_params(model_dir, 20))
    )
    assert np.abs(after - before).max() <= 5e-6 * np.abs(before).max()
    old, new = arrays(under_t5x / "checkpoint_20"), arrays(model_dir / "checkpoint_20")
    moments = ("state", "param_states", "inner_state", "1")
    ages = new[*moments, "births", "embed"]
    np.testing.assert_array_equal(np.sort(ages), [0] * 64 + [20] * 32)
    mu = new[*moments, "mu", "token_embedding", "embedding"]
    assert np.abs(mu[:, :64]).max() > 0 and not mu[:, 64:].any()
    assert old[*moments, "count"] == new[*moments, "count"] == 20

    losses = losses_of_t5x(model_dir)
    assert set(losses) == set(range(21, 41)) and losses[40] < losses[21]
    # Started again it needs the grown checkpoint no more: it has become its own.
    again = tmp_path / "again"
    again.mkdir()
    for name in ("checkpoint_30", "flm_metadata.json"):
        source = model_dir / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, again / name)
    shutil.move(grown, ours)
    flags[1] = f'--gin.MODEL_DIR="{again}"'
    run_t5x("t5x.train", TINY, FROM_CHECKPOINT, *flags, f'--gin.DATA_DIR="{under_t5x}"')
    assert_bitwise_equal(model_dir / "checkpoint_40", again / "checkpoint_40")
    assert flm_train(tmp_path, ours, under_t5x, FLM_RUN, FLM_STAGES) == 0
    assert losses_of_flm(ours) == pytest.approx(losses, rel=1e-5)


@pytest.fixture(scope="module")
def questions(under_t5x: Path) -> list[str]:
    """Flags of the data, for inference."""
    data = under_t5x / "tiny_data"
    files = {"EN_FILES": "en.jsonl", "ZH_FILES": "zh.jsonl", "INSTRUCT_FILES": "instruct.jsonl"}
    return [
        "--gin_file=gin_configs/data/bilingual.gin",
        *(f'--gin.{macro}="{data / name}"' for macro, name in files.items()),
        f'--gin.VOCABULARY="{data / "tokenizer.model"}"',
        "--gin.VALIDATION_EVERY=10",
        '--gin.INFER_LENGTHS={"inputs": 48, "targets": 16}',
        "--gin.BATCH_SIZE=8",
        f'--gin.CHECKPOINT_PATH="{os.path.relpath(under_t5x / "checkpoint_20", ROOT)}"',
    ]


def test_eval(run_t5x: Run, questions: list[str], tmp_path: Path) -> None:
    run_t5x("t5x.eval", "--gin_file=gin_configs/t5x/eval.gin", *questions,
            f'--gin.EVAL_OUTPUT_DIR="{tmp_path}"')  # fmt: skip
    (line,) = (tmp_path / "inference_eval/instruct_questions-metrics.jsonl").read_text().splitlines()
    assert json.loads(line)["step"] == 20 and json.loads(line)["log_likelihood"] < 0


def test_infer(run_t5x: Run, questions: list[str], tmp_path: Path) -> None:
    run_t5x("t5x.infer", "--gin_file=gin_configs/t5x/infer.gin", *questions,
            f'--gin.INFER_OUTPUT_DIR="{tmp_path}"')  # fmt: skip
    (answers,) = tmp_path.glob("*instruct_questions-predict.jsonl-00000-of-00001")
    lines = [json.loads(line) for line in answers.read_text().splitlines()]
    assert len(lines) == 40 and all(isinstance(line["prediction"], str) for line in lines)
    assert lines[0]["inputs"]["inputs_pretokenized"].startswith("What is ")


def test_streamed_text_and_its_place(run_t5x: Run, tmp_path: Path) -> None:
    """Tokenized while training; from the checkpoint of step 10 it ends on the same bits."""
    lengths = '--gin.TASK_FEATURE_LENGTHS={"inputs": 32, "targets": 32}'
    flags = [TINY, "--gin_file=gin_configs/t5x/streaming.gin", lengths]
    one, other = tmp_path / "one", tmp_path / "other"
    run_t5x("t5x.train", *flags, f'--gin.MODEL_DIR="{one}"')
    other.mkdir()
    shutil.copytree(one / "checkpoint_10", other / "checkpoint_10")
    shutil.copy(one / "flm_metadata.json", other)
    shutil.copytree(one / "tiny_data", other / "tiny_data", copy_function=shutil.copy2)
    run_t5x("t5x.train", *flags, f'--gin.MODEL_DIR="{other}"')
    assert_bitwise_equal(one / "checkpoint_20", other / "checkpoint_20")


def test_the_set_up_of_the_page(run_t5x: Run, under_t5x: Path, tmp_path: Path) -> None:
    """A gin file of one's own around our model, on a task of one's own."""
    (block,) = re.findall(r"(?ms)^```gin t5x\n(.*?)^```$", (ROOT / "docs/t5x.md").read_text("utf-8"))
    (module,) = re.findall(
        r"(?ms)^```python my_tasks.py\n(.*?)^```$", (ROOT / "docs/t5x.md").read_text("utf-8")
    )
    (tmp_path / "own.gin").write_text(block)
    (tmp_path / "my_tasks.py").write_text(module.replace("data/en.txt", f"{under_t5x}/tiny_data/en.jsonl"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(tmp_path), *sys.path])
        tokenizer = f'--gin.VOCABULARY="{under_t5x / "tiny_data/tokenizer.model"}"'
        sizes = ("num_layers=1", "d_model=64", "d_ff=64")
        run_t5x("t5x.train", f"--gin_file={tmp_path / 'own.gin'}", f'--gin.MODEL_DIR="{tmp_path / "run"}"',
                tokenizer, "--gin.TRAIN_STEPS=3", "--gin.WARMUP_STEPS=1", "--gin.BATCH_SIZE=8",
                *(f"--gin.config.ModelConfig.{size}" for size in sizes))  # fmt: skip
    losses, rates = losses_of_t5x(tmp_path / "run"), losses_of_t5x(tmp_path / "run", "learning_rate")
    assert losses and max(rates.values()) < 1e-3
    assert load_params(tmp_path / "run")[2] == 3
