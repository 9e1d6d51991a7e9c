"""What `flm compile` is asked for: a run, or a model alone, on a topology."""

import argparse
import dataclasses

import gin
import jax

from flm_jax import gin_setup
from flm_jax.grow.schedule import Stage
from flm_jax.partitioning import MeshShape
from flm_jax.pods import topology
from flm_jax.pods.topology import Topology
from flm_jax.training.leg import Leg
from flm_jax.training.trainer import Trainer

_RUN = "gin_configs/runs/pretrain.gin"
_LENGTH = 2048
# What a run needs and compiling does not.
_DEFAULTS = {
    "MODEL_DIR": "'never written'",
    "PREPARED_DIR": "'never read'",
    "MIXTURE_OR_TASK_NAME": "'any'",
    "TRAIN_STEPS": "100000",
    "EFLM_STEPS": "1000",
}


@dataclasses.dataclass(frozen=True)
class Request:
    """A run on devices to compile for.

    Attributes:
        trainer: With batch sizes and lengths as asked for.
        topology: Where it is to run.
        devices: Its devices.
        searches: Whether its layouts are to be found, in place of those of gin.
    """

    trainer: Trainer
    topology: Topology
    devices: list[jax.Device]
    searches: bool

    def legs(self) -> list[Leg]:
        """The stages, ready to be compiled."""
        return self.trainer.legs(self.trainer.check(self.devices), self.devices)

    def with_stages(self, stages: list[Stage]) -> "Request":
        """The same run with other layouts."""
        return dataclasses.replace(self, trainer=dataclasses.replace(self.trainer, stages=stages))


def from_options(options: argparse.Namespace) -> Request:
    """The request that the command line makes.

    A model's gin file alone is trained as by `gin_configs/runs/pretrain.gin`; where nothing says how it is laid out,
    that is searched.

    Raises:
        GinError: nothing says what to compile, or gin's configuration is wrong.
        TopologyError: there is no such topology, or its compiler is not installed.
    """
    if not options.gin_file:
        raise gin_setup.GinError(
            "nothing says what to compile: give --gin_file=gin_configs/models/flm_101b.gin, or all files of a run"
        )
    where = topology.parse(options.topology)
    trainer, laid_out = trainer_of(options)
    return Request(trainer, where, where.devices(), options.search or not laid_out)


def trainer_of(options: argparse.Namespace) -> tuple[Trainer, bool]:
    """The run that gin and flags describe, and whether they say how it is laid out; see `from_options`."""
    files, paths = list(options.gin_file), [path for path in options.gin_search_paths.split(",") if path]
    if not gin_setup.bound(files, paths, "Trainer.stages"):
        files.insert(0, _RUN)  # the user's files win
    length = options.length or gin_setup.value("ModelConfig.max_length", _LENGTH)
    defaults = {**_DEFAULTS, "TASK_FEATURE_LENGTHS": repr({"targets": length})}
    gin_setup.parse(files, options.gin_bindings, paths, defaults)
    trainer = gin_setup.built(gin.get_configurable(Trainer))
    stages, changes = list(trainer.stages), {}
    if options.length:
        changes["task_feature_lengths"] = {"targets": options.length}
        stages = [_with_length(stage, options.length) for stage in stages]
    if options.global_batch:
        stages = [dataclasses.replace(stage, batch_size=options.global_batch) for stage in stages]
    laid_out = any("MeshShape." in binding for binding in options.gin_bindings)
    laid_out = laid_out or any(stage.mesh != MeshShape() for stage in stages)
    return dataclasses.replace(trainer, stages=stages, **changes), laid_out


def _with_length(stage: Stage, length: int) -> Stage:
    """Able to take sequences that are asked for on the command line, which no parameter depends on."""
    config = stage.model.config
    if length <= config.max_length:
        return stage
    return dataclasses.replace(
        stage, model=stage.model.with_config(dataclasses.replace(config, max_length=length))
    )
