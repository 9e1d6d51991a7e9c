"""What `flm` needs to know of a run under t5x, beside the run's checkpoints."""

import json
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath
from t5x import gin_utils

from flm_jax.config import ModelConfig
from flm_jax.tasks.reader import Reader
from flm_jax.tasks.vocabulary import Vocabulary
from flm_jax.training.checkpoints import RUN_METADATA, CheckpointMismatchError, Metadata, mismatches
from flm_jax.training.continuation import find


def metadata(
    config: ModelConfig,
    seed: int,
    batch_size: int,
    mixture: str | Mapping[str, float],
    vocabulary: str,
    prepared_dir: str | None = None,
    task_feature_lengths: int | Mapping[str, int] = 0,
    initial_checkpoint: str | None = None,
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
        initial_checkpoint: That the run begins with, whose growths led to this model.
    """
    data = {"tokenizer": Vocabulary(vocabulary).sha256}
    if prepared_dir is not None:
        data = Reader(prepared_dir, mixture, task_feature_lengths, seed).identity
    record = find(initial_checkpoint).metadata.growth_record if initial_checkpoint else ()
    return Metadata(
        config=config,
        seed=seed,
        batch_size=batch_size,
        mixture=mixture if isinstance(mixture, str) else dict(mixture),
        data=data,
        growth_record=record,
    )


def summarize_config(model_dir: str, summary_writer: Any, step: int, metadata: Metadata) -> None:
    """For `train_script.train.summarize_config_fn`: t5x's own summary, and `MODEL_DIR/flm_metadata.json`.

    Raises:
        CheckpointMismatchError: the directory is of another run, which t5x by itself does not notice.
    """
    gin_utils.summarize_gin_config(model_dir, summary_writer, step)
    path = epath.Path(model_dir) / RUN_METADATA
    if path.exists():
        found = Metadata.from_json(json.loads(path.read_text()))
        if differences := mismatches(found, metadata):
            raise CheckpointMismatchError(
                f"{model_dir} is of another run: {'; '.join(differences)}. Restore these settings to go on with it, "
                "or bind MODEL_DIR to a new directory"
            )
    elif jax.process_index() == 0:
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(metadata.to_json(), indent=2, ensure_ascii=False))
        partial.replace(path)
