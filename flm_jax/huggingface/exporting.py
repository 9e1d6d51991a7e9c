"""A checkpoint as a folder that transformers reads: config, tensors, tokenizer, and code where Llama's does not do."""

import contextlib
import functools
import math
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np

from flm_jax import json_file, parameters
from flm_jax.huggingface import flm, layout, llama, record, tensor_files
from flm_jax.tasks.tokenizers.reserved import EOS_ID, PAD_ID, UNK_ID
from flm_jax.tasks.vocabulary import Vocabulary
from flm_jax.training.checkpoints import key_path
from flm_jax.training.continuation import find
from flm_jax.training.metadata import CheckpointMismatchError
from flm_jax.training.streaming import StoredState

DTYPES = {
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
}
MAX_SHARD_BYTES = 5_000_000_000
_CODE = ("configuration_flm.py", "modeling_flm.py")


class Export:
    """One checkpoint's export; nothing is read but what is known beside the arrays, until it is written.

    Args:
        checkpoint: `MODEL_DIR/checkpoint_<step>`, or `MODEL_DIR` for the newest.
        dtype: Of the tensors, a key of `DTYPES`; the parameters' own unless given.
        tokenizer: The file of the model's tokenizer, to be copied beside the weights.

    Attributes:
        step: Of the checkpoint.
        config: Of its model.
        dtype: As given, or the parameters' own.
        is_llama: Whether transformers runs the model without code of ours.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        CheckpointMismatchError: its mask still opens, or it lacks parameters of its model.
        ValueError: the tokenizer is another than the model's, or nobody knows which the model's is.
    """

    def __init__(self, checkpoint: Path, dtype: str | None = None, tokenizer: Path | None = None) -> None:
        found = find(checkpoint)
        self.step, self.model_dir, self._metadata = found.step, found.model_dir, found.metadata
        self.config = found.metadata.config
        if found.lineage.mask_at(found.step) is not None:
            raise CheckpointMismatchError(
                f"{found.directory} is in mid-ramp: its growth mask opens until step {found.lineage.ramp_end}, and no "
                f"other program has such a mask; export a checkpoint of step {found.lineage.ramp_end} or later (--step)"
            )
        self._state = StoredState(found.directory / "state")
        self._check_shapes(found.directory)
        self._vocabulary = None if tokenizer is None else Vocabulary(tokenizer)
        if self._vocabulary is not None:
            if found.metadata.data["tokenizer"] is None:
                raise ValueError(
                    f"{found.directory} was imported without a tokenizer, and its ids are the foreign ones, not those "
                    f"that {tokenizer} has here: leave out --tokenizer and copy the foreign files beside the weights, "
                    "or import it again with --tokenizer"
                )
            found.metadata.check_tokenizer(self._vocabulary.sha256, str(tokenizer))
        self.dtype = DTYPES[dtype or self.config.param_dtype]
        self.is_llama = llama.is_llama(self.config)
        form = layout.LLAMA if self.is_llama else layout.FLM
        self._tensors = layout.tensors(self.config, form)

    @property
    def num_bytes(self) -> int:
        """Of all tensors."""
        return sum(math.prod(tensor.shape) for tensor in self._tensors) * self.dtype.itemsize

    def describe(self) -> str:
        """What will be written, for people."""
        kind = (
            "LlamaForCausalLM, which transformers has"
            if self.is_llama
            else "FLM, by modeling_flm.py beside it (trust_remote_code=True)"
        )
        return (
            f"{self.model_dir}/checkpoint_{self.step}: {self.config.num_params:,} parameters as {kind}; "
            f"{len(self._tensors)} tensors of {self.dtype.name}, {self.num_bytes / 1e6:,.1f} MB"
        )

    def write(
        self,
        out: Path,
        max_shard_bytes: int = MAX_SHARD_BYTES,
        check: Callable[[Path], None] = lambda folder: None,
        progress: Callable[[int], None] = lambda size: None,
    ) -> None:
        """Writes the folder `out`, whole or not at all.

        Args:
            out: The folder; empty, or not there.
            max_shard_bytes: Of a file of tensors, and so about what is in memory at a time.
            check: Called with the folder under its first name, before it gets the name `out`; may raise.
            progress: Told the bytes of each tensor that has been made.

        Raises:
            FileExistsError: `out` holds something.
            ValueError: a value does not fit into `dtype`, or the tokenizer would read text in another way there.
        """
        with _whole_or_not(out) as folder:
            if self._vocabulary is not None:  # first, because it may be refused
                self._write_tokenizer(folder, self._vocabulary)
            planned = [
                tensor_files.Planned(tensor.name, tensor.shape, functools.partial(self._make, tensor))
                for tensor in self._tensors
            ]
            tensor_files.write(folder, planned, self.dtype, max_shard_bytes, progress)
            json_file.write_json(folder / "config.json", self._config_json())
            json_file.write_json(folder / "generation_config.json", self._ids())
            for file in folder.glob("*.safetensors"):  # which the library gives to their owner alone
                shutil.copymode(folder / "config.json", file)
            if not self.is_llama:
                for name in _CODE:
                    shutil.copyfile(Path(__file__).parent / "torch_files" / name, folder / name)
            check(folder)

    def _make(self, tensor: layout.Tensor) -> np.ndarray:
        wide = tensor.make(lambda path, layer: self._state.read(("target", *path), layer))
        if self.dtype != np.float16:
            return wide.astype(self.dtype, copy=False)
        with np.errstate(over="ignore"):
            narrow = wide.astype(self.dtype)
        if not np.isfinite(narrow).all():
            raise ValueError(
                f"{tensor.name} has values beyond float16, the largest {np.abs(wide).max():.3g}: export with "
                "--dtype=bfloat16 or float32"
            )
        return narrow

    def _write_tokenizer(self, folder: Path, vocabulary: Vocabulary) -> None:
        """What transformers reads, and the file itself: its checksum is the checkpoint's, should it come back."""
        from flm_jax.tasks.tokenizers.export import export_tokenizer

        export_tokenizer(vocabulary, folder, self.config.max_length)
        shutil.copyfile(vocabulary.path, folder / f"flm_tokenizer{vocabulary.path.suffix}")

    def _config_json(self) -> dict[str, Any]:
        fields = llama.to_json(self.config) if self.is_llama else flm.to_json(self.config)
        return {
            **fields,
            **self._ids(),
            "torch_dtype": self.dtype.name,
            "use_cache": True,
            record.KEY: record.to_json(self.step, self._metadata),
        }

    def _ids(self) -> dict[str, int | None]:
        """Of the tokens that begin and end a document, and of padding: as in `tokenizers.export.special_tokens_map`.

        An imported model whose tokenizer was not given has ids that nobody told us; what is left out, `LlamaConfig`
        takes for 1 and 2.
        """
        if self._metadata.data["tokenizer"] is None:
            return {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
        return {"bos_token_id": PAD_ID, "eos_token_id": EOS_ID, "pad_token_id": UNK_ID}

    def _check_shapes(self, directory: Path) -> None:
        table = jax.tree_util.tree_leaves_with_path(
            parameters.table(self.config), is_leaf=parameters.is_parameter
        )
        for path, row in table:
            stored = self._state.arrays.get(("target", *key_path(path)))
            if stored is None or stored.shape != row.shape(self.config):
                raise CheckpointMismatchError(
                    f"expected {'/'.join(key_path(path))} of shape {row.shape(self.config)} in "
                    f"{directory}/state, found {'none' if stored is None else stored.shape}: it is damaged, or of "
                    "another version of flm_jax"
                )


@contextlib.contextmanager
def _whole_or_not(out: Path) -> Iterator[Path]:
    """A folder under another name, which becomes `out` when all is written, and goes when something is raised."""
    out = Path(out).expanduser().resolve()  # a link cannot be replaced by a folder
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(
            f"expected an empty folder, or none, for --out, found {out}: give another, or empty it"
        )
    partial = out.with_name(f".{out.name}.{os.getpid()}")
    partial.mkdir(parents=True)
    try:
        yield partial
        partial.replace(out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
