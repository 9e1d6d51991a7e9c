"""A checkpoint's loss on the held-out text of prepared tasks."""

import math
from collections.abc import Sequence
from pathlib import Path

import jax

from flm_jax import partitioning
from flm_jax.evaluation.measured import HELD_OUT, Measured
from flm_jax.evaluation.opened import Opened
from flm_jax.model import LanguageModel
from flm_jax.tasks.prepared import PreparedTask, prepared_tasks
from flm_jax.training.held_out import HeldOutEvaluator, HeldOutLoss
from flm_jax.training.metadata import Metadata


def open_tasks(prepared_dir: str) -> list[PreparedTask]:
    """The prepared tasks of a folder, in alphabetical order.

    Raises:
        FileNotFoundError: there are none.
        ValueError: none has a validation split.
    """
    directory = Path(prepared_dir).expanduser()
    tasks = [PreparedTask(directory / name) for name in prepared_tasks(directory)]
    if not tasks:
        raise FileNotFoundError(
            f"expected prepared tasks, found none in {directory}: change --prepared_dir, or make them with `flm data "
            "prepare`"
        )
    if not any("validation" in task.splits for task in tasks):
        raise ValueError(
            f"expected a validation split in {directory}, found none in {', '.join(task.name for task in tasks)}"
        )
    return tasks


def check_tasks(metadata: Metadata, tasks: Sequence[PreparedTask]) -> None:
    """Refuses tasks that a checkpoint cannot read.

    Raises:
        ValueError: they were prepared with another tokenizer, or are longer than the model's `max_length`.
    """
    for task in tasks:
        metadata.check_tokenizer(task.manifest.vocabulary["sha256"], str(task.directory))
        if task.length > metadata.config.max_length:
            raise ValueError(
                f"expected sequences of at most ModelConfig.max_length = {metadata.config.max_length} tokens, found "
                f"{task.length} in {task.directory}"
            )


def held_out(
    opened: Opened, tasks: list[PreparedTask], batch_size: int = 8, num_sequences: int | None = None
) -> dict[str, HeldOutLoss]:
    """The loss on each task that has a validation split.

    Args:
        opened: The checkpoint.
        tasks: That were prepared with its tokenizer.
        batch_size: Sequences at a time; a multiple of the devices that split the batch.
        num_sequences: Of each task; None for all.

    Raises:
        ValueError: the tasks were prepared with another tokenizer, or are longer than the model's `max_length`, or the
            devices do not divide the batch.
    """
    check_tasks(opened.metadata, tasks)
    parts = math.prod(opened.mesh.shape[axis] for axis in partitioning.BATCH_AXES)
    if batch_size % parts:
        raise ValueError(f"expected --batch_size to be a multiple of {parts} devices, found {batch_size}")
    model = LanguageModel(opened.config)
    evaluator = HeldOutEvaluator(model, opened.mesh, tasks, batch_size, num_sequences)
    with jax.set_mesh(opened.mesh), partitioning.axis_rules():
        return evaluator(opened.params, growth=opened.growth) or {}


def measures(losses: dict[str, HeldOutLoss]) -> list[Measured]:
    """Nats per token, perplexity, bits per byte and accuracy of each task."""
    found = []
    for task, loss in losses.items():
        perplexity = math.exp(loss.loss) if loss.loss < _LARGEST_EXPONENT else math.inf
        values = {
            "loss": loss.loss,
            "perplexity": perplexity,
            "bits_per_byte": loss.bits_per_byte,
            "accuracy": loss.accuracy,
        }
        found += [
            Measured(HELD_OUT, task, metric, value, count=loss.tokens, share=metric == "accuracy")
            for metric, value in values.items()
        ]
    return found


_LARGEST_EXPONENT = 700  # float64 ends at e^709
