"""What `flm grow` is asked for, from its flags and gin files."""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import gin
from tqdm import tqdm

from flm_jax import gin_setup
from flm_jax.config import ModelConfig
from flm_jax.grow.errors import GrowthError
from flm_jax.training import continuation
from flm_jax.training.checkpoint_growth import CheckpointGrowth, Settings
from flm_jax.training.metadata import Metadata
from flm_jax.training.trainer import Trainer

# The flags that are settings too.
_FLAGS = ("method", "ramp_steps", "optimizer_state", "multipliers", "batch_size")


def from_options(options: argparse.Namespace) -> tuple[CheckpointGrowth, Path]:
    """The growth, and where to write it.

    The gin files are read over the checkpoint's own config: what they do not say stays as it is. If they describe a run
    with stages, the stage after the checkpoint's says what to grow into and how, but for what is given by flags.

    Raises:
        GinError: a file or a binding is wrong.
        GrowthError: the growth cannot be planned, or the run has no further stage.
        FileNotFoundError: there is no such checkpoint.
    """
    found = continuation.find(options.checkpoint)
    metadata = found.metadata
    _parse(metadata.config, options)
    given = {name: value for name in _FLAGS if (value := getattr(options, name)) is not None}
    if "method" in given:
        given["method"] = _method(given["method"])
    target, said = _wanted(metadata)
    growth = CheckpointGrowth(found.directory, target, Settings(**{**said, **given}))
    return growth, Path(options.out)


def carry_out(growth: CheckpointGrowth, out: Path, verifies: bool) -> None:
    """Verifies, unless told not to, and writes, with progress; says what it did.

    Raises:
        FunctionChangedError: beyond what the method may; nothing is written.
    """
    if verifies:
        found = growth.verify()
        print(
            f"verified in {found.precision}: logits differ by {found.logits:.1e} relative, the loss on random tokens "
            f"by {found.gap:+.2e} nats"
        )
    else:
        print("not verified (--no_verify)")
    with tqdm(total=growth.num_bytes, unit="B", unit_scale=True, dynamic_ncols=True) as bar:
        written = growth.write(out, bar.update)
    print(f"wrote {written}")


def _parse(config: ModelConfig, options: argparse.Namespace) -> None:
    lines = ["from __gin__ import dynamic_registration", "from flm_jax import config"]
    lines += [f"config.ModelConfig.{name} = {value!r}" for name, value in config.to_json().items()]
    paths = [path for path in options.gin_search_paths.split(",") if path]
    with tempfile.NamedTemporaryFile("w", suffix=".gin") as file:
        file.write("\n".join(lines) + "\n")
        file.flush()
        gin_setup.parse([file.name, *options.target], options.gin_bindings, paths)


def _wanted(metadata: Metadata) -> tuple[ModelConfig, dict[str, Any]]:
    """The target, and the settings that the gin files say."""
    said: dict[str, Any] = {}
    if _is_bound("flm_jax.training.trainer.Trainer.optimizer"):
        said["optimizer"] = gin.query_parameter(
            "flm_jax.training.trainer.Trainer.optimizer"
        ).scoped_configurable_fn
    if not _is_bound("flm_jax.training.trainer.Trainer.stages"):
        return gin.get_configurable(ModelConfig)(), said
    run = gin.get_configurable(Trainer)()
    index = len(metadata.growth_record) + 1
    if index >= len(run.stages):
        raise GrowthError(
            f"the checkpoint has grown {index - 1} times, so it grows into stage {index + 1}, but the run of --target "
            f"has {len(run.stages)} (Trainer.stages)"
        )
    stage = run.stages[index]
    said = {name: getattr(stage, name) for name in _FLAGS}
    return stage.model.config, {**said, "optimizer": run.optimizer}


def _is_bound(parameter: str) -> bool:
    try:
        gin.query_parameter(parameter)
    except ValueError:
        return False
    return True


def _method(text: str) -> str | dict[str, str]:
    """`lemon`, or `embed=average,layers=zero`; what is neither is the plan's to refuse."""
    if "=" not in text:
        return text
    pairs = [part.partition("=") for part in text.split(",")]
    return {axis.strip(): name.strip() for axis, _, name in pairs}
