"""What a run that goes on from another run's checkpoint takes over from it, besides the arrays.

A growth changes more than sizes: epsilon, the norm's denominator and the optimizer's multipliers. They travel in the
checkpoint's metadata, and a gin file that goes on from the checkpoint takes them from there:

    MODEL_CONFIG = @continuation.model_config()
    optimizer.adamw.multipliers = @continuation.multipliers()
"""

import contextlib
import os
import re
from pathlib import Path
from typing import NamedTuple

from flm_jax.config import ModelConfig
from flm_jax.grow.lineage import Lineage
from flm_jax.optimizer import Multipliers
from flm_jax.tasks.history import History
from flm_jax.tasks.vocabulary import Vocabulary
from flm_jax.training.checkpoints import Checkpoints
from flm_jax.training.metadata import CheckpointMismatchError, Metadata


class Found(NamedTuple):
    """A checkpoint, and what is stored beside its arrays."""

    model_dir: Path
    step: int
    metadata: Metadata
    of_t5x: bool

    @property
    def directory(self) -> Path:
        """`MODEL_DIR/checkpoint_<step>`."""
        return self.model_dir / f"checkpoint_{self.step}"

    @property
    def lineage(self) -> Lineage:
        """The growths that led to it."""
        return Lineage.from_json(self.metadata.growth_record)


def find(checkpoint: str | Path) -> Found:
    """The checkpoint at `MODEL_DIR/checkpoint_<step>`, or the newest in `MODEL_DIR`.

    Raises:
        FileNotFoundError: there is none.
        CheckpointMismatchError: it has no metadata.
    """
    model_dir, step = locate(Path(checkpoint))
    with contextlib.closing(Checkpoints(model_dir, clean_up=False)) as checkpoints:
        return Found(model_dir, step, checkpoints.metadata(step), checkpoints.is_of_t5x(step))


def model_config(checkpoint: str, model_dir: str | None = None) -> ModelConfig:
    """The model that it holds, with what a growth has changed.

    Args:
        checkpoint: `MODEL_DIR/checkpoint_<step>`, or `MODEL_DIR` for the newest.
        model_dir: Of the run that goes on; once that has checkpoints, they say, and `checkpoint` need not be kept.

    Raises:
        CheckpointMismatchError: a mask opens at its step.
        FileNotFoundError: there is no such checkpoint.
    """
    found = _first_of(model_dir, checkpoint)
    if found.step < found.lineage.ramp_end:
        raise CheckpointMismatchError(
            f"{found.directory} is in mid-ramp: a mask opens until step {found.lineage.ramp_end}, and t5x does not "
            "tell its model the step. Train on with `flm train` until then"
        )
    return found.metadata.config


def multipliers(checkpoint: str, model_dir: str | None = None) -> Multipliers:
    """Of each parameter, as `optimizer.adamw` takes them: those that its growths have left. Args as `model_config`."""
    found = _first_of(model_dir, checkpoint)
    return found.lineage.multipliers(found.metadata.config)


def sequences(checkpoint: str, model_dir: str | None = None) -> int:
    """How many sequences were read before it. Args as `model_config`.

    0 for a run that has checkpoints: t5x restores the place in its data.
    """
    if _has_checkpoints(model_dir):
        return 0
    found = find(checkpoint)
    return found.metadata.data_history.sequences(found.step)


def history(checkpoint: str, model_dir: str | None = None) -> History:
    """The batch sizes and mixtures that led to it. Args as `model_config`."""
    return _first_of(model_dir, checkpoint).metadata.data_history


def lineage(checkpoint: str, model_dir: str | None = None) -> Lineage:
    """The growths that led to it. Args as `model_config`."""
    return _first_of(model_dir, checkpoint).lineage


def tokenizer(checkpoint: str, path: str) -> str:
    """`path`, if it is the tokenizer that the checkpoint's model was trained with.

    Raises:
        ValueError: it is another one.
    """
    find(checkpoint).metadata.check_tokenizer(Vocabulary(path).sha256, path)
    return path


def absolute(path: str) -> str:
    """Orbax takes no path that begins in the working directory."""
    return path if "://" in path else os.path.abspath(os.path.expanduser(path))


def _first_of(model_dir: str | None, checkpoint: str) -> Found:
    return find(model_dir if model_dir is not None and _has_checkpoints(model_dir) else checkpoint)


def _has_checkpoints(model_dir: str | None) -> bool:
    return model_dir is not None and bool(_steps(Path(model_dir).expanduser()))


def _steps(model_dir: Path) -> list[int]:
    return [
        int(path.name.removeprefix("checkpoint_"))
        for path in model_dir.glob("checkpoint_*")
        if re.fullmatch(r"checkpoint_\d+", path.name)
    ]


def locate(checkpoint: Path) -> tuple[Path, int]:
    """The run's directory and the step of `MODEL_DIR` or `MODEL_DIR/checkpoint_<step>`."""
    if re.match(r"\w+:/", str(checkpoint)):
        raise ValueError(f"expected a checkpoint in a local directory, found {checkpoint}: copy it first")
    checkpoint = Path(checkpoint).expanduser()
    named = re.fullmatch(r"checkpoint_(\d+)", checkpoint.name)
    model_dir = checkpoint.parent if named else checkpoint
    steps = _steps(model_dir)
    step = int(named.group(1)) if named else max(steps, default=None)
    if step is None or step not in steps:
        raise FileNotFoundError(
            f"expected a checkpoint, MODEL_DIR/checkpoint_<step>, or a MODEL_DIR that holds one; found none at "
            f"{checkpoint}"
        )
    return model_dir, step
