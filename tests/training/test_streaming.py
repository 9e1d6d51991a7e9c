"""Checkpoints read and written slice by slice: the same bytes as in memory, or no checkpoint at all."""

import contextlib
import math
import os
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
import tensorstore as ts

from flm_jax.partitioning import MeshShape
from flm_jax.training import streaming
from flm_jax.training.checkpoints import Checkpoints
from flm_jax.training.metadata import Metadata
from flm_jax.training.state import TrainState, abstract_state
from flm_jax.training.streaming import LazyArray, StoredState, StreamedArrayError
from tests.models import small_config

# A layer of its MLP matrices is 256 KiB, of its attention's 64 KiB; of its vectors too little for a chunk.
CONFIG = small_config(num_layers=3, d_model=128, d_ff=512, head_dim=32)
METADATA = Metadata(
    config=CONFIG, seed=0, batch_size=8, mixture={}, data={"length": 64, "tokenizer": "", "tasks": {}}
)
OPTIMIZER = optax.adam(1e-3)
MATRIX = ("target", "layers", "mlp", "wi_kernel")
VECTOR = ("target", "layers", "mlp", "wo_bias")
STEP = ("state", "step")


def like(devices: int = 1, **axes: int) -> TrainState:
    return abstract_state(CONFIG, OPTIMIZER, MeshShape(**axes).build(jax.devices()[:devices]))


def random_state(abstract: TrainState) -> TrainState:
    rng = np.random.default_rng(0)

    def draw(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        value = (
            rng.standard_normal(leaf.shape)
            if jnp.issubdtype(leaf.dtype, jnp.floating)
            else np.full(leaf.shape, 7)
        )
        return jax.device_put(value.astype(leaf.dtype), leaf.sharding)

    return jax.tree.map(draw, abstract)


def lazily(state: TrainState, before: Callable[[int | None], None] = lambda index: None) -> TrainState:
    """The same state, its parameters and moments made while they are written; counters stay in memory."""

    def lazy(leaf: jax.Array) -> Any:
        def make(index: int | None) -> np.ndarray:
            before(index)
            return np.array(leaf if index is None else leaf[index])

        stacked = leaf.shape[:1] == (CONFIG.num_layers,)
        return LazyArray(leaf.shape, leaf.dtype, stacked, make) if leaf.ndim else leaf

    return jax.tree.map(lazy, state)


def save(model_dir: Path, state: TrainState) -> StoredState:
    with contextlib.closing(Checkpoints(model_dir)) as checkpoints:
        checkpoints.save(state, METADATA)
        checkpoints.wait()
        assert checkpoints.latest_step() == 7
    return StoredState(model_dir / "checkpoint_7" / "state")


def restored(model_dir: Path, onto: TrainState) -> TrainState:
    with contextlib.closing(Checkpoints(model_dir)) as checkpoints:
        return checkpoints.restore(7, onto, METADATA)


def assert_same_bits(one: TrainState, other: TrainState) -> None:
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert isinstance(a, jax.Array) and a.dtype == b.dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.fixture(scope="module")
def state() -> TrainState:
    return random_state(like())


@pytest.fixture(scope="module")
def saved(state: TrainState, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model_dir = tmp_path_factory.mktemp("saved")
    save(model_dir, state)
    return model_dir


def bytes_read() -> int:
    return sum(
        entry["value"]
        for metric in ts.experimental_collect_matching_metrics("/tensorstore/kvstore/file/bytes_read")
        for entry in metric["values"]
    )


def test_arrays_and_slices_are_read_as_saved(saved: Path, state: TrainState) -> None:
    stored = StoredState(saved / "checkpoint_7" / "state")
    assert len(stored.arrays) == len(jax.tree.leaves(state))
    matrix = np.asarray(state.params["layers"]["mlp"]["wi_kernel"])
    vector = np.asarray(state.params["layers"]["mlp"]["wo_bias"])
    moment = np.asarray(state.opt_state[0].nu["layers"]["mlp"]["wi_kernel"])
    assert stored.arrays[MATRIX].shape == matrix.shape and stored.arrays[MATRIX].dtype == matrix.dtype
    np.testing.assert_array_equal(stored.read(MATRIX), matrix)
    np.testing.assert_array_equal(stored.read(STEP), 7)
    for index in (2, 0, 1):
        np.testing.assert_array_equal(stored.read(MATRIX, index), matrix[index])
        np.testing.assert_array_equal(stored.read(VECTOR, index), vector[index])
        np.testing.assert_array_equal(
            stored.read(("state", "param_states", "0", "nu", *MATRIX[1:]), index), moment[index]
        )
    with pytest.raises(IndexError, match=r"shape \(3, 128, 512\), found index 3"):
        stored.read(MATRIX, 3)
    with pytest.raises(KeyError, match="found no target/layer"):
        stored.read(("target", "layer"))


def test_only_the_slice_is_read(saved: Path) -> None:
    stored = StoredState(saved / "checkpoint_7" / "state")
    stored.read(MATRIX, 0)  # opens it
    before = bytes_read()
    size = stored.read(MATRIX, 1).nbytes
    assert 0.5 * size < bytes_read() - before <= 1.1 * size


@pytest.mark.parametrize("axes", [{}, {"devices": 4, "fsdp": 2, "tensor": 2}])
def test_a_chunk_is_at_most_one_layer(axes: dict[str, int], state: TrainState, tmp_path: Path) -> None:
    stored = save(tmp_path, jax.device_put(state, jax.tree.map(lambda leaf: leaf.sharding, like(**axes))))
    for path, array in stored.arrays.items():
        if (
            "layers" in path
            and math.prod(array.shape[1:]) * array.dtype.itemsize >= streaming.MIN_SLICE_BYTES
        ):
            assert array.chunk[0] == 1
            assert axes or array.chunk[1:] == array.shape[1:]
    assert stored.arrays[MATRIX].chunk[0] == 1
    assert axes or stored.arrays[VECTOR].chunk == stored.arrays[VECTOR].shape
    assert_same_bits(restored(tmp_path, like(2, fsdp=2)), state)


@pytest.mark.parametrize("chunk", [streaming._CHUNK_BYTES, 2**15])
def test_a_lazy_state_is_saved_like_one_in_memory(
    chunk: int, saved: Path, state: TrainState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "_CHUNK_BYTES", chunk)
    monkeypatch.setattr(streaming, "_IN_FLIGHT_BYTES", 3 * chunk)
    made = []
    stored = save(tmp_path, lazily(state, made.append))
    assert set(made) == {None, 0, 1, 2}
    if chunk == 2**15:
        assert 1 < math.prod(stored.arrays[MATRIX].chunk) * 4 <= chunk
        assert max(stored.arrays["target", "token_embedding", "embedding"].chunk) < 128
    else:
        assert stored.arrays == StoredState(saved / "checkpoint_7" / "state").arrays
    np.testing.assert_array_equal(stored.read(MATRIX, 1), state.params["layers"]["mlp"]["wi_kernel"][1])
    assert_same_bits(restored(tmp_path, like()), state)
    assert_same_bits(restored(tmp_path, like(2, fsdp=2)), state)


def test_slices_do_not_pile_up(state: TrainState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leaf = state.params["layers"]["mlp"]["wi_kernel"]
    monkeypatch.setattr(streaming, "_IN_FLIGHT_BYTES", leaf[0].nbytes * 3 // 2)  # one slice, not two
    made: list[Any] = []
    survivors = 0

    def make(index: int | None) -> np.ndarray:
        nonlocal survivors
        deadline = time.monotonic() + 2  # the writer's threads let go of a slice a moment after it is written
        while (alive := sum(piece() is not None for piece in made)) and time.monotonic() < deadline:
            time.sleep(0.01)
        survivors = max(survivors, alive)
        piece = np.array(leaf[index])
        made.append(weakref.ref(piece))
        return piece

    params = {**state.params, "layers": {**state.params["layers"]}}
    params["layers"]["mlp"] = {
        **params["layers"]["mlp"],
        "wi_kernel": LazyArray(leaf.shape, leaf.dtype, True, make),
    }
    save(tmp_path, state._replace(params=params))
    assert len(made) == CONFIG.num_layers and survivors == 0


def test_a_long_prime_axis_is_not_cut_into_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "_CHUNK_BYTES", 2**16)
    assert streaming.save_args((2, 64, 1024), np.float32, True).chunk_byte_size == 2**16
    assert streaming.save_args((2, 64, 1021), np.float32, True) == ocp.SaveArgs(shard_axes=(0,))


def test_slices_of_an_older_checkpoint_share_a_chunk(tmp_path: Path) -> None:
    value = np.random.default_rng(0).standard_normal((3, 128, 256)).astype(np.float32)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", {"target": {"a": jnp.asarray(value)}})
    stored = StoredState(tmp_path / "state")
    assert stored.arrays["target", "a"].chunk == value.shape
    before = bytes_read()
    for index in range(3):
        np.testing.assert_array_equal(stored.read(("target", "a"), index), value[index])
    assert bytes_read() - before < 1.5 * value.nbytes


def test_no_checkpoint_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="expected the state of a checkpoint"):
        StoredState(tmp_path)


def test_what_making_a_slice_raises_comes_out_and_leaves_nothing(state: TrainState, tmp_path: Path) -> None:
    def fail(index: int | None) -> None:
        if index == 2:
            raise ArithmeticError("not this one")

    with contextlib.closing(Checkpoints(tmp_path)) as checkpoints:
        with pytest.raises(ArithmeticError, match="not this one"):
            checkpoints.save(lazily(state, fail), METADATA)
        assert checkpoints.latest_step() is None
    assert not (tmp_path / "checkpoint_7").exists()
    save(tmp_path, lazily(state))
    assert_same_bits(restored(tmp_path, like()), state)


def test_a_slice_of_another_shape_is_refused(state: TrainState, tmp_path: Path) -> None:
    wrong = LazyArray((3, 4), np.dtype(np.float32), True, lambda index: np.zeros(5, np.float32))
    params = {**state.params, "wrong": wrong}
    with (
        contextlib.closing(Checkpoints(tmp_path)) as checkpoints,
        pytest.raises(
            StreamedArrayError, match=r"expected float32\[4\] for target.wrong\[0\], found float32\[5\]"
        ),
    ):
        checkpoints.save(state._replace(params=params), METADATA)


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.training.test_streaming import lazily, like, random_state, save

calls = 0
def kill(index):
    global calls
    calls += 1
    if calls == {calls}:
        os.kill(os.getpid(), signal.SIGKILL)

save(Path(sys.argv[1]), lazily(random_state(like()), kill))
"""


@pytest.mark.parametrize("older", [False, True])
def test_kill_9_leaves_the_older_checkpoint_or_none(older: bool, state: TrainState, tmp_path: Path) -> None:
    if older:
        with contextlib.closing(Checkpoints(tmp_path)) as checkpoints:
            checkpoints.save(state._replace(step=jnp.int32(3)), METADATA)
    ended = subprocess.run(
        [sys.executable, "-c", KILLED.format(calls=25), str(tmp_path)], env=dict(os.environ)
    )
    assert ended.returncode == -signal.SIGKILL
    assert any("tmp" in path.name for path in tmp_path.iterdir())  # it was in the midst of it
    with contextlib.closing(Checkpoints(tmp_path, clean_up=False)) as checkpoints:
        assert checkpoints.latest_step() == (3 if older else None)
    save(tmp_path, lazily(state))
    assert_same_bits(restored(tmp_path, like()), state)
