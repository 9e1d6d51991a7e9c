"""What `flm compile` is asked for: a run, or a model alone, on a topology."""

import argparse
import dataclasses

import jax

from flm_jax import gin_setup
from flm_jax.grow.schedule import Stage
from flm_jax.partitioning import MeshShape
from flm_jax.pods import topology
from flm_jax.pods.topology import Topology
from flm_jax.training import described_run
from flm_jax.training.leg import Leg
from flm_jax.training.trainer import Trainer


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
    paths = [path for path in options.gin_search_paths.split(",") if path]
    trainer = described_run.trainer_of(
        options.gin_file, options.gin_bindings, paths, options.length, options.global_batch
    )
    laid_out = any("MeshShape." in binding for binding in options.gin_bindings)
    return trainer, laid_out or any(stage.mesh != MeshShape() for stage in trainer.stages)
