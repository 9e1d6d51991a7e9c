"""Loss on text that is not trained on, a task at a time: nats per token, bits per byte, accuracy."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flm_jax import partitioning
from flm_jax.layers.growth_mask import GrowthMask
from flm_jax.model import LanguageModel
from flm_jax.tasks.reader import PreparedTask, evaluation_batches
from flm_jax.training.placement import local_rows, to_devices
from flm_jax.training.step import eval_step


class HeldOutLoss(NamedTuple):
    """What was found on one task's validation split."""

    loss: float  # nats per token with loss
    bits_per_byte: float  # of the text's UTF-8 bytes, the end-of-document tokens' bits included
    accuracy: float  # share of tokens whose likeliest prediction is right
    tokens: int  # that carry loss


class HeldOutEvaluator:
    """Evaluates parameters on the validation splits of prepared tasks; compiles once.

    Args:
        model: Gives the loss.
        mesh: That the parameters and batches lie on.
        tasks: All prepared with the same tokenizer.
        batch_size: Sequences at a time, over all devices.
        max_sequences: Of each task; None for all.
        num_microbatches: Into which pipeline stages divide a batch.

    Attributes:
        missing: Names of the tasks without a validation split.
    """

    def __init__(
        self,
        model: LanguageModel,
        mesh: Mesh,
        tasks: list[PreparedTask],
        batch_size: int,
        max_sequences: int | None = None,
        num_microbatches: int = 1,
    ) -> None:
        self._tasks = [task for task in tasks if "validation" in task.splits]
        self.missing = [task.name for task in tasks if "validation" not in task.splits]
        self._batch_size = batch_size
        self._max_sequences = max_sequences
        self._sharding = partitioning.batch_sharding(mesh)
        self._rows = local_rows(NamedSharding(mesh, partitioning.mesh_spec("batch")), (batch_size,))
        self._step: Callable[..., Any] = jax.jit(
            eval_step(model, num_microbatches), out_shardings=NamedSharding(mesh, PartitionSpec())
        )
        piece_bytes = np.zeros(model.config.vocab_size, np.int32)
        for task in self._tasks[:1]:
            piece_bytes[: task.vocabulary.size] = task.vocabulary.piece_bytes
        self._piece_bytes = jax.numpy.asarray(piece_bytes)

    def __call__(
        self,
        params: Any,
        cancelled: Callable[[], bool] = lambda: False,
        growth: GrowthMask | None = None,
    ) -> dict[str, HeldOutLoss] | None:
        """The loss on each task that has held-out text, by the task's name.

        Args:
            params: Of the model.
            cancelled: Asked before each batch.
            growth: While a mask ramps.

        Returns:
            None if it was cancelled.
        """
        found = {}
        for task in self._tasks:
            loss = self._one_task(params, task, cancelled, growth)
            if loss is None:
                return None
            found[task.name] = loss
        return found

    def _one_task(
        self, params: Any, task: PreparedTask, cancelled: Callable[[], bool], growth: GrowthMask | None
    ) -> HeldOutLoss | None:
        nll = correct = tokens = num_bytes = 0.0
        batches = evaluation_batches(
            task,
            "validation",
            self._batch_size,
            max_sequences=self._max_sequences,
            rows=self._rows,
        )
        for batch in batches:
            if cancelled():
                return None
            placed = to_devices(batch, self._sharding, self._batch_size, self._rows)
            sums = jax.device_get(self._step(params, placed, self._piece_bytes, growth))
            nll += float(sums["nll"])
            correct += float(sums["correct"])
            tokens += float(sums["tokens"])
            num_bytes += float(sums["bytes"])
        return HeldOutLoss(
            loss=nll / tokens,
            bits_per_byte=nll / math.log(2) / max(num_bytes, 1.0),
            accuracy=correct / tokens,
            tokens=int(tokens),
        )
