"""Files of tensors as transformers lays them out: `model.safetensors`, or several with an index.

Written is a file at a time, so that no more than one file's tensors are in memory; read is a tensor at a time, or a
part of one. `pytorch_model.bin` is read where torch can be imported.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from flm_jax import json_file
from flm_jax.huggingface.layout import Index

SAFETENSORS, PICKLED = "model.safetensors", "pytorch_model.bin"
_DTYPES = {
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype(np.float16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
}


class Planned(NamedTuple):
    """A tensor that is to be written."""

    name: str
    shape: tuple[int, ...]
    make: Callable[[], np.ndarray]


class Stored(NamedTuple):
    """A tensor that can be read."""

    file: Path
    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[Index], np.ndarray]


def write(
    directory: Path,
    planned: Sequence[Planned],
    dtype: np.dtype,
    max_bytes: int,
    progress: Callable[[int], None],
) -> None:
    """Writes tensors, in order, to as few files as may have `max_bytes` each; a larger tensor has one to itself.

    Args:
        directory: An existing one.
        planned: The tensors.
        dtype: Of all of them.
        max_bytes: Of a file, and so of the memory that is taken.
        progress: Told the bytes of each tensor that has been made.
    """
    shards = list(_shards(planned, dtype.itemsize, max_bytes))
    places, total = {}, 0
    for number, shard in enumerate(shards, 1):
        name = SAFETENSORS if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        arrays = {}
        for tensor in shard:
            array = tensor.make().astype(dtype, copy=False)
            assert array.shape == tensor.shape, tensor.name
            arrays[tensor.name], places[tensor.name] = array, name
            total += array.nbytes
            progress(array.nbytes)
        save_file(arrays, directory / name, metadata={"format": "pt"})  # which transformers before 5 asks for
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": places}
        json_file.write_json(directory / f"{SAFETENSORS}.index.json", index)


def _shards(planned: Iterable[Planned], itemsize: int, max_bytes: int) -> Iterator[list[Planned]]:
    shard: list[Planned] = []
    size = 0
    for tensor in planned:
        nbytes = int(np.prod(tensor.shape)) * itemsize
        if shard and size + nbytes > max_bytes:
            yield shard
            shard, size = [], 0
        shard.append(tensor)
        size += nbytes
    yield shard


def find(directory: Path) -> dict[str, Stored]:
    """The tensors of a model's folder by name; nothing is read yet but where they lie.

    Raises:
        FileNotFoundError: it has none, or not all of the files that its index names.
        ValueError: a file is damaged, or its index names what it has not, or torch is needed and is not there.
    """
    for name, open_file in ((SAFETENSORS, _open_safetensors), (PICKLED, _open_pickled)):
        index = directory / f"{name}.index.json"
        if index.is_file():
            return _of_index(index, open_file)
        if (directory / name).is_file():
            return open_file(directory / name)
    raise FileNotFoundError(
        f"expected {SAFETENSORS} or {PICKLED}, or either's .index.json, in {directory} (--source), found none of them"
    )


def _of_index(index: Path, open_file: Callable[[Path], dict[str, Stored]]) -> dict[str, Stored]:
    try:
        places = json.loads(index.read_text("utf-8"))["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"expected a weight_map in {index}, found none ({error!r}): copy the file again"
        ) from error
    found: dict[str, Stored] = {}
    for name in sorted(set(places.values())):
        file = index.parent / name
        if not file.is_file():
            tensor = min(tensor for tensor, place in places.items() if place == name)
            raise FileNotFoundError(
                f"{index.name} says that {tensor} is in {file}, found no such file: copy it too"
            )
        found |= open_file(file)
    if missing := sorted(places.keys() - found.keys()):
        file = index.parent / places[missing[0]]
        raise ValueError(
            f"{index.name} says that {missing[0]} is in {file}, found it not there: copy the file again"
        )
    return found


def _open_safetensors(file: Path) -> dict[str, Stored]:
    try:
        opened = safe_open(str(file), framework="numpy")
        return {name: _stored(file, name, opened.get_slice(name)) for name in opened.keys()}  # noqa: SIM118
    except SafetensorError as error:
        cut = _first_cut_off(file)
        where = f"{cut} lies beyond its end" if cut else "its header cannot be read"
        raise ValueError(f"{file} is damaged or cut off: {where} ({error}); copy the file again") from error


def _stored(file: Path, name: str, piece: Any) -> Stored:
    dtype = piece.get_dtype()
    if dtype not in _DTYPES:
        raise ValueError(
            f"expected {name} in {file} to be one of {', '.join(_DTYPES)}, found {dtype}: "
            "quantized weights are not read"
        )
    return Stored(file, tuple(piece.get_shape()), _DTYPES[dtype], lambda index: np.asarray(piece[index]))


def _first_cut_off(file: Path) -> str | None:
    """The first tensor that a file's header says is there, and is not."""
    content = file.stat().st_size
    with file.open("rb") as opened:
        size = int.from_bytes(opened.read(8), "little")
        if 8 + size > content:
            return None
        try:
            header = json.loads(opened.read(size))
            ends = {
                name: 8 + size + entry["data_offsets"][1]
                for name, entry in header.items()
                if name != "__metadata__"
            }
        except (ValueError, KeyError, TypeError, AttributeError):
            return None
    return (
        min((end, name) for name, end in ends.items() if end > content)[1]
        if any(end > content for end in ends.values())
        else None
    )


def _open_pickled(file: Path) -> dict[str, Stored]:
    try:
        import torch
    except ModuleNotFoundError as error:
        raise ValueError(
            f"reading {file} needs torch, which is not installed: pip install 'flm_jax[huggingface]', or convert it to "
            "safetensors (transformers' save_pretrained writes them)"
        ) from error
    try:
        tensors = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises several kinds
        raise ValueError(
            f"expected a dictionary of tensors in {file}, found none that torch can load ({error}): copy the file again"
        ) from error

    def reader(tensor: Any) -> Callable[[Index], np.ndarray]:
        def read(index: Index) -> np.ndarray:
            piece = tensor[index].contiguous()
            if piece.dtype == torch.bfloat16:  # which numpy has from ml_dtypes
                return piece.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
            return piece.numpy()

        return read

    dtypes = {
        torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32", torch.float64: "F64"
    }  # fmt: skip
    return {
        name: Stored(file, tuple(tensor.shape), _DTYPES[dtypes[tensor.dtype]], reader(tensor))
        for name, tensor in tensors.items()
        if tensor.dtype in dtypes
    }
