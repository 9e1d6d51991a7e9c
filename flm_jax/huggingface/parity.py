"""Whether exported weights compute what the checkpoint does: both models' logits on random tokens, in float32."""

import dataclasses
import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flm_jax.config import ModelConfig
from flm_jax.network import Decoder

TOLERANCE = 1e-4  # of the largest logit; float32 with other orders of summation leaves a tenth of it
_SCRIPT = Path(__file__).parent / "torch_files" / "logits_of.py"
_ROWS, _LENGTH = 2, 64


class ParityError(RuntimeError):
    """The exported model computes something else than the checkpoint, or cannot be run."""


def missing() -> list[str]:
    """The packages that the check needs and that are not installed."""
    return [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]


def check(folder: Path, config: ModelConfig, params: Any, dtype: np.dtype) -> float:
    """Compares the logits of an exported model, run by transformers in a process of its own, with our decoder's.

    Args:
        folder: Of the export.
        config: Of the checkpoint.
        params: Its parameters.
        dtype: Of the export; ours are rounded to it first, so that what is compared is the function.

    Returns:
        The largest difference over the largest logit.

    Raises:
        ParityError: beyond `TOLERANCE`, or transformers cannot run the model.
    """
    length = min(_LENGTH, config.max_length)
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (_ROWS, length)).astype(np.int32)
    theirs = _of_transformers(folder, tokens)
    config = dataclasses.replace(config, dtype="float32", param_dtype="float32", attention="dense")
    params = jax.tree.map(lambda leaf: leaf.astype(dtype).astype(jnp.float32), params)
    ours = np.asarray(jax.jit(Decoder(config).apply)({"params": params}, tokens))
    difference = float(np.abs(ours - theirs).max() / np.abs(ours).max())
    if not difference <= TOLERANCE:
        raise ParityError(
            f"the exported model's logits differ from the checkpoint's by {difference:.1e} relative, expected at most "
            f"{TOLERANCE:.0e}: nothing is written"
        )
    return difference


def _of_transformers(folder: Path, tokens: np.ndarray) -> np.ndarray:
    with tempfile.TemporaryDirectory() as scratch:
        given, found = Path(scratch) / "tokens.npy", Path(scratch) / "logits.npy"
        np.save(given, tokens)
        # The model's code is copied into a cache by the folder's name: one of its own, lest an old copy is run.
        environment = {
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "HF_MODULES_CACHE": str(Path(scratch) / "modules"),
        }
        done = subprocess.run(
            [sys.executable, str(_SCRIPT), str(folder), str(given), str(found)],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise ParityError(
                f"transformers cannot run the exported model (nothing is written): "
                f"{done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f'exit code {done.returncode}'}"
            )
        return np.load(found)
