"""Checkpoints larger than memory: one layer's slice of a stacked array is read, made and written at a time.

Arrays that stack the blocks' parameters have shape [layers, ...] and are stored in chunks of one layer, so a slice
can be read or written without its neighbours. `StoredState` reads such slices; a tree with `LazyArray`s in the place
of arrays is written by `handler()` as Orbax writes any tree: to a temporary name, renamed when it is whole.
"""

import contextlib
import ctypes
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from etils import epath

# A smaller slice is not worth a chunk of its own: all of them together are a few MiB, in one read instead of many.
MIN_SLICE_BYTES = 2**16
# A larger one is cut further, as a chunk is compressed and decompressed in one piece, beside the array it belongs to.
_CHUNK_BYTES = 2**26
# What is handed to the writer before it is waited for: the bound on compressed copies. Every wait ends in a commit,
# which rewrites the index of the chunks, so small slices go together.
_IN_FLIGHT_BYTES = 2**27

# As Orbax's StandardCheckpointHandler has it, for the arrays in memory.
_AT_A_TIME = {"save_concurrent_gb": 96, "restore_concurrent_gb": 96}

KeyPath = tuple[str, ...]


class StreamedArrayError(ValueError):
    """A `LazyArray` gave an array of another shape or dtype than it said."""


@dataclasses.dataclass(frozen=True)
class StoredArray:
    """What is known of an array in a checkpoint without reading it.

    Attributes:
        shape: Of the whole array.
        dtype: As numpy names it; `bfloat16` is `ml_dtypes`'.
        chunk: Shape of the pieces it is stored in, the smallest that is read.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    chunk: tuple[int, ...]


class StoredState:
    """The arrays of one checkpoint, read one by one or slice by slice.

    Args:
        directory: `MODEL_DIR/checkpoint_<step>/state`.

    Attributes:
        arrays: Every array by its path: `("target", ...)`, `("state", "step")`, `("state", "param_states", ...)`.

    Raises:
        FileNotFoundError: there is no such directory, or no Orbax checkpoint in it.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = epath.Path(Path(directory).absolute())
        if not (self._directory / "_METADATA").exists():
            raise FileNotFoundError(
                f"expected the state of a checkpoint, MODEL_DIR/checkpoint_<step>/state with a file _METADATA, found "
                f"none at {self._directory}"
            )
        stored = ocp.PyTreeCheckpointHandler().metadata(self._directory)
        self._zarr3 = bool(stored.use_zarr3)
        self._entries = {tuple(map(str, path)): entry for path, entry in _walk(stored.tree)}
        self.arrays = {
            path: StoredArray(
                tuple(entry.shape),
                np.dtype(entry.dtype),
                tuple(entry.storage.chunk_shape or ()),
            )
            for path, entry in self._entries.items()
        }
        self._opened: dict[KeyPath, ts.TensorStore] = {}
        self._shared: tuple[KeyPath, int, np.ndarray] = ((), 0, np.empty(0))
        # It caches the index of the chunks, not chunks.
        self._context = ocp.type_handlers.get_ts_context(use_ocdbt=True)

    def differences(self, tree: Any) -> list[str]:
        """The arrays, by their paths, that are here or in `tree` and not in both, or not of one shape."""
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        expected = {tuple(str(entry.key) for entry in path): leaf.shape for path, leaf in leaves}
        found = {path: array.shape for path, array in self.arrays.items()}
        paths = sorted({**expected, **found})
        return ["/".join(path) for path in paths if expected.get(path) != found.get(path)]

    def read(self, path: KeyPath, index: int | None = None) -> np.ndarray:
        """Reads one array, or one slice of it; of the disk only the chunks that hold it.

        A slice with chunks of its own takes its memory and a few hundred MiB. Slices that share a chunk take all of it:
        those below `MIN_SLICE_BYTES`, and every array of a checkpoint from before chunks were slices. Such a chunk is
        kept for the slices that follow, until another is read.

        Args:
            path: A key of `arrays`.
            index: Along the leading axis; None is the whole array.

        Returns:
            `arrays[path].shape`, without the leading axis where an index is given; not to be written into.

        Raises:
            KeyError: there is no such array.
            IndexError: there is no such slice.
        """
        if path not in self.arrays:
            raise KeyError(f"expected an array of {self._directory}, found no {'/'.join(path)} in it")
        shape = self.arrays[path].shape
        if index is not None and not (shape and 0 <= index < shape[0]):
            raise IndexError(f"expected a slice of {'/'.join(path)} of shape {shape}, found index {index}")
        if index is None:
            return _read(self._open(path))
        rows = self.arrays[path].chunk[0]
        if rows == 1:
            return _read(self._open(path)[index])
        start = index - index % rows
        if (path, start) != self._shared[:2]:  # slices that share a chunk: read it once, not for each of them
            self._shared = ((), 0, np.empty(0))
            together = _read(self._open(path)[start : min(start + rows, shape[0])].translate_to[0])
            together.flags.writeable = False
            self._shared = (path, start, together)
        return self._shared[2][index - start]

    def _open(self, path: KeyPath) -> ts.TensorStore:
        if path not in self._opened:
            info = ocp.type_handlers.ParamInfo(
                name=self._entries[path].name,
                parent_dir=self._directory,
                use_zarr3=self._zarr3,
                ts_context=self._context,
            )
            ocdbt = ocp.type_handlers.is_ocdbt_checkpoint(self._directory)
            spec = ocp.type_handlers.get_json_tspec_read(info, use_ocdbt=ocdbt)
            self._opened[path] = ts.open(ts.Spec(spec), open=True, context=self._context).result()
        return self._opened[path]


def _read(store: ts.TensorStore) -> np.ndarray:
    """Reads a few chunks at a time: all at once would hold all of the compressed data beside the array."""
    out = np.empty(store.shape, store.dtype.numpy_dtype)
    target = ts.array(out)
    pending: list[Any] = []
    size = 0
    for block in _blocks(out.shape, _chunk(store)):
        pending.append(target[block].write(store[block]))
        size += out[block].nbytes
        if size >= _IN_FLIGHT_BYTES:
            size = _finish(pending)
    _finish(pending)
    return out


def _chunk(store: ts.TensorStore) -> tuple[int, ...]:
    """Shape of the pieces in which an array, or the part of it that `store` is, is stored."""
    return tuple(store.chunk_layout.write_chunk.shape or ())  # type: ignore[arg-type]  # None for a scalar


def _walk(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    if isinstance(node, dict):
        for key, child in node.items():
            yield from _walk(child, (*path, key))
    elif isinstance(node, list | tuple):
        for key, child in enumerate(node):
            yield from _walk(child, (*path, key))
    elif node is not None:
        yield path, node


def save_args(shape: Sequence[int], dtype: Any, stacked: bool) -> ocp.SaveArgs:
    """How Orbax is to cut an array into chunks: a stacked one layer by layer, and further what is large.

    Orbax divides the longest axis by what divides it. It stays whole if it is no multiple of 16: a prime axis would
    fall into single rows.
    """
    layer = tuple(shape[1:] if stacked else shape)
    size = math.prod(layer) * np.dtype(dtype).itemsize
    return ocp.SaveArgs(
        shard_axes=(0,) if stacked and size >= MIN_SLICE_BYTES else (),
        chunk_byte_size=_CHUNK_BYTES if size > _CHUNK_BYTES and max(layer) % 16 == 0 else None,
    )


@dataclasses.dataclass(frozen=True, eq=False)
class LazyArray:
    """An array that is made while it is written, in the place of an array in the tree that is saved.

    Attributes:
        shape: Of the whole array.
        dtype: Likewise.
        stacked: Whether the leading axis is `layers`; then it is made a slice at a time.
        make: `make(i)` gives slice i, of shape `shape[1:]`, in order and each once; of an array that is not stacked
            `make(None)` gives the whole. It is called in the thread that saves. What it gives must not change after.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    stacked: bool
    make: Callable[[int | None], np.ndarray]

    @property
    def size(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the whole array."""
        return self.size * np.dtype(self.dtype).itemsize

    def pieces(self, name: str) -> Iterator[tuple[int | None, np.ndarray]]:
        """Makes slice after slice, or the whole, with the index of each.

        Raises:
            StreamedArrayError: `make` gives another shape or dtype than this array has.
        """
        shape = self.shape[1:] if self.stacked else self.shape
        for index in range(self.shape[0]) if self.stacked else (None,):
            piece = np.asarray(self.make(index))
            if piece.shape != shape or piece.dtype != self.dtype:
                raise StreamedArrayError(
                    f"expected {np.dtype(self.dtype).name}{list(shape)} for {name}{'' if index is None else [index]}, "
                    f"found {piece.dtype.name}{list(piece.shape)}: correct the LazyArray's make, or its shape and dtype"
                )
            yield index, piece
            del piece


class _LazyArrayHandler(ocp.type_handlers.NumpyHandler):
    """Writes lazy arrays as numpy arrays are written, and reads as those are read.

    Orbax writes leaves at the same time, in threads of its own, and gives up waiting for them after twenty minutes.
    Here all is written before `serialize` returns: one piece after another, in the thread that saves.
    """

    async def serialize(
        self, values: Sequence[LazyArray], infos: Sequence[Any], args: Sequence[ocp.SaveArgs] | None = None
    ) -> list[Any]:
        """Makes and writes `values`, returns nothing to wait for."""
        if jax.process_index() != 0:
            return []
        for value, info, arg in zip(values, infos, args or [ocp.SaveArgs()] * len(values), strict=True):
            await info.await_path_creation()
            spec = ocp.type_handlers.get_json_tspec_write(
                info,
                use_ocdbt=info.is_ocdbt_checkpoint,
                global_shape=value.shape,
                local_shape=value.shape,
                dtype=np.dtype(value.dtype),
                process_index=0,
                arg=arg,
            )
            store = ts.open(ts.Spec(spec), create=True, open=True, context=info.ts_context).result()
            _write(store, value, info.name)
        return []


def _write(store: ts.TensorStore, value: LazyArray, name: str) -> None:
    chunk = _chunk(store)
    if value.stacked and chunk[0] > 1:  # the slices are small and share a chunk
        store.write(np.stack([piece for _, piece in value.pieces(name)])).result()
        return
    pending: list[Any] = []
    size = 0
    for index, piece in value.pieces(name):
        target = store if index is None else store[index]
        for block in _blocks(piece.shape, chunk[len(chunk) - piece.ndim :]):
            pending.append(target[block].write(piece[block], can_reference_source_data_indefinitely=True))
            size += piece[block].nbytes
            if size >= _IN_FLIGHT_BYTES:
                size = _finish(pending)
        if size + piece.nbytes > _IN_FLIGHT_BYTES:
            size = _finish(pending)
        del piece  # or it would live while the next is made
    _finish(pending)


def _finish(pending: list[Any]) -> int:
    """Waits for reads or writes, forgets them with the arrays they hold, and returns the bytes now in flight: 0."""
    while pending:
        pending.pop().result()
    _give_back()
    return 0


def _give_back() -> None:
    """Has the C library return what is free: blocks below 32 MiB stay scattered over its arenas, more with every layer.

    It is glibc's; others are left alone.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _blocks(shape: tuple[int, ...], chunk: tuple[int, ...]) -> Iterator[tuple[slice, ...]]:
    """The chunks of an array, as indices into it."""
    starts = (range(0, size, step) for size, step in zip(shape, chunk, strict=True))
    for start in itertools.product(*starts):
        yield tuple(
            slice(at, min(at + step, size)) for at, step, size in zip(start, chunk, shape, strict=True)
        )


def handler() -> ocp.PyTreeCheckpointHandler:
    """Orbax's handler of trees (`ocp.args.PyTreeSave`), that takes lazy arrays among the others."""
    known = [(kind, ocp.type_handlers.get_type_handler(kind)) for kind in (np.ndarray, jax.Array)]
    registry = ocp.type_handlers.create_type_handler_registry((LazyArray, _LazyArrayHandler()), *known)
    return ocp.PyTreeCheckpointHandler(type_handler_registry=registry, **_AT_A_TIME)
