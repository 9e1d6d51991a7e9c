"""What `config.json` carries of a checkpoint of ours: enough to get the checkpoint back."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from flm_jax.training.metadata import Metadata

KEY = "flm_jax"
_FORMAT = 1


class Recorded(NamedTuple):
    """Of the checkpoint that was exported."""

    step: int
    metadata: Metadata


def to_json(step: int, metadata: Metadata) -> dict[str, Any]:
    """For `config.json`: all of the metadata but what gin was given, which may name folders of the machine."""
    return {"format": _FORMAT, "step": step, "metadata": {**metadata.to_json(), "gin_config": ""}}


def find(fields: Mapping[str, Any]) -> Recorded | None:
    """What a `config.json` has of it; None in a model that is not of ours.

    Raises:
        ValueError: it was written by another version of flm_jax, or changed by hand.
    """
    record = fields.get(KEY)
    if record is None:
        return None
    try:
        if record["format"] != _FORMAT:
            raise ValueError(f"format {record['format']!r}")
        return Recorded(int(record["step"]), Metadata.from_json(record["metadata"]))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"expected the record of an export of format {_FORMAT} under {KEY} in config.json, found another "
            f"({error!r}): "
            f"take {KEY} out to import the model as one of unknown origin"
        ) from error
