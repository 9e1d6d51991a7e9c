"""What a run that goes on from another run's checkpoint takes over from it, besides the arrays.

A growth changes more than sizes: epsilon, the norm's denominator and the optimizer's multipliers. They travel in the
checkpoint's metadata, and a gin file that goes on from the checkpoint takes them from there:

    MODEL_CONFIG = @continuation.model_config()
    optimizer.adamw.multipliers = @continuation.multipliers()
"""

import contextlib
import dataclasses
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

from flm_jax.config import ModelConfig
from flm_jax.grow.lineage import Lineage
from flm_jax.optimizer import Multipliers
from flm_jax.tasks.history import Epochs, History, read_epochs
from flm_jax.tasks.mixture import Mixture
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

    For a run that has checkpoints, before its newest; there t5x restores the place in its data by itself.
    """
    found = _first_of(model_dir, checkpoint)
    return found.metadata.data_history.sequences(found.step)


def history(
    checkpoint: str,
    batch_size: int,
    mixture: Any,
    first_sequence: int,
    max_epochs: Epochs = None,
    model_dir: str | None = None,
) -> History:
    """Batch sizes, mixtures and caps that led to it, and from it on those of this run, as `flm train` would go on.

    Args:
        checkpoint, model_dir: As in `model_config`.
        batch_size: `BATCH_SIZE`.
        mixture: `MIXTURE_OR_TASK_NAME`.
        first_sequence: `FIRST_SEQUENCE`. With 0 the data begins anew: of what was read, the batch sizes are kept, by
            which tokens are counted, and the mixture is this run's throughout.
        max_epochs: That a task may be read for in the whole run.
    """
    found = _first_of(model_dir, checkpoint)
    before = found.metadata.data_history
    if first_sequence or found.metadata.has_read_nothing:
        return before.changed(found.step, batch_size, mixture, max_epochs)
    meant, caps = Mixture.of(mixture), read_epochs(max_epochs)
    return History(
        tuple(dataclasses.replace(segment, mixture=meant, max_epochs=caps) for segment in before.segments)
    )


def mixture(history: History, mixture: Any, first_sequence: int) -> Any:
    """What `seqio_tasks.prepared` reads: the history, or `mixture` alone where the data begins anew.

    Args as in `history`.
    """
    return history if first_sequence else mixture


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
