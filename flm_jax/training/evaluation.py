"""A checkpoint's loss on held-out text, for `flm eval`."""

import dataclasses
from pathlib import Path
from typing import Any

import jax

from flm_jax import partitioning
from flm_jax.grow.lineage import Lineage
from flm_jax.json_file import write_json
from flm_jax.model import LanguageModel
from flm_jax.partitioning import MeshShape
from flm_jax.tasks.prepared import PreparedTask, prepared_tasks
from flm_jax.training.checkpoints import load_params
from flm_jax.training.held_out import HeldOutEvaluator, HeldOutLoss


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What was found.

    Attributes:
        model_dir: The run's directory.
        step: Of the checkpoint.
        num_params: Of its model.
        tasks: Task to its loss.
    """

    model_dir: str
    step: int
    num_params: int
    tasks: dict[str, HeldOutLoss]

    def table(self) -> str:
        """For people."""
        head = f"{self.model_dir}/checkpoint_{self.step}: {self.num_params:,} parameters"
        width = max(map(len, ("task", *self.tasks)))
        rows = [f"{'task':<{width}}  nats/token  bits/byte  accuracy      tokens"]
        rows += [
            f"{name:<{width}}  {found.loss:>10.4f}  {found.bits_per_byte:>9.4f}  {found.accuracy:>8.1%}  "
            f"{found.tokens:>10,}"
            for name, found in self.tasks.items()
        ]
        return "\n".join([head, *rows])

    def write_json(self, path: str) -> None:
        """The same numbers, written whole or not at all."""
        values: dict[str, Any] = dataclasses.asdict(self)
        values["tasks"] = {name: loss._asdict() for name, loss in self.tasks.items()}
        write_json(path, values)


def evaluate(
    model_dir: str,
    prepared_dir: str,
    step: int | None = None,
    batch_size: int = 8,
    num_sequences: int | None = None,
) -> Evaluation:
    """Evaluates a checkpoint on one device.

    Args:
        model_dir: A run's directory, of `flm train` or of t5x.
        prepared_dir: Every task in it that has a validation split is evaluated.
        step: Which checkpoint; None is the newest.
        batch_size: Sequences at a time.
        num_sequences: Of each task; None for all.

    Raises:
        FileNotFoundError: there is no such checkpoint, or nothing is prepared there.
        ValueError: the tasks were prepared with another tokenizer, are longer than the model's `max_length`, or none
            has a validation split.
    """
    directory = Path(prepared_dir).expanduser()
    tasks = [PreparedTask(directory / name) for name in prepared_tasks(directory)]
    if not tasks:
        raise FileNotFoundError(
            f"expected prepared tasks, found none in {directory}: change --prepared_dir, or make them with `flm data "
            "prepare`"
        )
    metadata, params, found_step = load_params(Path(model_dir), step)
    config = metadata.config
    for task in tasks:
        metadata.check_tokenizer(task.manifest.vocabulary["sha256"], str(task.directory))
        if task.length > config.max_length:
            raise ValueError(
                f"expected sequences of at most ModelConfig.max_length = {config.max_length} tokens, found "
                f"{task.length} in {task.directory}"
            )
    mesh = MeshShape(data=1).build(jax.devices()[:1])
    config = dataclasses.replace(config, attention="auto")  # it may have been trained on other devices
    evaluator = HeldOutEvaluator(LanguageModel(config), mesh, tasks, batch_size, num_sequences)
    mask = Lineage.from_json(metadata.growth_record).mask_at(found_step)
    with jax.set_mesh(mesh), partitioning.axis_rules():
        losses = evaluator(params, growth=mask)
    if not losses:
        raise ValueError(
            f"expected a validation split in {directory}, found none in {', '.join(task.name for task in tasks)}"
        )
    return Evaluation(str(model_dir), found_step, config.num_params, losses)
