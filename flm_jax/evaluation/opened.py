"""Checkpoints that are evaluated: which of a run there are, and one of them read."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from flm_jax.config import ModelConfig
from flm_jax.grow.lineage import Lineage
from flm_jax.layers.growth_mask import GrowthMask
from flm_jax.partitioning import MeshShape
from flm_jax.training.checkpoints import load_metadata, load_params
from flm_jax.training.metadata import Metadata


@dataclasses.dataclass(frozen=True)
class Opened:
    """A checkpoint's parameters, ready to compute with.

    Attributes:
        model_dir: The run's directory.
        step: Of the checkpoint.
        metadata: What lies beside the parameters.
        config: The model, with the kernels of these devices.
        params: On `mesh`.
        growth: The mask, where the model was saved while it ramped.
        mesh: The devices.
    """

    model_dir: str
    step: int
    metadata: Metadata
    config: ModelConfig
    params: Any
    growth: GrowthMask | None
    mesh: Mesh


def open_checkpoint(model_dir: str, step: int | None = None, shape: MeshShape = MeshShape(data=1)) -> Opened:
    """Reads a checkpoint's parameters.

    Args:
        model_dir: A run's directory, of `flm train`, `flm grow`, `flm import` or of t5x.
        step: Which checkpoint; None is the newest.
        shape: The mesh, over as many of the devices as it has places.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: the mesh needs more devices, or does not divide the model.
    """
    if (shape.num_devices or 1) > jax.device_count():
        raise ValueError(
            f"expected at least the {shape.num_devices} devices that --mesh asks for, found {jax.device_count()}"
        )
    mesh = shape.build(jax.devices()[: shape.num_devices])
    metadata, params, found = load_params(Path(model_dir), step, mesh)
    config = dataclasses.replace(
        metadata.config, attention="auto"
    )  # it may have been trained on other devices
    growth = Lineage.from_json(metadata.growth_record).mask_at(found)
    return Opened(str(model_dir), found, metadata, config, params, growth, mesh)


def stage_ends(model_dir: str) -> list[int]:
    """The steps of a run's checkpoints that end a stage, as far as they lie in its directory, and the newest.

    Raises:
        FileNotFoundError: there is no checkpoint.
    """
    metadata, newest = load_metadata(Path(model_dir))
    ends = [record.step for record in Lineage.from_json(metadata.growth_record).records]
    there = [step for step in ends if (Path(model_dir).expanduser() / f"checkpoint_{step}").is_dir()]
    return list(dict.fromkeys([*there, newest]))
