"""What makes batches of a seqio dataset's examples: packed ones pass, others are packed. Imports TensorFlow."""

from collections.abc import Mapping
from typing import Any

import seqio

from flm_jax.tasks.packing import sequence_length


class FeatureConverter(seqio.DecoderFeatureConverter):
    """Seqio's converter for decoders, which lets through what is packed already; the dataset tells which it is.

    Packed are the tasks that `seqio_tasks.prepared` and `held_out` register, with sequences as long as all features of
    `TASK_FEATURE_LENGTHS` together. Everything else becomes `decoder_target_tokens` and so on from `targets`, and
    from `inputs` where `TASK_FEATURE_LENGTHS` has them, with the loss on the targets only.
    """

    def __call__(self, ds: Any, task_feature_lengths: Mapping[str, int]) -> Any:
        """The dataset of the model's features."""
        if "decoder_target_tokens" in ds.element_spec:
            length = sequence_length(task_feature_lengths)
            return seqio.PrePackedLMFeatureConverter()(ds, {"targets": length})
        return super().__call__(ds, task_feature_lengths)
