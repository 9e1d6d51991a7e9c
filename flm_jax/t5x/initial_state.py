"""A run under t5x that begins with another run's checkpoint: flm's, or one that `flm grow` has grown.

t5x can restore such a checkpoint by `RestoreCheckpointConfig.path`, but where it saves the place in its data it also
wants to restore one, which no checkpoint but its own has. As the initial state it needs none.
"""

import logging
from typing import Any, Literal

import jax
import orbax.checkpoint as ocp
from jax.sharding import NamedSharding, PartitionSpec
from t5x import train_state as t5x_state
from t5x import utils

from flm_jax.training.continuation import find
from flm_jax.training.metadata import CheckpointMismatchError, Metadata, mismatches
from flm_jax.training.streaming import StoredState, handler


class FromCheckpoint(utils.TrainStateInitializer):
    """t5x's initializer, for `train_script.train.train_state_initializer_cls`, that reads instead of drawing.

    t5x asks it for a state only where MODEL_DIR has no checkpoint yet.

    Args:
        checkpoint: `MODEL_DIR/checkpoint_<step>` of the other run, or its `MODEL_DIR` for the newest. Parameters,
            optimizer state and step are taken from it.
        metadata: Of this run (`run_record.metadata`).
        first_sequence: From which on the data is read; with 0 it begins anew, and may be other data.
        args, kwargs: t5x's.
    """

    def __init__(
        self, *args: Any, checkpoint: str, metadata: Metadata, first_sequence: int, **kwargs: Any
    ) -> None:
        self._checkpoint, self._metadata = checkpoint, metadata
        self._data: Literal["same", "new"] = "new" if first_sequence == 0 else "same"
        super().__init__(*args, **kwargs)

    def from_scratch(self, init_rng: jax.Array) -> t5x_state.TrainState:
        """The checkpoint's state, on t5x's shardings; nothing is drawn.

        Raises:
            CheckpointMismatchError: it is of another model, optimizer, batch size or tokenizer, or of other data that
                this run would go on with.
            FileNotFoundError: there is no such checkpoint.
        """
        found = find(self._checkpoint)
        if wrong := mismatches(found.metadata, self._metadata, self._data):
            raise CheckpointMismatchError(
                f"{found.directory} is not what this run goes on from: {'; '.join(wrong)}. `flm grow --batch_size` "
                "changes the batch size; with --gin.FIRST_SEQUENCE=0 the data begins anew, and may be other data of "
                "the same tokenizer"
            )
        state = self.global_train_state_shape
        axes = self._partitioner.get_mesh_axes(state).state_dict()

        def wanted(shape: Any, spec: Any) -> jax.ShapeDtypeStruct:
            sharding = NamedSharding(self._partitioner.mesh, PartitionSpec() if spec is None else spec)
            return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)

        item = jax.tree.map(wanted, state.state_dict(), axes, is_leaf=lambda leaf: leaf is None)
        directory = found.directory / "state"
        if different := StoredState(directory).differences(item):
            raise CheckpointMismatchError(
                f"the arrays of {found.directory} are not those of this model and optimizer: "
                f"{', '.join(different[:5])} differ; bind wrapped_optimizer.optimizer_def.optimizer to the optimizer "
                "that it was trained with"
            )
        logging.info("Initial state from %s", found.directory)
        restore = ocp.args.PyTreeRestore(item, restore_args=ocp.checkpoint_utils.construct_restore_args(item))
        with ocp.Checkpointer(handler()) as checkpointer:
            return state.restore_state(checkpointer.restore(directory.absolute(), args=restore))
