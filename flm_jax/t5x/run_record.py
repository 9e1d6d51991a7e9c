"""What `flm` needs to know of a run under t5x, beside the run's checkpoints."""

import dataclasses
import json
import logging
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath
from t5x import gin_utils

from flm_jax import gin_setup
from flm_jax.config import ModelConfig
from flm_jax.grow.lineage import Lineage
from flm_jax.tasks.history import Epochs, History, epochs_to_json, read_epochs
from flm_jax.tasks.mixture import Mixture
from flm_jax.tasks.reader import Reader
from flm_jax.tasks.vocabulary import Vocabulary
from flm_jax.training.metadata import RUN_METADATA, CheckpointMismatchError, Metadata, mismatches


def metadata(
    config: ModelConfig,
    seed: int,
    batch_size: int,
    mixture: Any,
    vocabulary: str,
    prepared_dir: str | None = None,
    task_feature_lengths: int | Mapping[str, int] = 0,
    lineage: Lineage | None = None,
    history: History | None = None,
    max_epochs: Epochs = None,
) -> Metadata:
    """What would stand beside each checkpoint of `flm train`, but for the gin configuration: t5x writes that itself.

    Args:
        config: The model.
        seed: `RANDOM_SEED`.
        batch_size: `BATCH_SIZE`, sequences a step.
        mixture: `MIXTURE_OR_TASK_NAME` as our data's gin files have it.
        vocabulary: The tokenizer's file.
        prepared_dir: What is read; None where text is streamed, after which `flm train` cannot go on with the data.
        task_feature_lengths: Of the prepared data.
        lineage: The growths that led to this model; None for none.
        history: Of a run that goes on from another, with what holds from there on (`continuation.history`); None for
            a run that begins.
        max_epochs: That a task may be read for, as in `seqio_tasks.prepared`.

    Raises:
        ValueError: there is no seed, the data was prepared with another tokenizer, or streamed text has a cap.
    """
    if seed is None:
        raise ValueError(
            "expected a number for RANDOM_SEED, found None: t5x would take another seed at every start, and a run that "
            "was stopped would find its place in data of another order"
        )
    data = {"tokenizer": Vocabulary(vocabulary).sha256}
    if prepared_dir is None and max_epochs is not None:
        raise ValueError(
            f"expected MAX_EPOCHS = None where text is streamed, which has no caps, found {max_epochs!r}: change the "
            "gin macro, or prepare the files and leave out gin_configs/t5x/streaming.gin"
        )
    if prepared_dir is not None:
        read = mixture if history is None else history
        reader = Reader(
            prepared_dir, read, task_feature_lengths, seed, batch_size=batch_size, max_epochs=max_epochs
        )
        if reader.vocabulary.sha256 != data["tokenizer"]:
            raise ValueError(
                f"expected the tokenizer that {prepared_dir} was prepared with (SHA-256 {reader.vocabulary.sha256}), "
                f"found {data['tokenizer']} in {vocabulary}: change the gin binding `VOCABULARY` or `PREPARED_DIR`"
            )
        data = reader.identity
    made = Metadata(
        config=config,
        seed=seed,
        batch_size=batch_size,
        mixture=Mixture.of(mixture).to_json(),
        data=data,
        growth_record=() if lineage is None else lineage.to_json(),
    )
    if history is None:
        caps = read_epochs(max_epochs)
        history = History(
            tuple(dataclasses.replace(segment, max_epochs=caps) for segment in made.data_history.segments)
        )
    return dataclasses.replace(made, history=tuple(history.to_json()))


def summarize_config(model_dir: str, summary_writer: Any, step: int, metadata: Metadata) -> None:
    """For `train_script.train.summarize_config_fn`: t5x's own summary, and `MODEL_DIR/flm_metadata.json`.

    Raises:
        CheckpointMismatchError: the directory is of another run, which t5x by itself does not notice.
    """
    gin_utils.summarize_gin_config(model_dir, summary_writer, step)
    for line in gin_setup.unused_macros():
        logging.warning(line)
    path = epath.Path(model_dir) / RUN_METADATA
    if path.exists():
        found = Metadata.from_text(path.read_text(), str(path))
        differences = mismatches(found, metadata, "same")
        if Lineage.from_json(found.growth_record) != Lineage.from_json(metadata.growth_record):
            differences.append("the growths that led to its model (INITIAL_CHECKPOINT)")
        theirs, ours = (one.data_history.segments[-1].max_epochs for one in (found, metadata))
        if theirs != ours:
            differences.append(
                f"max_epochs (expected {epochs_to_json(ours)!r} from MAX_EPOCHS, found {epochs_to_json(theirs)!r})"
            )
        if differences:
            raise CheckpointMismatchError(
                f"{model_dir} is of another run: {'; '.join(differences)}. Restore these settings to go on with it, "
                "or bind MODEL_DIR to a new directory"
            )
    elif jax.process_index() == 0:
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(metadata.to_json(), indent=2, ensure_ascii=False))
        partial.replace(path)
