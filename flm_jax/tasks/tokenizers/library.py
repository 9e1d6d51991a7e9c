"""Libraries of the extra `tokenizers`, imported when a file needs them."""

import importlib
from types import ModuleType


def library(name: str) -> ModuleType:
    """The module.

    Raises:
        ValueError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(
            f"expected the package {name!r}, which this tokenizer needs, found none ({error}): "
            "pip install 'flm_jax[tokenizers]'"
        ) from error
