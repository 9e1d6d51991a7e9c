"""Checkpoints: `MODEL_DIR/checkpoint_<step>/`, with `state/` laid out as t5x lays it out, and `metadata/`.

`state/` holds `{target: parameters, state: {step, param_states}}`; `metadata/` is JSON: the model's config,
the growth record, and what the data was. Orbax writes asynchronously to a temporary name and renames at the
end, so a directory with the final name is whole.

A run under t5x writes the same `state/`, beside `dataset/`, and has no place for metadata in its checkpoints. It lies
once in its `MODEL_DIR`, as `flm_metadata.json` (`flm_jax.t5x.run_record`).
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flax.serialization
import jax
import orbax.checkpoint as ocp
from jax.sharding import Mesh
from orbax.checkpoint.checkpoint_managers import LatestN

from flm_jax import parameters, partitioning
from flm_jax.config import ModelConfig
from flm_jax.training import streaming
from flm_jax.training.metadata import RUN_METADATA, CheckpointMismatchError, Metadata, mismatches
from flm_jax.training.state import TrainState

_ITEMS = ("state", "metadata")


class Checkpoints:
    """The checkpoints of one run.

    Args:
        model_dir: The run's directory.
        to_keep: How many of the newest to keep, besides those that are pinned.
        clean_up: Remove what killed runs have left half-written; not for somebody else's, perhaps live, run.
    """

    def __init__(self, model_dir: Path, to_keep: int = 2, clean_up: bool = True) -> None:
        self._model_dir = Path(model_dir)
        self._policy = _NewestAndPinned(to_keep)
        self._manager = _Manager(
            self._model_dir.absolute(),
            options=ocp.CheckpointManagerOptions(
                step_prefix="checkpoint",
                preservation_policy=self._policy,
                enable_async_checkpointing=True,
                cleanup_tmp_directories=clean_up,
                # Else what a lazy array raises leaves threads that wait for a directory, for twenty minutes.
                async_options=ocp.options.AsyncOptions(create_directories_asynchronously=False),
            ),
            item_handlers={"state": streaming.handler(), "metadata": ocp.JsonCheckpointHandler()},
        )
        # Another program's are not ours to delete.
        self._policy.pinned.update(step for step in self._manager.all_steps() if self.is_of_t5x(step))

    def latest_step(self) -> int | None:
        """The newest whole checkpoint, None where there is none."""
        return self._manager.latest_step()

    def pin(self, step: int) -> None:
        """Keeps the checkpoint of `step` for good: the end of a stage, to go back to and to evaluate."""
        self._policy.pinned.add(step)

    def save(self, state: TrainState, metadata: Metadata) -> None:
        """Begins to write `state` under its step; returns once the arrays are copied off the devices.

        Arrays of it that are `streaming.LazyArray`s are made and written before it returns, in this thread, one after
        another and slice by slice: the memory taken is one slice and a few hundred MiB. What making them raises comes
        out of here, and leaves no checkpoint of that step.

        Does nothing where that step is saved already.

        Raises:
            streaming.StreamedArrayError: a lazy array is of another shape or dtype than it said.
        """
        step = int(state.step)
        if step == self.latest_step():
            return
        tree = to_tree(state)
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.PyTreeSave(tree, _save_args(tree, metadata.config)),
                metadata=ocp.args.JsonSave(metadata.to_json()),
            ),
        )

    def metadata(self, step: int) -> Metadata:
        """What was stored beside the state of `step`.

        Raises:
            CheckpointMismatchError: the directory is not whole, or of another format.
        """
        directory = self._model_dir / f"checkpoint_{step}"
        if self.is_of_t5x(step):
            path = self._model_dir / RUN_METADATA
            return Metadata.from_text(path.read_text("utf-8"), str(path))
        missing = [item for item in _ITEMS if not (directory / item).is_dir()]
        if missing:
            raise CheckpointMismatchError(
                f"expected {directory} to hold {' and '.join(_ITEMS)}, found no {' and no '.join(missing)}: "
                "flm_jax never leaves it so, but an interrupted copy does. Copy it again, or remove it to go on "
                f"from the checkpoint before it. (A run under t5x has no metadata here but {RUN_METADATA} in its "
                "MODEL_DIR, if gin_configs/t5x/pretrain.gin binds train_script.train.summarize_config_fn.)"
            )
        restored = self._manager.restore(step, args=ocp.args.Composite(metadata=ocp.args.JsonRestore()))
        return Metadata.from_json(restored["metadata"])

    def is_of_t5x(self, step: int) -> bool:
        """Whether t5x wrote the checkpoint of `step`, in a run that our gin files describe."""
        directory = self._model_dir / f"checkpoint_{step}"
        ours = (directory / "metadata").is_dir() or not (directory / "state").is_dir()
        return not ours and (self._model_dir / RUN_METADATA).is_file()

    def restore(self, step: int, like: TrainState, metadata: Metadata) -> TrainState:
        """The state of `step`, onto the shardings of the abstract state `like`.

        Raises:
            CheckpointMismatchError: the checkpoint is of another model or seed, or has read other prepared files.
        """
        self._check(step, metadata)
        item = to_tree(like)
        restore = ocp.args.PyTreeRestore(item, restore_args=ocp.checkpoint_utils.construct_restore_args(item))
        restored = self._manager.restore(step, args=ocp.args.Composite(state=restore))
        return from_tree(restored["state"], like)

    def restore_params(self, step: int, config: ModelConfig, mesh: Mesh | None = None) -> dict[str, Any]:
        """The parameters of `step` alone, over `mesh`; on the first device unless given."""
        whole = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        table = parameters.table(config)
        places = (
            jax.tree.map(lambda row: whole, table, is_leaf=parameters.is_parameter)
            if mesh is None
            else partitioning.param_shardings(config, mesh)
        )
        shapes = jax.tree.map(
            lambda row, place: jax.ShapeDtypeStruct(row.shape(config), config.param_dtype, sharding=place),
            table,
            places,
            is_leaf=parameters.is_parameter,
        )
        item = {"target": shapes}
        restore = ocp.args.PyTreeRestore(
            item, restore_args=ocp.checkpoint_utils.construct_restore_args(item), partial_restore=True
        )
        params = self._manager.restore(step, args=ocp.args.Composite(state=restore))["state"]["target"]
        # What a partial restore does not find it gives back as it was asked for.
        missing = [
            path
            for path, leaf in jax.tree_util.tree_leaves_with_path(params)
            if not isinstance(leaf, jax.Array)
        ]
        if missing:
            raise CheckpointMismatchError(
                f"expected {self._model_dir}/checkpoint_{step} to hold every parameter of its model, found no "
                f"{', '.join(map(jax.tree_util.keystr, missing))}: it is damaged, or of another version of flm_jax"
            )
        return params

    def wait(self) -> None:
        """Returns when everything begun is durable."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, then releases the writer's threads."""
        self._manager.close()

    def _check(self, step: int, wanted: Metadata) -> None:
        if differences := mismatches(self.metadata(step), wanted, "other"):
            raise CheckpointMismatchError(
                f"{self._model_dir}/checkpoint_{step} is of another run: {'; '.join(differences)}. Restore these "
                "settings to go on with it, or bind MODEL_DIR to a new directory to begin anew."
            )


class _Manager(ocp.CheckpointManager):
    """Orbax's, which leaves it to `StopRequest` to ask whether the processes have been preempted.

    Asked by both, with numbers of their own, JAX would agree on a number that the other reaches long afterwards.
    """

    def reached_preemption(self, step: int) -> bool:
        """Never: the run saves by itself where it stops."""
        return False


class _NewestAndPinned(LatestN):
    """Orbax's rule for the newest, and steps that are never deleted."""

    def __init__(self, n: int) -> None:
        super().__init__(n)
        self.pinned: set[int] = set()

    def should_preserve(self, checkpoints: Any, *, context: Any) -> list[bool]:
        """For each checkpoint, oldest first, whether it is kept."""
        newest = super().should_preserve(checkpoints, context=context)
        return [
            kept or checkpoint.step in self.pinned
            for kept, checkpoint in zip(newest, checkpoints, strict=True)
        ]


def load_params(
    model_dir: Path, step: int | None = None, mesh: Mesh | None = None
) -> tuple[Metadata, dict[str, Any], int]:
    """Reads a checkpoint's parameters alone: for generation and evaluation.

    Args:
        model_dir: A run's directory.
        step: Which checkpoint; None is the newest.
        mesh: Over which they are split; onto the first device unless given.

    Returns:
        What is stored beside them (the config among it), the parameters, and the step.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: the mesh does not divide the model.
    """
    with _opened(model_dir, step) as (checkpoints, chosen):
        metadata = checkpoints.metadata(chosen)
        return metadata, checkpoints.restore_params(chosen, metadata.config, mesh), chosen


def load_metadata(model_dir: Path, step: int | None = None) -> tuple[Metadata, int]:
    """Reads what lies beside a checkpoint's parameters, without these, and its step; the newest's unless given.

    Raises:
        FileNotFoundError: there is no such checkpoint.
    """
    with _opened(model_dir, step) as (checkpoints, chosen):
        return checkpoints.metadata(chosen), chosen


@contextlib.contextmanager
def _opened(model_dir: Path, step: int | None) -> Iterator[tuple[Checkpoints, int]]:
    """Somebody's checkpoints, and which of them is meant."""
    directory = Path(model_dir).expanduser()
    if not directory.is_dir():
        raise FileNotFoundError(
            f"expected a run's directory with checkpoint_<step>/, found no directory at {directory}"
        )
    with contextlib.closing(Checkpoints(directory, clean_up=False)) as checkpoints:
        chosen = checkpoints.latest_step() if step is None else step
        if chosen is None or not (directory / f"checkpoint_{chosen}").is_dir():
            raise FileNotFoundError(
                f"expected {directory}/checkpoint_{'<step>' if chosen is None else chosen}, found none; "
                "`flm train` writes them under MODEL_DIR"
            )
        yield checkpoints, chosen


def is_stacked(path: tuple[str, ...], shape: tuple[int, ...], config: ModelConfig) -> bool:
    """Whether the leading axis of an array of the state is `layers`: of a parameter, or of what stands beside one.

    Args:
        path: As in `streaming.StoredState.arrays`; it ends as the parameter's path does.
        shape: Of the array.
        config: The model.
    """
    return any(
        shape == row.shape(config) and row.axes[:1] == (parameters.LAYERS,) and path[-len(of) :] == of
        for of, row in _rows(config)
    )


def _rows(config: ModelConfig) -> list[tuple[tuple[str, ...], parameters.Parameter]]:
    table = jax.tree_util.tree_leaves_with_path(parameters.table(config), is_leaf=parameters.is_parameter)
    return [(key_path(path), row) for path, row in table]


def key_path(path: tuple[Any, ...]) -> tuple[str, ...]:
    """Of a leaf of the stored tree, as in `streaming.StoredState.arrays`."""
    return tuple(str(entry.key) for entry in path)


def _save_args(tree: dict[str, Any], config: ModelConfig) -> dict[str, Any]:
    """Cuts the stacked arrays of the state into layers, so that each can be read without its neighbours."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: streaming.save_args(
            leaf.shape, leaf.dtype, is_stacked(key_path(path), leaf.shape, config)
        ),
        tree,
    )


def to_tree(state: TrainState) -> dict[str, Any]:
    """The state as it is stored: `{target, state: {step, param_states}}`, as t5x's."""
    return {
        "target": state.params,
        "state": {
            "step": state.step,
            "param_states": _without_empty(flax.serialization.to_state_dict(state.opt_state)),
        },
    }


def from_tree(tree: dict[str, Any], like: TrainState) -> TrainState:
    """The inverse; `like` has the states without content, which are not stored."""
    empty = flax.serialization.to_state_dict(like.opt_state)
    opt_state = flax.serialization.from_state_dict(
        like.opt_state, _with_empty(tree["state"]["param_states"], empty)
    )
    return TrainState(tree["state"]["step"], tree["target"], opt_state)


def _without_empty(node: Any) -> Any:
    """Leaves out the states without content, as t5x does; a tree format has no place for them."""
    if not isinstance(node, dict):
        return node
    kept = {key: _without_empty(child) for key, child in node.items()}
    return {key: child for key, child in kept.items() if not (isinstance(child, dict) and not child)}


def _with_empty(node: Any, like: Any) -> Any:
    if not isinstance(like, dict):
        return node
    return {key: _with_empty(node.get(key, {}), child) for key, child in like.items()}
