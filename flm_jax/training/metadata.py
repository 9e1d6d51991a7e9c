"""What travels beside the arrays of a checkpoint, and what of it a run must share to go on."""

import dataclasses
import json
from typing import Any

from flm_jax.config import ModelConfig

FORMAT = 2
RUN_METADATA = (
    "flm_metadata.json"  # in the MODEL_DIR of a run under t5x, whose checkpoints have no place for it
)
# What may change between a checkpoint and the run that continues it: neither shapes nor the function.
_FREE_FIELDS = ("dtype", "remat", "max_length")


class CheckpointMismatchError(ValueError):
    """The checkpoint in `MODEL_DIR` is not of the model, or the data, that this run describes."""


@dataclasses.dataclass(frozen=True)
class Metadata:
    """What travels beside the arrays.

    Attributes:
        config: The model.
        seed: Of the data order, so that a run goes on with the batches it would have seen.
        batch_size: Sequences a step, in the present stage.
        mixture: Task to share, as the run was given it.
        data: What the batches were made of: the reader's `identity`.
        gin_config: What gin was given; empty where the run was described in Python.
        growth_record: One entry for each growth that led here, oldest first (`grow.lineage.GrowthRecord`).
        loss_window: (tokens, loss) of the latest steps, in a stage that ends by the slope of its loss.
    """

    config: ModelConfig
    seed: int
    batch_size: int
    mixture: Any
    data: dict[str, Any]
    gin_config: str = ""
    growth_record: tuple[dict[str, Any], ...] = ()
    loss_window: tuple[list[float], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {
            **fields,
            "format": FORMAT,
            "config": self.config.to_json(),
            "growth_record": list(self.growth_record),
            "loss_window": list(self.loss_window),
        }

    def check_tokenizer(self, sha256: str, place: str) -> None:
        """Refuses another tokenizer than the model was trained with.

        Raises:
            ValueError: naming both.
        """
        if self.data["tokenizer"] != sha256:
            raise ValueError(
                f"expected the tokenizer with SHA-256 {self.data['tokenizer']}, which the model was trained with, "
                f"found {sha256} in {place}; prepared data holds a copy of the right one "
                "(PREPARED_DIR/TASK/tokenizer.model)"
            )

    @staticmethod
    def from_text(text: str, place: str) -> "Metadata":
        """From the text of `flm_metadata.json`.

        Raises:
            CheckpointMismatchError: it is not what our gin files make t5x write.
        """
        try:
            return Metadata.from_json(json.loads(text))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointMismatchError(
                f"expected the metadata of a run under t5x in {place}, found something that cannot be read "
                f"({error!r}): remove the file and start the run again as it was, which writes it anew"
            ) from error

    @staticmethod
    def from_json(values: dict[str, Any]) -> "Metadata":
        """The inverse of `to_json`."""
        if values.get("format") != FORMAT:
            raise CheckpointMismatchError(
                f"expected checkpoint metadata of format {FORMAT}, found {values.get('format')!r}: it was written by "
                "another version of flm_jax"
            )
        return Metadata(
            config=ModelConfig(**values["config"]),
            seed=values["seed"],
            batch_size=values["batch_size"],
            mixture=values["mixture"],
            data=values["data"],
            gin_config=values["gin_config"],
            growth_record=tuple(values["growth_record"]),
            loss_window=tuple(values["loss_window"]),
        )


def mismatches(found: Metadata, wanted: Metadata, new_data: bool = False) -> list[str]:
    """What of `wanted` cannot go on from `found`, each in words; nothing for a run that goes on.

    With `new_data` the run begins its data anew, which then may be other data of the same tokenizer.
    """
    differences = config_mismatches(found.config, wanted.config)
    fields = {"batch_size": "BATCH_SIZE", "seed": "RANDOM_SEED", "mixture": "MIXTURE_OR_TASK_NAME"}
    differences += [
        f"{name} (expected {getattr(wanted, name)!r} from {macro}, found {getattr(found, name)!r})"
        for name, macro in list(fields.items())[: 1 if new_data else None]
        if getattr(wanted, name) != getattr(found, name)
    ]
    # A run under t5x that streams its text has read no prepared data.
    names = {"tokenizer": "PREPARED_DIR", "length": "TASK_FEATURE_LENGTHS", "tasks": "PREPARED_DIR"}
    differences += [
        f"{name} of the prepared data (expected {wanted.data.get(name)!r} from {macro}, found "
        f"{found.data.get(name)!r})"
        for name, macro in list(names.items())[: 1 if new_data else None]
        if wanted.data.get(name) != found.data.get(name)
    ]
    return differences


def config_mismatches(found: ModelConfig, wanted: ModelConfig) -> list[str]:
    """The sizes and constants of `wanted` that are not those of `found`, but for what may change in mid-run."""
    return [
        f"{name} (expected {ours!r} from gin ModelConfig.{name}, found {theirs!r})"
        for name, ours in wanted.to_json().items()
        if name not in _FREE_FIELDS and (theirs := getattr(found, name)) != ours
    ]
