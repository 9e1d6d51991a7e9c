"""A folder of transformers as a checkpoint of ours: our own exports, FLM-101B's layout, and the Llama family.

Written is `MODEL_DIR/checkpoint_<step>`, an array at a time or a layer of one, with the state of an optimizer that has
seen no gradient.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flm_jax import parameters
from flm_jax.huggingface import flm, layout, llama, record, tensor_files
from flm_jax.huggingface.fresh_state import fresh_state
from flm_jax.huggingface.layout import Format, KeyPath, Tensor
from flm_jax.huggingface.token_ids import row_order
from flm_jax.training.checkpoint_growth import CheckpointGrowth
from flm_jax.training.checkpoints import Checkpoints, key_path
from flm_jax.training.metadata import Metadata
from flm_jax.training.streaming import LazyArray

TOKENIZER = "tokenizer.json"  # in the MODEL_DIR, where one was given
_UNFINISHED = "*.orbax-checkpoint-tmp*"


@dataclasses.dataclass(frozen=True)
class Described:
    """What a folder's `config.json` says.

    Attributes:
        metadata: Of the checkpoint that it becomes.
        step: Likewise: that of the export, 0 for others' models.
        form: Where the parameters lie.
        is_ours: Whether it is an export of ours, whose token ids are ours.
        notices: What is to be said about it.
    """

    metadata: Metadata
    step: int
    form: Format
    is_ours: bool
    notices: tuple[str, ...] = ()


def describe(directory: Path) -> Described:
    """Reads `config.json`.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it describes a model that `ModelConfig` cannot; names the field.
    """
    file = Path(directory) / "config.json"
    if not file.is_file():
        raise FileNotFoundError(
            f"expected a model's folder with config.json, found none at {file} (--source)"
        )
    try:
        fields = json.loads(file.read_text("utf-8"))
        kind = fields.get("model_type")
    except (ValueError, AttributeError) as error:
        raise ValueError(
            f"expected a model's config in {file}, found no JSON object ({error}): copy it again"
        ) from error
    if kind not in (flm.MODEL_TYPE, *llama.MODEL_TYPES):
        raise ValueError(
            f"expected model_type {', '.join((flm.MODEL_TYPE, *llama.MODEL_TYPES))} in {file}, found {kind!r} "
            f"({', '.join(fields.get('architectures') or ['no architectures'])}): its function is not one that "
            "ModelConfig can say"
        )
    form = layout.FLM if kind == flm.MODEL_TYPE else layout.LLAMA
    if recorded := record.find(fields):
        return Described(recorded.metadata, recorded.step, form, is_ours=True)
    try:
        config, notices = flm.from_json(fields) if form is layout.FLM else (llama.from_json(fields), [])
    except KeyError as error:
        raise ValueError(f"expected {error.args[0]} in {file}, found none: copy the file again") from error
    compute = "float32" if fields.get("dtype", fields.get("torch_dtype")) == "float32" else "bfloat16"
    config = dataclasses.replace(config, dtype=compute)
    # Nothing was read: `training.metadata.mismatches` then asks for no particular data.
    data: dict[str, Any] = {"tokenizer": None, "length": None, "tasks": {}}
    metadata = Metadata(config, seed=0, batch_size=1, mixture="imported", data=data)
    return Described(metadata, 0, form, is_ours=False, notices=tuple(notices))


class Import:
    """One model's import; nothing is read but what is known beside the tensors, until it is written.

    Args:
        source: The model's folder.
        tokenizer: Content of the tokenizer's file in our ids, which is written beside the checkpoint; None leaves open
            which it is.
        source_ids: int [our vocabulary], the foreign id of each id of that tokenizer: the tables' rows are put in this
            order (`token_ids.row_order`). None leaves ids as they are.

    Attributes:
        metadata: Of the checkpoint.
        step: Likewise.
        notices: What is to be said about it.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the model is not one of ours in other clothes, or its files are damaged, or a tensor is missing, not
            expected or of another shape; names it, and the file.
    """

    def __init__(
        self, source: Path, tokenizer: bytes | None = None, source_ids: np.ndarray | None = None
    ) -> None:
        source = Path(source).expanduser()
        described = describe(source)
        if described.is_ours and (tokenizer is not None or source_ids is not None):
            raise ValueError(
                f"{source} is an export of flm_jax, whose ids are ours already: leave out --tokenizer"
            )
        self._tokenizer = tokenizer
        self.step, self.notices = described.step, list(described.notices)
        there = described.metadata.config  # with as many rows as the foreign tables
        self._there = there
        self.metadata = described.metadata
        self._rows = None if source_ids is None else row_order(source_ids, there.vocab_size)
        if self._rows is not None:
            config = dataclasses.replace(there, vocab_size=len(self._rows))
            self.metadata = dataclasses.replace(self.metadata, config=config)
        if not described.is_ours:
            digest = None if tokenizer is None else hashlib.sha256(tokenizer).hexdigest()
            self.metadata = dataclasses.replace(
                self.metadata, data={**self.metadata.data, "tokenizer": digest}
            )
            if source_ids is None:
                self.notices.append(
                    "token ids are left as they are: our models begin a document with id 0 and end it with id 1"
                )
        self._stored = tensor_files.find(source)
        self._tensors = layout.tensors(there, described.form)
        self._check(source, described.form)
        self._places = {
            (part.path, tensor.layer): (tensor, part) for tensor in self._tensors for part in tensor.parts
        }

    @property
    def num_bytes(self) -> int:
        """Of the parameters as they are written."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self._params(lambda size: None)))

    def write(self, out: Path, progress: Callable[[int], None] = lambda size: None) -> Path:
        """Writes `out/checkpoint_<step>`, whole or not at all.

        Args:
            out: The new `MODEL_DIR`; empty, or not there.
            progress: Told the bytes of each array, or layer of one, that has been made.

        Raises:
            FileExistsError: `out` holds something.
        """
        out = Path(out).expanduser()
        CheckpointGrowth.check_empty(out)
        existed = out.exists()
        out.mkdir(parents=True, exist_ok=True)
        state = fresh_state(self.metadata, self.step, self._params(progress))
        try:
            if self._tokenizer is not None:
                (out / TOKENIZER).write_bytes(self._tokenizer)
            with contextlib.closing(Checkpoints(out)) as checkpoints:
                checkpoints.save(state, self.metadata)
                checkpoints.wait()
        except BaseException:
            for left in out.glob(_UNFINISHED):
                shutil.rmtree(left, ignore_errors=True)
            (out / TOKENIZER).unlink(missing_ok=True)
            if not existed:
                with contextlib.suppress(OSError):
                    out.rmdir()
            raise
        return out / f"checkpoint_{self.step}"

    def _params(self, progress: Callable[[int], None]) -> dict[str, Any]:
        config = self.metadata.config
        dtype = jnp.dtype(config.param_dtype)

        def lazy(path: tuple[Any, ...], row: parameters.Parameter) -> LazyArray:
            make = functools.partial(self._make, key_path(path), row, dtype, progress)
            return LazyArray(row.shape(config), dtype, parameters.LAYERS in row.axes, make)

        table = parameters.table(config)
        return jax.tree_util.tree_map_with_path(lazy, table, is_leaf=parameters.is_parameter)

    def _make(
        self,
        path: KeyPath,
        row: parameters.Parameter,
        dtype: np.dtype,
        progress: Callable[[int], None],
        layer: int | None,
    ) -> np.ndarray:
        tensor, part = self._places[path, layer]
        array = tensor.take(part, self._stored[tensor.name].read, self._there)
        if self._rows is not None and "vocab" in row.axes:
            array = array[self._rows]
        made = array.astype(dtype, copy=False)
        progress(made.nbytes)
        return made

    def _check(self, source: Path, form: Format) -> None:
        """Raises for the first tensor that is missing, of another shape, or not expected."""
        expected = {tensor.name: tensor for tensor in self._tensors}
        for name, tensor in expected.items():
            found = self._stored.get(name)
            if found is None:
                raise ValueError(
                    f"expected the tensor {name} {list(tensor.shape)} in the files of {source}, found none of that "
                    "name: the folder is not whole, or config.json is of another model"
                )
            if found.shape != tensor.shape:
                raise ValueError(
                    f"expected {name} of shape {list(tensor.shape)} by config.json, found {list(found.shape)} in "
                    f"{found.file}: config.json or the file is of another model"
                )
        for name in sorted(self._stored.keys() - expected.keys()):
            if name.endswith(form.ignored) or self._is_the_embedding(name, form, expected):
                continue
            raise ValueError(
                f"found a tensor {name} {list(self._stored[name].shape)} in {self._stored[name].file} that a model of "
                "this config.json does not have: its function would not be the checkpoint's"
            )

    def _is_the_embedding(self, name: str, form: Format, expected: Mapping[str, Tensor]) -> bool:
        """Whether a tensor is a tied readout's copy of the embedding, written out all the same."""
        if name != form.names["readout/kernel"]:
            return False
        copy, table = self._stored[name], self._stored[form.names["token_embedding/embedding"]]
        whole = tuple(slice(0, size) for size in table.shape)
        return copy.shape == table.shape and np.array_equal(copy.read(whole), table.read(whole))
