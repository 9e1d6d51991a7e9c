"""Growth from checkpoint to checkpoint: the same bits as in memory, and nothing half-written is ever read."""

import dataclasses
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pytest

from flm_jax import cli, parameters
from flm_jax.grow.errors import GrowthError
from flm_jax.grow.lineage import Lineage
from flm_jax.training.checkpoint_growth import CheckpointGrowth, Settings
from flm_jax.training.checkpoints import Checkpoints, load_params, to_tree
from flm_jax.training.continuation import locate
from flm_jax.training.state import TrainState
from flm_jax.training.step import skipping_non_finite
from flm_jax.training.trainer import Outcome
from tests.training import runs
from tests.training.test_growth import LARGE, MEDIUM, growing, stopping_at

pytestmark = pytest.mark.usefixtures("quick_compilation")

LEMON = Settings(method="lemon", batch_size=4)


@pytest.fixture(scope="module")
def in_memory(prepared_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three stages, whose ends are at steps 5, 10 and 15."""
    model_dir = tmp_path_factory.mktemp("in_memory")
    assert growing(model_dir, prepared_dir).run() is Outcome.FINISHED
    return model_dir


@pytest.mark.parametrize(
    ("step", "target", "settings"),
    [(5, MEDIUM, Settings(method="msg", ramp_steps=3)), (10, LARGE, LEMON)],
    ids=["msg", "lemon"],
)
def test_a_run_goes_on_as_if_it_had_grown_in_memory(
    step: int, target: Any, settings: Settings, in_memory: Path, prepared_dir: Path, tmp_path: Path
) -> None:
    written = CheckpointGrowth(in_memory / f"checkpoint_{step}", target, settings).write(tmp_path / "grown")
    assert written == tmp_path / "grown" / f"checkpoint_{step}"
    metadata, _, found = load_params(tmp_path / "grown")
    wanted = Lineage.from_json(load_params(in_memory, 15)[0].growth_record).records
    assert found == step and Lineage.from_json(metadata.growth_record).records == wanted[: step // 5]
    assert growing(tmp_path / "grown", prepared_dir).run() is Outcome.FINISHED
    runs.assert_bitwise_equal(runs.stored(tmp_path / "grown", 15), runs.stored(in_memory, 15))


def adafactor(config: Any, learning_rate: Any, multipliers: Any) -> Any:
    """Its state is not in the parameters' shape."""
    return optax.adafactor(learning_rate, min_dim_size_to_factor=24, momentum=0.9)


def by_groups(config: Any, learning_rate: Any, multipliers: Any) -> Any:
    """Its states have holes where another has the parameter."""
    labels = jax.tree.map(
        lambda row: "matrix" if row.fan_in else "vector",
        parameters.table(config),
        is_leaf=parameters.is_parameter,
    )
    return optax.multi_transform(
        {"matrix": optax.lion(learning_rate), "vector": optax.sgd(1e-3, 0.9)}, labels
    )


@pytest.mark.parametrize("factory", [adafactor, by_groups])
@pytest.mark.filterwarnings("ignore::flm_jax.grow.MomentsWarning")
def test_other_optimizers_states_are_written_as_they_grow_in_memory(
    factory: Any, in_memory: Path, tmp_path: Path
) -> None:
    metadata, params, _ = load_params(in_memory, 10)
    optimizer = skipping_non_finite(factory(metadata.config, lambda count: 0.0, None))
    _, opt_state = optimizer.update(params, optimizer.init(params), params)
    state = TrainState(np.asarray(10, np.int32), params, opt_state)
    checkpoints = Checkpoints(tmp_path / "source")
    checkpoints.save(state, metadata)
    checkpoints.close()
    settings = dataclasses.replace(LEMON, optimizer=factory)
    growth = CheckpointGrowth(tmp_path / "source", LARGE, settings)
    growth.write(tmp_path / "grown")
    shapes = jax.eval_shape(skipping_non_finite(factory(LARGE, lambda count: 0.0, None)).init,
                            jax.eval_shape(growth.plan.params, params, jax.random.key(0)))  # fmt: skip
    wanted = to_tree(
        TrainState(
            state.step, growth.plan.params(params, growth.key), growth.plan.opt_state(opt_state, like=shapes)
        )
    )
    found = runs.stored(tmp_path / "grown", 10)
    leaves = jax.tree_util.tree_flatten_with_path(wanted)[0]
    assert len(leaves) == len(found)
    for path, leaf in leaves:
        np.testing.assert_allclose(found[jax.tree_util.keystr(path)], leaf, rtol=1e-6, atol=1e-9)


def grow_command(in_memory: Path, out: Path, *flags: str) -> list[str]:
    sizes = [
        f"--gin.config.ModelConfig.{name}={getattr(LARGE, name)}"
        for name in ("d_model", "num_layers", "num_heads")
    ]
    return [
        "grow",
        f"--checkpoint={in_memory / 'checkpoint_10'}",
        f"--out={out}",
        "--method=lemon",
        *sizes,
        *flags,
    ]


def test_the_command_line(in_memory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "grown"
    assert cli.main(grow_command(in_memory, out, "--dry_run")) == 0
    told = capsys.readouterr().out
    assert "average" in told and "d_model 32 -> 40" in told and "writes" in told
    assert not out.exists()
    assert cli.main(grow_command(in_memory, out, "--batch_size=4")) == 0
    told = capsys.readouterr().out
    assert "verified in float32" in told and f"wrote {out}/checkpoint_10" in told
    metadata, params, _ = load_params(out)
    assert metadata.batch_size == 4 and metadata.config.norm_epsilon == pytest.approx(1e-5 * 32 / 40)
    assert params["final_norm"]["scale"].shape == (40,)
    before = sorted(path.name for path in out.rglob("*"))
    assert cli.main(grow_command(in_memory, out)) == cli.EXIT_USAGE
    assert "expected an empty directory" in capsys.readouterr().err
    assert sorted(path.name for path in out.rglob("*")) == before


def test_a_target_file_says_what_changes(
    in_memory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "large.gin"
    target.write_text(
        "from __gin__ import dynamic_registration\nfrom flm_jax import config\nconfig.ModelConfig.num_layers = 5\n"
    )
    command = [
        "grow",
        f"--checkpoint={in_memory}",
        f"--target={target}",
        f"--out={tmp_path / 'out'}",
        "--dry_run",
    ]
    assert cli.main([*command, "--method=layers=zero_copy"]) == cli.EXIT_USAGE  # the newest has 5 layers
    assert "nothing grows" in capsys.readouterr().err
    target.write_text(target.read_text().replace("= 5", "= 7"))
    assert cli.main([*command, "--method=layers=zero_copy"]) == 0
    assert "bitwise" in capsys.readouterr().out


def test_the_next_stage_of_a_run_says_how_to_grow(
    in_memory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "run.gin"
    target.write_text(RUN_GIN)
    flags = [f"--gin.MODEL_DIR={tmp_path / 'out'}", "--gin.PREPARED_DIR=nowhere"]
    command = ["grow", f"--target={target}", f"--out={tmp_path / 'out'}", "--dry_run", *flags]
    assert cli.main([*command, f"--checkpoint={in_memory / 'checkpoint_5'}"]) == 0
    told = capsys.readouterr().out
    assert "d_ff 40 -> 80" in told and "net2net" in told and "optimizer state: reset" in told
    assert cli.main([*command, f"--checkpoint={in_memory / 'checkpoint_10'}"]) == cli.EXIT_USAGE
    assert "has 2 (Trainer.stages)" in capsys.readouterr().err


RUN_GIN = """
from __gin__ import dynamic_registration
from flm_jax import config
from flm_jax.grow import schedule
from flm_jax.training import trainer
include 'gin_configs/models/flm_tiny.gin'
include 'gin_configs/runs/pretrain.gin'
include 'gin_configs/growth/stages.gin'
config.ModelConfig.vocab_size = 512
config.ModelConfig.d_model = 24
config.ModelConfig.num_layers = 2
config.ModelConfig.num_heads = 4
config.ModelConfig.head_dim = 8
config.ModelConfig.d_ff = 40
config.ModelConfig.max_length = 64
config.ModelConfig.output_mult = 2.0
config.ModelConfig.input_mult = 1.5
trainer.Trainer.stages = [@small/schedule.Stage(), @large/schedule.Stage()]
schedule.Stage.steps = 5
small/schedule.Stage.ramp_steps = 1
large/schedule.Stage.method = "net2net"
large/schedule.Stage.optimizer_state = "reset"
large/config.ModelConfig.d_ff = 80
TASK_FEATURE_LENGTHS = {"targets": 64}
MIXTURE_OR_TASK_NAME = "en"
WARMUP_STEPS = 1
"""


def test_a_checkpoint_in_mid_ramp_is_refused(prepared_dir: Path, tmp_path: Path) -> None:
    with stopping_at(7):
        assert growing(tmp_path, prepared_dir).run() is Outcome.STOPPED
    with pytest.raises(GrowthError, match="mid-ramp: its mask opens until step 8, it is of step 7"):
        CheckpointGrowth(tmp_path / "checkpoint_7", LARGE, LEMON)


def test_another_optimizer_than_the_checkpoints_is_refused(in_memory: Path, tmp_path: Path) -> None:
    def momentum(config: Any, learning_rate: Any, multipliers: Any) -> Any:
        return optax.sgd(learning_rate, momentum=0.9)

    growth = CheckpointGrowth(
        in_memory / "checkpoint_10", LARGE, dataclasses.replace(LEMON, optimizer=momentum)
    )
    with pytest.raises(
        GrowthError, match=r"bind Trainer\.optimizer to the optimizer that it was trained with"
    ):
        growth.write(tmp_path / "grown")
    assert not (tmp_path / "grown").exists()


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="checkpoint_3"):
        locate(tmp_path / "checkpoint_3")


def test_growths_of_one_step_draw_differently(in_memory: Path, tmp_path: Path) -> None:
    """Equal draws for the units of two growths would be copies that nothing tells apart."""
    first = CheckpointGrowth(in_memory / "checkpoint_10", dataclasses.replace(MEDIUM, d_ff=96), LEMON)
    first.write(tmp_path / "first")
    again = CheckpointGrowth(tmp_path / "first", dataclasses.replace(MEDIUM, d_ff=128), LEMON)
    again.write(tmp_path / "again")
    wi = np.asarray(load_params(tmp_path / "again")[1]["layers"]["mlp"]["wi_kernel"])
    assert not np.any(wi[..., 64:96] == wi[..., 96:128])


KILLED = """
import os, signal, sys
from pathlib import Path
from flm_jax.training.checkpoint_growth import CheckpointGrowth, Settings
from tests.training.test_growth import LARGE

made = 0

def progress(size):
    global made
    made += 1
    if made == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)

CheckpointGrowth(Path(sys.argv[1]), LARGE, Settings(method="lemon", batch_size=4)).write(Path(sys.argv[2]), progress)
"""


@pytest.mark.parametrize("slices", [1, 60, -1])
def test_kill_9_leaves_nothing_that_reads_as_complete(slices: int, in_memory: Path, tmp_path: Path) -> None:
    """At the first slice, amid the moments, and at the very last."""
    growth = CheckpointGrowth(in_memory / "checkpoint_10", LARGE, LEMON)
    if slices < 0:
        made: list[int] = []
        growth.write(tmp_path / "counted", made.append)
        slices = len(made)
    out = tmp_path / "grown"
    arguments = [str(in_memory / "checkpoint_10"), str(out), str(slices)]
    process = subprocess.run(
        [sys.executable, "-c", KILLED, *arguments],
        env=runs.environment(),
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == -signal.SIGKILL, process.stderr
    checkpoints = Checkpoints(out, clean_up=False)
    assert checkpoints.latest_step() is None
    checkpoints.close()
    with pytest.raises(FileNotFoundError):
        load_params(out)
    # The same command again does it.
    assert growth.write(out).is_dir()
    assert json.loads(json.dumps(load_params(out)[0].growth_record))[-1]["step"] == 10
