"""What travels beside the arrays of a checkpoint, and what of it a run must share to go on."""

import dataclasses
import difflib
import json
import re
from typing import Any, Literal

from flm_jax.config import ModelConfig
from flm_jax.tasks.history import History, Segment
from flm_jax.tasks.mixture import Mixture

FORMAT = 3
_READABLE = (2, 3)  # 2 is 3 without a history
RUN_METADATA = (
    "flm_metadata.json"  # in the MODEL_DIR of a run under t5x, whose checkpoints have no place for it
)
# What may change between a checkpoint and the run that continues it: neither shapes nor the function.
_FREE_FIELDS = ("dtype", "attention", "remat", "max_length")


class CheckpointMismatchError(ValueError):
    """The checkpoint in `MODEL_DIR` is not of the model, or the data, that this run describes."""


@dataclasses.dataclass(frozen=True)
class Metadata:
    """What travels beside the arrays.

    Attributes:
        config: The model.
        seed: Of the data order, so that a run goes on with the batches it would have seen.
        batch_size: Sequences a step, at present.
        mixture: What is read at present: `tasks.mixture.Mixture.to_json`, or a task's name.
        data: What the batches were made of: the reader's `identity`; of an imported model, which has read nothing, with
            no length and no tasks, and the tokenizer None where it was not given.
        gin_config: What gin was given; empty where the run was described in Python.
        growth_record: One entry for each growth that led here, oldest first (`grow.lineage.GrowthRecord`).
        loss_window: (tokens, loss) of the latest steps, in a stage that ends by the slope of its loss.
        history: Batch sizes and mixtures of the run so far (`tasks.history.History.to_json`); without one they follow
            from the growth record and the present ones.
    """

    config: ModelConfig
    seed: int
    batch_size: int
    mixture: Any
    data: dict[str, Any]
    gin_config: str = ""
    growth_record: tuple[dict[str, Any], ...] = ()
    loss_window: tuple[list[float], ...] = ()
    history: tuple[dict[str, Any], ...] = ()

    @property
    def data_history(self) -> History:
        """How the run's data has gone on."""
        if self.history:
            return History.from_json(self.history)
        segments, step, first, mixture = [], 0, 0, Mixture.of(self.mixture)
        for record in self.growth_record:
            if steps := record["step"] - step:
                segments.append(Segment(step, first, (record["sequences"] - first) // steps, mixture))
            step, first = record["step"], record["sequences"]
        return History((*segments, Segment(step, first, self.batch_size, mixture)))

    @property
    def has_read_nothing(self) -> bool:
        """Whether it is of an imported model: seed, batch size, mixture and data of a run from it may be any."""
        return self.data.get("tasks") == {}  # streamed text, which has no such entry, was read

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {
            **fields,
            "format": FORMAT,
            "config": self.config.to_json(),
            "growth_record": list(self.growth_record),
            "loss_window": list(self.loss_window),
            "history": list(self.history),
        }

    def check_tokenizer(self, sha256: str, place: str) -> None:
        """Refuses another tokenizer than the model was trained with.

        Raises:
            ValueError: naming both.
        """
        # An imported model may not know its tokenizer.
        if self.data["tokenizer"] not in (sha256, None):
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
        if values.get("format") not in _READABLE:
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
            history=tuple(values.get("history", ())),
        )


def mismatches(found: Metadata, wanted: Metadata, data: Literal["same", "other", "new"]) -> list[str]:
    """What of `wanted` cannot go on from `found`, each in words; nothing for a run that goes on.

    Args:
        found: Of the checkpoint.
        wanted: Of the run.
        data: `same`: batch size and mixture stay. `other`: they may change, and of the prepared files only those that
            were read must be the same. `new`: the data begins anew, and may be other data of the same tokenizer.
    """
    differences = config_mismatches(found.config, wanted.config)
    if found.has_read_nothing:
        ours, theirs = (one.data.get("tokenizer") for one in (wanted, found))
        if theirs not in (None, ours):
            differences.append(_different("tokenizer of the prepared data", ours, "PREPARED_DIR", theirs))
        return differences
    if data != "other" and wanted.batch_size != found.batch_size:
        differences.append(_different("batch_size", wanted.batch_size, "BATCH_SIZE", found.batch_size))
    if data != "new" and wanted.seed != found.seed:
        differences.append(_different("seed", wanted.seed, "RANDOM_SEED", found.seed))
    if data == "same" and Mixture.of(wanted.mixture) != Mixture.of(found.mixture):
        differences.append(_different("mixture", wanted.mixture, "MIXTURE_OR_TASK_NAME", found.mixture))
    # A run under t5x that streams its text has read no prepared data.
    names = {"tokenizer": "PREPARED_DIR", "length": "TASK_FEATURE_LENGTHS", "tasks": "PREPARED_DIR"}
    for name, macro in list(names.items())[: 1 if data == "new" else None]:
        ours, theirs = wanted.data.get(name), found.data.get(name)
        if ours and theirs and ours != theirs and data == "other" and name == "tasks":
            read = found.data_history.tasks
            ours, theirs = ({task: files.get(task) for task in read} for files in (ours, theirs))
        if ours != theirs:
            differences.append(_different(f"{name} of the prepared data", ours, macro, theirs))
    return differences


def _different(name: str, wanted: Any, macro: str, found: Any) -> str:
    return f"{name} (expected {wanted!r} from {macro}, found {found!r})"


def config_mismatches(found: ModelConfig, wanted: ModelConfig) -> list[str]:
    """The sizes and constants of `wanted` that are not those of `found`, but for what may change in mid-run."""
    return [
        f"{name} (expected {ours!r} from gin ModelConfig.{name}, found {theirs!r})"
        for name, ours in wanted.to_json().items()
        if name not in _FREE_FIELDS and (theirs := getattr(found, name)) != ours
    ]


def changed_lines(before: str, now: str) -> list[str]:
    """The settings that differ between two texts with a line `name = value` each: `- ` as it was, `+ ` as it is."""
    lines = difflib.ndiff(before.splitlines(), now.splitlines())
    # gin writes comments and rulers between the bindings.
    return [line for line in lines if re.match(r"[-+] [^#]*=", line)]
