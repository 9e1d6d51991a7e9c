"""What a run that goes on from another run's checkpoint takes over from it, besides the arrays.

A growth changes more than sizes: epsilon, the norm's denominator and the optimizer's multipliers. They travel in the
checkpoint's metadata, and a gin file that goes on from the checkpoint takes them from there:

    MODEL_CONFIG = @continuation.model_config()
    optimizer.adamw.multipliers = @continuation.multipliers()
"""

import contextlib
import re
from pathlib import Path
from typing import NamedTuple

from flm_jax.config import ModelConfig
from flm_jax.grow.lineage import Lineage
from flm_jax.optimizer import Multipliers
from flm_jax.training.checkpoints import Checkpoints, Metadata


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


def model_config(checkpoint: str) -> ModelConfig:
    """The model that it holds, with what a growth has changed."""
    return find(checkpoint).metadata.config


def multipliers(checkpoint: str) -> Multipliers:
    """Of each parameter, as `optimizer.adamw` takes them: those that its growths have left."""
    found = find(checkpoint)
    return found.lineage.multipliers(found.metadata.config)


def sequences(checkpoint: str) -> int:
    """How many sequences were read before it."""
    found = find(checkpoint)
    return found.lineage.sequences(found.step, found.metadata.batch_size)


def locate(checkpoint: Path) -> tuple[Path, int]:
    """The run's directory and the step of `MODEL_DIR` or `MODEL_DIR/checkpoint_<step>`."""
    checkpoint = Path(checkpoint).expanduser()
    named = re.fullmatch(r"checkpoint_(\d+)", checkpoint.name)
    model_dir = checkpoint.parent if named else checkpoint
    steps = [int(path.name.removeprefix("checkpoint_")) for path in model_dir.glob("checkpoint_*")
             if re.fullmatch(r"checkpoint_\d+", path.name)]  # fmt: skip
    step = int(named.group(1)) if named else max(steps, default=None)
    if step is None or step not in steps:
        raise FileNotFoundError(
            f"expected a checkpoint, MODEL_DIR/checkpoint_<step>, or a MODEL_DIR that holds one; found none at "
            f"{checkpoint}"
        )
    return model_dir, step
