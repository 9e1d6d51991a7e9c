"""The run that gin files describe, where neither its data nor its devices are here: to compile it, or to price it."""

import dataclasses
from collections.abc import Sequence

import gin

from flm_jax import gin_setup
from flm_jax.grow.schedule import Stage
from flm_jax.training.trainer import Trainer

_RUN = "gin_configs/runs/pretrain.gin"
_LENGTH = 2048
# What a run needs and its description does not.
_DEFAULTS = {
    "MODEL_DIR": "'never written'",
    "PREPARED_DIR": "'never read'",
    "MIXTURE_OR_TASK_NAME": "'any'",
}
# What a program that is compiled does not depend on, and a price does.
_STEPS = {"TRAIN_STEPS": "100000", "EFLM_STEPS": "1000"}


def trainer_of(
    files: Sequence[str],
    bindings: Sequence[str],
    search_paths: Sequence[str] = (),
    length: int | None = None,
    global_batch: int | None = None,
    steps_required: bool = False,
) -> Trainer:
    """What these files and `--gin.` flags say.

    A model's file alone is trained as by `gin_configs/runs/pretrain.gin`.

    Args:
        files: In order.
        bindings: Which win.
        search_paths: Further directories with gin files.
        length: Tokens of a sequence, in place of the config's.
        global_batch: Sequences a step, likewise.
        steps_required: Whether the answer depends on the number of steps, so that gin has to say it.

    Raises:
        GinError: gin's configuration is wrong, or a required number of steps is missing.
    """
    files = list(files)
    if not gin_setup.bound(files, search_paths, "Trainer.stages"):
        files.insert(0, _RUN)  # the user's files win
    sequence = length or gin_setup.value("ModelConfig.max_length", _LENGTH)
    steps = {} if steps_required else _STEPS
    defaults = {**_DEFAULTS, **steps, "TASK_FEATURE_LENGTHS": repr({"targets": sequence})}
    gin_setup.parse(files, bindings, search_paths, defaults)
    trainer = gin_setup.built(gin.get_configurable(Trainer))
    stages = list(trainer.stages)
    if length:
        trainer = dataclasses.replace(trainer, task_feature_lengths={"targets": length})
        stages = [_with_length(stage, length) for stage in stages]
    if global_batch:
        stages = [dataclasses.replace(stage, batch_size=global_batch) for stage in stages]
    return dataclasses.replace(trainer, stages=stages)


def _with_length(stage: Stage, length: int) -> Stage:
    """Able to take sequences that are asked for on the command line, which no parameter depends on."""
    config = stage.model.config
    if length <= config.max_length:
        return stage
    return dataclasses.replace(
        stage, model=stage.model.with_config(dataclasses.replace(config, max_length=length))
    )
