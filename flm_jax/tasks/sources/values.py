"""Values of binary records, however nested: as plain Python, and how large they are."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from flm_jax.tasks.problems import Problem


def plain(value: Any, key: str) -> Any:
    """Text, numbers, lists and dictionaries, of TFDS's arrays, ragged tensors and bytes.

    Args:
        value: whatever an example holds.
        key: where, for the problem.

    Raises:
        Problem: bytes are not UTF-8.
    """
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise Problem(f"field {key!r} is not UTF-8 (byte {error.start})") from error
    if isinstance(value, Mapping):
        return {name: plain(inner, f"{key}/{name}") for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner, key) for inner in value]
    if isinstance(value, np.ndarray | np.generic):
        found = value.tolist()
        return found if isinstance(found, int | float | str) else plain(found, key)
    if hasattr(value, "to_list"):  # a ragged tensor
        return plain(value.to_list(), key)
    return value


def num_bytes(value: Any) -> int:
    """About how many bytes a value has: text in UTF-8, and 8 for a number."""
    if isinstance(value, str):
        return len(value) if value.isascii() else len(value.encode("utf-8", "surrogatepass"))
    if isinstance(value, bytes):
        return len(value)
    if isinstance(value, Mapping):
        return sum(map(num_bytes, value.values()))
    if isinstance(value, list | tuple):
        return sum(map(num_bytes, value))
    if isinstance(value, np.ndarray):
        return sum(map(num_bytes, value.flat)) if value.dtype.hasobject else value.nbytes
    if hasattr(value, "to_list"):  # a ragged tensor
        return num_bytes(value.to_list())
    return 8
