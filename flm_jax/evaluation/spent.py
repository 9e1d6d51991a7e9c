"""What a checkpoint cost: of its own run, and of those that it was grown out of."""

import dataclasses
from pathlib import Path

from flm_jax.grow.lineage import Lineage
from flm_jax.training.ledger import LEDGER_FILE, LedgerError, Work, read_ledger
from flm_jax.training.metadata import Metadata


@dataclasses.dataclass(frozen=True)
class Spent:
    """On the parameters of a checkpoint.

    Attributes:
        tokens: Positions that were computed on, padding included, by all models of its lineage.
        model_flops: On them, by `ModelConfig.flops_per_token`.
        hardware_flops: That were carried out, by the run's ledger; None where it does not know.
        device_hours: Of everything that its run did up to it, lost work included, by the ledger; likewise.
    """

    tokens: int | None
    model_flops: float | None
    hardware_flops: int | None
    device_hours: float | None


def spent(model_dir: str, step: int, metadata: Metadata) -> Spent:
    """The cost of the checkpoint of `step`.

    Tokens and FLOPs follow from the data's history and the growth record, which travel with the checkpoint. Where
    these do not say how long a sequence was (a run under t5x that streams its text), they are not known.

    Raises:
        LedgerError: the run's ledger is damaged.
    """
    length = metadata.data.get("length")
    tokens = model_flops = None
    if length is not None:
        sequences = metadata.data_history.sequences(step)
        tokens = sequences * length
        lineage = Lineage.from_json(metadata.growth_record)
        model_flops = lineage.flops(sequences, length, metadata.config)
    if not (
        Path(model_dir).expanduser() / LEDGER_FILE
    ).is_file():  # another program's run, or nothing trained here
        return Spent(tokens, model_flops, None, None)
    whole = read_ledger(model_dir)
    try:
        ledger = whole.at(step)
    except LedgerError:  # which began behind this checkpoint
        return Spent(tokens, model_flops, None, None)
    carried_out = None if ledger.uncovered else Work.of(ledger.kept).hardware_flops
    return Spent(tokens, model_flops, carried_out, ledger.total.device_hours)
