"""Growth from checkpoint to checkpoint: one layer of one array at a time, by the programs' own kernel.

The plan goes through the state as it does in memory; only what carries it out differs: instead of a grown array it
gives a `LazyArray`, whose slices are read, grown and written one after the other.
"""

import contextlib
import dataclasses
import functools
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from flm_jax import optimizer as optimizers
from flm_jax import partitioning
from flm_jax.config import ModelConfig
from flm_jax.grow import leaf
from flm_jax.grow.errors import GrowthError
from flm_jax.grow.planning import GrowthPlan, plan
from flm_jax.grow.rule import Fill
from flm_jax.grow.verification import Difference, verify
from flm_jax.parameters import LAYERS, Parameter
from flm_jax.training.boundary import growth_key
from flm_jax.training.checkpoints import Checkpoints, from_tree, key_path, load_params, to_tree
from flm_jax.training.continuation import find
from flm_jax.training.metadata import Metadata
from flm_jax.training.state import TrainState, abstract_state
from flm_jax.training.step import skipping_non_finite
from flm_jax.training.streaming import KeyPath, LazyArray, StoredState

_UNFINISHED = ".orbax-checkpoint-tmp"  # in the names of what Orbax has not finished


@dataclasses.dataclass(frozen=True)
class Stored:
    """An array of the source, not read yet; it stands where the array would in the state that a plan grows."""

    state: StoredState
    path: KeyPath

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the whole array."""
        return self.state.arrays[self.path].shape

    @property
    def dtype(self) -> np.dtype:
        """Likewise."""
        return self.state.arrays[self.path].dtype

    def read(self, index: int | None = None) -> np.ndarray:
        """The array, or one layer of it."""
        return self.state.read(self.path, index)

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return np.asarray(self.read(), dtype)


class SliceBySlice:
    """Carries out a plan lazily: for each array of the target something that makes its layers one by one.

    Args:
        progress: Told the bytes of each slice that has been made.
    """

    def __init__(self, progress: Callable[[int], None] = lambda size: None) -> None:
        self._progress = progress
        self._programs: dict[Any, Callable[..., jax.Array]] = {}

    def __call__(
        self,
        function: Callable,
        plan: GrowthPlan,
        row: Parameter,
        old: Stored,
        *key: jax.Array,
        **static: Any,
    ) -> LazyArray:
        """The grown array, to be made; `function` is one of those of `grow.leaf`."""

        def make(place: int | None) -> np.ndarray:
            if place is None:
                made = self._program(function, plan, row, **static)(old.read(), *key)
            else:
                made = self._layer(leaf.LAYERWISE[function], plan, row, old, key, static, place)
            self._progress(made.nbytes)
            return np.asarray(made)

        return LazyArray(row.shape(plan.target), old.dtype, LAYERS in row.axes, make)

    def _layer(
        self,
        layerwise: leaf.Layerwise,
        plan: GrowthPlan,
        row: Parameter,
        old: Stored,
        key: Sequence[jax.Array],
        static: Mapping[str, Any],
        place: int,
    ) -> Any:
        fill, number = layerwise.fill(plan, row, **static), place
        if fill is not None:
            axis_map = plan.maps[LAYERS]
            if axis_map.is_new[place] and fill is Fill.ZERO:
                return np.zeros(row.unstacked().shape(plan.target), old.dtype)
            if axis_map.is_new[place] and fill is Fill.INIT:
                assert layerwise.fresh is not None, "moments are never drawn"
                return self._program(layerwise.fresh, plan, row, dtype=old.dtype)(np.int32(place), *key)
            number = int(axis_map.source[place])
        return self._program(layerwise.wide, plan, row, **static)(old.read(number), np.int32(number), *key)

    def _program(self, function: Callable, plan: GrowthPlan, row: Parameter, **static: Any) -> Callable:
        name = (function, plan, row, tuple(static.items()))
        if name not in self._programs:
            self._programs[name] = jax.jit(functools.partial(function, plan, row, **static))
        return self._programs[name]


def stored_state(
    state: StoredState, config: ModelConfig, optimizer: optax.GradientTransformation
) -> TrainState:
    """The state of a checkpoint as a plan grows it: arrays in the parameters' shape not read yet, small ones read.

    Args:
        state: Of the checkpoint.
        config: Of the model.
        optimizer: With which it was trained; a checkpoint holds its arrays, not what they are.

    Raises:
        GrowthError: the checkpoint's arrays are not those of the model and the optimizer.
    """
    like = abstract_state(config, optimizer, _one_device())
    tree = to_tree(like)
    if different := state.differences(tree):
        raise GrowthError(
            f"the checkpoint's arrays are not those of its model and the optimizer: {', '.join(different[:5])} differ; "
            "bind Trainer.optimizer to the optimizer that it was trained with (optimizer.adamw unless bound)"
        )
    stored = from_tree(
        jax.tree_util.tree_map_with_path(lambda path, _: Stored(state, key_path(path)), tree), like
    )
    opt_state = optax.tree_map_params(
        optimizer,
        lambda held, param: held if leaf.is_hole(held) or held.shape == param.shape else held.read(),
        stored.opt_state,
        stored.params,
        transform_non_params=lambda held: held.read(),
        is_leaf=leaf.is_hole,
    )
    return TrainState(stored.step.read(), stored.params, opt_state)


def _one_device() -> jax.sharding.Mesh:
    return partitioning.MeshShape(data=1).build(jax.devices()[:1])


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a checkpoint is to grow; the fields of `grow.schedule.Stage` of these names.

    Attributes:
        method: As in `grow.plan`.
        ramp_steps: Over which the mask opens in the run that goes on, where the method has one.
        optimizer_state: Policy of the moments.
        multipliers: Policy of the optimizer's multipliers.
        batch_size: Of the run that goes on; None is the source's.
        optimizer: Makes the source's and the target's optimizer, as `Trainer.optimizer`.
    """

    method: str | Mapping[str, str] = "msg"
    ramp_steps: int = 100
    optimizer_state: str = "carry"
    multipliers: str = "carry"
    batch_size: int | None = None
    optimizer: Callable[..., optax.GradientTransformation] = optimizers.adamw


class CheckpointGrowth:
    """The growth of one checkpoint; nothing is read but what is known beside the arrays, until it is written.

    Args:
        checkpoint: `MODEL_DIR/checkpoint_<step>`, or `MODEL_DIR` for the newest.
        target: The wanted sizes.
        settings: How to grow.

    Attributes:
        plan: What will be done.
        step: Of the checkpoint, and of the grown one.

    Raises:
        GrowthError: the growth cannot be planned, a mask of the last one still opens, or this one needs a mask and t5x
            trained the checkpoint.
        FileNotFoundError: there is no such checkpoint.
    """

    def __init__(self, checkpoint: Path, target: ModelConfig, settings: Settings = Settings()) -> None:
        self._settings = settings
        found = find(checkpoint)
        self._model_dir, self.step, self._metadata = found.model_dir, found.step, found.metadata
        self._lineage = found.lineage
        if self.step < self._lineage.ramp_end:
            raise GrowthError(
                f"{checkpoint} is in mid-ramp: its mask opens until step {self._lineage.ramp_end}, it is of step "
                f"{self.step}; train it beyond the ramp first"
            )
        self.plan = plan(self._metadata.config, target, settings.method)
        if self.plan.masked and found.of_t5x:
            raise GrowthError(
                f"{found.directory} was trained under t5x, whose loss does not know the step, so no mask can open "
                f"there: expected a method without one, such as lemon, found {settings.method!r} (--method, "
                "Stage.method). For a masked growth, go on with `flm train` in its MODEL_DIR first"
            )
        if self.plan.masked and settings.ramp_steps < 1:
            raise GrowthError(
                f"the mask needs a ramp: expected ramp_steps of at least 1, found {settings.ramp_steps}"
            )

    def describe(self) -> str:
        """The plan, and what will be read and written, for people."""
        stored = StoredState(self._directory)
        size = sum(math.prod(array.shape) * array.dtype.itemsize for array in stored.arrays.values())
        return (
            f"{self.plan.explain()}\n  optimizer state: {self._settings.optimizer_state}, multipliers: "
            f"{self._settings.multipliers}\n  reads {size / 1e6:,.1f} MB of {self._directory.parent}, writes "
            f"{self.num_bytes / 1e6:,.1f} MB"
        )

    def verify(self) -> Difference:
        """Grows the parameters in memory and compares both models; what is written then is the same, bit for bit.

        Raises:
            FunctionChangedError: beyond what the method may.
        """
        _, params, _ = load_params(self._model_dir, self.step)
        return verify(self.plan, params, self.key)

    def write(self, out: Path, progress: Callable[[int], None] = lambda size: None) -> Path:
        """Reads, grows and writes `out/checkpoint_<step>`, one layer of one array at a time.

        Nothing under `out` has that name before all is written.

        Args:
            out: The new run's directory; empty, or not there.
            progress: Told the bytes of each slice that has been made.

        Raises:
            FileExistsError: `out` holds something.
        """
        out = Path(out).expanduser()
        self.check_empty(out)
        source, target = self._optimizers()
        stored = stored_state(StoredState(self._directory), self.plan.source, source)
        like = abstract_state(self.plan.target, target, _one_device())
        grown = self.plan(stored, self.key, self._settings.optimizer_state, SliceBySlice(progress), like)
        out.mkdir(parents=True, exist_ok=True)
        self.check_empty(out)
        for left in out.glob(f"*{_UNFINISHED}*"):  # by a growth that was killed
            shutil.rmtree(left)
        with contextlib.closing(Checkpoints(out)) as checkpoints:
            checkpoints.save(grown, self._grown_metadata(stored))
            checkpoints.wait()
        return out / f"checkpoint_{self.step}"

    @staticmethod
    def check_empty(out: Path) -> None:
        """Refuses a directory that holds something else than what a growth that was killed has left.

        Raises:
            FileExistsError: naming what is there.
        """
        out = Path(out).expanduser()
        found = [path.name for path in out.iterdir() if _UNFINISHED not in path.name] if out.exists() else []
        if found:
            raise FileExistsError(
                f"expected an empty directory, or none, for --out, found {out} with {', '.join(sorted(found)[:3])}; "
                "give another, or empty it"
            )

    @property
    def num_bytes(self) -> int:
        """Of the arrays that are made slice by slice."""
        shapes = jax.eval_shape(
            self._grow_shapes,
            *(
                abstract_state(config, optimizer, _one_device())
                for config, optimizer in zip(
                    (self.plan.source, self.plan.target), self._optimizers(), strict=True
                )
            ),
        )
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))

    @property
    def _directory(self) -> Path:
        return self._model_dir / f"checkpoint_{self.step}" / "state"

    @property
    def key(self) -> jax.Array:
        """Of the draws, as a run that grows in memory draws."""
        return growth_key(self._metadata.seed, self.step, len(self._lineage.records))

    def _optimizers(self) -> tuple[optax.GradientTransformation, optax.GradientTransformation]:
        """Of source and target, for their states' shapes alone: no update is made with them."""
        before = self._lineage.multipliers(self.plan.source)
        after = self.plan.multipliers(before, self._settings.multipliers)
        make = self._settings.optimizer
        return tuple(  # type: ignore[return-value]
            skipping_non_finite(make(config, lambda count: 0.0, multipliers=multipliers))
            for config, multipliers in ((self.plan.source, before), (self.plan.target, after))
        )

    def _grow_shapes(self, state: TrainState, like: TrainState) -> TrainState:
        return self.plan(state, jax.random.key(0), self._settings.optimizer_state, like=like)

    def _grown_metadata(self, state: TrainState) -> Metadata:
        settings = self._settings
        history = self._metadata.data_history
        batch_size = settings.batch_size or self._metadata.batch_size
        lineage = self._lineage.grown(
            self.plan,
            self.step,
            updates=self.step - int(state.opt_state.total_notfinite),
            sequences=history.sequences(self.step),
            ramp_steps=settings.ramp_steps,
            multipliers=settings.multipliers,
        )
        return dataclasses.replace(
            self._metadata,
            config=self.plan.target,
            batch_size=batch_size,
            history=tuple(history.resized(self.step, batch_size).to_json()),
            growth_record=lineage.to_json(),
            loss_window=(),
        )
